// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string>
#include <string_view>
#include <system_error>

#include <kith/error.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>

namespace kith::detail {

/// ceil(log2 size) for size >= 1, in integers: floating-point logarithms are off by one at exact powers.
[[nodiscard]] constexpr Rank ceil_log2(Rank size) noexcept {
  return static_cast<Rank>(std::bit_width(static_cast<std::uint32_t>(size - 1)));
}

/// Whether hypercubes and their relatives exist for `size` >= 1.
[[nodiscard]] constexpr bool is_power_of_two(Rank size) noexcept {
  return std::has_single_bit(static_cast<std::uint32_t>(size));
}

/// The rank `distance` steps ahead on a ring, 0 <= distance <= size: rank + distance could overflow near 2^31.
[[nodiscard]] constexpr Rank ahead(Rank rank, Rank distance, Rank size) noexcept {
  const Rank room = size - distance;
  return rank < room ? rank + distance : rank - room;
}

/// The rank `distance` steps behind on a ring, 0 <= distance <= size.
[[nodiscard]] constexpr Rank behind(Rank rank, Rank distance, Rank size) noexcept {
  return rank < distance ? rank + (size - distance) : rank - distance;
}

/// sin(pi a / b) for 0 <= a <= b, b >= 1: what the eigenvalues of circulant matrices are made of.
[[nodiscard]] inline double sin_pi(double a, double b) noexcept {
  return std::sin(std::numbers::pi * (a + a <= b ? a : b - a) / b);  // folded, so that sin_pi(b, b) is 0
}

/// What every family says of a group of one: there is nobody to average with, and the mean is at hand.
[[nodiscard]] inline TopologyReport report_of_one() noexcept {
  TopologyReport report;
  report.exact_after = 0;
  report.exact_after_any_phase = 0;
  return report;
}

/// What the families that reach the exact mean once a period, and no sooner, have in common.
[[nodiscard]] inline TopologyReport report_of_exact(Round period, Rank max_degree, Round worst_phase) noexcept {
  TopologyReport report;
  report.period = period;
  report.max_degree = max_degree;
  report.exact_after = period;
  report.exact_after_any_phase = worst_phase;
  return report;
}

/// What the families with one matrix W for all rounds have in common: `gap` = 1 - norm(W - J), which is 1 for W = J.
[[nodiscard]] inline TopologyReport report_of_static(Rank max_degree, double gap) noexcept {
  if (gap == 1) return report_of_exact(1, max_degree, 1);
  TopologyReport report;
  report.max_degree = max_degree;
  report.contraction = 1 - gap;
  report.spectral_gap = gap;
  return report;
}

/// Refuses a size that is no power of two, for the families that pair ranks by their bits.
inline void require_power_of_two(std::string_view family, Rank size) {
  if (is_power_of_two(size)) return;
  const auto below = std::bit_floor(static_cast<std::uint32_t>(size));  // its double may not fit a Rank
  throw UsageError(std::string{family} + " needs a power of two as its number of ranks, such as " +
                   std::to_string(below) + " or " + std::to_string(std::uint64_t{2} * below) + ", not " +
                   std::to_string(size) + "; one-peer-exponential, hyper-cuboid and base-graph take any size");
}

/// Reads a number that is all of `text` and at least `least`; false where it is not, so that families word the error.
template <class Integer>
[[nodiscard]] bool parse_number(std::string_view text, Integer least, Integer& number) noexcept {
  Integer parsed{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  if (error != std::errc{} || end != text.data() + text.size() || parsed < least) return false;
  number = parsed;
  return true;
}

/// The seed of a randomised family from its spelling; one place, so that all of them refuse with the same words.
[[nodiscard]] inline std::uint64_t parse_seed(std::string_view family, std::string_view text) {
  std::uint64_t seed = 0;
  if (text.empty() || parse_number<std::uint64_t>(text, 0, seed)) return seed;
  const std::string name{family};
  throw UsageError(name + ":" + std::string{text} + " is not a topology: the parameter of " + name +
                   " is its seed, a whole number from 0 to 2^64 - 1, as in " + name + ":7");
}

}  // namespace kith::detail
