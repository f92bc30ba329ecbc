// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <cmath>
#include <numbers>

#include <kith/topology/ring.hpp>

namespace topology_ring_test {

TEST_CASE("ring: every size, every rank") { dense::check_family(kith::Ring{}, 40); }

TEST_CASE("ring: W is (I + S + S^T) / 3, and halves for two ranks") {
  for (kith::Rank size = 3; size <= 12; ++size) {
    CAPTURE(size);
    dense::Matrix expected(size);
    for (kith::Rank i = 0; i < size; ++i)
      for (const kith::Rank step : {0, 1, size - 1}) expected(i, (i + step) % size) += 1.0 / 3;
    CHECK(dense::largest_difference(dense::mixing(kith::Ring{}, size, 0), expected) < 1e-15);
  }
  CHECK(dense::largest_difference(dense::mixing(kith::Ring{}, 2, 0), dense::mean(2)) == 0);
}

// The eigenvalues of a circulant matrix are the Fourier transform of its first row: 1/3 + 2/3 cos(2 pi k / n). The
// library says 4/3 sin^2(pi / n) instead of one minus that: for a million ranks the difference has no digits left.
TEST_CASE("ring: the gap is that of the circulant matrix") {
  for (const kith::Rank size : {4, 5, 6, 7, 100, 997}) {
    CAPTURE(size);
    double largest = 0;
    for (kith::Rank k = 1; k < size; ++k)
      largest = std::max(largest, std::abs(1.0 / 3 + 2.0 / 3 * std::cos(2 * std::numbers::pi * k / size)));
    CHECK(std::abs(kith::Ring::report(size).contraction - largest) < 1e-14);
  }
  // For a large n: 4/3 (pi/n)^2 (1 - (pi/n)^2 / 3 + ...).
  const double turn = std::numbers::pi / 1'000'000;
  CHECK(std::abs(kith::Ring::report(1'000'000).spectral_gap / (4.0 / 3 * turn * turn) - 1) < 1e-11);
}

TEST_CASE("ring: two and three ranks hold the mean after one round, more never do") {
  CHECK(kith::Ring::report(2).exact_after == 1);
  CHECK(kith::Ring::report(3).exact_after_any_phase == 1);
  CHECK_FALSE(kith::Ring::report(4).exact_after);
}

}  // namespace topology_ring_test
