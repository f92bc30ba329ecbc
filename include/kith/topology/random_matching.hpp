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
namespace detail {

/// A random permutation of 0..size-1 that is evaluated, forwards and backwards, one element at a time: a rank finds
/// its partner among a million without shuffling a million.
///
/// A Feistel network over pairs (left, right) with sums modulo the numbers of lefts and rights in place of exclusive
/// or, so that it permutes a set little larger than 0..size-1; what lands outside is sent through again until it is
/// inside ("cycle walking": Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002).
class KeyedPermutation {
public:
  constexpr KeyedPermutation(Rank size, std::uint64_t key) noexcept
      : size_(static_cast<std::uint32_t>(size)),
        key_(key),
        shift_(static_cast<std::uint32_t>(ceil_log2(size)) / 2),
        rights_(std::uint32_t{1} << shift_),
        lefts_((size_ - 1) / rights_ + 1) {}

  /// The place of `element`.
  [[nodiscard]] constexpr Rank operator()(Rank element) const noexcept {
    auto value = static_cast<std::uint32_t>(element);
    do {
      std::uint32_t left = value >> shift_;
      std::uint32_t right = value & (rights_ - 1);
      for (std::uint32_t turn = 0; turn < turns; turn += 2) {
        left = plus(left, draw(right, turn, lefts_), lefts_);
        right = plus(right, draw(left, turn + 1, rights_), rights_);
      }
      value = left << shift_ | right;
    } while (value >= size_);
    return static_cast<Rank>(value);
  }

  /// The element at `place`.
  [[nodiscard]] constexpr Rank inverse(Rank place) const noexcept {
    auto value = static_cast<std::uint32_t>(place);
    do {
      std::uint32_t left = value >> shift_;
      std::uint32_t right = value & (rights_ - 1);
      for (std::uint32_t turn = turns; turn > 0; turn -= 2) {
        right = plus(right, rights_ - draw(left, turn - 1, rights_), rights_);
        left = plus(left, lefts_ - draw(right, turn - 2, lefts_), lefts_);
      }
      value = left << shift_ | right;
    } while (value >= size_);
    return static_cast<Rank>(value);
  }

private:
  // Large sets would do with fewer. In small ones a turn may change little: for 4 ranks what is left of a preference
  // for some pairs halves with each, so that 16 turns leave one part in 2^16.
  static constexpr std::uint32_t turns = 16;

  static constexpr std::uint32_t plus(std::uint32_t a, std::uint32_t b, std::uint32_t modulus) noexcept {
    const std::uint32_t sum = a + b;
    return sum < modulus ? sum : sum - modulus;
  }

  // Uniform in 0..bound-1, from (key, turn, half).
  [[nodiscard]] constexpr std::uint32_t draw(std::uint32_t half, std::uint32_t turn,
                                             std::uint32_t bound) const noexcept {
    const std::uint64_t random = splitmix64(key_, std::uint64_t{turn} << 32 | half);
    return static_cast<std::uint32_t>((random >> 32) * bound >> 32);
  }

  std::uint32_t size_;
  std::uint64_t key_;
  std::uint32_t shift_;
  std::uint32_t rights_;
  std::uint32_t lefts_;
};

}  // namespace detail

/// @brief Random matching: in every round the ranks are paired at random, from a seed that all share, and each pair
/// averages half and half. In a group of odd size one rank, drawn anew each round, keeps its own values.
///
/// Symmetric, any size. In expectation the squared error halves in every round, whatever the size; it is never exactly
/// zero (from 3 ranks on).
///
/// @par Cost          One message of the model's size each way per rank and round. Planning takes the same time for any
///                    size, in expectation.
/// @par Thread safety A value; every member is a pure function.
/// @par Source        Boyd, Ghosh, Prabhakar, Shah, Randomized Gossip Algorithms, IEEE Trans. Information Theory
///                    52(6), 2006, with all pairs at once.
struct RandomMatching {
  static constexpr std::string_view name = "random-matching";

  std::uint64_t seed = 0;

  /// 0: the schedule does not repeat. 1 for a single rank.
  [[nodiscard]] static constexpr Round period(Rank size) noexcept { return size < 2 ? 1 : 0; }

  [[nodiscard]] static constexpr Rank max_degree(Rank size) noexcept { return size < 2 ? 0 : 1; }

  /// Appends the one peer of `rank` in `round`, or nobody for the rank left over. Requires 0 <= rank < size.
  void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const {
    if (size < 2) return;
    // Everybody stands in a random place; places 0 and 1, 2 and 3, ... are pairs.
    const detail::KeyedPermutation place(size, CounterRng{seed}.bits(round));
    const Rank partner = place(rank) ^ 1;
    if (partner < size) out.swap_with(place.inverse(partner), 0.5);
  }

  /// The seed, in decimal.
  [[nodiscard]] std::string parameters() const { return std::to_string(seed); }

  /// The inverse of parameters(); nothing means seed 0. Throws UsageError for anything else.
  [[nodiscard]] static RandomMatching from_parameters(std::string_view text) {
    return {.seed = detail::parse_seed(name, text)};
  }

  /// A pair meets with probability 1/(size-1), or 1/size in a group of odd size: E[W^T W] = E[W] has a norm off J of
  /// (size-2) / (2 (size-1)), or 1/2.
  [[nodiscard]] static TopologyReport report(Rank size) noexcept {
    if (size < 2) return detail::report_of_one();
    TopologyReport report;
    report.period = 0;
    report.max_degree = 1;
    report.randomized = true;
    report.contraction = std::sqrt(size % 2 != 0 ? 0.5 : (size - 2.0) / (2.0 * (size - 1.0)));
    report.spectral_gap = 1 - report.contraction;
    if (size == 2) report.exact_after = report.exact_after_any_phase = 1;  // there is one pair to draw
    return report;
  }

  friend bool operator==(RandomMatching, RandomMatching) = default;
};

static_assert(Topology<RandomMatching>);

}  // namespace kith
