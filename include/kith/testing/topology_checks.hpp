// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <kith/error.hpp>
#include <kith/testing/failure.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>

namespace kith::testing {

namespace detail {

/// Checks one topology at one size; a class, so that every message can say which topology, size, round and rank.
template <Topology T>
class TopologyCheck {
public:
  TopologyCheck(const T& topology, Rank size) : topology_(topology), size_(size), size_text_(std::to_string(size)) {}

  void name() const {
    const std::string_view name{T::name};
    const auto kebab = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; };
    if (name.empty() || !std::all_of(name.begin(), name.end(), kebab))
      throw Failure("the name \"" + std::string{name} + "\" is not in kebab case (a-z, 0-9 and -)");
  }

  /// The full name leads back to the same topology, where there is a way back.
  void parameters() const {
    if constexpr (requires { T::from_parameters(std::string_view{topology_.parameters()}); }) {
      const std::string parameters = topology_.parameters();
      const T back = T::from_parameters(parameters);
      if (back.parameters() != parameters)
        fail("from_parameters is not the inverse of parameters: \"" + parameters + "\" comes back as \"" +
             back.parameters() + '"');
      if (plan(back, 0) != plan(topology_, 0))
        fail("from_parameters is not the inverse of parameters: what it makes plans round 0 differently");
    }
  }

  void group_of_one() const {
    const std::string of_one = topology_name(topology_) + ", size 1: ";
    expect(topology_.period(1) == 1, of_one + "the period is " + std::to_string(topology_.period(1)) + ", not 1");
    expect(topology_.max_degree(1) == 0,
           of_one + "max_degree is " + std::to_string(topology_.max_degree(1)) + ", not 0");
    for (const Round round : {Round{0}, Round{1}, ~Round{0}}) {
      Neighborhood alone;
      topology_.neighbors(0, 1, round, alone);
      expect(alone.sources().empty() && alone.targets().empty(), of_one + "somebody is named, but there is nobody");
    }
  }

  /// neighbors() appends: what a caller put there before is still there.
  void appends() const {
    Neighborhood out;
    out.swap_with(-1, 1);
    topology_.neighbors(0, size_, 0, out);
    if (out.sources().empty() || out.sources()[0] != Neighborhood::Source{-1, 1} || out.targets().empty() ||
        out.targets()[0] != -1)
      fail("neighbors does not append: it changes what was in the neighborhood before");
  }

  void round(Round round) const {
    const Plan rows = plan(topology_, round);
    for (Rank rank = 0; rank < size_; ++rank) one_rank(rows, rank, round);
    for (Rank rank = 0; rank < size_; ++rank) two_sides(rows, rank, round);
    columns(rows, round);
    pure(rows, round);
    repeats(rows, round);
  }

  /// What report(size) may not contradict, where there is one and whatever way it is returned.
  void report() const {
    if constexpr (requires { topology_.report(size_); }) {
      const std::optional<TopologyReport> report = topology_.report(size_);
      if (!report) return;
      if (report->period != topology_.period(size_)) fail("report and topology have different periods");
      if (report->max_degree > topology_.max_degree(size_)) fail("report has a larger max_degree than the topology");
    }
  }

private:
  using Plan = std::vector<std::pair<std::vector<Neighborhood::Source>, std::vector<Rank>>>;

  [[noreturn]] void fail(const std::string& what) const {
    throw Failure(topology_name(topology_) + ", size " + size_text_ + ": " + what);
  }
  [[noreturn]] void fail(Round round, Rank rank, const std::string& what) const {
    throw Failure(topology_name(topology_) + ", size " + size_text_ + ", round " + std::to_string(round) + ": rank " +
                  std::to_string(rank) + ' ' + what);
  }

  // Every rank's neighborhood, from the first rank to the last or back, in one object that is filled again and again.
  Plan plan(const T& topology, Round round, bool backwards = false) const {
    Plan rows(static_cast<std::size_t>(size_));
    Neighborhood out;
    for (Rank i = 0; i < size_; ++i) {
      const Rank rank = backwards ? size_ - 1 - i : i;
      plan_round(topology, rank, size_, round, out);
      rows[static_cast<std::size_t>(rank)] = {{out.sources().begin(), out.sources().end()},
                                              {out.targets().begin(), out.targets().end()}};
    }
    return rows;
  }

  [[nodiscard]] bool is_peer(Rank rank) const { return rank >= 0 && rank < size_; }

