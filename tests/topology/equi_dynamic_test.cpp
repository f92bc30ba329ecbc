// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <cmath>
#include <vector>

#include <kith/topology/equi_dynamic.hpp>

namespace topology_equi_dynamic_test {

using kith::EquiDynamic;
using kith::Rank;
using kith::Round;

namespace {

// W = (1 - eta) I + eta ((n-1)/n S^u + I/n), eta = 1/2, as Song et al. define it.
dense::Matrix by_definition(Rank size, Rank distance) {
  dense::Matrix w(size);
  for (Rank i = 0; i < size; ++i) {
    w(i, i) += 0.5 + 0.5 / size;
    w(i, (i - distance + size) % size) += 0.5 * (size - 1) / size;
  }
  return w;
}

Rank distance_of(const dense::Plan& plan) { return plan[0].targets()[0]; }

}  // namespace

TEST_CASE("equi-dynamic: every size, every rank") {
  dense::check_family(EquiDynamic{});
  dense::check_family(EquiDynamic{.seed = ~std::uint64_t{0}});
}

TEST_CASE("equi-dynamic: all ranks draw the same distance, and W is the one of the definition") {
  for (Rank size = 2; size <= 20; ++size) {
    for (Round round = 0; round < 20; ++round) {
      const dense::Plan plan = dense::plan(EquiDynamic{5}, size, round);
      const Rank distance = distance_of(plan);
      CHECK(dense::largest_difference(dense::mixing(plan), by_definition(size, distance)) < 1e-15);
    }
  }
}

TEST_CASE("equi-dynamic: every distance is drawn equally often") {
  const Rank size = 12;
  const int rounds = 22'000;
  std::vector<double> counts(static_cast<std::size_t>(size));
  kith::Neighborhood row;
  for (int round = 0; round < rounds; ++round) {
    kith::plan_round(EquiDynamic{1}, 0, size, static_cast<Round>(round), row);
    ++counts[static_cast<std::size_t>(row.targets()[0])];
  }
  CHECK(counts[0] == 0);
  double statistic = 0;  // Pearson's, with 10 degrees of freedom: above 35.6 once in 10,000 seeds
  for (std::size_t u = 1; u < counts.size(); ++u) statistic += (counts[u] - 2000) * (counts[u] - 2000) / 2000;
  CHECK(statistic < 35.6);
}

TEST_CASE("equi-dynamic: the contraction is that of the average over all distances") {
  for (Rank size = 2; size <= 20; ++size) {
    CAPTURE(size);
    dense::Matrix average(size);
    for (Rank u = 1; u < size; ++u) {
      const dense::Matrix w = by_definition(size, u);
      average = dense::sum(average, dense::product(dense::transpose(w), w), 1.0 / (size - 1));
    }
    const kith::TopologyReport report = EquiDynamic::report(size);
    const double expected = std::sqrt(dense::spectral_norm(dense::sum(average, dense::mean(size), -1)));
    CHECK(std::abs(report.contraction - expected) < 1e-12);
    CHECK(report.spectral_gap == 1 - report.contraction);
    CHECK(report.randomized);
    CHECK(report.period == 0);
    CHECK(report.symmetric == (size == 2));
    CHECK_FALSE(report.exact_after);
  }
  CHECK(std::abs(EquiDynamic::report(1'000'000).contraction - std::sqrt(0.5 - 0.5e-6)) < 1e-15);
  CHECK_FALSE(EquiDynamic::report(1).randomized);
  CHECK(EquiDynamic::report(1).exact_after == 0);
}

TEST_CASE("equi-dynamic: the seed decides") {
  int differ = 0;
  for (Round round = 0; round < 20; ++round) {
    differ +=
        distance_of(dense::plan(EquiDynamic{1}, 50, round)) != distance_of(dense::plan(EquiDynamic{2}, 50, round));
  }
  CHECK(differ > 10);
}

TEST_CASE("equi-dynamic: parameters and back") {
  CHECK(kith::topology_name(EquiDynamic{.seed = 7}) == "equi-dynamic:7");
  CHECK(EquiDynamic::from_parameters("18446744073709551615").seed == ~std::uint64_t{0});
  CHECK(EquiDynamic::from_parameters("") == EquiDynamic{});
  for (const char* wrong : {"seven", "-1", "7.5", "18446744073709551616", " 7"})
    CHECK_THROWS_WITH_AS((void)EquiDynamic::from_parameters(wrong), doctest::Contains("equi-dynamic:7"),
                         kith::UsageError);
}

}  // namespace topology_equi_dynamic_test
