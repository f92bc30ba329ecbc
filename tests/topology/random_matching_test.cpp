// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <cmath>
#include <map>
#include <numeric>
#include <vector>

#include <kith/topology/random_matching.hpp>

namespace topology_random_matching_test {

using kith::RandomMatching;
using kith::Rank;
using kith::Round;

namespace {

using Partners = std::vector<Rank>;  // the partner of each rank; itself for the one that is left over

Partners partners(const RandomMatching& topology, Rank size, Round round) {
  Partners result(static_cast<std::size_t>(size));
  std::iota(result.begin(), result.end(), 0);
  kith::Neighborhood row;
  for (Rank rank = 0; rank < size; ++rank) {
    kith::plan_round(topology, rank, size, round, row);
    for (const auto& source : row.sources()) result[static_cast<std::size_t>(rank)] = source.rank;
  }
  return result;
}

// All ways to pair the ranks, one left over if their number is odd.
void all_matchings(Partners& so_far, bool may_idle, std::vector<Partners>& found) {
  const auto first = std::find(so_far.begin(), so_far.end(), -1);
  if (first == so_far.end()) return found.push_back(so_far);
  const auto rank = static_cast<Rank>(first - so_far.begin());
  if (may_idle) {
    *first = rank;
    all_matchings(so_far, false, found);
  }
  for (auto other = first + 1; other != so_far.end(); ++other) {
    if (*other != -1) continue;
    *first = static_cast<Rank>(other - so_far.begin());
    *other = rank;
    all_matchings(so_far, may_idle, found);
    *other = -1;
  }
  *first = -1;
}

std::vector<Partners> all_matchings(Rank size) {
  Partners nobody(static_cast<std::size_t>(size), -1);
  std::vector<Partners> found;
  all_matchings(nobody, size % 2 != 0, found);
  return found;
}

// Pearson's statistic is nearly normal for many degrees of freedom d, mean d and variance 2 d (Wilson and Hilferty's
// cube root makes it so for few): in standard deviations.
double surprise(double statistic, double degrees) {
  const double spread = 2 / (9 * degrees);
  return (std::cbrt(statistic / degrees) - (1 - spread)) / std::sqrt(spread);
}

}  // namespace

TEST_CASE("random-matching: every size, every rank") {
  dense::check_family(RandomMatching{});
  dense::check_family(RandomMatching{.seed = 7});
}

TEST_CASE("random-matching: the keyed permutation is one, and its inverse undoes it") {
  for (Rank size = 2; size <= 130; ++size) {
    CAPTURE(size);
    const kith::detail::KeyedPermutation place(size, 0x5eed + static_cast<std::uint64_t>(size));
    std::vector<bool> taken(static_cast<std::size_t>(size));
    int wrong = 0;
    for (Rank element = 0; element < size; ++element) {
      const Rank to = place(element);
      wrong += to < 0 || to >= size || taken[static_cast<std::size_t>(to)] || place.inverse(to) != element;
      taken[static_cast<std::size_t>(to)] = true;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("random-matching: nobody is left over but one rank of an odd group") {
  for (const Rank size : {2, 3, 10, 11, 64, 97}) {
    for (Round round = 0; round < 10; ++round) {
      const Partners partner = partners(RandomMatching{3}, size, round);
      int idle = 0;
      for (Rank rank = 0; rank < size; ++rank) {
        idle += partner[static_cast<std::size_t>(rank)] == rank;
        CHECK(partner[static_cast<std::size_t>(partner[static_cast<std::size_t>(rank)])] == rank);
      }
      CHECK(idle == size % 2);
    }
  }
}

TEST_CASE("random-matching: every matching of a small group is drawn equally often") {
  for (const Rank size : {3, 4, 5, 6, 7, 8}) {
    CAPTURE(size);
    std::map<Partners, double> counts;
    for (const Partners& matching : all_matchings(size)) counts[matching] = 0;
    const auto kinds = static_cast<double>(counts.size());  // 3, 3, 15, 15, 105, 105
    const int rounds = size == 4 ? 20'000 : 5'000;          // 4 ranks are the network's weakest place
    for (int round = 0; round < rounds; ++round)
      ++counts.at(partners(RandomMatching{11}, size, static_cast<Round>(round)));
    double statistic = 0;
    for (const auto& [matching, count] : counts)
      statistic += (count - rounds / kinds) * (count - rounds / kinds) / (rounds / kinds);
    CHECK(surprise(statistic, kinds - 1) < 4);
  }
}

TEST_CASE("random-matching: every pair of a larger group meets with probability 1/(n-1), or 1/n for an odd size") {
  for (const Rank size : {30, 33}) {
    CAPTURE(size);
    const int rounds = 3'000;
    dense::Matrix meetings(size);
    for (int round = 0; round < rounds; ++round) {
      const Partners partner = partners(RandomMatching{1}, size, static_cast<Round>(round));
      for (Rank rank = 0; rank < size; ++rank) ++meetings(rank, partner[static_cast<std::size_t>(rank)]);
    }
    // A group of odd size is one of even size in which nobody hears the last rank: being left over is meeting it.
    const double ranks = size + size % 2;
    const double expected = rounds / (ranks - 1);
    double statistic = 0;
    for (Rank i = 0; i < size; ++i)
      for (Rank j = size % 2 == 0 ? i + 1 : i; j < size; ++j)
        statistic += (meetings(i, j) - expected) * (meetings(i, j) - expected) / expected;
    // The counts of a rank add up to the rounds, which leaves ranks (ranks - 3) / 2 degrees of freedom, among which the
    // variances ranks (ranks - 2) / 2 of all counts are shared out.
    const double z = surprise(statistic * (ranks - 3) / (ranks - 2), ranks * (ranks - 3) / 2);
    CHECK(z < 4);
    CHECK(z > -4);
  }
}

// For even sizes Boyd et al.'s E[W] with the probability 1/(n-1) for each pair: (n-2) / (2 (n-1)); 1/2 for odd ones.
TEST_CASE("random-matching: the contraction is that of the average over all matchings") {
  for (Rank size = 2; size <= 8; ++size) {
    CAPTURE(size);
    const std::vector<Partners> matchings = all_matchings(size);
    dense::Matrix average(size);
    for (const Partners& partner : matchings) {
      dense::Matrix w(size);
      for (Rank i = 0; i < size; ++i) {
        w(i, i) += 0.5;
        w(i, partner[static_cast<std::size_t>(i)]) += 0.5;
      }
      average =
          dense::sum(average, dense::product(dense::transpose(w), w), 1.0 / static_cast<double>(matchings.size()));
    }
    const kith::TopologyReport report = RandomMatching::report(size);
    const double squared = dense::spectral_norm(dense::sum(average, dense::mean(size), -1));
    CHECK(std::abs(report.contraction * report.contraction - squared) < 1e-12);
    CHECK(report.spectral_gap == 1 - report.contraction);
    CHECK(report.randomized);
    CHECK(report.period == 0);
    CHECK(report.exact_after.has_value() == (size == 2));
  }
  CHECK(std::abs(RandomMatching::report(1'000'000).contraction - std::sqrt(999'998.0 / 1'999'998.0)) < 1e-15);
  CHECK(RandomMatching::report(1'000'001).contraction == std::sqrt(0.5));
  CHECK_FALSE(RandomMatching::report(1).randomized);
  CHECK(RandomMatching::report(1).exact_after == 0);
}

TEST_CASE("random-matching: the seed and the round decide") {
  const Partners partner = partners(RandomMatching{1}, 50, 0);
  CHECK(partner != partners(RandomMatching{2}, 50, 0));
  CHECK(partner != partners(RandomMatching{1}, 50, 1));
  CHECK(partner != partners(RandomMatching{1}, 50, Round{1} << 32));
  CHECK(partner == partners(RandomMatching{.seed = 1}, 50, 0));
}

TEST_CASE("random-matching: parameters and back") {
  CHECK(kith::topology_name(RandomMatching{.seed = 7}) == "random-matching:7");
  CHECK(RandomMatching::from_parameters("7") == RandomMatching{7});
  CHECK(RandomMatching::from_parameters("") == RandomMatching{});
  for (const char* wrong : {"x", "-1", "7,8", "1e3"})
    CHECK_THROWS_WITH_AS((void)RandomMatching::from_parameters(wrong), doctest::Contains("random-matching:7"),
                         kith::UsageError);
}

}  // namespace topology_random_matching_test
