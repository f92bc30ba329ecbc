// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>
#include <kith/topology/shift_one.hpp>

namespace kith {

/// @brief The pairs of ShiftOne in a better order: the halves of the ranks face each other turned by 0, h/2, h/2 + h/4,
/// ..., h - 1, where h = size / 2.
///
/// Powers of two only. Symmetric. Exact after m = log2 size rounds from round 0, and after m + 1 from the worst
/// starting round (m for 2 and 4 ranks): against OnePeerHypercube it has most pairs reach across the two halves of the
/// group in every round.
///
/// @par Cost          One message of the model's size each way per rank and round, whatever the size.
/// @par Thread safety A value without state; every member is a pure function.
struct HalvingShift {
  static constexpr std::string_view name = "halving-shift";

  /// log2 size rounds; 1 for a single rank.
  [[nodiscard]] static constexpr Round period(Rank size) noexcept {
    return size < 2 ? 1 : static_cast<Round>(detail::ceil_log2(size));
  }

  [[nodiscard]] static constexpr Rank max_degree(Rank size) noexcept { return size < 2 ? 0 : 1; }

  /// Appends the one peer of `rank` in `round`. Requires 0 <= rank < size.
  static void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) {
    if (size < 2) return;
    const Rank half = size / 2;
    out.swap_with(detail::shifted_partner(rank, size, half - (half >> (round % period(size)))), 0.5);
  }

  /// Throws UsageError unless `size` is a power of two.
  static void require(Rank size) { detail::require_power_of_two(name, size); }

  [[nodiscard]] static TopologyReport report(Rank size) noexcept {
    if (size < 2) return detail::report_of_one();
    const Round rounds = period(size);
    return detail::report_of_exact(rounds, 1, size <= 4 ? rounds : rounds + 1);
  }

  friend bool operator==(HalvingShift, HalvingShift) = default;
};

static_assert(Topology<HalvingShift>);

}  // namespace kith
