// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <bit>

#include <kith/topology/hypercube.hpp>

namespace topology_hypercube_test {

TEST_CASE("hypercube: every size, every rank") { dense::check_family(kith::Hypercube{}, 32); }

TEST_CASE("hypercube: ranks one bit apart share an edge of 1/(tau + 1)") {
  const dense::Matrix w = dense::mixing(kith::Hypercube{}, 16, 0);
  for (kith::Rank i = 0; i < 16; ++i)
    for (kith::Rank j = 0; j < 16; ++j)
      CHECK(w(i, j) == doctest::Approx(std::popcount(static_cast<unsigned>(i ^ j)) <= 1 ? 0.2 : 0).epsilon(1e-15));
}

TEST_CASE("hypercube: the gap is 2/(tau + 1)") {
  CHECK(kith::Hypercube::report(1 << 20).spectral_gap == doctest::Approx(2.0 / 21).epsilon(1e-15));
  CHECK(kith::Hypercube::report(1 << 30).max_degree == 30);
  CHECK(kith::Hypercube::report(2).exact_after == 1);
  CHECK_FALSE(kith::Hypercube::report(4).exact_after);
}

TEST_CASE("hypercube: other sizes are refused with sizes and topologies that work") {
  const std::string words = dense::refusal(kith::Hypercube{}, 6);
  CHECK(dense::mentions(words, "hypercube"));
  CHECK(dense::mentions(words, "4 or 8"));
  CHECK(dense::mentions(words, "not 6"));
  CHECK(dense::mentions(words, "base-graph"));
  CHECK(dense::mentions(dense::refusal(kith::Hypercube{}, 2'147'483'647), "1073741824 or 2147483648"));
  for (kith::Rank size = 1; size <= 64; ++size)
    CHECK(dense::refusal(kith::Hypercube{}, size).empty() == std::has_single_bit(static_cast<unsigned>(size)));
}

}  // namespace topology_hypercube_test
