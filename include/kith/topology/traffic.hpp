// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <kith/topology.hpp>
#include <kith/topology/machines.hpp>
#include <kith/types.hpp>

namespace kith {

namespace detail {

/// With how many of the `theirs` shards of another machine shard `index` of `mine` overlaps, in a model long enough.
[[nodiscard]] constexpr std::uint64_t overlaps(Rank index, Rank mine, Rank theirs) noexcept {
  const std::int64_t first = std::int64_t{index} * theirs / mine;
  const std::int64_t last = ((std::int64_t{index} + 1) * theirs + mine - 1) / mine;
  return static_cast<std::uint64_t>(last - first);
}

inline void raise_to(LinkTraffic& most, const LinkTraffic& seen) noexcept {
  most.messages = std::max(most.messages, seen.messages);
  most.models = std::max(most.models, seen.models);
}

/// Counts over rounds and ranks. A long schedule is looked at in its first rounds: a few seconds at most.
template <Topology T>
[[nodiscard]] MachineTraffic count_traffic(const T& topology, Rank size, const Machines& machines, bool as_one) {
  constexpr Round most_rounds = 720;
  constexpr std::size_t most_messages = std::size_t{1} << 24;
  MachineTraffic traffic;
  traffic.machines = machines.count(size);
  if (as_one) traffic.sharded_fast = traffic.sharded_slow = LinkTraffic{};
  const Round period = topology.period(size);
  std::size_t messages = 0;
  Neighborhood plan;
  MachinePlan between;
  for (Round t = 0; t < (period == 0 ? most_rounds : std::min(period, most_rounds)) && messages < most_messages; ++t)
    for (Rank rank = 0; rank < size; ++rank) {
      plan_round(topology, rank, size, t, plan);
      messages += plan.targets().size() + 1;
      LinkTraffic fast;
      LinkTraffic slow;
      for (const Rank target : plan.targets()) {
        LinkTraffic& link = machines.of(target) == machines.of(rank) ? fast : slow;
        ++link.messages;
        link.models += 1;
      }
      raise_to(traffic.fast, fast);
      raise_to(traffic.slow, slow);
      if (!as_one) continue;
      between.derive(machines, rank, size, plan);
      const Rank ranks = machines.ranks(machines.of(rank), size);
      const auto others = static_cast<std::uint64_t>(ranks - 1);
      raise_to(*traffic.sharded_fast, {2 * others, 2.0 * static_cast<double>(others) / ranks});
      LinkTraffic shards{0, static_cast<double>(between.targets.size()) / ranks};
      for (const Rank target : between.targets) {
        const Rank theirs = machines.ranks(target, size);
        shards.messages += overlaps(machines.index(rank), ranks, theirs);
        traffic.shards_match = traffic.shards_match && theirs == ranks;
      }
      raise_to(*traffic.sharded_slow, shards);
    }
  return traffic;
}

}  // namespace detail

/// @brief What any topology sends inside machines and between them, where ranks with equal numbers in `machine_of`
/// share one: flat gossip, say, on machines of eight GPUs. The fields of Sharded stay empty; analyze() has them for
/// topologies that say themselves which ranks share a machine.
///
/// Of a schedule with a long period, or none, the first rounds are looked at: up to 720. Throws UsageError for a size
/// that the topology refuses, and for a map of another size.
template <Topology T>
[[nodiscard]] MachineTraffic machine_traffic(const T& topology, Rank size, const std::vector<Rank>& machine_of) {
  require_size(topology, size);
  const detail::Machines machines{std::span<const Rank>{machine_of}};
  machines.require(size);
  return detail::count_traffic(topology, size, machines, false);
}

}  // namespace kith
