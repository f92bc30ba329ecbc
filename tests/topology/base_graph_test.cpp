// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <kith/topology/base_graph.hpp>

namespace topology_base_graph_test {

using kith::BaseGraph;
using kith::Rank;
using kith::Round;

namespace {

// The edges of a round, the lower rank first, and their weights.
using Edges = std::map<std::pair<Rank, Rank>, double>;

void join(Edges& edges, Rank a, Rank b, double weight) { edges[{std::min(a, b), std::max(a, b)}] = weight; }

void average(Edges& edges, const std::vector<Rank>& group) {
  for (const Rank a : group)
    for (const Rank b : group)
      if (a < b) join(edges, a, b, 1.0 / static_cast<double>(group.size()));
}

// ---- A slow second implementation: Takezawa et al., Algorithms 1 to 3, with the sets written out ----

std::vector<Edges> slow_cuboid(const std::vector<Rank>& set, Rank base) {
  std::vector<Rank> sides;
  for (Rank side = base, rest = static_cast<Rank>(set.size()); side > 1; --side)
    for (; rest % side == 0; rest /= side) sides.push_back(side);
  std::sort(sides.begin(), sides.end());
  std::vector<Edges> rounds;
  std::size_t stride = 1;
  for (const Rank side : sides) {
    std::map<std::pair<std::size_t, std::size_t>, std::vector<Rank>> groups;  // by the digits above and below this one
    for (std::size_t i = 0; i < set.size(); ++i)
      groups[{i / (stride * static_cast<std::size_t>(side)), i % stride}].push_back(set[i]);
    rounds.emplace_back();
    for (const auto& [digits, group] : groups) average(rounds.back(), group);
    stride *= static_cast<std::size_t>(side);
  }
  return rounds;
}

bool is_smooth(Rank size, Rank base) {
  for (Rank f = 2; f <= base; ++f)
    while (size % f == 0) size /= f;
  return size == 1;
}

struct SlowBlock {
  std::vector<Rank> all;
  std::vector<std::vector<Rank>> parts;
};

std::vector<SlowBlock> slow_blocks(const std::vector<Rank>& set, Rank base) {
  std::vector<SlowBlock> blocks;
  std::size_t part = 1;
  while (part * static_cast<std::size_t>(base) <= set.size()) part *= static_cast<std::size_t>(base);
  auto next = set.begin();
  for (; part > 0; part /= static_cast<std::size_t>(base)) {
    SlowBlock block;
    for (; static_cast<std::size_t>(set.end() - next) >= part; next += static_cast<std::ptrdiff_t>(part)) {
      block.parts.emplace_back(next, next + static_cast<std::ptrdiff_t>(part));
      block.all.insert(block.all.end(), block.parts.back().begin(), block.parts.back().end());
    }
    if (!block.parts.empty()) blocks.push_back(block);
  }
  return blocks;
}

// Block `turn` meets all later blocks; its ranks without a peer average among themselves.
void slow_exchange(Edges& edges, const std::vector<SlowBlock>& blocks, std::size_t turn, Rank base) {
  std::vector<std::vector<Rank>> unused = blocks[turn].parts;
  std::size_t total = 0;
  for (std::size_t l = turn; l < blocks.size(); ++l) total += blocks[l].all.size();
  const double fraction = static_cast<double>(blocks[turn].all.size()) / static_cast<double>(total);
  for (std::size_t l = blocks.size() - 1; l > turn; --l) {
    for (const Rank i : blocks[l].all) {
      for (auto& part : unused) {
        join(edges, i, part.back(), fraction / static_cast<double>(unused.size()));
        part.pop_back();
      }
    }
  }
  std::vector<Rank> line;
  for (const auto& part : unused) line.insert(line.end(), part.begin(), part.end());
  for (std::size_t first = 0; first < line.size(); first += static_cast<std::size_t>(base)) {
    const std::size_t last = std::min(line.size(), first + static_cast<std::size_t>(base));
    average(edges,
            {line.begin() + static_cast<std::ptrdiff_t>(first), line.begin() + static_cast<std::ptrdiff_t>(last)});
  }
}

std::vector<Edges> slow_simple(const std::vector<Rank>& set, Rank base) {
  if (is_smooth(static_cast<Rank>(set.size()), base)) return slow_cuboid(set, base);
  const std::vector<SlowBlock> blocks = slow_blocks(set, base);
  const std::size_t gathering = slow_cuboid(blocks[0].all, base).size();
  const std::size_t spreading = slow_cuboid(blocks[0].parts[0], base).size();
  std::vector<std::size_t> done(blocks.size());
  std::vector<Edges> rounds(gathering + 1 + spreading);
  for (std::size_t m = 0; m < rounds.size(); ++m) {
    for (std::size_t l = 0; l < blocks.size(); ++l) {
      const std::vector<Edges> own = slow_cuboid(blocks[l].all, base);
      const std::size_t t = m < gathering ? 0 : m - gathering + 1;  // blocks 1..t have had their turn, counted from 1
      if (t == 0) {
        if (!own.empty()) rounds[m].merge(Edges(own[m % own.size()]));
      } else if (l + 1 < t || (l + 1 == blocks.size() && t >= blocks.size())) {
        if (blocks[l].parts[0].size() == 1) {
          if (!own.empty()) rounds[m].merge(Edges(own[done[l] % own.size()]));
        } else {
          for (const auto& part : blocks[l].parts) {
            const std::vector<Edges> inside = slow_cuboid(part, base);
            rounds[m].merge(Edges(inside[done[l] % inside.size()]));
          }
        }
        ++done[l];
      } else if (l + 1 == t) {
        slow_exchange(rounds[m], blocks, l, base);
      }
    }
  }
  return rounds;
}

std::vector<Edges> slow_base(Rank size, Rank base) {
  std::vector<Rank> everybody(static_cast<std::size_t>(size));
  for (Rank i = 0; i < size; ++i) everybody[static_cast<std::size_t>(i)] = i;
  Rank copies = 1;
  for (Rank f = 1; f <= size; ++f)
    if (size % f == 0 && is_smooth(f, base)) copies = f;
  const Rank copy = size / copies;
  std::vector<Edges> rounds;
  for (Rank c = 0; c < copies; ++c) {
    const auto first = everybody.begin() + std::ptrdiff_t{c} * copy;
    const std::vector<Edges> inside = slow_simple({first, first + copy}, base);
    rounds.resize(inside.size());
    for (std::size_t m = 0; m < inside.size(); ++m) rounds[m].merge(Edges(inside[m]));
  }
  const std::size_t within = copy == 1 ? 0 : rounds.size();
  for (Rank j = 0; j < copy; ++j) {
    std::vector<Rank> section;
    section.reserve(static_cast<std::size_t>(copies));
    for (Rank c = 0; c < copies; ++c) section.push_back(c * copy + j);
    const std::vector<Edges> across = slow_cuboid(section, base);
    rounds.resize(within + across.size());
    for (std::size_t m = 0; m < across.size(); ++m) rounds[within + m].merge(Edges(across[m]));
  }
  const std::vector<Edges> simple = slow_simple(everybody, base);
  return simple.size() < rounds.size() ? simple : rounds;
}

// ---- What is compared with it ----

Edges planned(const BaseGraph& graph, Rank size, Round round) {
  Edges edges;
  kith::Neighborhood row;
  for (Rank rank = 0; rank < size; ++rank) {
    kith::plan_round(graph, rank, size, round, row);
    for (const auto& [peer, weight] : row.sources()) {
      const auto [edge, is_new] = edges.insert({{std::min(rank, peer), std::max(rank, peer)}, weight});
      if (!is_new && edge->second != weight) edge->second = -1;  // the two sides disagree
    }
  }
  return edges;
}

bool alike(const Edges& a, const Edges& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.first == y.first && std::abs(x.second - y.second) < 1e-15;
  });
}

