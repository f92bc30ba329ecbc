// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <string>
#include <string_view>

#include <kith/error.hpp>
#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>

namespace kith {
namespace detail {

/// The pairs that ShiftOne and HalvingShift choose from: the lower half of the ranks faces the upper half, turned by
/// `shift`, 0 <= shift < size / 2.
[[nodiscard]] constexpr Rank shifted_partner(Rank rank, Rank size, Rank shift) noexcept {
  const Rank half = size / 2;
  return rank < half ? half + ahead(rank, shift, half) : behind(rank - half, shift, half);
}

}  // namespace detail

/// @brief Bagua's "shift one" pairing: the lower half of the ranks faces the upper half and moves on by one in every
/// round; each pair averages half and half.
///
/// With h = size / 2, rank r < h meets h + (r + t) mod h in round t. Even sizes only. Symmetric. It looks random and is
/// a ring in disguise: after t rounds the error has shrunk by cos(2 pi / size)^(t-1) only. Exact for 2 and 4 ranks
/// after 1 and 2 rounds, never for more. HalvingShift takes the same pairs in an order that is exact after log2 size
/// rounds.
///
/// @par Cost          One message of the model's size each way per rank and round.
/// @par Thread safety A value without state; every member is a pure function.
/// @par Source        Gan et al., BAGUA: Scaling up Distributed Learning with System Relaxations, VLDB 2022; its
///                    decentralized algorithm, peer_selection_mode "shift_one".
struct ShiftOne {
  static constexpr std::string_view name = "shift-one";

  /// size / 2 rounds: every pair once.
  [[nodiscard]] static constexpr Round period(Rank size) noexcept {
    return size < 2 ? 1 : static_cast<Round>(size / 2);
  }

  [[nodiscard]] static constexpr Rank max_degree(Rank size) noexcept { return size < 2 ? 0 : 1; }

  /// Appends the one peer of `rank` in `round`. Requires 0 <= rank < size.
  static void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) {
    if (size < 2) return;
    out.swap_with(detail::shifted_partner(rank, size, static_cast<Rank>(round % period(size))), 0.5);
  }

  /// Throws UsageError for odd sizes, in which somebody would be left over.
  static void require(Rank size) {
    if (size < 2 || size % 2 == 0) return;
    throw UsageError("shift-one pairs all ranks and needs an even number of them, such as " + std::to_string(size - 1) +
                     ", not " + std::to_string(size) +
                     "; random-matching, one-peer-exponential and base-graph take any size");
  }

  /// norm(W_t ... W_1 - J) = cos(2 pi / size)^(t-1).
  [[nodiscard]] static TopologyReport report(Rank size) noexcept {
    if (size < 2) return detail::report_of_one();
    TopologyReport report = detail::report_of_exact(period(size), 1, period(size));
    if (size <= 4) return report;
    const double sine = detail::sin_pi(1, size);
    const double log_cosine = std::log1p(-2 * sine * sine);  // of 2 pi / size, without losing the digits of 1 - cos
    const auto turns = static_cast<double>(report.period);
    report.contraction = std::exp((turns - 1) * log_cosine);
    report.spectral_gap = -std::expm1((turns - 1) / turns * log_cosine);
    report.exact_after.reset();
    report.exact_after_any_phase.reset();
    return report;
  }

  friend bool operator==(ShiftOne, ShiftOne) = default;
};

static_assert(Topology<ShiftOne>);

}  // namespace kith
