// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>

namespace kith {

/// @brief Star: in every round rank 0 averages with all others, who do not talk among themselves. Every edge weighs
/// 1/size (Metropolis-Hastings).
///
/// Symmetric. Exact after one round for 2 ranks; never for more. It is here to compare with: the hub carries
/// everything, and the leaves still mix as slowly as 1 - 1/size a round.
///
/// @par Cost          size - 1 messages of the model's size each way at rank 0, one at every other rank, per round.
/// @par Thread safety A value without state; every member is a pure function.
struct Star {
  static constexpr std::string_view name = "star";

  [[nodiscard]] static constexpr Round period(Rank /*size*/) noexcept { return 1; }

  [[nodiscard]] static constexpr Rank max_degree(Rank size) noexcept { return size - 1; }

  /// Appends rank 0, or everybody else for rank 0 itself. Requires 0 <= rank < size.
  static void neighbors(Rank rank, Rank size, Round /*round*/, Neighborhood& out) {
    const double weight = 1.0 / size;
    if (rank != 0) {
      out.swap_with(0, weight);
    } else {
      for (Rank leaf = 1; leaf < size; ++leaf) out.swap_with(leaf, weight);
    }
  }

  /// The eigenvalues of W are 1, 0 and, from 3 ranks on, 1 - 1/size: two leaves differ, and the hub is between them.
  [[nodiscard]] static TopologyReport report(Rank size) noexcept {
    if (size < 2) return detail::report_of_one();
    return detail::report_of_static(max_degree(size), size == 2 ? 1 : 1.0 / size);
  }

  friend bool operator==(Star, Star) = default;
};

static_assert(Topology<Star>);

}  // namespace kith