// "01 02 12:1/3 34:1/2 | ...": rounds, groups of ranks that are all joined, and the weight of the groups before it.
std::vector<Edges> parse(const std::string& schedule) {
  std::vector<Edges> rounds(1);
  std::istringstream text(schedule);
  std::vector<std::string> waiting;
  for (std::string token; text >> token;) {
    if (token == "|") {
      rounds.emplace_back();
      continue;
    }
    const std::size_t colon = token.find(':');
    waiting.push_back(token.substr(0, colon));
    if (colon == std::string::npos) continue;
    const double weight = double(token[colon + 1] - '0') / double(token[colon + 3] - '0');
    for (const std::string& group : waiting)
      for (const char a : group)
        for (const char b : group)
          if (a < b) join(rounds.back(), a - '0', b - '0', weight);
    waiting.clear();
  }
  return rounds;
}

// Rounds until a vector without any symmetry is the mean everywhere, from a starting phase. For a product P of mixing
// matrices P x = J x says nothing about P = J only if x lies in the kernel of P - J, where a random x does not.
std::optional<Round> rounds_to_mean(const std::vector<dense::Plan>& period, std::size_t start, Round most) {
  std::mt19937 random(20231127);
  std::normal_distribution<double> normal;
  std::vector<double> x(period[0].size());
  double mean = 0;
  for (double& value : x) mean += (value = normal(random)) / static_cast<double>(x.size());
  std::vector<double> next = x;
  for (Round done = 0; done <= most; ++done) {
    if (std::all_of(x.begin(), x.end(), [&](double value) { return std::abs(value - mean) < 1e-12; })) return done;
    const dense::Plan& plan = period[(start + done) % period.size()];
    for (std::size_t i = 0; i < x.size(); ++i) {
      next[i] = x[i];
      for (const auto& [peer, weight] : plan[i].sources())
        next[i] += weight * (x[static_cast<std::size_t>(peer)] - x[i]);
    }
    x.swap(next);
  }
  return std::nullopt;
}

