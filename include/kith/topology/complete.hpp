// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>

namespace kith {

/// @brief Complete graph: in every round each rank averages with all others, W = J.
///
/// The exact mean in one round. It is what all-reduce computes, and here to compare with: the messages grow with the
/// square of the group.
///
/// @par Cost          size - 1 messages of the model's size each way per rank and round.
/// @par Thread safety A value without state; every member is a pure function.
struct Complete {
  static constexpr std::string_view name = "complete";

  [[nodiscard]] static constexpr Round period(Rank /*size*/) noexcept { return 1; }

  [[nodiscard]] static constexpr Rank max_degree(Rank size) noexcept { return size - 1; }

  /// Appends everybody but `rank`, with weight 1/size. Requires 0 <= rank < size.
  static void neighbors(Rank rank, Rank size, Round /*round*/, Neighborhood& out) {
    const double weight = 1.0 / size;
    for (Rank peer = 0; peer < size; ++peer)
      if (peer != rank) out.swap_with(peer, weight);
  }

  /// W = J: exact after one round.
  [[nodiscard]] static TopologyReport report(Rank size) noexcept {
    return size < 2 ? detail::report_of_one() : detail::report_of_static(max_degree(size), 1);
  }

  friend bool operator==(Complete, Complete) = default;
};

static_assert(Topology<Complete>);

}  // namespace kith
