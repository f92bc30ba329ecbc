// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/cuda/kernels.hpp>
#include <kith/cuda/resources.hpp>
#include <kith/exchange/device/staging.hpp>
#include <kith/exchange/hidden.hpp>
#include <kith/exchange/layout.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// @brief A hidden round between devices: the caller's stream copies the model, Kith's goes on with the copy, and at
/// the end the caller's adds what has changed in it, if the round was committed.
///
/// The snapshot s and the copy y lie in memory as a message does, small buffers together: they are packed, and added,
/// with one launch for each dtype.
template <StreamOrdered C, class Session>
class HiddenRound<C, Session> {
public:
  template <class MakeSession>
  HiddenRound(C& communicator, const Layout&, std::span<const BufferView> buffers, Session& session, const MakeSession&)
      : HiddenRound(cuda::DeviceGuard{communicator.device()}, session.staging(), buffers) {
    const cuda::DeviceGuard guard{communicator.device()};
    if constexpr (requires { session.add_copy(views_); }) session.add_copy(views_);
  }
  HiddenRound(const HiddenRound&) = delete;
  HiddenRound& operator=(const HiddenRound&) = delete;
  ~HiddenRound() {
    if (staging_.engine().quiesce()) return;
    memory_.abandon();
    if (table_) table_->abandon();
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return memory_.bytes() + (table_ ? table_->bytes() : 0); }

  /// Enqueues on `stream` a copy of `buffers`, and behind that, beside what `stream` is given next, `round(copy)`.
  template <class Round>
  void start(const Call& call, std::span<const BufferView> buffers, DeviceStream<C> stream, const Round& round) {
    auto& engine = staging_.engine();
    engine.enqueue(call, [&] {
      staging_.order_behind_table(stream);
      if (layout().bucket_bytes() > 0)
        cuda::check(cuda::pack(staging_.table(), before(), nullptr, stream), "pack small buffers");
      for (const DeviceLayout::Stretch& stretch : layout().stretches())
        if (stretch.buffer != DeviceLayout::in_bucket)
          cuda::check(cuda::commit_copy(buffers[stretch.buffer].data, before() + stretch.offset,
                                        buffers[stretch.buffer].bytes(), nullptr, stream),
                      "copy a buffer");
      cuda::order(begun_, stream, engine.stream());
      cuda::check(cuda::commit_copy(before(), after(), layout().bytes(), nullptr, engine.stream()), "copy a snapshot");
    });
    {
      const typename DeviceStaging<C>::Aside aside{staging_, *table_};
      round(std::span<const BufferView>{views_});
    }
    engine.enqueue(call, [&] { cuda::check(cudaEventRecord(over_.get(), engine.stream()), "record an event"); });
  }

  /// Enqueues the wait for it on `stream`, and behind that the change, if there can be one.
  void finish(const Call& call, std::span<const BufferView> buffers, bool changes, DeviceStream<C> stream) {
    auto& engine = staging_.engine();
    engine.enqueue(call, [&] {
      cuda::check(cudaStreamWaitEvent(stream, over_.get(), 0), "let a stream wait for an event");
      if (changes) add(buffers, stream);
      // Whoever waits for Kith's stream knows that nothing reads this memory any more.
      cuda::order(added_, stream, engine.stream());
    });
  }

private:
  HiddenRound(const cuda::DeviceGuard&, DeviceStaging<C>& staging, std::span<const BufferView> buffers)
      : staging_(staging), memory_(2 * staging.layout().bytes()), views_(buffers.begin(), buffers.end()) {
    for (std::size_t b = 0; b < views_.size(); ++b)
      if (views_[b].count > 0) views_[b].data = after() + layout().place(b);
    table_.emplace(layout(), views_, staging_.engine().stream());
  }

  void add(std::span<const BufferView> buffers, DeviceStream<C> stream) {
    if (layout().bucket_bytes() > 0)
      cuda::check(cuda::add_difference(staging_.table(), after(), before(), staging_.go(), stream),
                  "add to small buffers");
    for (const DeviceLayout::Stretch& stretch : layout().stretches())
      if (stretch.buffer != DeviceLayout::in_bucket)
        cuda::check(cuda::add_difference(stretch.dtype, buffers[stretch.buffer].data, after() + stretch.offset,
                                         before() + stretch.offset, stretch.count, staging_.go(), stream),
                    "add to a buffer");
  }

  [[nodiscard]] const DeviceLayout& layout() const noexcept { return staging_.layout(); }
  [[nodiscard]] std::byte* before() const noexcept { return memory_.data(); }
  [[nodiscard]] std::byte* after() const noexcept { return memory_.data() + layout().bytes(); }

  DeviceStaging<C>& staging_;
  cuda::DeviceMemory memory_;
  std::vector<BufferView> views_;  // of y
  std::optional<DeviceTable> table_;
  cuda::Event begun_;
  cuda::Event over_;
  cuda::Event added_;
};

}  // namespace kith::detail
