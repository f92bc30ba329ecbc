// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

#include <kith/types.hpp>

namespace kith {

/// @brief Philox4x32-10: 128 random bits from a 128-bit counter and a 64-bit key.
///
/// A bijection of the counter for every key, in 32-bit integers only: the same bits on every machine.
///
/// @par Source Salmon, Moraes, Dror, Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
[[nodiscard]] constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                                std::array<std::uint32_t, 2> key) noexcept {
  for (int turn = 0; turn < 10; ++turn) {
    const std::uint64_t even = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t odd = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(odd >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(odd),
               static_cast<std::uint32_t>(even >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(even)};
    key[0] += 0x9E3779B9;  // the golden ratio and sqrt(3) - 1: the key of the next turn
    key[1] += 0xBB67AE85;
  }
  return counter;
}

/// @brief Element `index` of the SplitMix64 sequence that starts from `seed`: 64 random bits for the price of two
/// multiplications, where many are wanted from a key that is random already.
///
/// @par Source Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, with the mixing
///             constants of Stafford's variant 13.
[[nodiscard]] constexpr std::uint64_t splitmix64(std::uint64_t seed, std::uint64_t index = 0) noexcept {
  std::uint64_t word = seed + 0x9E3779B97F4A7C15 * (index + 1);
  word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9;
  word = (word ^ (word >> 27)) * 0x94D049BB133111EB;
  return word ^ (word >> 31);
}

/// @brief Random numbers without a state: each is a function of (seed, round, counter), so that every rank draws the
/// same without a message, and a training run that is restored goes on with the same draws.
///
/// @par Cost          One philox4x32 a call.
/// @par Thread safety A value whose members are pure functions.
struct CounterRng {
  std::uint64_t seed = 0;

  /// 64 random bits.
  [[nodiscard]] constexpr std::uint64_t bits(Round round, std::uint64_t counter = 0) const noexcept {
    const auto words = philox4x32({low(counter), high(counter), low(round), high(round)}, {low(seed), high(seed)});
    return (std::uint64_t{words[1]} << 32) | words[0];
  }

  /// Uniform in 0..bound-1, for 1 <= bound <= 2^32 (a bias of at most bound / 2^64 remains).
  [[nodiscard]] constexpr std::uint64_t below(std::uint64_t bound, Round round,
                                              std::uint64_t counter = 0) const noexcept {
    const std::uint64_t random = bits(round, counter);
    return (high(random) * bound + (low(random) * bound >> 32)) >> 32;  // floor(random * bound / 2^64)
  }

  /// Uniform in [0, 1), a multiple of 2^-53.
  [[nodiscard]] constexpr double uniform(Round round, std::uint64_t counter = 0) const noexcept {
    return static_cast<double>(bits(round, counter) >> 11) * 0x1p-53;
  }

  friend constexpr bool operator==(CounterRng, CounterRng) = default;

private:
  static constexpr std::uint32_t low(std::uint64_t word) noexcept { return static_cast<std::uint32_t>(word); }
  static constexpr std::uint32_t high(std::uint64_t word) noexcept { return static_cast<std::uint32_t>(word >> 32); }
};

}  // namespace kith
