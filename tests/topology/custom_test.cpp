// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <limits>
#include <random>
#include <vector>

#include <kith/topology/custom.hpp>
#include <kith/topology/one_peer_exponential.hpp>
#include <kith/topology/star.hpp>

namespace topology_custom_test {

using kith::Custom;
using kith::Rank;
using kith::Round;

namespace {

std::vector<double> entries(const dense::Matrix& w) { return {w.values().begin(), w.values().end()}; }

}  // namespace

TEST_CASE("custom: an edge list has the weights of Metropolis-Hastings") {
  // A path 0-1-2-3 with a leaf at 1: the degrees are 1, 3, 2, 1, 1.
  const Custom path = Custom::from_edges(5, {{0, 1}, {2, 1}, {2, 3}, {1, 4}});
  const dense::Matrix w = dense::mixing(path, 5, 0);
  CHECK(w(0, 1) == 0.25);
  CHECK(w(1, 0) == 0.25);
  CHECK(w(1, 2) == 0.25);
  CHECK(w(2, 3) == 1.0 / 3);
  CHECK(w(4, 1) == 0.25);
  CHECK(w(0, 3) == 0);
  CHECK(w(0, 0) == 0.75);
  CHECK(path.max_degree(5) == 3);
  CHECK(path.size() == 5);
  dense::check_rounds(path, 5);
  // A star as a list of edges is Star: every edge has the hub at one end.
  const Custom star = Custom::from_edges(4, {{0, 1}, {0, 2}, {3, 0}});
  CHECK(dense::same(dense::plan(star, 4, 0), dense::plan(kith::Star{}, 4, 0)));
  // No edge at all is a graph as well.
  dense::check_rounds(Custom::from_edges(3, {}), 3);
}

TEST_CASE("custom: random graphs are without fault") {
  std::mt19937 random(2024);
  for (int trial = 0; trial < 30; ++trial) {
    CAPTURE(trial);
    const Rank size = std::uniform_int_distribution<Rank>(1, 20)(random);
    std::vector<Custom::Edge> edges;
    for (Rank a = 0; a < size; ++a)
      for (Rank b = a + 1; b < size; ++b)
        if (random() % 3 == 0) edges.push_back(random() % 2 == 0 ? Custom::Edge{a, b} : Custom::Edge{b, a});
    std::shuffle(edges.begin(), edges.end(), random);
    dense::check_rounds(Custom::from_edges(size, edges), size);
  }
}

TEST_CASE("custom: a matrix, or one for each round, is kept as it is") {
  const kith::OnePeerExponential exponential;
  std::vector<std::vector<double>> matrices;
  for (Round round = 0; round < 3; ++round) matrices.push_back(entries(dense::mixing(exponential, 6, round)));
  const Custom custom = Custom::from_matrices(6, matrices);
  CHECK(custom.period(6) == 3);
  CHECK(custom.max_degree(6) == 1);
  dense::check_rounds(custom, 6);
  for (Round round = 0; round < 7; ++round)
    CHECK(dense::same(dense::plan(custom, 6, round), dense::plan(exponential, 6, round)));
  CHECK(Custom::from_matrix(6, matrices[1]).period(6) == 1);
  CHECK(dense::same(dense::plan(Custom::from_matrix(6, matrices[1]), 6, 5), dense::plan(exponential, 6, 1)));
  // Columns may be busier than rows: rank 0 tells three, and nobody hears more than two.
  const std::vector<double> uneven{0,       0.5, 0.5, 0,        //
                                   1.0 / 3, 0.5, 0,   1.0 / 6,  //
                                   1.0 / 3, 0,   0.5, 1.0 / 6,  //
                                   1.0 / 3, 0,   0,   2.0 / 3};
  CHECK(Custom::from_matrix(4, uneven).max_degree(4) == 3);
  dense::check_rounds(Custom::from_matrix(4, uneven), 4);
}

TEST_CASE("custom: what is not a graph is refused") {
  CHECK_THROWS_WITH_AS((void)Custom::from_edges(3, {{0, 3}}), doctest::Contains("0-3"), kith::UsageError);
  CHECK_THROWS_WITH_AS((void)Custom::from_edges(3, {{-1, 0}}), doctest::Contains("-1-0"), kith::UsageError);
  CHECK_THROWS_WITH_AS((void)Custom::from_edges(3, {{2, 2}}), doctest::Contains("2-2"), kith::UsageError);
  CHECK_THROWS_WITH_AS((void)Custom::from_edges(3, {{0, 1}, {1, 2}, {1, 0}}), doctest::Contains("0-1 is named twice"),
                       kith::UsageError);
  CHECK_THROWS_AS((void)Custom::from_edges(0, {}), kith::UsageError);
}

TEST_CASE("custom: what is not doubly stochastic is refused by row or column") {
  const auto refuse = [](Rank size, const std::vector<double>& matrix, const char* words) {
    CAPTURE(words);
    CHECK_THROWS_WITH_AS((void)Custom::from_matrix(size, matrix), doctest::Contains(words), kith::UsageError);
  };
  refuse(2, {0.5, 0.5, 0.5, 0.4}, "row 1 sums to 0.9");
  refuse(2, {0.5, 0.5, 0.75, 0.25}, "column 0 sums to 1.25");
  refuse(2, {1.5, -0.5, -0.5, 1.5}, "row 0, column 1 is -0.5");
  refuse(2, {1, 0, std::numeric_limits<double>::quiet_NaN(), 1}, "row 1, column 0 is nan");
  refuse(2, {1, std::numeric_limits<double>::infinity(), 0, 1}, "row 0, column 1 is inf");
  refuse(3, {0.5, 0.5, 0.5, 0.5}, "9 entries, not 4");
  refuse(2, {0.5, 0.5 + 2e-9, 0.5, 0.5}, "row 0 sums to 1.000000002");
  CHECK_NOTHROW((void)Custom::from_matrix(2, std::vector<double>{0.5, 0.5 + 1e-10, 0.5, 0.5}));
  CHECK_THROWS_WITH_AS((void)Custom::from_matrices(2, {{1, 0, 0, 1}, {1, 0, 1, 0}}),
                       doctest::Contains("column 0 of matrix 1 sums to 2"), kith::UsageError);
  CHECK_THROWS_AS((void)Custom::from_matrices(2, {}), kith::UsageError);
}

TEST_CASE("custom: one size only") {
  const Custom pair = Custom::from_edges(2, {{0, 1}});
  CHECK(dense::refusal(pair, 2).empty());
  CHECK(dense::refusal(pair, 1).empty());
  CHECK(dense::mentions(dense::refusal(pair, 4), "2 ranks, not 4"));
  CHECK(pair.period(1) == 1);
  CHECK(pair.max_degree(1) == 0);
}

TEST_CASE("custom: the digest tells schedules apart, however they were made") {
  const Custom ring = Custom::from_edges(4, {{0, 1}, {1, 2}, {2, 3}, {3, 0}});
  const auto digest = ring.parameters();
  CHECK(digest.size() == 16);
  CHECK(digest.find_first_not_of("0123456789abcdef") == std::string::npos);
  CHECK(kith::topology_name(ring) == "custom:" + digest);
  CHECK(Custom::from_edges(4, {{3, 0}, {2, 1}, {1, 0}, {2, 3}}).parameters() == digest);  // the same graph
  CHECK(Custom::from_matrix(4, entries(dense::mixing(ring, 4, 0))).parameters() == digest);
  CHECK(Custom::from_edges(4, {{0, 1}, {1, 2}, {2, 3}}).parameters() != digest);
  CHECK(Custom::from_edges(4, {{0, 1}, {1, 3}, {3, 2}, {2, 0}}).parameters() != digest);
  const std::vector<double> w = entries(dense::mixing(ring, 4, 0));
  CHECK(Custom::from_matrices(4, {w, w}).parameters() != digest);
  CHECK(Custom::from_edges(3, {}).parameters() != Custom::from_edges(4, {}).parameters());
  // The same edges in the other order of rounds.
  const std::vector<double> swap{0, 1, 1, 0};
  const std::vector<double> stay{1, 0, 0, 1};
  CHECK(Custom::from_matrices(2, {swap, stay}).parameters() != Custom::from_matrices(2, {stay, swap}).parameters());
  CHECK(Custom::from_matrices(2, {swap, stay}).parameters() != Custom::from_matrix(2, swap).parameters());
}

}  // namespace topology_custom_test
