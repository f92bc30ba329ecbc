// SPDX-License-Identifier: Apache-2.0
#include <kith/topology/hierarchical.hpp>

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include <kith/testing/topology_checks.hpp>
#include <kith/topology/analysis.hpp>
#include <kith/topology/any.hpp>

#include "dense.hpp"

namespace topology_hierarchical_test {

using kith::Hierarchical;
using kith::Rank;
using kith::Round;

namespace {

template <class Inter>
void check_sizes(const Inter& inter) {
  for (const Rank intra : {1, 3, 8})
    for (const Rank size : dense::accepted(Hierarchical{intra, inter}, dense::sizes_between(1, 64)))
      kith::testing::check_topology(Hierarchical{intra, inter}, size, 2);
}

// A directed graph with a weight of its own on every edge: a third of one cycle and a half of another.
kith::Custom lopsided(Rank size) {
  std::vector<double> matrix(static_cast<std::size_t>(size * size));
  const auto at = [&](Rank i, Rank j) -> double& { return matrix[static_cast<std::size_t>(i * size + j % size)]; };
  for (Rank i = 0; i < size; ++i) {
    at(i, i) += 1.0 / 6;
    at(i, i + 1) += 1.0 / 3;
    at(i, i + 2) += 1.0 / 2;
  }
  return kith::Custom::from_matrix(size, matrix);
}

// W_M, from the matrix between ranks: the weights that a rank gives to all of a machine together.
dense::Matrix between_machines(const dense::Matrix& w, const std::vector<Rank>& machine_of, Rank machines) {
  dense::Matrix sums{machines};
  std::vector<Rank> first(static_cast<std::size_t>(machines), -1);
  for (Rank i = 0; i < w.size(); ++i) {
    const Rank a = machine_of[static_cast<std::size_t>(i)];
    if (first[static_cast<std::size_t>(a)] < 0) first[static_cast<std::size_t>(a)] = i;
    for (Rank j = 0; j < w.size(); ++j) {
      const Rank b = machine_of[static_cast<std::size_t>(j)];
      if (first[static_cast<std::size_t>(a)] == i) sums(a, b) += w(i, j);
      // All ranks of a machine hear the same, and all of another with the same weight.
      const Rank j0 = first[static_cast<std::size_t>(b)] < 0 ? j : first[static_cast<std::size_t>(b)];
      CHECK(w(i, j) == doctest::Approx(w(first[static_cast<std::size_t>(a)], j0)).epsilon(1e-14));
    }
  }
  return sums;
}

}  // namespace

TEST_CASE("hierarchical: every size, whatever the size of a machine") {
  check_sizes(kith::OnePeerExponential{});
  check_sizes(kith::Ring{});
  check_sizes(kith::BaseGraph{2});
  check_sizes(kith::RandomMatching{7});
  check_sizes(kith::parse_topology("cycle:[static-exponential,star]"));
  kith::testing::check_topology(Hierarchical{8, kith::OnePeerExponential{}}, 8192, 2);
}

TEST_CASE("hierarchical: any map, and inter topologies of one size") {
  // Machines of 3, 1, 4, 2 ranks and names of their own, whose ranks are mixed up.
  const std::vector<Rank> map = {7, 7, -2, 40, 7, 40, 3, 40, 3, 40};
  for (const std::string name : {"ring", "one-peer-exponential", "base-graph", "complete", "hypercube", "equi-dynamic",
                                 "hierarchical:2,ring", "hierarchical:3,one-peer-exponential", "isolated"})
    kith::testing::check_topology(Hierarchical{map, kith::parse_topology(name)}, 10);
  kith::testing::check_topology(Hierarchical{map, lopsided(4)}, 10);
  kith::testing::check_topology(Hierarchical{std::vector<Rank>(9, 5), kith::Ring{}}, 9);
  kith::testing::check_topology(Hierarchical{3, lopsided(5)}, 13);
  // Machines that swap their models keep nothing.
  const auto swap = kith::Custom::from_matrix(2, std::vector<double>{0, 1, 1, 0});
  kith::testing::check_topology(Hierarchical{2, swap}, 4);
  CHECK(dense::mixing(Hierarchical{2, swap}, 4, 0)(0, 1) == 0);

  const Hierarchical ring{map, kith::Ring{}};
  CHECK(dense::mentions(dense::refusal(ring, 9), "for 10 ranks, not 9"));
  CHECK(dense::refusal(ring, 10).empty());
  CHECK(ring.machine_of(0, 10) == 0);
  CHECK(ring.machine_of(2, 10) == 1);
  CHECK(ring.machine_of(9, 10) == 2);
  CHECK(dense::mentions(dense::refusal(Hierarchical{2, kith::Hypercube{}}, 6), "hypercube needs a power of two"));
  CHECK(dense::refusal(Hierarchical{3, kith::Hypercube{}}, 11).empty());  // 4 machines
  CHECK_THROWS_AS((Hierarchical{0, kith::Ring{}}), kith::UsageError);
  CHECK_THROWS_AS((Hierarchical{std::vector<Rank>{}, kith::Ring{}}), kith::UsageError);
}

TEST_CASE("hierarchical: equal machines have the inter topology's own weights, exactly") {
  for (const std::string name : {"one-peer-exponential", "ring", "base-graph:2", "star", "equi-dynamic:3", "complete"})
    for (Round round = 0; round < 4; ++round) {
      const kith::AnyTopology inter = kith::parse_topology(name);
      const dense::Matrix w = dense::mixing(inter, 6, round);
      const dense::Plan plan = dense::plan(Hierarchical{4, inter}, 24, round);
      for (Rank i = 0; i < 24; ++i)
        for (const auto& [j, weight] : plan[static_cast<std::size_t>(i)].sources())
          if (i / 4 != j / 4) CHECK(weight == w(i / 4, j / 4) / 4);
      CHECK(dense::largest_difference(
                between_machines(dense::mixing(plan),
                                 {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5}, 6),
                w) < 1e-15);
    }
}

TEST_CASE("hierarchical: a pair of uneven machines ends at the mean of all its ranks, and so does a clique") {
  const std::vector<Rank> map = {0, 0, 0, 1, 2, 2, 2, 2, 3, 3};  // 3, 1, 4 and 2 ranks
  const dense::Matrix pairs =                                    // round 0 of the hypercube: 0 with 1, 2 with 3
      between_machines(dense::mixing(Hierarchical{map, kith::OnePeerHypercube{}}, 10, 0), map, 4);
  dense::Matrix expected{4};
  for (const Rank row : {0, 1}) expected(row, 0) = 3.0 / 4, expected(row, 1) = 1.0 / 4;
  for (const Rank row : {2, 3}) expected(row, 2) = 4.0 / 6, expected(row, 3) = 2.0 / 6;
  CHECK(dense::largest_difference(pairs, expected) < 1e-15);
  CHECK(dense::largest_difference(dense::mixing(Hierarchical{map, kith::Complete{}}, 10, 0), dense::mean(10)) < 1e-15);
  // A symmetric round of other weights: Metropolis. A ring of 4 has thirds.
  const dense::Matrix ring = between_machines(dense::mixing(Hierarchical{map, kith::Ring{}}, 10, 0), map, 4);
  CHECK(ring(0, 1) == doctest::Approx(1.0 / 9));  // a third of min(1, 1/3)
  CHECK(ring(1, 0) == doctest::Approx(1.0 / 3));
  CHECK(ring(2, 1) == doctest::Approx(1.0 / 12));  // a third of min(1, 1/4)
  CHECK(ring(0, 3) == doctest::Approx(2.0 / 9));
  CHECK(ring(0, 2) == 0);
  // A directed one: half of the smallest machine's single rank flows along every edge.
  const dense::Matrix directed =
      between_machines(dense::mixing(Hierarchical{map, kith::OnePeerExponential{}}, 10, 0), map, 4);
  CHECK(directed(0, 3) == doctest::Approx(1.0 / 6));
  CHECK(directed(2, 1) == doctest::Approx(1.0 / 8));
  CHECK(directed(1, 0) == doctest::Approx(1.0 / 2));
}

TEST_CASE("hierarchical: the report is the inter topology's, and what is measured") {
  for (const std::string name : {"one-peer-exponential", "ring", "static-exponential", "hyper-cuboid"})
    for (const Rank machines : {1, 2, 6, 8}) {
      const Hierarchical topology{3, kith::parse_topology(name)};
      const std::optional<kith::TopologyReport> said = topology.report(3 * machines);
      REQUIRE(said);
      dense::check_equal(*said, dense::measure(topology, 3 * machines));
    }
  CHECK_FALSE(Hierarchical(3, kith::Ring{}).report(10));  // the last machine is shorter: measured
  CHECK(kith::analyze(Hierarchical{3, kith::Ring{}}, 10).doubly_stochastic);
  CHECK(kith::analyze(Hierarchical{4, kith::RandomMatching{}}, 16).contraction ==
        kith::analyze(kith::RandomMatching{}, 4).contraction);
}

TEST_CASE("hierarchical: its name, which leads back to it") {
  CHECK(kith::topology_name(Hierarchical{4}) == "hierarchical:[4,one-peer-exponential]");
  const std::string cycle = "cycle:[hierarchical:[4,torus:2x2],hierarchical:[8,cycle:[ring,star]]]";
  CHECK(kith::parse_topology(cycle).full_name() == cycle);
  const kith::AnyTopology bare = kith::parse_topology("hierarchical:4,base-graph:2");
  CHECK(bare.full_name() == "hierarchical:[4,base-graph:2]");
  CHECK(bare.machine_of(9, 16) == 2);
  CHECK_FALSE(kith::parse_topology("ring").machine_of(9, 16));
  for (Round round = 0; round < 5; ++round)
    CHECK(dense::same(dense::plan(bare, 22, round), dense::plan(Hierarchical{4, kith::BaseGraph{2}}, 22, round)));
  for (const char* name : {"hierarchical", "hierarchical:", "hierarchical:4", "hierarchical:0,ring",
                           "hierarchical:ring,4", "hierarchical:[4]", "hierarchical:4,rign", "hierarchical:[4,ring"}) {
    CAPTURE(name);
    CHECK_THROWS_AS((void)kith::parse_topology(name), kith::UsageError);
  }
  const std::vector<Rank> a = {0, 0, 1, 1}, b = {5, 5, 2, 2}, c = {0, 1, 0, 1};
  CHECK(Hierarchical{a, kith::Ring{}}.parameters() == Hierarchical{b, kith::Ring{}}.parameters());  // the same machines
  CHECK(Hierarchical{a, kith::Ring{}}.parameters() != Hierarchical{c, kith::Ring{}}.parameters());
  CHECK(Hierarchical{a, kith::Ring{}}.parameters() != Hierarchical{2, kith::Ring{}}.parameters());
}

}  // namespace topology_hierarchical_test
