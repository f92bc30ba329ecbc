// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <vector>

#include <kith/topology/hyper_cuboid.hpp>

namespace topology_hyper_cuboid_test {

using kith::HyperCuboid;
using kith::Rank;
using kith::Round;

TEST_CASE("hyper-cuboid: every size, every rank") { dense::check_family(HyperCuboid{}, 40); }

TEST_CASE("hyper-cuboid: the sides are the prime factors, ascending") {
  const auto factors = [](Rank size) {
    const kith::detail::Sides sides = kith::detail::prime_factors(size);
    return std::vector<Rank>(sides.lengths.begin(), sides.lengths.begin() + static_cast<std::ptrdiff_t>(sides.count));
  };
  CHECK(factors(1) == std::vector<Rank>{});
  CHECK(factors(12) == std::vector<Rank>{2, 2, 3});
  CHECK(factors(997) == std::vector<Rank>{997});
  CHECK(factors(1'000'000) == std::vector<Rank>{2, 2, 2, 2, 2, 2, 5, 5, 5, 5, 5, 5});
  CHECK(factors(2'147'483'647) == std::vector<Rank>{2'147'483'647});  // 2^31 - 1, a Mersenne prime
  CHECK(factors(2'147'117'569) == std::vector<Rank>{46337, 46337});   // the largest square of a prime
  CHECK(factors(1 << 30) == std::vector<Rank>(30, 2));
}

// Two rounds of pairs and one of triples for 12 = 2 * 2 * 3: digit t of the rank in the mixed radix (2, 2, 3).
TEST_CASE("hyper-cuboid: a round averages along one side") {
  const Rank strides[] = {1, 2, 4};
  const Rank lengths[] = {2, 2, 3};
  for (Round round = 0; round < 3; ++round) {
    dense::Matrix expected(12);
    for (Rank i = 0; i < 12; ++i) {
      const Rank stride = strides[round];
      const Rank length = lengths[round];
      for (Rank j = 0; j < 12; ++j) {
        bool along = true;  // all other digits agree
        for (int d = 0; d < 3; ++d)
          if (strides[d] != stride) along = along && i / strides[d] % lengths[d] == j / strides[d] % lengths[d];
        expected(i, j) = along ? 1.0 / length : 0;
      }
    }
    CHECK(dense::largest_difference(dense::mixing(HyperCuboid{}, 12, round), expected) < 1e-15);
  }
}

TEST_CASE("hyper-cuboid: exact after one round for each prime factor, from any phase") {
  const kith::TopologyReport report = HyperCuboid::report(1'000'000);
  CHECK(report.period == 12);
  CHECK(report.max_degree == 4);
  CHECK(report.exact_after == 12);
  CHECK(report.exact_after_any_phase == 12);
  CHECK(HyperCuboid::report(997).max_degree == 996);  // a prime size is the complete graph
  CHECK(HyperCuboid::report(997).exact_after == 1);
}

}  // namespace topology_hyper_cuboid_test
