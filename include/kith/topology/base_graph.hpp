// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>

#include <kith/error.hpp>
#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>
#include <kith/topology/hyper_cuboid.hpp>

namespace kith {
namespace detail {

/// The cuboid of a size without prime factors above `base`: sides of at most `base`, the longest that divide taken
/// first, then put in ascending order.
[[nodiscard]] constexpr Sides smooth_sides(Rank size, Rank base) noexcept {
  Sides sides;
  Rank rest = size;
  for (Rank side = std::min(base, size); rest > 1 && side > 1; --side)
    for (; rest % side == 0; rest /= side) sides.add(side);
  std::reverse(sides.lengths.begin(), sides.lengths.begin() + static_cast<std::ptrdiff_t>(sides.count));
  return sides;
}

/// The largest divisor of size without prime factors above `base`.
[[nodiscard]] constexpr Rank smooth_part(Rank size, Rank base) noexcept {
  Rank rest = size;
  for (Rank factor = 2; factor <= base && rest > 1; ++factor)
    while (rest % factor == 0) rest /= factor;
  return size / rest;
}

/// The Simple Base-(k+1) graph, base = k + 1, of a size with a prime factor above `base`: one block of ranks for each
/// digit of the size that is not zero. A digit a at the power part = base^digits gives a block of `a` parts.
class SimpleBase {
public:
  constexpr SimpleBase(Rank size, Rank base) noexcept : size_(size), base_(base) {
    Rank part = 1;
    std::size_t digits = 0;
    for (; part <= size / base; part *= base) ++digits;
    for (Rank first = 0; first < size; part /= base, --digits) {
      const Rank rest = size - first;
      if (rest < part) continue;
      blocks_[count_++] = {first, rest - rest % part, part, digits};
      first += rest - rest % part;
    }
  }

  [[nodiscard]] constexpr std::size_t rounds() const noexcept { return gathering(blocks_[0]) + 1 + blocks_[0].digits; }

  /// How many rounds sooner than after 2 rounds() - 1 the mean is exact from the worst starting round, where known: one
  /// where the first round, which averages the parts of the first block with each other, is not needed for it.
  [[nodiscard]] constexpr std::optional<std::size_t> spare() const noexcept {
    const Rank leading = blocks_[0].size / blocks_[0].part;
    const Rank common = std::gcd(leading, base_);
    if (size_ % base_ == 0 || (common > 1 && !is_prime_power(base_))) return std::nullopt;
    return leading > 1 && size_ % common == 0 ? 1 : 0;
  }

  /// Calls meet(peer, weight) for everybody with whom `index` averages in `round` < rounds().
  template <class Meet>
  constexpr void meet_peers(Rank index, std::size_t round, Meet&& meet) const {
    std::size_t own = 0;
    while (index - blocks_[own].first >= blocks_[own].size) ++own;
    const Block& block = blocks_[own];
    if (round < gathering(blocks_[0])) {  // first, every block finds its own mean
      if (gathering(block) > 0) gather(block, index, round % gathering(block), meet);
      return;
    }
    // Then block `turn` gives its parts the mean of all that is behind it, and itself of what it has, turn = 0, 1, ...
    // while the blocks before it spread what they received inside each part.
    const std::size_t turn = round - gathering(blocks_[0]);
    if (turn + 1 < count_ && own == turn) return receive(own, index, meet);
    if (turn + 1 < count_ && own > turn) return give(blocks_[turn], block, index, meet);
    const std::size_t begun = std::min(own + 1, count_ - 1);  // the last block has nobody to receive from
    if (block.digits > 0) {
      along(block.first, power(base_, (turn - begun) % block.digits), base_, index, meet);
    } else if (block.size > 1) {
      along(block.first, 1, block.size, index, meet);
    }
  }

private:
  struct Block {
    Rank first = 0;
    Rank size = 0;
    Rank part = 1;
    std::size_t digits = 0;
  };

  static constexpr bool is_prime_power(Rank number) noexcept {
    const Sides primes = prime_factors(number);
    return primes.lengths[0] == primes.longest();
  }

  static constexpr Rank power(Rank base, std::size_t exponent) noexcept {
    Rank result = 1;
    for (; exponent > 0; --exponent) result *= base;
    return result;
  }

  // The mean of those that differ from `index` in one digit, counted from `first`.
  template <class Meet>
  static constexpr void along(Rank first, Rank stride, Rank length, Rank index, Meet& meet) {
    const Rank lowest = index - (index - first) / stride % length * stride;
    for (Rank digit = 0; digit < length; ++digit)
      if (const Rank peer = lowest + digit * stride; peer != index) meet(peer, 1.0 / length);
  }

