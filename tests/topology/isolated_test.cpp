// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <kith/topology/isolated.hpp>

namespace topology_isolated_test {

TEST_CASE("isolated: every size, every rank") { dense::check_family(kith::Isolated{}); }

TEST_CASE("isolated: W is the identity, which never mixes") {
  CHECK(dense::largest_difference(dense::mixing(kith::Isolated{}, 9, 4), dense::identity(9)) == 0);
  const kith::TopologyReport report = kith::Isolated::report(1'000'000);
  CHECK(report.max_degree == 0);
  CHECK_FALSE(report.connected);
  CHECK(report.contraction == 1);
  CHECK(report.spectral_gap == 0);
  CHECK_FALSE(report.exact_after);
  CHECK_FALSE(report.exact_after_any_phase);
  CHECK(kith::Isolated::report(1).exact_after == 0);
}

}  // namespace topology_isolated_test
