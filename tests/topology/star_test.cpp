// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <kith/topology/star.hpp>

namespace topology_star_test {

TEST_CASE("star: every size, every rank") { dense::check_family(kith::Star{}); }

TEST_CASE("star: every edge weighs 1/n and the gap is 1/n") {
  const dense::Matrix w = dense::mixing(kith::Star{}, 8, 0);
  for (kith::Rank leaf = 1; leaf < 8; ++leaf) {
    CHECK(w(0, leaf) == 1.0 / 8);
    CHECK(w(leaf, 0) == 1.0 / 8);
    CHECK(w(leaf, leaf) == 7.0 / 8);
  }
  CHECK(kith::Star::report(8).spectral_gap == doctest::Approx(1.0 / 8).epsilon(1e-15));
  CHECK(kith::Star::report(1'000'000).spectral_gap == doctest::Approx(1e-6).epsilon(1e-15));
  CHECK(kith::Star::report(1'000'000).max_degree == 999'999);
}

TEST_CASE("star: two ranks hold the mean after one round, more never do") {
  CHECK(kith::Star::report(2).exact_after == 1);
  CHECK_FALSE(kith::Star::report(3).exact_after);
}

}  // namespace topology_star_test