  // Rounds that a block needs for its own mean: it is a cuboid of a x base x ... x base.
  static constexpr std::size_t gathering(const Block& block) noexcept {
    return block.digits + (block.size > block.part ? 1 : 0);
  }

  template <class Meet>
  constexpr void gather(const Block& block, Rank index, std::size_t axis, Meet& meet) const {
    const Rank parts = block.size / block.part;
    if (parts == 1) return along(block.first, power(base_, axis), base_, index, meet);
    if (axis == 0) return along(block.first, 1, parts, index, meet);
    along(block.first, parts * power(base_, axis - 1), base_, index, meet);
  }

  // How many ranks come before `index` when the blocks line up to give, the last block first.
  [[nodiscard]] constexpr Rank queue(const Block& block, Rank index) const noexcept {
    return size_ - (block.first + block.size) + (index - block.first);
  }

  // A rank of a later block: one peer in each part of the receiving block, whose parts are used from the end.
  template <class Meet>
  constexpr void give(const Block& receiver, const Block& block, Rank index, Meet& meet) const {
    const double weight = static_cast<double>(receiver.part) / (size_ - receiver.first);
    const Rank last = receiver.first + receiver.part - 1 - queue(block, index);
    for (Rank done = 0; done < receiver.size; done += receiver.part) meet(last + done, weight);
  }

  // A rank of the receiving block: one peer from the later blocks, or the inner edges of those that have none.
  template <class Meet>
  constexpr void receive(std::size_t own, Rank index, Meet& meet) const {
    const Block& block = blocks_[own];
    const Rank givers = size_ - block.first - block.size;
    const Rank place = (index - block.first) % block.part;
    Rank turn = block.part - 1 - place;
    if (turn < givers) {
      std::size_t giver = count_ - 1;
      for (; turn >= blocks_[giver].size; --giver) turn -= blocks_[giver].size;
      return meet(blocks_[giver].first + turn, static_cast<double>(block.part) / (size_ - block.first));
    }
    // Those left over stand in line, part by part, and average in groups of `base`.
    const Rank idle = block.part - givers;
    const Rank line = (index - block.first) / block.part * idle + place;
    const Rank group = line - line % base_;
    const Rank members = std::min(base_, block.size / block.part * idle - group);
    for (Rank other = group; other < group + members; ++other)
      if (other != line) meet(block.first + other / idle * block.part + other % idle, 1.0 / members);
  }

  Rank size_;
  Rank base_;
  std::array<Block, 31> blocks_{};
  std::size_t count_ = 0;
};

/// The Base-(k+1) graph, base = k + 1 <= size: the shorter of SimpleBase and of this: copies of SimpleBase for the part
/// of the size that is coprime to all numbers up to `base`, then a cuboid across the copies.
class BaseSchedule {
public:
  constexpr BaseSchedule(Rank size, Rank base) noexcept
      : across_(smooth_sides(smooth_part(size, base), base)),
        copy_(size / smooth_part(size, base)),
        whole_(size, base),
        within_(copy_, base),
        rounds_within_(copy_ > 1 ? within_.rounds() : 0),
        simple_(copy_ > 1 && whole_.rounds() < rounds_within_ + across_.count) {}

  [[nodiscard]] constexpr std::size_t rounds() const noexcept {
    return simple_ ? whole_.rounds() : rounds_within_ + across_.count;
  }

  /// Whether the size has no prime factor above `base`, so that the graph is a cuboid and its rounds commute.
  [[nodiscard]] constexpr bool is_cuboid() const noexcept { return copy_ == 1; }

  /// The sides of the cuboid across the copies.
  [[nodiscard]] constexpr const Sides& across() const noexcept { return across_; }

  /// Rounds to the exact mean from the worst starting round, where known.
  [[nodiscard]] constexpr std::optional<std::size_t> rounds_from_any() const noexcept {
    if (is_cuboid()) return rounds();  // they commute
    const SimpleBase& inner = simple_ ? whole_ : within_;
    const std::optional<std::size_t> spare = inner.spare();
    if (!spare) return std::nullopt;
    return rounds() + inner.rounds() - 1 - *spare;
  }