  void one_rank(const Plan& rows, Rank rank, Round round) const {
    const auto& [sources, targets] = rows[static_cast<std::size_t>(rank)];
    double sum = 0;
    for (std::size_t i = 0; i < sources.size(); ++i) {
      const auto [peer, weight] = sources[i];
      if (!is_peer(peer)) fail(round, rank, "hears rank " + std::to_string(peer) + ", who does not exist");
      if (peer == rank) fail(round, rank, "hears itself");
      if (i > 0 && sources[i - 1].rank == peer) fail(round, rank, "hears rank " + std::to_string(peer) + " twice");
      if (!(weight > 0 && weight <= 1))
        fail(round, rank, "gives rank " + std::to_string(peer) + " a weight outside (0, 1]: " + std::to_string(weight));
      sum += weight;
    }
    for (std::size_t i = 0; i < targets.size(); ++i) {
      if (!is_peer(targets[i])) fail(round, rank, "tells rank " + std::to_string(targets[i]) + ", who does not exist");
      if (targets[i] == rank) fail(round, rank, "tells itself");
      if (i > 0 && targets[i - 1] == targets[i])
        fail(round, rank, "tells rank " + std::to_string(targets[i]) + " twice");
    }
    if (sum > 1 + tolerance)
      fail(round, rank, "gives its peers more than 1 together (the row sum): " + std::to_string(sum));
    const auto degree = static_cast<Rank>(std::max(sources.size(), targets.size()));
    if (degree > topology_.max_degree(size_))
      fail(
          round, rank,
          "has " + std::to_string(degree) + " peers, but max_degree is " + std::to_string(topology_.max_degree(size_)));
  }

  // i hears j exactly where j tells i: the lists are sorted.
  void two_sides(const Plan& rows, Rank rank, Round round) const {
    const auto& [sources, targets] = rows[static_cast<std::size_t>(rank)];
    for (const auto& [peer, weight] : sources) {
      const std::vector<Rank>& told = rows[static_cast<std::size_t>(peer)].second;
      if (!std::binary_search(told.begin(), told.end(), rank))
        fail(round, rank, "hears rank " + std::to_string(peer) + ", who does not tell it");
    }
    for (const Rank peer : targets) {
      const auto& heard = rows[static_cast<std::size_t>(peer)].first;
      if (!std::binary_search(heard.begin(), heard.end(), Neighborhood::Source{rank, 0},
                              [](const auto& a, const auto& b) { return a.rank < b.rank; }))
        fail(round, rank, "tells rank " + std::to_string(peer) + ", who does not hear it");
    }
  }

  // Rows sum to one because a rank keeps what is left; the columns do if each rank hands out as much as it takes in.
  void columns(const Plan& rows, Round round) const {
    std::vector<double> sums(rows.size(), 1);
    for (std::size_t i = 0; i < rows.size(); ++i)
      for (const auto& [peer, weight] : rows[i].first) {
        sums[i] -= weight;
        sums[static_cast<std::size_t>(peer)] += weight;
      }
    for (Rank rank = 0; rank < size_; ++rank)
      if (const double sum = sums[static_cast<std::size_t>(rank)]; !(std::abs(sum - 1) <= tolerance))
        fail(round, rank,
             "has a column of the mixing matrix that sums to " + std::to_string(sum) +
                 ", not 1: the mean of the models would drift");
  }

  // The same answer when asked again, in another order, and of a copy.
  void pure(const Plan& rows, Round round) const {
    const T copy = topology_;
    compare(rows, plan(topology_, round, true), round, "is not pure: asked again, it answers differently");
    compare(rows, plan(copy, round), round, "is not pure: a copy of the topology answers differently");
  }

  void repeats(const Plan& rows, Round round) const {
    const Round period = topology_.period(size_);
    if (period == 0) return;
    // The next period, and one beyond 32 bits.
    for (const Round periods : {Round{1}, (Round{1} << 40) / period + 1})
      compare(rows, plan(topology_, round + periods * period), round,
              "does something else " + std::to_string(periods) + " periods of " + std::to_string(period) +
                  " rounds later: the period does not repeat");
  }

  void compare(const Plan& expected, const Plan& found, Round round, const std::string& what) const {
    const auto differ = std::mismatch(expected.begin(), expected.end(), found.begin());
    if (differ.first != expected.end()) fail(round, static_cast<Rank>(differ.first - expected.begin()), what);
  }

  static constexpr double tolerance = 1e-12;

  const T& topology_;
  Rank size_;
  std::string size_text_;
};

}  // namespace detail

/// Rounds that check_topology() looks at unless told otherwise.
inline constexpr Round default_rounds = 64;

/// @brief Throws Failure if a topology breaks what the concept kith::Topology requires beyond its syntax, in the first
/// `rounds` rounds among `size` ranks. For the tests of a topology of your own:
///
/// @code
/// for (kith::Rank size = 1; size <= 64; ++size) kith::testing::check_topology(MyTopology{}, size);
/// @endcode
///
/// Checked: the name is in kebab case; a group of one does nothing; and in every round that the two sides agree, nobody
/// is named twice or names itself or somebody who does not exist, weights are in (0, 1], rows and columns sum to one to
/// 1e-12, nobody has more than max_degree peers, the same question has the same answer (in any order, and of a copy),
/// and the period repeats, also beyond 2^32 rounds. Further that neighbors() appends, that from_parameters() is the
/// inverse of parameters(), and that report() has the topology's period and degree.
///
/// Throws UsageError for a size that the topology refuses.
///
/// @par Cost Plans each round five times for every rank; memory in proportion to the edges of a round.
template <Topology T>
void check_topology(const T& topology, Rank size, Round rounds = default_rounds) {
  require_size(topology, size);
  const detail::TopologyCheck<T> check{topology, size};
  check.name();
  check.group_of_one();
  if (size > 1) {
    check.appends();
    for (Round round = 0; round < rounds; ++round) check.round(round);
    check.parameters();
  }
  check.report();
}

}  // namespace kith::testing
