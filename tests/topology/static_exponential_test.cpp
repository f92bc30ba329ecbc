// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include <kith/topology/static_exponential.hpp>

namespace topology_static_exponential_test {

using kith::Rank;
using kith::StaticExponential;

TEST_CASE("static-exponential: every size, every rank") { dense::check_family(StaticExponential{}, 40); }

TEST_CASE("static-exponential: rank i hears itself and i - 1, i - 2, i - 4, ... equally") {
  for (const auto& [size, hops] : {std::pair{5, 3}, std::pair{8, 3}, std::pair{9, 4}, std::pair{33, 6}}) {
    dense::Matrix expected(size);
    for (Rank i = 0; i < size; ++i) {
      expected(i, i) = 1.0 / (hops + 1);
      for (int j = 0; j < hops; ++j) expected(i, ((i - (1 << j)) % size + size) % size) += 1.0 / (hops + 1);
    }
    CHECK(dense::largest_difference(dense::mixing(StaticExponential{}, size, 0), expected) < 1e-15);
  }
}

// Ying et al., Exponential Graph is Provably Efficient for Decentralized Deep Training, NeurIPS 2021, Theorem 1: the
// gap is 2 / (1 + ceil(log2 n)) for even n and larger for odd n. check_family() holds both against Eigen up to 40.
TEST_CASE("static-exponential: the gap of Ying et al., Theorem 1") {
  for (const auto& [size, tau] : {std::pair{6, 3}, {64, 6}, {100, 7}, {1000, 10}, {1'000'000, 20}, {(1 << 30) + 2, 31}})
    CHECK(StaticExponential::report(size).spectral_gap == doctest::Approx(2.0 / (1 + tau)).epsilon(1e-15));
  for (const Rank size : {5, 63, 101, 999, 20'001}) {
    CAPTURE(size);
    const int tau = static_cast<int>(std::ceil(std::log2(size)));  // 5, 63, ...: far enough from powers of two
    double largest = 0;
    for (Rank k = 1; k <= size / 2; ++k) {
      std::complex<double> eigenvalue = 1;
      for (int j = 0; j < tau; ++j) {
        const auto turns = static_cast<double>((std::int64_t{k} << j) % size);
        eigenvalue += std::polar(1.0, 2 * std::numbers::pi * turns / size);
      }
      largest = std::max(largest, std::abs(eigenvalue) / (1 + tau));
    }
    CHECK(std::abs(StaticExponential::report(size).contraction - largest) < 1e-13);
    CHECK(StaticExponential::report(size).spectral_gap > 2.0 / (1 + tau));
  }
}

TEST_CASE("static-exponential: two and three ranks hear everybody") {
  CHECK(StaticExponential::report(2).exact_after == 1);
  CHECK(StaticExponential::report(3).exact_after == 1);
  CHECK_FALSE(StaticExponential::report(4).exact_after);
  CHECK(StaticExponential::report(3).symmetric);
  CHECK_FALSE(StaticExponential::report(4).symmetric);
}

}  // namespace topology_static_exponential_test
