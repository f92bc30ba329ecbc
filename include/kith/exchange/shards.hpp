// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <kith/error.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/numeric/compute_type.hpp>
#include <kith/topology.hpp>
#include <kith/topology/machines.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// A model as one range of bytes without gaps, in the types that it is computed in, and how that is cut into shards of
/// whole elements.
class ShardLayout {
public:
  /// Cuts lie `granule` bytes apart in each buffer, a multiple of the elements' sizes; 0: anywhere between elements.
  explicit ShardLayout(std::span<const BufferView> buffers, std::size_t granule = 0) : granule_(granule) {
    for (const BufferView& buffer : buffers) {
      widths_.push_back(size_of(compute_dtype(buffer.dtype)));
      offsets_.push_back(offsets_.back() + buffer.count * widths_.back());
    }
  }

  [[nodiscard]] std::size_t bytes() const noexcept { return offsets_.back(); }

  /// Where shard `index` of `shards` begins, and the one before ends: at this share of the bytes, rounded down.
  [[nodiscard]] std::size_t cut(Rank index, Rank shards) const noexcept {
    const auto k = static_cast<std::size_t>(index);
    const auto n = static_cast<std::size_t>(shards);
    const std::size_t at = bytes() / n * k + bytes() % n * k / n;
    if (at == bytes()) return at;
    const std::size_t b = buffer_at(at);
    return at - (at - offsets_[b]) % std::max(granule_, widths_[b]);
  }

  /// Calls f(buffer, first element, elements, offset of the first) for each piece of a buffer in [begin, end): cuts.
  template <class F>
  void for_each(std::size_t begin, std::size_t end, const F& f) const {
    if (begin >= end) return;
    for (std::size_t b = buffer_at(begin); b < widths_.size() && offsets_[b] < end; ++b) {
      const std::size_t from = std::max(begin, offsets_[b]);
      const std::size_t to = std::min(end, offsets_[b + 1]);
      if (from < to) f(b, (from - offsets_[b]) / widths_[b], (to - from) / widths_[b], from);
    }
  }

private:
  // The buffer that holds a byte of the range.
  [[nodiscard]] std::size_t buffer_at(std::size_t byte) const noexcept {
    return static_cast<std::size_t>(std::upper_bound(offsets_.begin(), offsets_.end(), byte) - offsets_.begin()) - 1;
  }

  std::size_t granule_;
  std::vector<std::size_t> offsets_{0};
  std::vector<std::size_t> widths_;
};

/// What a rank sends and receives in a round.
struct RoundTraffic {
  std::uint64_t messages_sent = 0;
  std::uint64_t bytes_sent = 0;
  std::uint64_t bytes_received = 0;
};

/// Bytes [begin, end) of a ShardLayout.
struct ShardRange {
  std::size_t begin;
  std::size_t end;
  [[nodiscard]] bool empty() const noexcept { return begin >= end; }
  [[nodiscard]] std::size_t bytes() const noexcept { return empty() ? 0 : end - begin; }
  [[nodiscard]] friend ShardRange operator&(const ShardRange& a, const ShardRange& b) noexcept {
    return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
  }
};

/// What one rank does in a sharded round: the same on every engine.
struct ShardPlan {
  /// `granule` as in ShardLayout.
  ShardPlan(Rank rank, Rank size, const SessionOptions& options, std::size_t granule = 0)
      : machines(*options.period.machines),
        layout(options.buffers, granule),
        own_rank(rank),
        own_machine(machines.of(rank)),
        own_index(machines.index(rank)),
        ranks_here(machines.ranks(own_machine, size)),
        own(shard(own_index, ranks_here)),
        group_size(size) {
    const auto others = static_cast<std::size_t>(machines.count(size) - 1);
    while (most_machines < others && machines.ranks_of_largest(1 + static_cast<Rank>(most_machines), size) - 1 <
                                         static_cast<Rank>(options.max_degree))
      ++most_machines;
    between = MachinePlan{static_cast<Rank>(most_machines)};
    for (Rank index = 0; index < ranks_here; ++index) {
      std::size_t bytes = 0;
      const ShardRange range = shard(index, ranks_here);
      layout.for_each(range.begin, range.end, [&](std::size_t b, std::size_t, std::size_t count, std::size_t) {
        bytes += count * size_of(options.buffers[b].dtype);
      });
      raw_bytes.push_back(bytes);
    }
  }

  /// Shard `index` of a machine of so many ranks.
  [[nodiscard]] ShardRange shard(Rank index, Rank ranks) const noexcept {
    return {layout.cut(index, ranks), layout.cut(index + 1, ranks)};
  }
  /// Calls f(rank, range) for the ranks of another machine whose shards overlap with the own one.
  template <class F>
  void for_each_overlap(Rank machine, const F& f) const {
    const Rank ranks = machines.ranks(machine, group_size);
    for (Rank index = 0; index < ranks; ++index)
      if (const ShardRange common = own & shard(index, ranks); !common.empty())
        f(machines.member(machine, index), common);
  }
  /// Whether a round may bring something from the one to the other: on one machine, or with shards that overlap.
  [[nodiscard]] bool shares_with(Rank peer) const noexcept {
    const Rank machine = machines.of(peer);
    return machine == own_machine || !(own & shard(machines.index(peer), machines.ranks(machine, group_size))).empty();
  }
  /// The most ranks of other machines that this one has messages with, each way.
  [[nodiscard]] std::size_t most_overlaps() const noexcept {
    return static_cast<std::size_t>(machines.ranks_of_largest(static_cast<Rank>(most_machines), group_size));
  }

  /// Reads a round's plan.
  void prepare(const Neighborhood& plan) {
    between.derive(machines, own_rank, group_size, plan);
    if (std::max(between.sources.size(), between.targets.size()) > most_machines)
      throw UsageError("a machine has more peers than the max_degree of the topology allows");
    traffic = {};
    for (Rank index = 0; index < ranks_here; ++index) {
      if (index == own_index) continue;
      const std::size_t raw = raw_bytes[static_cast<std::size_t>(index)];
      send(raw);
      send(own.bytes());
      traffic.bytes_received += raw_bytes[static_cast<std::size_t>(own_index)] + shard(index, ranks_here).bytes();
    }
    for (const Rank machine : between.targets)
      for_each_overlap(machine, [&](Rank, const ShardRange& range) { send(range.bytes()); });
    traffic.bytes_received += between.sources.size() * own.bytes();
  }

  Machines machines;
  ShardLayout layout;
  Rank own_rank;
  Rank own_machine;
  Rank own_index;
  Rank ranks_here;
  ShardRange own;
  std::size_t most_machines = 0;       // that this one hears or tells in a round
  std::vector<std::size_t> raw_bytes;  // of each shard of this machine, in the buffers' own types
  MachinePlan between;
  Rank group_size;
  RoundTraffic traffic;

private:
  void send(std::size_t bytes) noexcept {
    if (bytes == 0) return;
    ++traffic.messages_sent;
    traffic.bytes_sent += bytes;
  }
};

}  // namespace kith::detail
