// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <kith/topology/base_graph.hpp>
#include <kith/topology/custom.hpp>
#include <kith/topology/cycle.hpp>
#include <kith/topology/hypercube.hpp>
#include <kith/topology/isolated.hpp>
#include <kith/topology/one_peer_exponential.hpp>
#include <kith/topology/random_matching.hpp>
#include <kith/topology/ring.hpp>
#include <kith/topology/shift_one.hpp>
#include <kith/topology/torus.hpp>

namespace topology_cycle_test {

using kith::Cycle;
using kith::Rank;
using kith::Round;

TEST_CASE("cycle: every size, every rank") {
  dense::check_family(Cycle{kith::Ring{}, kith::OnePeerExponential{}});
  dense::check_family(Cycle{kith::ShiftOne{}, kith::Isolated{}, kith::BaseGraph{2}});
  dense::check_family(Cycle{kith::RandomMatching{1}, kith::RandomMatching{2}});
}

TEST_CASE("cycle: round t is round t/m of member t mod m") {
  const kith::OnePeerExponential first;
  const kith::ShiftOne second;
  const kith::BaseGraph third{.degree = 2};
  const Cycle cycle{first, second, third};
  for (Round round = 0; round < 60; ++round) {
    CAPTURE(round);
    const dense::Plan plan = dense::plan(cycle, 10, round);
    if (round % 3 == 0) CHECK(dense::same(plan, dense::plan(first, 10, round / 3)));
    if (round % 3 == 1) CHECK(dense::same(plan, dense::plan(second, 10, round / 3)));
    if (round % 3 == 2) CHECK(dense::same(plan, dense::plan(third, 10, round / 3)));
  }
  CHECK(cycle.period(10) == 3 * 20);  // the members' periods are 4, 5 and 4
  CHECK(cycle.max_degree(10) == 2);
}

TEST_CASE("cycle: a randomised member makes it randomised, one member is itself, cycles nest") {
  CHECK(Cycle{kith::Ring{}, kith::RandomMatching{7}}.period(8) == 0);
  CHECK(Cycle{kith::RandomMatching{7}, kith::Ring{}}.period(8) == 0);
  CHECK(Cycle{kith::Ring{}, kith::RandomMatching{7}}.period(1) == 1);
  const Cycle alone{kith::OnePeerExponential{}};
  for (Round round = 0; round < 8; ++round)
    CHECK(dense::same(dense::plan(alone, 9, round), dense::plan(kith::OnePeerExponential{}, 9, round)));
  const Cycle nested{kith::Isolated{}, Cycle{kith::Ring{}, kith::OnePeerExponential{}}};
  CHECK(nested.period(8) == 2 * 2 * 3);
  CHECK(dense::same(dense::plan(nested, 8, 7), dense::plan(kith::OnePeerExponential{}, 8, 1)));
}

TEST_CASE("cycle: it refuses what a member refuses") {
  const Cycle cycle{kith::Ring{}, kith::Hypercube{}};
  CHECK(dense::refusal(cycle, 8).empty());
  CHECK(dense::refusal(cycle, 1).empty());
  CHECK(dense::mentions(dense::refusal(cycle, 6), "hypercube needs a power of two"));
}

TEST_CASE("cycle: the parameters spell the members out") {
  CHECK(kith::topology_name(Cycle{kith::Ring{}, kith::BaseGraph{2}}) == "cycle:[ring,base-graph:2]");
  CHECK(kith::topology_name(Cycle{kith::Ring{}, Cycle{kith::Torus{4, 2}, kith::Ring{}}}) ==
        "cycle:[ring,cycle:[torus:4x2,ring]]");
  CHECK(Cycle{kith::Ring{}, kith::Torus{}}.parameters() != Cycle{kith::Torus{}, kith::Ring{}}.parameters());
}

TEST_CASE("cycle: a member that is made for one size") {
  const kith::Custom path = kith::Custom::from_edges(3, {{0, 1}, {1, 2}});
  const Cycle cycle{path, kith::Ring{}};
  CHECK(dense::same(dense::plan(cycle, 3, 4), dense::plan(path, 3, 0)));
  CHECK(dense::mentions(dense::refusal(cycle, 4), "3 ranks, not 4"));
}

}  // namespace topology_cycle_test
