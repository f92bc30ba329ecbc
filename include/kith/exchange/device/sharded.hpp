// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/cuda/kernels.hpp>
#include <kith/cuda/resources.hpp>
#include <kith/cuda/round.hpp>
#include <kith/error.hpp>
#include <kith/exchange/device/staging.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/sharded.hpp>
#include <kith/exchange/shards.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// @brief A sharded round between devices, for f32 and f64: the three steps of MessageSharded as groups of sends and
/// receives on the one communicator, with the averaging between them. The bits are those of the other engines.
///
/// The model is packed as a whole, so that a shard is one or two stretches of memory. With the data of each step goes a
/// header, which also tells what its sender has heard in the steps before: so a rank learns of everything that its new
/// values would come from, though it talks with few of those ranks, and commits only if all of it is in order.
template <StreamOrdered C>
class DeviceSharded {
public:
  DeviceSharded(C& communicator, const Sharded&, const Layout&, const SessionOptions& options)
      : staging_(std::make_unique<DeviceStaging<C>>(communicator, require(options.buffers), 1, pack_all)),
        counted_(communicator.rank(), communicator.size(), options),
        plan_(communicator.rank(), communicator.size(), of_bucket(options), DeviceLayout::alignment),
        areas_(std::make_unique<Areas>(communicator, *staging_, areas_bytes())) {
    if (std::max(ranks(), plan_.most_machines + 1) > cuda::max_sources)
      throw UsageError("sharded rounds on GPUs take machines of up to " + std::to_string(cuda::max_sources) +
                       " ranks, which hear fewer machines than that");
    sources_.reserve(2 * ranks() + plan_.most_overlaps());
    weighted_.reserve(std::max(ranks(), plan_.most_machines));
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return staging_->bytes() + areas_->memory.bytes(); }
  [[nodiscard]] DeviceStaging<C>& staging() noexcept { return *staging_; }
  /// Of a round with this plan, as the engines of the host count it: without the gaps between packed buffers.
  [[nodiscard]] const RoundTraffic& traffic(const Neighborhood& plan) {
    counted_.prepare(plan);
    return counted_.traffic;
  }

  /// Brings those together that meet in `plan` for the first time: both ends wait, on the host. Of the edges of the
  /// plan a round uses those inside the machine, and those between ranks whose shards overlap.
  void meet(const Call& call, const Neighborhood& plan) {
    auto& engine = staging_->engine();
    engine.enqueue(call, [&] {
      engine.group(call, [&] {
        for (const Rank to : plan.targets())
          if (plan_.shares_with(to) && !engine.has_sent_to(to))
            engine.send(staging_->sent_header(), sizeof(cuda::RoundHeader), to);
        std::size_t k = 0;
        for (const auto& source : plan.sources())
          if (plan_.shares_with(source.rank) && !engine.has_received_from(source.rank))
            engine.receive(staging_->received_header(k++), sizeof(cuda::RoundHeader), source.rank);
      });
    });
  }

  /// Enqueues a round between what `stream` holds and what it is given next.
  void round(const GossipRound& round, bool check_finite, DeviceStream<C> stream) {
    plan_.prepare(round.plan);
    sources_.clear();  // those whose headers come, in the order of the steps
    for_each_member([&](Rank peer, Rank) { sources_.push_back(peer); });
    for (const auto& source : plan_.between.sources)
      plan_.for_each_overlap(source.machine, [&](Rank peer, const ShardRange&) { sources_.push_back(peer); });
    const std::size_t first_steps = sources_.size();
    for_each_member([&](Rank peer, Rank) { sources_.push_back(peer); });
    const Call call = with_patience(round.call);
    staging_->perform(
        {call, round.buffers, sources_, check_finite}, stream, [&] { scatter(); }, [&] { commit(round); },
        [&](cuda::RoundState state, const cuda::RoundHeader& header) {
          cudaStream_t own = staging_->engine().stream();
          add_up();
          state.sources = static_cast<std::uint32_t>(ranks() - 1);
          cuda::check(cuda::relay_round(state, header, own), "pass on what was heard");
          staging_->engine().group(call, [&] { exchange_shards(); });
          merge();
          state.sources = static_cast<std::uint32_t>(first_steps);
          cuda::check(cuda::relay_round(state, header, own), "pass on what was heard");
          staging_->engine().group(call, [&] { gather(first_steps); });
        });
  }

private:
  static constexpr std::size_t pack_all = static_cast<std::size_t>(-1);

