// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <kith/background.hpp>
#include <kith/codec/detail/tiles.hpp>
#include <kith/communicator.hpp>
#include <kith/exchange/finite.hpp>
#include <kith/exchange/layout.hpp>
#include <kith/numeric/codec_kernels.hpp>
#include <kith/numeric/compute_type.hpp>
#include <kith/numeric/convert.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// @brief A snapshot s of a model, and the copy y that a round works on while the model goes on.
///
/// What can be done beside the caller is: that copies the model once, and adds the difference once.
class HiddenModel {
public:
  HiddenModel(const Layout& layout, std::span<const BufferView> buffers)
      : layout_(layout),
        bytes_(2 * layout.bytes() + Layout::alignment),
        memory_(std::make_unique_for_overwrite<std::byte[]>(bytes_)) {
    void* begin = memory_.get();
    std::size_t room = bytes_;
    snapshot_ = static_cast<std::byte*>(std::align(Layout::alignment, 2 * layout.bytes(), begin, room));
    copy_ = snapshot_ + layout.bytes();
    std::memset(snapshot_, 0, 2 * layout.bytes());  // also the gaps, and every page is touched before the first round
    views_.assign(buffers.begin(), buffers.end());
    layout_.for_each(buffers, 0, layout.bytes(), [&](std::size_t b, std::size_t, std::size_t, std::size_t offset) {
      views_[b].data = copy_ + offset;
    });
  }

  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  /// y, buffer by buffer.
  [[nodiscard]] std::span<const BufferView> views() const noexcept { return views_; }

  /// s = x
  void take(std::span<const BufferView> buffers) noexcept { pack(layout_, buffers, 0, layout_.bytes(), snapshot_); }
  /// y = s
  void copy() noexcept { std::memcpy(copy_, snapshot_, layout_.bytes()); }

  /// y = y - s, where a difference has the type of the values.
  void subtract() noexcept {
    each([&]<class T>(std::size_t b, std::size_t offset) {
      if (is_wide<T>(b))
        accumulate(codec_kernels(), value<T>(copy_, offset), value<T>(snapshot_, offset), T{-1}, views_[b].count);
    });
  }

  /// x = x + (y - s), after subtract(); every operation is rounded on its own, and 16-bit values once, at the end.
  void add_to(std::span<const BufferView> buffers) noexcept {
    each([&]<class T>(std::size_t b, std::size_t offset) {
      if (is_wide<T>(b))
        accumulate(codec_kernels(), reinterpret_cast<T*>(buffers[b].data), value<T>(copy_, offset), T{1},
                   views_[b].count);
      else if constexpr (std::is_same_v<T, float>)
        add_narrow(buffers[b], offset);
    });
  }

private:
  template <class F>
  void each(const F& f) noexcept {
    layout_.for_each(views_, 0, layout_.bytes(), [&](std::size_t b, std::size_t, std::size_t, std::size_t offset) {
      with_compute_type(views_[b].dtype, [&]<class T>() { f.template operator()<T>(b, offset); });
    });
  }
  template <class T>
  [[nodiscard]] bool is_wide(std::size_t b) const noexcept {
    return size_of(views_[b].dtype) == sizeof(T);
  }
  template <class T>
  [[nodiscard]] static T* value(std::byte* model, std::size_t offset) noexcept {
    return reinterpret_cast<T*>(model + offset);
  }

  void add_narrow(const BufferView& buffer, std::size_t offset) noexcept {
    float before[tile_elements];
    Add{1}.tiles<float>(buffer, [&](float* to, std::size_t first, std::size_t count) {
      const std::size_t at = offset + first * size_of(buffer.dtype);
      widen(buffer.dtype, copy_ + at, to, count);
      widen(buffer.dtype, snapshot_ + at, before, count);
      accumulate(codec_kernels(), to, before, -1.0F, count);
    });
  }

  const Layout& layout_;
  std::size_t bytes_;
  std::unique_ptr<std::byte[]> memory_;
  std::byte* snapshot_;
  std::byte* copy_;
  std::vector<BufferView> views_;
};

/// What a round says besides its values.
struct RoundOutcome {
  std::optional<NonFinite> found;
  Seconds waited{0};
};

/// @brief A round that goes on beside the caller: its memory, and what has become of it.
///
/// `Session`: of the exchange. The round works with the averager's own, so that what it keeps of its peers goes on with
/// every round; with one more where peers read the parameters in place, which a snapshot cannot be.
template <Communicator C, class Session>
class HiddenRound {
public:
  /// Collective where `make_session()` is called: it makes a session that reads nothing in place.
  template <class MakeSession>
  HiddenRound(C& communicator, const Layout& layout, std::span<const BufferView> buffers, Session& session,
              const MakeSession& make_session)
      : communicator_(communicator), model_(layout, buffers) {
    if constexpr (requires { session.ever_in_place(); })
      if (session.ever_in_place()) own_session_ = make_session();
  }
  HiddenRound(const HiddenRound&) = delete;
  HiddenRound& operator=(const HiddenRound&) = delete;
  ~HiddenRound() = default;  // see Settled

  [[nodiscard]] std::size_t staging_bytes() const noexcept {
    std::size_t bytes = model_.bytes();
    if (own_session_) bytes += own_session_->staging_bytes();
    return bytes;
  }
  [[nodiscard]] HiddenModel& model() noexcept { return model_; }
  [[nodiscard]] Session& session(Session& averagers) noexcept { return own_session_ ? *own_session_ : averagers; }

  /// Snapshots `buffers` and lets `round()` go on, which averages model().views() and returns a RoundOutcome.
  template <class Round>
  void start(std::span<const BufferView> buffers, Round round) {
    model_.take(buffers);
    error_ = nullptr;
    const auto work = [this, round] {
      try {
        model_.copy();
        outcome_ = round();
        if (!outcome_.found) model_.subtract();
      } catch (...) {
        error_ = std::current_exception();
      }
    };
    if constexpr (requires { communicator_.background(); })
      communicator_.background().start(task_, work);
    else
      work();
  }

  /// Waits until it is over, and throws what it has thrown. What it says to have waited is what this call has waited.
  RoundOutcome land() {
    const auto start = std::chrono::steady_clock::now();
    if constexpr (requires { communicator_.background(); }) communicator_.background().wait(task_);
    outcome_.waited = std::chrono::steady_clock::now() - start;
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    return outcome_;
  }

private:
  C& communicator_;
  HiddenModel model_;
  std::unique_ptr<Session> own_session_;
  Background::Task task_;
  RoundOutcome outcome_;
  std::exception_ptr error_;
};

}  // namespace kith::detail
