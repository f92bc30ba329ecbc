// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/cuda/kernels.hpp>
#include <kith/cuda/resources.hpp>
#include <kith/exchange/device/staging.hpp>
#include <kith/exchange/global_mean.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// @brief Exact means over all ranks, the consensus distance, the broadcast and the comparison, between devices.
///
/// The mean is NCCL's own all-reduce (ncclAvg), the fastest there is on every machine: so its bits are not those of the
/// other engines, but the same on every rank. It goes to staging, and from there where it belongs.
template <StreamOrdered C>
class DeviceGlobalMean {
public:
  /// Works with the staging of a session, which outlives it.
  DeviceGlobalMean(C& communicator, DeviceStaging<C>& staging)
      : communicator_(communicator),
        staging_(&staging),
        scratch_(std::make_unique<Scratch>(communicator, staging)),
        everybody_(static_cast<std::size_t>(communicator.size())),
        squares_(static_cast<std::size_t>(communicator.size())),
        digests_(static_cast<std::size_t>(communicator.size())) {
    std::iota(everybody_.begin(), everybody_.end(), Rank{0});
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept {
    return scratch_->own.bytes() + scratch_->sums.bytes() + scratch_->read.bytes();
  }

  /// Enqueues: all ranks' `buffers` become their mean.
  void mean(const Call& call, std::span<const BufferView> buffers, bool check_finite, DeviceStream<C> stream) {
    perform(
        call, buffers, check_finite, stream, [&] { reduce(buffers); }, [&] { commit(buffers, staging_->table()); });
  }

  /// Enqueues: the mean into `targets`, of the same layout. Waits if they are others than before, and small ones too.
  void mean_into(const Call& call, std::span<const BufferView> buffers, std::span<const BufferView> targets,
                 DeviceStream<C> stream) {
    const DeviceTable& table = scratch_->table_of(call, targets);
    perform(
        call, buffers, false, stream, [&] { reduce(buffers); }, [&] { commit(targets, *table); });
  }

  /// Waits; see SharedGlobalMean::distance.
  double distance(const Call& call, std::span<const BufferView> buffers, DeviceStream<C> stream) {
    perform(
        call, buffers, false, stream, [&] { reduce(buffers); }, [&] { add_squares(buffers); });
    engine().drain(call);
    engine().watch().require_in_step();
    double own = 0;
    for (std::size_t i = 0; i < cuda::distance_partials; ++i)
      own += reinterpret_cast<const double*>(scratch_->read.data())[i];
    communicator_.all_gather(call, std::as_bytes(std::span{&own, 1}), std::as_writable_bytes(std::span{squares_}));
    return to_consensus_distance(squares_);
  }

  /// Enqueues: rank `root`'s buffers into everybody's.
  void broadcast(const Call& call, std::span<const BufferView> buffers, Rank root, DeviceStream<C> stream) {
    const bool sends = communicator_.rank() == root;
    const auto send = [&] {
      for (const DeviceLayout::Stretch& stretch : staging_->layout().stretches())
        engine().broadcast(staging_->origin(stretch, buffers), received() + stretch.offset,
                           stretch.count * size_of(stretch.dtype), root);
    };
    perform(call, buffers, false, stream, send, [&] {
      if (!sends) commit(buffers, staging_->table());
    });
  }

  /// Waits: whether all ranks hold the same bits.
  bool agree(const Call& call, std::span<const BufferView> buffers, DeviceStream<C> stream) {
    const auto nothing = [] {};
    perform(call, buffers, false, stream, nothing, [&] { add_digests(buffers); });
    engine().drain(call);
    engine().watch().require_in_step();
    std::uint64_t own = 0;
    std::memcpy(&own, scratch_->read.data(), sizeof own);
    communicator_.all_gather(call, std::as_bytes(std::span{&own, 1}), std::as_writable_bytes(std::span{digests_}));
    for (const std::uint64_t other : digests_)
      if (other != own) return false;
    return true;
  }

private:
  static constexpr std::size_t sums_bytes = cuda::distance_partials * sizeof(double);

  /// What the session's staging does not have.
  struct Scratch {
    Scratch(C& communicator, DeviceStaging<C>& session) : Scratch(cuda::DeviceGuard{communicator.device()}, session) {}
    Scratch(const cuda::DeviceGuard&, DeviceStaging<C>& session)
        : staging(session),
          own(session.slots() > 0 ? 0 : session.layout().bytes()),
          sums(sums_bytes),
          read(sums_bytes) {}
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() {
      if (staging.engine().quiesce()) return;
      own.abandon();
      sums.abandon();
      read.abandon();
      if (table) table->abandon();
    }

    const DeviceTable& table_of(const Call& call, std::span<const BufferView> buffers) {
      const auto same = [](const BufferView& a, const BufferView& b) { return a.data == b.data; };
      if (!table || !std::equal(buffers.begin(), buffers.end(), targets.begin(), targets.end(), same)) {
        const cuda::DeviceGuard guard{staging.engine().device()};
        if (table) staging.engine().drain(call);
        targets.assign(buffers.begin(), buffers.end());
        table.emplace(staging.layout(), buffers, staging.engine().stream());
      }
      return *table;
    }

    DeviceStaging<C>& staging;
    cuda::DeviceMemory own;  // a model's room, where nobody receives anything in rounds
    cuda::DeviceMemory sums;
    cuda::PinnedMemory read;
    std::vector<BufferView> targets;
    std::optional<DeviceTable> table;
  };

  [[nodiscard]] auto& engine() noexcept { return staging_->engine(); }
  [[nodiscard]] std::byte* received() const noexcept {
    return staging_->slots() > 0 ? staging_->slot(0) : scratch_->own.data();
  }

  // Everybody tells everybody which call it is making, then `exchange` follows.
  template <class Exchange, class Commit>
  void perform(const Call& call, std::span<const BufferView> buffers, bool check_finite, DeviceStream<C> stream,
               const Exchange& exchange, const Commit& commit) {
    const auto all = [&] {
      engine().all_gather(staging_->sent_header(), staging_->received_header(0), sizeof(cuda::RoundHeader));
      exchange();
    };
    staging_->perform({call, buffers, everybody_, check_finite}, stream, all, commit);
  }

  void reduce(std::span<const BufferView> buffers) {
    for (const DeviceLayout::Stretch& stretch : staging_->layout().stretches())
      engine().all_reduce_mean(staging_->origin(stretch, buffers), received() + stretch.offset, stretch.count,
                               stretch.dtype);
  }

  void commit(std::span<const BufferView> targets, const cuda::Table& in_bucket) {
    cudaStream_t own = engine().stream();
    const std::uint32_t* const go = staging_->go();
    if (staging_->layout().bucket_bytes() > 0)
      cuda::check(cuda::unpack(in_bucket, received(), go, own), "write small buffers");
    for (const DeviceLayout::Stretch& stretch : staging_->layout().stretches())
      if (stretch.buffer != DeviceLayout::in_bucket)
        cuda::check(cuda::commit_copy(received() + stretch.offset, targets[stretch.buffer].data,
                                      targets[stretch.buffer].bytes(), go, own),
                    "write a buffer");
  }

  void add_squares(std::span<const BufferView> buffers) {
    cudaStream_t own = engine().stream();
    cuda::check(cudaMemsetAsync(scratch_->sums.data(), 0, sums_bytes, own), "clear sums");
    for (const DeviceLayout::Stretch& stretch : staging_->layout().stretches())
      cuda::check(cuda::squared_distance(stretch.dtype, staging_->origin(stretch, buffers), received() + stretch.offset,
                                         stretch.count, scratch_->sums.template as<double>(), own),
                  "add up squared distances");
    read(sums_bytes);
  }

  void add_digests(std::span<const BufferView> buffers) {
    cudaStream_t own = engine().stream();
    cuda::check(cudaMemsetAsync(scratch_->sums.data(), 0, sizeof(std::uint64_t), own), "clear a sum");
    std::uint64_t position = 0;
    for (const BufferView& buffer : buffers) {
      cuda::check(cuda::digest(buffer.data, buffer.bytes(), position, scratch_->sums.template as<std::uint64_t>(), own),
                  "digest a buffer");
      position += (buffer.bytes() + 7) / 8;
    }
    read(sizeof(std::uint64_t));
  }

  void read(std::size_t bytes) {
    cuda::check(
        cudaMemcpyAsync(scratch_->read.data(), scratch_->sums.data(), bytes, cudaMemcpyDeviceToHost, engine().stream()),
        "copy a result");
  }

  C& communicator_;
  DeviceStaging<C>* staging_;
  std::unique_ptr<Scratch> scratch_;  // on the heap: it stays in place when the averager moves
  std::vector<Rank> everybody_;
  std::vector<double> squares_;
  std::vector<std::uint64_t> digests_;
};

template <StreamOrdered C>
struct GlobalMeanFor<C> {
  using type = DeviceGlobalMean<C>;
};

}  // namespace kith::detail