  /// Device memory besides the staging's.
  struct Areas {
    Areas(C& communicator, DeviceStaging<C>& session, std::size_t bytes)
        : Areas(cuda::DeviceGuard{communicator.device()}, session, bytes) {}
    Areas(const cuda::DeviceGuard&, DeviceStaging<C>& session, std::size_t bytes) : staging(session), memory(bytes) {}
    Areas(const Areas&) = delete;
    Areas& operator=(const Areas&) = delete;
    ~Areas() {
      if (!staging.engine().quiesce()) memory.abandon();
    }
    DeviceStaging<C>& staging;
    cuda::DeviceMemory memory;
  };

  static std::span<const BufferView> require(std::span<const BufferView> buffers) {
    for (std::size_t b = 0; b < buffers.size(); ++b)
      if (buffers[b].dtype != DType::f32 && buffers[b].dtype != DType::f64)
        throw UsageError(
            "buffer " + std::to_string(b) + " has elements of " + std::string{to_string(buffers[b].dtype)} +
            ": sharded rounds on GPUs average f32 and f64. Average the fp32 masters, or use full-precision");
    return buffers;
  }

  // The bucket as a model of one buffer for each element type.
  [[nodiscard]] SessionOptions of_bucket(SessionOptions options) {
    for (const DeviceLayout::Stretch& stretch : staging_->layout().stretches())
      stretches_.push_back({nullptr, stretch.count, stretch.dtype});
    options.buffers = stretches_;
    return options;
  }

  [[nodiscard]] std::size_t ranks() const noexcept { return static_cast<std::size_t>(plan_.ranks_here); }
  [[nodiscard]] std::size_t area_bytes() const noexcept {
    return (plan_.own.bytes() + DeviceLayout::alignment - 1) / DeviceLayout::alignment * DeviceLayout::alignment;
  }
  [[nodiscard]] std::size_t areas_bytes() const noexcept { return (ranks() + plan_.most_machines) * area_bytes(); }
  // The own shard as the other ranks here have it, and the means of the other machines.
  [[nodiscard]] std::byte* received(Rank index) const noexcept {
    return areas_->memory.data() + static_cast<std::size_t>(index) * area_bytes();
  }
  [[nodiscard]] std::byte* mean_of(std::size_t source) const noexcept {
    return areas_->memory.data() + (ranks() + source) * area_bytes();
  }
  // Where the merged model grows.
  [[nodiscard]] std::byte* merged() const noexcept { return staging_->slot(0); }

  template <class F>
  void for_each_member(const F& f) const {
    for (Rank index = 0; index < plan_.ranks_here; ++index)
      if (index != plan_.own_index) f(plan_.machines.member(plan_.own_machine, index), index);
  }

  // Calls f(dtype, elements, place in the bucket, place in an area of the own shard) for the pieces of a range.
  template <class F>
  void for_each_piece(const ShardRange& range, const F& f) const {
    plan_.layout.for_each(
        range.begin, range.end, [&](std::size_t s, std::size_t first, std::size_t count, std::size_t offset) {
          const DeviceLayout::Stretch& stretch = staging_->layout().stretches()[s];
          f(stretch.dtype, count, stretch.offset + first * size_of(stretch.dtype), offset - plan_.own.begin);
        });
  }

  void send_header(Rank to) { staging_->engine().send(staging_->sent_header(), sizeof(cuda::RoundHeader), to); }
  void receive_header(std::size_t k, Rank from) {
    staging_->engine().receive(staging_->received_header(k), sizeof(cuda::RoundHeader), from);
  }
  void send(const std::byte* model, const ShardRange& range, Rank to) {
    for_each_piece(range, [&](DType dtype, std::size_t count, std::size_t at, std::size_t) {
      staging_->engine().send(model + at, count * size_of(dtype), to);
    });
  }

  [[nodiscard]] Call with_patience(const Call& given) {
    Call call = given;
    bool new_peer = false;
    for (const Rank from : sources_) new_peer = new_peer || !staging_->engine().has_received_from(from);
    for (const Rank machine : plan_.between.targets)
      plan_.for_each_overlap(
          machine, [&](Rank to, const ShardRange&) { new_peer = new_peer || !staging_->engine().has_sent_to(to); });
    if (new_peer) call.deadline *= 4;
    return call;
  }