  /// Calls meet(peer, weight) for everybody with whom `rank` averages in `round` < rounds().
  template <class Meet>
  constexpr void meet_peers(Rank rank, std::size_t round, Meet&& meet) const {
    if (simple_) return whole_.meet_peers(rank, round, meet);
    const Rank place = rank % copy_;
    const Rank first = rank - place;
    if (round < rounds_within_)
      return within_.meet_peers(place, round, [&](Rank peer, double weight) { meet(first + peer, weight); });
    meet_along(across_, round - rounds_within_, rank / copy_,
               [&](Rank peer, double weight) { meet(peer * copy_ + place, weight); });
  }

private:
  Sides across_;
  Rank copy_;
  SimpleBase whole_;
  SimpleBase within_;
  std::size_t rounds_within_;
  bool simple_;
};

}  // namespace detail

/// @brief Base-(k+1) graph: the exact mean after a few rounds for every size, with at most k = `degree` peers a round.
///
/// The period is at most 2 log_{k+1}(size) + 2 rounds, and one period from its first round gives the exact mean.
/// Started in the middle it may take nearly two periods: unless size has no prime factor above k + 1, the rounds do not
/// commute. Symmetric. Degree 1 needs an idle rank now and then; a degree of size - 1 or more is the complete graph.
///
/// The edges that the paper adds among ranks with nothing to do ("inner edges") are part of it: they do not change when
/// the mean is exact, and reduce the error before.
///
/// @par Cost          At most `degree` messages of the model's size each way per rank and round. Planning takes
///                    O(degree + log size) steps in integers.
/// @par Thread safety A value; every member is a pure function.
/// @par Source        Takezawa, Sato, Bao, Niwa, Yamada, Beyond Exponential Graph: Communication-Efficient Topologies
///                    for Decentralized Learning via Finite-time Convergence, NeurIPS 2023, Algorithms 1 to 3.
struct BaseGraph {
  static constexpr std::string_view name = "base-graph";

  /// k, the most peers of a rank in a round; at least 1.
  Rank degree = 1;

  [[nodiscard]] constexpr Round period(Rank size) const noexcept {
    return size < 2 ? 1 : Round{schedule(size).rounds()};
  }

  /// `degree`, or less where the size is so small or so smooth that no round needs as many.
  [[nodiscard]] constexpr Rank max_degree(Rank size) const noexcept {
    if (size < 2) return 0;
    const detail::BaseSchedule rounds = schedule(size);
    return rounds.is_cuboid() ? rounds.across().longest() - 1 : degree;
  }

  /// Appends the peers of `rank` in `round`. Requires 0 <= rank < size.
  void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const {
    if (size < 2) return;
    const detail::BaseSchedule rounds = schedule(size);
    rounds.meet_peers(rank, static_cast<std::size_t>(round % rounds.rounds()),
                      [&](Rank peer, double weight) { out.swap_with(peer, weight); });
  }

  /// Throws UsageError unless degree >= 1: any size will do.
  void require(Rank size) const {
    if (size < 2 || degree >= 1) return;
    throw UsageError("base-graph:" + parameters() +
                     " lets nobody talk: its parameter is the largest degree, at least 1");
  }

  /// The degree, in decimal.
  [[nodiscard]] std::string parameters() const { return std::to_string(degree); }

  /// The inverse of parameters(); nothing means degree 1. Throws UsageError for anything but a number >= 1.
  [[nodiscard]] static BaseGraph from_parameters(std::string_view text) {
    BaseGraph graph;
    if (text.empty() || detail::parse_number<Rank>(text, 1, graph.degree)) return graph;
    throw UsageError("base-graph:" + std::string{text} +
                     " is not a topology: the parameter of base-graph is its largest degree, a whole number of at "
                     "least 1, as in base-graph:2");
  }

  /// @brief Exact after one period, by construction.
  ///
  /// From the worst starting round the mean is exact after period + r - 1 rounds, or one less (the rule is in
  /// detail::SimpleBase::spare), where r is the length of the Simple Base-(k+1) graph inside. There is no proof of it:
  /// it was found by search, and is right for every size up to 1024 with degrees 1 to 11 and up to 2600 with degrees 1,
  /// 2, 3, 4, 6, 7, 8 and 15. Empty where no rule is known: size has a prime factor above degree + 1, and degree + 1 is
  /// no power of a prime but has a factor in common with the leading digit of the size in base degree + 1.
  [[nodiscard]] std::optional<TopologyReport> report(Rank size) const noexcept {
    if (size < 2) return detail::report_of_one();
    const detail::BaseSchedule rounds = schedule(size);
    const std::optional<std::size_t> worst = rounds.rounds_from_any();
    if (!worst) return std::nullopt;
    return detail::report_of_exact(rounds.rounds(), max_degree(size), *worst);
  }

  friend bool operator==(BaseGraph, BaseGraph) = default;

private:
  // A degree below 1 is refused by require(); here it must only not divide by zero.
  [[nodiscard]] constexpr detail::BaseSchedule schedule(Rank size) const noexcept {
    return {size, std::clamp(degree, 1, size - 1) + 1};
  }
};

static_assert(Topology<BaseGraph>);

}  // namespace kith