std::vector<dense::Plan> plans(const BaseGraph& graph, Rank size) {
  std::vector<dense::Plan> period;
  for (Round round = 0; round < graph.period(size); ++round) period.push_back(dense::plan(graph, size, round));
  return period;
}

}  // namespace

TEST_CASE("base-graph: every size, every rank") {
  dense::check_family(BaseGraph{}, 24);
  dense::check_family(BaseGraph{2}, 24);
  dense::check_family(BaseGraph{.degree = 3}, 24);
  for (const Rank degree : {5, 63})
    for (const Rank size : {2, 6, 7, 36, 41, 64}) dense::check_rounds(BaseGraph{degree}, size);
}

// Schedules that were written down from the authors' own program (github.com/yukiTakezawa/BaseGraph).
TEST_CASE("base-graph: the published schedules, edge by edge") {
  struct Known {
    Rank degree;
    Rank size;
    const char* schedule;
  };
  const Known known[] = {
      {1, 5, "01:1/2 23:1/2 | 02:1/2 13:1/2 | 01:1/2 34:4/5 | 01:1/2 23:1/2 | 02:1/2 13:1/2"},
      {1, 6, "01:1/2 34:1/2 | 12:2/3 45:2/3 | 01:1/2 34:1/2 | 03:1/2 14:1/2 25:1/2"},
      {1, 7, "01 23 45:1/2 | 02 13 45:1/2 | 15 24 36:4/7 | 01 23:1/2 56:2/3 | 02 13 45:1/2"},
      {2, 5, "01 02 12:1/3 34:1/2 | 14 23:3/5 | 01 02 12:1/3 34:1/2"},
      {2, 7, "01 23 45:1/2 | 02 04 24 13 15 35:1/3 | 01 03 13:1/3 26 56:3/7 | 012:1/3 345:1/3"},
      {3, 5, "0123:1/4 | 012:1/3 34:4/5 | 0123:1/4"},
  };
  for (const Known& one : known) {
    CAPTURE(one.schedule);
    const BaseGraph graph{one.degree};
    const std::vector<Edges> rounds = parse(one.schedule);
    REQUIRE(graph.period(one.size) == rounds.size());
    for (std::size_t round = 0; round < rounds.size(); ++round) {
      CAPTURE(round);
      CHECK(alike(planned(graph, one.size, round), rounds[round]));
    }
  }
}

TEST_CASE("base-graph: the published schedule of the simple graph of six") {
  const std::vector<Edges> rounds =
      parse("01 23 45:1/2 | 02 13 45:1/2 | 01:1/2 25:2/3 34:2/3 | 01 23 45:1/2 | 02 13 45:1/2");
  const kith::detail::SimpleBase simple(6, 2);
  REQUIRE(simple.rounds() == 5);
  for (std::size_t round = 0; round < 5; ++round) {
    Edges edges;
    for (Rank i = 0; i < 6; ++i)
      simple.meet_peers(i, round, [&](Rank peer, double weight) { join(edges, i, peer, weight); });
    CHECK(alike(edges, rounds[round]));
  }
}

// The widths of the figures in the authors' notebook are 4 m - 1 for m rounds. 9 and 11 rounds for 25 and 100 ranks.
TEST_CASE("base-graph: the published lengths") {
  CHECK(BaseGraph{1}.period(5) == 5);
  CHECK(BaseGraph{1}.period(6) == 4);
  CHECK(BaseGraph{2}.period(5) == 3);
  CHECK(BaseGraph{2}.period(6) == 2);
  CHECK(BaseGraph{3}.period(5) == 3);
  CHECK(BaseGraph{3}.period(6) == 2);
  CHECK(BaseGraph{1}.period(25) == 9);
  CHECK(BaseGraph{1}.period(100) == 11);
}

TEST_CASE("base-graph: equal to a second implementation") {
  for (Rank degree = 1; degree <= 5; ++degree) {
    for (Rank size = 2; size <= 60; size += size < 40 ? 1 : 3) {
      CAPTURE(degree);
      CAPTURE(size);
      const std::vector<Edges> rounds = slow_base(size, degree + 1);
      REQUIRE(BaseGraph{degree}.period(size) == rounds.size());
      for (std::size_t round = 0; round < rounds.size(); ++round)
        CHECK(alike(planned(BaseGraph{degree}, size, round), rounds[round]));
    }
  }
}

