// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <kith/topology/one_peer_hypercube.hpp>

namespace topology_one_peer_hypercube_test {

TEST_CASE("one-peer-hypercube: every size, every rank") { dense::check_family(kith::OnePeerHypercube{}); }

TEST_CASE("one-peer-hypercube: the peer of round t differs in bit t mod tau") {
  for (const kith::Rank size : {2, 8, 64}) {
    const kith::Round period = kith::OnePeerHypercube::period(size);
    CHECK((kith::Rank{1} << period) == size);
    for (kith::Round round = 0; round < 2 * period; ++round) {
      const dense::Plan plan = dense::plan(kith::OnePeerHypercube{}, size, round);
      for (kith::Rank rank = 0; rank < size; ++rank) {
        REQUIRE(plan[static_cast<std::size_t>(rank)].sources().size() == 1);
        CHECK(plan[static_cast<std::size_t>(rank)].sources()[0] ==
              kith::Neighborhood::Source{rank ^ (1 << (round % period)), 0.5});
      }
    }
  }
}

// Shi et al., Finite-time convergent gossiping, 2016: pairwise averaging can reach the mean in finitely many rounds
// only for powers of two, and log2 n rounds of it suffice.
TEST_CASE("one-peer-hypercube: exact after tau rounds from any phase, for powers of two only") {
  const kith::TopologyReport report = kith::OnePeerHypercube::report(1 << 30);
  CHECK(report.period == 30);
  CHECK(report.exact_after == 30);
  CHECK(report.exact_after_any_phase == 30);
  CHECK(dense::mentions(dense::refusal(kith::OnePeerHypercube{}, 12), "8 or 16"));
  CHECK(dense::mentions(dense::refusal(kith::OnePeerHypercube{}, 12), "one-peer-hypercube"));
}

}  // namespace topology_one_peer_hypercube_test
