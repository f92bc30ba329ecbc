// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <kith/error.hpp>
#include <kith/topology.hpp>
#include <kith/topology/machines.hpp>
#include <kith/types.hpp>

namespace kith::detail {

/// One rank's edges in all rounds of a period: what an exchange that keeps something for each edge is built from.
struct PeriodPlan {
  std::string topology;
  /// Rounds until the schedule repeats; 0: never, and then nothing else is known.
  Round rounds = 1;
  /// Whom this rank hears, and whom it tells, in some round; in ascending rank.
  std::vector<Rank> sources;
  std::vector<Rank> targets;
  /// [rounds][targets of that round]: the weight that each target, in ascending rank, gives to this rank's value.
  std::vector<std::vector<double>> told;
  /// Whether this rank gives its peers the weights that they give to it, in every round.
  bool symmetric = true;
  /// Which ranks share a machine, for exchanges that ask.
  std::optional<Machines> machines{};

  /// The place of a rank in `sources` or `targets`.
  [[nodiscard]] static std::size_t place(std::span<const Rank> ranks, Rank rank) noexcept {
    return static_cast<std::size_t>(std::lower_bound(ranks.begin(), ranks.end(), rank) - ranks.begin());
  }
};

/// Looks at a whole period. Throws UsageError for one that is too long for that.
template <Topology T>
[[nodiscard]] PeriodPlan plan_period(const T& topology, Rank rank, Rank size) {
  constexpr Round longest = Round{1} << 20;
  PeriodPlan period;
  period.topology = topology_name(topology);
  period.rounds = size > 1 ? topology.period(size) : 1;
  if (period.rounds > longest)
    throw UsageError("the period of " + period.topology + ", " + std::to_string(period.rounds) +
                     " rounds, is too long to keep what each of its edges needs");
  Neighborhood own;
  Neighborhood others;
  for (Round t = 0; t < period.rounds; ++t) {
    plan_round(topology, rank, size, t, own);
    std::vector<double>& told = period.told.emplace_back();
    bool symmetric = own.sources().size() == own.targets().size();
    for (std::size_t k = 0; k < own.targets().size(); ++k) {
      plan_round(topology, own.targets()[k], size, t, others);
      double weight = 0;
      for (const auto& source : others.sources())
        if (source.rank == rank) weight = source.weight;
      told.push_back(weight);
      symmetric = symmetric && own.sources()[k] == Neighborhood::Source{own.targets()[k], weight};
    }
    period.symmetric = period.symmetric && symmetric;
    for (const auto& source : own.sources()) period.sources.push_back(source.rank);
    period.targets.insert(period.targets.end(), own.targets().begin(), own.targets().end());
  }
  for (std::vector<Rank>* ranks : {&period.sources, &period.targets}) {
    std::sort(ranks->begin(), ranks->end());
    ranks->erase(std::unique(ranks->begin(), ranks->end()), ranks->end());
  }
  return period;
}

}  // namespace kith::detail