// Takezawa et al., Theorem 1: at most 2 log_{k+1}(n) + 2 rounds of at most k peers, and the mean is exact.
TEST_CASE("base-graph: no longer than 2 log_{k+1} n + 2") {
  for (Rank degree = 1; degree <= 6; ++degree)
    for (Rank size = 2; size <= 1100; ++size) {
      const double bound = 2 * std::log(size) / std::log(degree + 1) + 2 + 1e-9;
      if (static_cast<double>(BaseGraph{degree}.period(size)) > bound) FAIL_CHECK(degree << " " << size);
    }
}

TEST_CASE("base-graph: exact after one period and not before, for every size") {
  const auto check = [](Rank degree, Rank size) {
    CAPTURE(degree);
    CAPTURE(size);
    const std::vector<dense::Plan> period = plans(BaseGraph{degree}, size);
    CHECK(rounds_to_mean(period, 0, period.size()) == period.size());
    std::size_t most = 0;
    for (const dense::Plan& plan : period)
      for (const kith::Neighborhood& row : plan) most = std::max({most, row.sources().size(), row.targets().size()});
    CHECK(most <= static_cast<std::size_t>(degree));
  };
  for (Rank degree = 1; degree <= 3; ++degree)
    for (Rank size = 2; size <= 200; size += size < 100 ? 1 : 3) check(degree, size + (size < 100 ? 0 : degree - 1));
  // 3^5 is 243: the authors' program takes logarithms in floating point, and gives a degree of 3 for 244 and 250 ranks
  // and an IndexError for 485.
  for (const Rank size : {243, 244, 250, 485}) check(2, size);
}

TEST_CASE("base-graph: the report's worst phase is the one that is found by search") {
  int known = 0;
  for (Rank degree = 1; degree <= 9; ++degree) {
    for (Rank size = 2; size <= 80; ++size) {
      if (degree > 3 && (size + degree) % 3 != 0) continue;  // a third of them will do
      CAPTURE(degree);
      CAPTURE(size);
      const std::optional<kith::TopologyReport> said = BaseGraph{degree}.report(size);
      if (!said) continue;
      ++known;
      const std::vector<dense::Plan> period = plans(BaseGraph{degree}, size);
      std::optional<Round> worst = Round{0};
      for (std::size_t start = 0; start < period.size(); ++start)
        worst = std::max(worst, rounds_to_mean(period, start, 2 * period.size()));
      CHECK(said->exact_after == period.size());
      CHECK(said->exact_after_any_phase == worst);
      CHECK(said->contraction == 0);
    }
  }
  CHECK(known > 350);
  CHECK(BaseGraph{1}.report(25).value().exact_after_any_phase == 17);
  CHECK(BaseGraph{1}.report(1'000'000).value().exact_after_any_phase.has_value());
  CHECK_FALSE(BaseGraph{5}.report(26).has_value());  // 42 in base 6: 4 and 6 have a factor in common
}

TEST_CASE("base-graph: a degree that is large enough gives the complete graph") {
  for (const Rank degree : {9, 10, 2'147'483'647}) {
    CHECK(BaseGraph{degree}.period(10) == 1);
    CHECK(BaseGraph{degree}.max_degree(10) == 9);
    CHECK(dense::largest_difference(dense::mixing(BaseGraph{degree}, 10, 0), dense::mean(10)) < 1e-15);
  }
  CHECK(BaseGraph{2}.max_degree(8) == 1);  // 2 x 2 x 2
}

TEST_CASE("base-graph: parameters and back, and a degree of at least 1") {
  CHECK(kith::topology_name(BaseGraph{.degree = 2}) == "base-graph:2");
  CHECK(BaseGraph::from_parameters("2") == BaseGraph{2});
  CHECK(BaseGraph::from_parameters("") == BaseGraph{1});
  for (const char* wrong : {"0", "-1", "two", "2x", "1.5", "3000000000"})
    CHECK_THROWS_WITH_AS((void)BaseGraph::from_parameters(wrong), doctest::Contains("base-graph:2"), kith::UsageError);
  CHECK(dense::mentions(dense::refusal(BaseGraph{0}, 4), "at least 1"));
  CHECK(dense::mentions(dense::refusal(BaseGraph{-3}, 4), "base-graph:-3"));
  CHECK(dense::refusal(BaseGraph{0}, 1).empty());
}

}  // namespace topology_base_graph_test
