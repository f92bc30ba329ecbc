// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <kith/topology/complete.hpp>

namespace topology_complete_test {

TEST_CASE("complete: every size, every rank") { dense::check_family(kith::Complete{}); }

TEST_CASE("complete: W is J, so one round is the exact mean") {
  for (const kith::Rank size : {1, 2, 3, 10, 64})
    CHECK(dense::largest_difference(dense::mixing(kith::Complete{}, size, 3), dense::mean(size)) < 1e-15);
  const kith::TopologyReport report = kith::Complete::report(1'000'000);
  CHECK(report.max_degree == 999'999);
  CHECK(report.contraction == 0);
  CHECK(report.spectral_gap == 1);
  CHECK(report.exact_after == 1);
  CHECK(report.exact_after_any_phase == 1);
}

}  // namespace topology_complete_test
