// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>

#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>

namespace kith {

/// @brief One-peer exponential graph: in round t each rank tells the rank 2^(t mod tau) ahead of it and hears the one
/// as far behind, tau = ceil(log2 size). The default topology.
///
/// Mixing matrix of a round: W = (I + S^(2^j)) / 2 with j = t mod tau, S the cyclic shift. Doubly stochastic for every
/// size; directed, so W is not symmetric from 3 ranks on (use OnePeerHypercube where symmetry matters).
///
/// If size is a power of two, any tau consecutive rounds give the exact mean, from any starting round. For other sizes
/// the consensus error shrinks about fivefold per period and never becomes exactly zero (BaseGraph does).
///
/// @par Cost          One message of the model's size each way per rank and round, whatever the size.
/// @par Thread safety A value without state; every member is a pure function.
/// @par Source        Assran et al., Stochastic Gradient Push, ICML 2019; Ying et al., Exponential Graph is
///                    Provably Efficient for Decentralized Deep Training, NeurIPS 2021.
struct OnePeerExponential {
  static constexpr std::string_view name = "one-peer-exponential";

  /// tau rounds; 1 for a single rank, which has nobody to talk to.
  [[nodiscard]] static constexpr Round period(Rank size) noexcept {
    return size < 2 ? 1 : static_cast<Round>(detail::ceil_log2(size));
  }

  [[nodiscard]] static constexpr Rank max_degree(Rank size) noexcept { return size < 2 ? 0 : 1; }

  /// Appends the one peer that `rank` hears and the one that it tells in `round`. Requires 0 <= rank < size.
  static void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) {
    if (size < 2) return;
    const Rank distance = Rank{1} << (round % period(size));  // < size
    out.hear(detail::behind(rank, distance, size), 0.5);
    out.tell(detail::ahead(rank, distance, size));
  }

  /// The product of a period's matrices is circulant with eigenvalues of modulus
  /// |sin(2^tau pi k / size)| / (2^tau sin(pi k / size)), k = 0..size-1.
  [[nodiscard]] static TopologyReport report(Rank size) noexcept {
    if (size < 2) return detail::report_of_one();
    TopologyReport report = detail::report_of_exact(period(size), 1, period(size));
    report.symmetric = size == 2;
    if (detail::is_power_of_two(size)) return report;
    const std::uint64_t hops = std::uint64_t{1} << period(size);
    double largest = 0;
    for (std::uint64_t k = 1; 2 * k <= static_cast<std::uint64_t>(size); ++k) {  // k and size - k have the same modulus
      const double bound = 1 / (static_cast<double>(hops) * detail::sin_pi(static_cast<double>(k), size));
      if (bound <= largest) break;  // the bound falls with k
      const auto turn = static_cast<double>(hops * k % static_cast<std::uint64_t>(size));
      largest = std::max(largest, bound * detail::sin_pi(turn, size));
    }
    report.contraction = largest;
    report.spectral_gap = 1 - std::pow(largest, 1.0 / static_cast<double>(report.period));
    report.exact_after.reset();
    report.exact_after_any_phase.reset();
    return report;
  }

  friend bool operator==(OnePeerExponential, OnePeerExponential) = default;
};

static_assert(Topology<OnePeerExponential>);

}  // namespace kith
