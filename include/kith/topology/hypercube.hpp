// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>

namespace kith {

/// @brief Static hypercube: in every round each rank averages with the tau = log2 size ranks whose numbers differ from
/// its own in one bit. Every edge weighs 1/(tau + 1).
///
/// Powers of two only. Symmetric. Exact after one round for 2 ranks, never for more: OnePeerHypercube takes the same
/// edges one at a time and is exact after tau rounds with as many messages.
///
/// @par Cost          tau messages of the model's size each way per rank and round.
/// @par Thread safety A value without state; every member is a pure function.
struct Hypercube {
  static constexpr std::string_view name = "hypercube";

  [[nodiscard]] static constexpr Round period(Rank /*size*/) noexcept { return 1; }

  [[nodiscard]] static constexpr Rank max_degree(Rank size) noexcept { return detail::ceil_log2(size); }

  /// Appends the ranks one bit away from `rank`. Requires 0 <= rank < size.
  static void neighbors(Rank rank, Rank size, Round /*round*/, Neighborhood& out) {
    const Rank dimensions = detail::ceil_log2(size);
    for (Rank bit = 0; bit < dimensions; ++bit) out.swap_with(rank ^ (Rank{1} << bit), 1.0 / (dimensions + 1));
  }

  /// Throws UsageError unless `size` is a power of two.
  static void require(Rank size) { detail::require_power_of_two(name, size); }

  /// The eigenvalues of W are 1 - 2m / (tau + 1), m = 0..tau: the gap is 2 / (tau + 1).
  [[nodiscard]] static TopologyReport report(Rank size) noexcept {
    if (size < 2) return detail::report_of_one();
    return detail::report_of_static(max_degree(size), 2.0 / (max_degree(size) + 1));
  }

  friend bool operator==(Hypercube, Hypercube) = default;
};

static_assert(Topology<Hypercube>);

}  // namespace kith
