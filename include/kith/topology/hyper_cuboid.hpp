// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>

namespace kith {
namespace detail {

/// The sides of a cuboid of ranks, shortest first, in place: planning a round allocates nothing. 31 factors of 2 exceed
/// every Rank.
struct Sides {
  std::array<Rank, 31> lengths{};
  std::size_t count = 0;

  constexpr void add(Rank length) noexcept { lengths[count++] = length; }
  [[nodiscard]] constexpr Rank longest() const noexcept { return count == 0 ? 1 : lengths[count - 1]; }
};

/// Calls meet(peer, weight) for everybody with whom `index` averages when the cuboid averages along side `axis`:
/// those that agree with it in every digit but that one. Digit 0 counts fastest.
template <class Meet>
constexpr void meet_along(const Sides& sides, std::size_t axis, Rank index, Meet&& meet) {
  Rank stride = 1;
  for (std::size_t a = 0; a < axis; ++a) stride *= sides.lengths[a];
  const Rank length = sides.lengths[axis];
  const Rank first = index - index / stride % length * stride;
  for (Rank digit = 0; digit < length; ++digit)
    if (const Rank peer = first + digit * stride; peer != index) meet(peer, 1.0 / length);
}

/// The prime factors of size, ascending, by trial division: fewer steps than the largest degree of the cuboid.
[[nodiscard]] constexpr Sides prime_factors(Rank size) noexcept {
  Sides primes;
  Rank rest = size;
  for (Rank prime = 2; prime <= rest / prime; ++prime)
    for (; rest % prime == 0; rest /= prime) primes.add(prime);
  if (rest > 1) primes.add(rest);
  return primes;
}

}  // namespace detail

/// @brief Hyper-cuboid: the ranks fill a cuboid whose sides are the prime factors of the size, in ascending order; in
/// round t each rank takes the mean with those along side t.
///
/// Every round averages out one coordinate, and the rounds commute: any `period` consecutive rounds give the exact
/// mean, from any starting round, for every size. Symmetric. The price is the degree: a prime size is the complete
/// graph. BaseGraph is exact with a degree that you choose.
///
/// @par Cost          p - 1 messages of the model's size each way per rank in the round of the prime factor p.
/// @par Thread safety A value without state; every member is a pure function.
/// @par Source        Nguyen, Jiang, Ying, Uribe, On Graphs with Finite-Time Consensus and Their Use in Gradient
///                    Tracking, arXiv:2311.01317.
struct HyperCuboid {
  static constexpr std::string_view name = "hyper-cuboid";

  /// The number of prime factors, multiple ones counted; 1 for a single rank.
  [[nodiscard]] static constexpr Round period(Rank size) noexcept {
    return size < 2 ? 1 : Round{detail::prime_factors(size).count};
  }

  /// The largest prime factor less one.
  [[nodiscard]] static constexpr Rank max_degree(Rank size) noexcept {
    return detail::prime_factors(size).longest() - 1;
  }

  /// Appends the ranks along one side of the cuboid. Requires 0 <= rank < size.
  static void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) {
    if (size < 2) return;
    const detail::Sides sides = detail::prime_factors(size);
    detail::meet_along(sides, static_cast<std::size_t>(round % sides.count), rank,
                       [&](Rank peer, double weight) { out.swap_with(peer, weight); });
  }

  [[nodiscard]] static TopologyReport report(Rank size) noexcept {
    if (size < 2) return detail::report_of_one();
    return detail::report_of_exact(period(size), max_degree(size), period(size));
  }

  friend bool operator==(HyperCuboid, HyperCuboid) = default;
};

static_assert(Topology<HyperCuboid>);

}  // namespace kith
