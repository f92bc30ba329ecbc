// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/cuda/kernels.hpp>
#include <kith/error.hpp>
#include <kith/exchange/device/staging.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/full_precision.hpp>
#include <kith/exchange/layout.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// @brief A round of full values between devices.
///
/// Sends large buffers from where they are and the small ones as one bucket, receives every in-neighbour's message into
/// room of its own, and then averages in one pass: (k + 2) bytes of memory traffic for each byte of the model and k
/// in-neighbours. Adding them up as they come would need room for one message, but a pass for each. (Not measured; the
/// schedules that Kith recommends have one or two in-neighbours.) The bits are those of the other engines.
template <StreamOrdered C>
class DeviceFullPrecision {
public:
  DeviceFullPrecision(C& communicator, const FullPrecision&, const Layout&, const SessionOptions& options)
      : staging_(std::make_unique<DeviceStaging<C>>(communicator, options.buffers, require(options.max_degree),
                                                    options.bucket_bytes)) {
    sources_.reserve(options.max_degree);
    weighted_.reserve(options.max_degree);
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return staging_->bytes(); }
  [[nodiscard]] DeviceStaging<C>& staging() noexcept { return *staging_; }

  /// See DeviceStaging.
  void meet(const Call& call, const Neighborhood& plan) { staging_->meet(call, plan); }

  /// Enqueues a round between what `stream` holds and what it is given next.
  void round(const GossipRound& round, bool check_finite, DeviceStream<C> stream) {
    const Call call = staging_->with_patience(round.call, round.plan);
    sources_.clear();
    for (const auto& source : round.plan.sources()) sources_.push_back(source.rank);
    staging_->perform(
        {call, round.buffers, sources_, check_finite}, stream, [&] { exchange(round); }, [&] { commit(round); });
  }

private:
  static std::size_t require(std::size_t max_degree) {
    if (max_degree > cuda::max_sources)
      throw UsageError("a round on a GPU averages with at most " + std::to_string(cuda::max_sources) +
                       " in-neighbours; the topology has " + std::to_string(max_degree));
    return max_degree;
  }

  void exchange(const GossipRound& round) {
    auto& engine = staging_->engine();
    const DeviceLayout& layout = staging_->layout();
    for (const Rank to : round.plan.targets()) {
      engine.send(staging_->sent_header(), sizeof(cuda::RoundHeader), to);
      if (layout.bucket_bytes() > 0) engine.send(staging_->bucket(), layout.bucket_bytes(), to);
      for (const DeviceLayout::Stretch& stretch : layout.stretches())
        if (stretch.buffer != DeviceLayout::in_bucket)
          engine.send(round.buffers[stretch.buffer].data, round.buffers[stretch.buffer].bytes(), to);
    }
    for (std::size_t k = 0; k < sources_.size(); ++k) {
      engine.receive(staging_->received_header(k), sizeof(cuda::RoundHeader), sources_[k]);
      if (layout.bucket_bytes() > 0) engine.receive(staging_->slot(k), layout.bucket_bytes(), sources_[k]);
      for (const DeviceLayout::Stretch& stretch : layout.stretches())
        if (stretch.buffer != DeviceLayout::in_bucket)
          engine.receive(staging_->slot(k) + stretch.offset, round.buffers[stretch.buffer].bytes(), sources_[k]);
    }
  }

  void commit(const GossipRound& round) {
    cudaStream_t stream = staging_->engine().stream();
    const auto from = [&](std::size_t offset) {
      weighted_.clear();
      for (std::size_t k = 0; k < sources_.size(); ++k)
        weighted_.push_back({staging_->slot(k) + offset, round.plan.sources()[k].weight});
      return std::span<const cuda::Source>{weighted_};
    };
    const DeviceLayout& layout = staging_->layout();
    if (layout.bucket_bytes() > 0)
      cuda::check(cuda::weighted_average(staging_->table(), from(0), round.mixing, staging_->go(), stream),
                  "average small buffers");
    for (const DeviceLayout::Stretch& stretch : layout.stretches())
      if (stretch.buffer != DeviceLayout::in_bucket)
        cuda::check(cuda::weighted_average(stretch.dtype, round.buffers[stretch.buffer].data, from(stretch.offset),
                                           round.mixing, stretch.count, staging_->go(), stream),
                    "average a buffer");
  }

  std::unique_ptr<DeviceStaging<C>> staging_;  // on the heap: DeviceGlobalMean refers to it when the averager moves
  std::vector<Rank> sources_;
  std::vector<cuda::Source> weighted_;
};

template <StreamOrdered C>
struct FullPrecisionSession<C> {
  using type = DeviceFullPrecision<C>;
};

}  // namespace kith::detail
