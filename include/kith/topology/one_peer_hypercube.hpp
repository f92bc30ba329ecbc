// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>

namespace kith {

/// @brief One-peer hypercube: in round t each rank averages half and half with the rank whose number differs from its
/// own in bit t mod tau, tau = log2 size.
///
/// Powers of two only. Symmetric, so it is the one-peer schedule to take where a lost edge must keep the mean. Any tau
/// consecutive rounds give the exact mean, from any starting round.
///
/// @par Cost          One message of the model's size each way per rank and round, whatever the size.
/// @par Thread safety A value without state; every member is a pure function.
/// @par Source        Shi et al., Finite-time convergent gossiping, IEEE/ACM Trans. Networking 24(5), 2016.
struct OnePeerHypercube {
  static constexpr std::string_view name = "one-peer-hypercube";

  /// tau rounds; 1 for a single rank, which has nobody to talk to.
  [[nodiscard]] static constexpr Round period(Rank size) noexcept {
    return size < 2 ? 1 : static_cast<Round>(detail::ceil_log2(size));
  }

  [[nodiscard]] static constexpr Rank max_degree(Rank size) noexcept { return size < 2 ? 0 : 1; }

  /// Appends the one peer of `rank` in `round`. Requires 0 <= rank < size.
  static void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) {
    if (size > 1) out.swap_with(rank ^ (Rank{1} << (round % period(size))), 0.5);
  }

  /// Throws UsageError unless `size` is a power of two.
  static void require(Rank size) { detail::require_power_of_two(name, size); }

  /// Every round averages out one bit of the rank, in whatever order: exact after tau rounds from any phase.
  [[nodiscard]] static TopologyReport report(Rank size) noexcept {
    return size < 2 ? detail::report_of_one() : detail::report_of_exact(period(size), 1, period(size));
  }

  friend bool operator==(OnePeerHypercube, OnePeerHypercube) = default;
};

static_assert(Topology<OnePeerHypercube>);

}  // namespace kith
