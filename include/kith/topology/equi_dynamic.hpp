// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include <kith/numeric/counter_rng.hpp>
#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>

namespace kith {

/// @brief One-peer directed EquiTopo (OD-EquiDyn): in every round all ranks draw the same distance u from 1..size-1;
/// each tells the rank u ahead of it and hears the one as far behind.
///
/// W = (1 - eta) I + eta A(u) with A(u) = (size-1)/size S^u + I/size and eta = 1/2, so the peer's value weighs
/// (size-1) / (2 size). Directed, any size; in expectation the error shrinks by about the same factor whatever the
/// size, and is never exactly zero.
///
/// @par Cost          One message of the model's size each way per rank and round, whatever the size.
/// @par Thread safety A value; every member is a pure function.
/// @par Source        Song et al., Communication-Efficient Topologies for Decentralized Learning with O(1) Consensus
///                    Rate, NeurIPS 2022.
struct EquiDynamic {
  static constexpr std::string_view name = "equi-dynamic";

  std::uint64_t seed = 0;

  /// 0: the schedule does not repeat. 1 for a single rank.
  [[nodiscard]] static constexpr Round period(Rank size) noexcept { return size < 2 ? 1 : 0; }

  [[nodiscard]] static constexpr Rank max_degree(Rank size) noexcept { return size < 2 ? 0 : 1; }

  /// Appends the one peer that `rank` hears and the one that it tells in `round`. Requires 0 <= rank < size.
  void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const {
    if (size < 2) return;
    const auto others = static_cast<std::uint64_t>(size) - 1;
    const auto distance = static_cast<Rank>(1 + CounterRng{seed}.below(others, round));
    out.hear(detail::behind(rank, distance, size), (size - 1.0) / (2.0 * size));
    out.tell(detail::ahead(rank, distance, size));
  }

  /// The seed, in decimal.
  [[nodiscard]] std::string parameters() const { return std::to_string(seed); }

  /// The inverse of parameters(); nothing means seed 0. Throws UsageError for anything else.
  [[nodiscard]] static EquiDynamic from_parameters(std::string_view text) {
    return {.seed = detail::parse_seed(name, text)};
  }

  /// E[W^T W] - J has the norm 1/2 - 1/(2 size): the mean of S^u over all u is (size J - I) / (size - 1).
  [[nodiscard]] static TopologyReport report(Rank size) noexcept {
    if (size < 2) return detail::report_of_one();
    TopologyReport report;
    report.period = 0;
    report.max_degree = 1;
    report.symmetric = size == 2;
    report.randomized = true;
    report.contraction = std::sqrt(0.5 - 0.5 / size);
    report.spectral_gap = 1 - report.contraction;
    return report;
  }

  friend bool operator==(EquiDynamic, EquiDynamic) = default;
};

static_assert(Topology<EquiDynamic>);

}  // namespace kith
