// SPDX-License-Identifier: Apache-2.0
#include <kith/topology.hpp>

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

namespace topology_test {

namespace {

// Names its peers in descending rank, to see that plans come in ascending rank.
struct Descending {
  static constexpr std::string_view name = "descending";
  [[nodiscard]] static kith::Round period(kith::Rank) { return 1; }
  [[nodiscard]] static kith::Rank max_degree(kith::Rank size) { return size - 1; }
  static void neighbors(kith::Rank rank, kith::Rank size, kith::Round, kith::Neighborhood& out) {
    for (kith::Rank peer = size - 1; peer >= 0; --peer)
      if (peer != rank) out.swap_with(peer, 1.0 / (8 + peer));
  }
};

struct EvenOnly : Descending {
  static constexpr std::string_view name = "even-only";
  int knob = 0;
  static void require(kith::Rank size) {
    if (size % 2 != 0) throw kith::UsageError("even-only needs an even size, such as 4");
  }
  [[nodiscard]] std::string parameters() const { return knob == 0 ? std::string{} : std::to_string(knob); }
};

struct NamedAtRunTime : Descending {
  [[nodiscard]] static std::string full_name() { return "chosen:3"; }
};

struct Nameless {
  [[nodiscard]] static kith::Round period(kith::Rank) { return 1; }
  [[nodiscard]] static kith::Rank max_degree(kith::Rank) { return 0; }
  static void neighbors(kith::Rank, kith::Rank, kith::Round, kith::Neighborhood&) {}
};

std::vector<kith::Rank> ranks_of(const kith::Neighborhood& plan) {
  std::vector<kith::Rank> ranks;
  for (const auto& source : plan.sources()) ranks.push_back(source.rank);
  return ranks;
}

std::vector<kith::Rank> targets_of(const kith::Neighborhood& plan) {
  return {plan.targets().begin(), plan.targets().end()};
}

}  // namespace

static_assert(kith::Topology<Descending> && kith::Topology<EvenOnly> && !kith::Topology<Nameless>);

TEST_CASE("topology: a neighborhood keeps directed edges apart and sorts them with their weights") {
  kith::Neighborhood plan;
  plan.hear(5, 0.25);
  plan.hear(1, 0.125);
  plan.tell(4);
  plan.tell(0);
  plan.sort();
  CHECK(ranks_of(plan) == std::vector<kith::Rank>{1, 5});
  CHECK(plan.sources()[0].weight == 0.125);
  CHECK(plan.sources()[1].weight == 0.25);
  CHECK(targets_of(plan) == std::vector<kith::Rank>{0, 4});
  plan.clear();
  CHECK(plan.sources().empty());
  CHECK(plan.targets().empty());
}

TEST_CASE("topology: swapping is hearing and telling") {
  kith::Neighborhood plan;
  plan.swap_with(3, 0.5);
  CHECK(ranks_of(plan) == std::vector<kith::Rank>{3});
  CHECK(targets_of(plan) == std::vector<kith::Rank>{3});
}

TEST_CASE("topology: a neighborhood made for a degree does not move its memory") {
  kith::Neighborhood plan{64};
  plan.swap_with(0, 0.5);
  const auto* sources = plan.sources().data();
  const auto* targets = plan.targets().data();
  plan.clear();
  for (kith::Rank peer = 0; peer < 64; ++peer) plan.swap_with(peer, 0.01);
  CHECK(plan.sources().data() == sources);
  CHECK(plan.targets().data() == targets);
}

TEST_CASE("topology: a plan begins empty and comes in ascending rank") {
  kith::Neighborhood plan;
  plan.swap_with(77, 1);  // what another round left behind
  kith::plan_round(Descending{}, 2, 5, 0, plan);
  CHECK(ranks_of(plan) == std::vector<kith::Rank>{0, 1, 3, 4});
  CHECK(targets_of(plan) == std::vector<kith::Rank>{0, 1, 3, 4});
  for (const auto& source : plan.sources()) CHECK(source.weight == 1.0 / (8 + source.rank));
}

TEST_CASE("topology: a group of one plans nothing, whatever the topology would say") {
  struct Talkative : Descending {
    static void neighbors(kith::Rank, kith::Rank, kith::Round, kith::Neighborhood& out) { out.swap_with(1, 0.5); }
  };
  kith::Neighborhood plan;
  kith::plan_round(Talkative{}, 0, 1, 0, plan);
  CHECK(plan.sources().empty());
  CHECK(plan.targets().empty());
}

TEST_CASE("topology: sizes are refused in the topology's own words, one rank is always enough") {
  CHECK_NOTHROW(kith::require_size(EvenOnly{}, 4));
  CHECK_NOTHROW(kith::require_size(EvenOnly{}, 1));
  CHECK_NOTHROW(kith::require_size(Descending{}, 5));
  CHECK_THROWS_WITH_AS(kith::require_size(EvenOnly{}, 3), "kith: even-only needs an even size, such as 4",
                       kith::UsageError);
  CHECK_THROWS_AS(kith::require_size(Descending{}, 0), kith::UsageError);
  CHECK_THROWS_AS(kith::require_size(Descending{}, -2), kith::UsageError);
}

TEST_CASE("topology: the full name is the family and what stands after the colon") {
  CHECK(kith::topology_name(Descending{}) == "descending");
  CHECK(kith::topology_name(EvenOnly{}) == "even-only");
  EvenOnly tuned;
  tuned.knob = 7;
  CHECK(kith::topology_name(tuned) == "even-only:7");
  CHECK(kith::topology_name(NamedAtRunTime{}) == "chosen:3");
}

}  // namespace topology_test