  void scatter() {
    std::size_t k = 0;
    for_each_member([&](Rank peer, Rank index) {
      send_header(peer);
      receive_header(k++, peer);
      send(staging_->bucket(), plan_.shard(index, plan_.ranks_here), peer);
      for_each_piece(plan_.own, [&](DType dtype, std::size_t count, std::size_t, std::size_t in_area) {
        staging_->engine().receive(received(index) + in_area, count * size_of(dtype), peer);
      });
    });
  }

  void add_up() {
    const double weight = 1.0 / static_cast<double>(ranks());
    for_each_piece(plan_.own, [&](DType dtype, std::size_t count, std::size_t at, std::size_t in_area) {
      const auto values = [&](Rank index) {
        return index == plan_.own_index ? staging_->bucket() + at : received(index) + in_area;
      };
      cudaStream_t own = staging_->engine().stream();
      cuda::check(cuda::commit_copy(values(0), merged() + at, count * size_of(dtype), nullptr, own), "copy a shard");
      weighted_.clear();
      for (Rank index = 1; index < plan_.ranks_here; ++index) weighted_.push_back({values(index), weight});
      average(dtype, merged() + at, count);
    });
  }

  void exchange_shards() {
    for (const Rank machine : plan_.between.targets)
      plan_.for_each_overlap(machine, [&](Rank peer, const ShardRange& range) {
        send_header(peer);
        send(merged(), range, peer);
      });
    std::size_t k = ranks() - 1;
    for (std::size_t source = 0; source < plan_.between.sources.size(); ++source)
      plan_.for_each_overlap(plan_.between.sources[source].machine, [&](Rank peer, const ShardRange& range) {
        receive_header(k++, peer);
        for_each_piece(range, [&](DType dtype, std::size_t count, std::size_t, std::size_t in_area) {
          staging_->engine().receive(mean_of(source) + in_area, count * size_of(dtype), peer);
        });
      });
  }

  void merge() {
    for_each_piece(plan_.own, [&](DType dtype, std::size_t count, std::size_t at, std::size_t in_area) {
      weighted_.clear();
      for (std::size_t source = 0; source < plan_.between.sources.size(); ++source)
        weighted_.push_back({mean_of(source) + in_area, plan_.between.sources[source].weight});
      average(dtype, merged() + at, count);
    });
  }

  void average(DType dtype, std::byte* values, std::size_t count) {
    cuda::check(cuda::weighted_average(dtype, values, weighted_, 1, count, nullptr, staging_->engine().stream()),
                "average a shard");
  }

  void gather(std::size_t first_header) {
    std::size_t k = first_header;
    for_each_member([&](Rank peer, Rank index) {
      send_header(peer);
      receive_header(k++, peer);
      send(merged(), plan_.own, peer);
      for_each_piece(plan_.shard(index, plan_.ranks_here),
                     [&](DType dtype, std::size_t count, std::size_t at, std::size_t) {
                       staging_->engine().receive(merged() + at, count * size_of(dtype), peer);
                     });
    });
  }

  void commit(const GossipRound& round) {
    if (staging_->layout().bucket_bytes() == 0) return;
    cudaStream_t own = staging_->engine().stream();
    if (round.mixing == 1) {
      cuda::check(cuda::unpack(staging_->table(), merged(), staging_->go(), own), "write the parameters");
      return;
    }
    const cuda::Source whole{merged(), 1};
    cuda::check(cuda::weighted_average(staging_->table(), {&whole, 1}, round.mixing, staging_->go(), own),
                "average the parameters");
  }

  std::unique_ptr<DeviceStaging<C>> staging_;  // on the heap: DeviceGlobalMean refers to it when the averager moves
  std::vector<BufferView> stretches_;
  ShardPlan counted_;  // of the caller's buffers
  ShardPlan plan_;
  std::unique_ptr<Areas> areas_;
  std::vector<Rank> sources_;
  std::vector<cuda::Source> weighted_;
};

template <StreamOrdered C>
struct ShardedSession<C> {
  using type = DeviceSharded<C>;
};

}  // namespace kith::detail
