// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/period.hpp>

#include <algorithm>
#include <cstddef>
#include <set>
#include <string>
#include <vector>

#include <kith/topology/analysis.hpp>
#include <kith/topology/any.hpp>

#include <doctest/doctest.h>

namespace exchange_period_test {

using kith::Rank;
using kith::Round;

TEST_CASE("period: the edges of all rounds, and the weights at their other ends") {
  for (const char* name : {"ring", "one-peer-exponential", "base-graph:2", "static-exponential", "star", "hyper-cuboid",
                           "cycle:[ring,one-peer-exponential]", "isolated"})
    for (const Rank size : {1, 2, 6, 9}) {
      CAPTURE(name);
      CAPTURE(size);
      const kith::AnyTopology topology = kith::parse_topology(name);
      bool symmetric = true;
      std::vector<std::set<Rank>> sources(static_cast<std::size_t>(size)), targets(sources);
      for (Rank i = 0; i < size; ++i) {
        const auto row = static_cast<std::size_t>(i);
        const kith::detail::PeriodPlan period = kith::detail::plan_period(topology, i, size);
        CHECK(period.topology == name);
        REQUIRE(period.rounds == (size == 1 ? 1 : topology.period(size)));
        REQUIRE(period.told.size() == period.rounds);
        bool mine = true;
        for (Round t = 0; t < period.rounds; ++t) {
          const kith::MixingMatrix w = kith::mixing_matrix(topology, size, t);
          std::vector<double> told;
          for (Rank k = 0; k < size; ++k) {
            if (k == i) continue;
            if (w(k, i) != 0) told.push_back(w(k, i)), targets[row].insert(k);
            if (w(i, k) != 0) sources[row].insert(k);
            mine = mine && w(i, k) == w(k, i);
          }
          CHECK(period.told[t] == told);
        }
        CHECK(period.symmetric == mine);
        symmetric = symmetric && mine;
        CHECK(period.sources == std::vector<Rank>(sources[row].begin(), sources[row].end()));
        CHECK(period.targets == std::vector<Rank>(targets[row].begin(), targets[row].end()));
      }
      CHECK(symmetric == kith::analyze(topology, size).symmetric);
    }
}

TEST_CASE("period: a random schedule has none") {
  const auto period = kith::detail::plan_period(kith::parse_topology("random-matching:3"), 0, 4);
  CHECK(period.rounds == 0);
  CHECK(period.sources.empty());
  CHECK(period.told.empty());
}

namespace {

struct Endless : kith::Ring {
  static kith::Round period(Rank) { return Round{1} << 40; }
};

}  // namespace

TEST_CASE("period: one that is too long to look at is refused") {
  CHECK_THROWS_AS((void)kith::detail::plan_period(Endless{}, 0, 4), kith::UsageError);
}

}  // namespace exchange_period_test
