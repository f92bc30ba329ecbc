// SPDX-License-Identifier: Apache-2.0
// The model of `kith_bench plan`, by numbers from outside: closed forms, and figures that others have published.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <kith/error.hpp>
#include <kith/topology/any.hpp>
#include <kith/topology/one_peer_hypercube.hpp>
#include <plan_choice.hpp>
#include <plan_model.hpp>
#include <plan_steps.hpp>

using namespace bench::plan;
using doctest::Approx;
using kith::Rank;

namespace {

constexpr std::size_t rounds = 100;

// 11 GB/s and 20 us between machines, 360 GB/s and 1 us inside.
Cluster cluster_of(Rank machines, Rank ranks_per_machine = 1, Rank cards = 1) {
  return {.ranks = machines * ranks_per_machine,
          .ranks_per_machine = ranks_per_machine,
          .cards_per_machine = cards,
          .intra = {1, 360e3},
          .inter = {20, 11e3}};
}

double time_of(const Cluster& cluster, const std::string& algorithm, double bytes) {
  for (const AllReduce& one : all_reduces(cluster, bytes))
    if (one.algorithm == algorithm) return one.us;
  FAIL("no algorithm ", algorithm);
  return 0;
}

// Nothing travels: what is left of a step is computing and waiting.
Communication at_once(Rank ranks, const kith::AnyTopology& topology) {
  return gossip({.ranks = ranks}, topology, {}, rounds);
}

double harmonic(Rank n) {
  double sum = 0;
  for (Rank i = 1; i <= n; ++i) sum += 1.0 / i;
  return sum;
}

Question question_of(const Cluster& cluster, double compute_ms, double jitter = 0) {
  Question question;
  question.cluster = cluster;
  question.compute = {1e3 * compute_ms, jitter};
  question.model_bytes = 500'000'000;
  for (const char* name : {"one-peer-exponential", "base-graph:1", "static-exponential", "ring"})
    question.topologies.push_back(kith::parse_topology(name));
  return question;
}

const Line& recommended(const Plan& plan) { return plan.lines[plan.recommended]; }

}  // namespace

TEST_CASE("rounds between single ranks take what the slowest port takes") {
  const Cluster cluster = cluster_of(16);
  const double model_us = 500e6 / 11e3;
  const auto us = [&](const char* topology, double bytes) {
    return gossip(cluster, kith::parse_topology(topology), {.bytes = bytes}, rounds).round_us();
  };
  CHECK(us("one-peer-exponential", 500e6) == Approx(20 + model_us));
  CHECK(us("ring", 500e6) == Approx(20 + 2 * model_us));
  CHECK(us("static-exponential", 500e6) == Approx(20 + 4 * model_us));  // log2(16) peers
  CHECK(us("one-peer-exponential", 64e3) == Approx(20 + 64.0 / 11));
  // One card of a tenth of the speed: who talks to it waits, 20 + 10 times as long.
  Cluster slow = cluster;
  slow.rates_by_machine.assign(16, 11e3);
  slow.rates_by_machine[15] = 1.1e3;
  const Communication one_peer = gossip(slow, kith::parse_topology("one-peer-exponential"), {.bytes = 500e6}, rounds);
  CHECK(one_peer.rounds[0].us[15] == Approx(20 + 10 * model_us));
  CHECK(one_peer.rounds[0].us[14] == Approx(20 + 10 * model_us));
  CHECK(one_peer.rounds[0].us[7] == Approx(20 + model_us));
  CHECK(one_peer.rounds[0].waits_for[15] == std::vector<Rank>{0, 14});
  // The host's work: one message.
  const Message message{.bytes = 500e6, .host_us = 7, .host_us_once = 5};
  CHECK(gossip(cluster, kith::parse_topology("ring"), message, rounds).round_us() == Approx(20 + 2 * model_us + 19));
}

TEST_CASE("under BBR a message takes half a round trip to be sent, unless it fits into the first window") {
  // 1 Gbit/s and 20 ms. 1 MiB would take 9.2 ms to be sent; the slow-network lab has measured 41.4 to 41.7 ms for the
  // round and 41.2 to 42.5 ms between its quartiles, and 39.6 to 42.1 ms with a ring, whose two messages take 18.3 ms.
  Cluster cluster{.ranks = 8, .inter = {20e3, 125}, .wire_bytes_per_byte = tcp_wire_bytes_per_byte};
  const auto ms = [&](const char* topology, double bytes) {
    return gossip(cluster, kith::parse_topology(topology), {.bytes = bytes}, rounds).round_us() / 1e3;
  };
  CHECK(ms("one-peer-exponential", 1 << 20) == Approx(29.2).epsilon(0.005));
  cluster.sending_round_trips = bbr_round_trips;
  CHECK(ms("one-peer-exponential", 1 << 20) == Approx(41.5).epsilon(0.01));
  CHECK(ms("ring", 1 << 20) == Approx(41).epsilon(0.03));
  CHECK(ms("one-peer-exponential", 4096) == Approx(20).epsilon(0.005));
  CHECK(ms("one-peer-exponential", 25e6) == Approx(238.5).epsilon(0.005));  // more than a round trip: as without
}

TEST_CASE("ranks of a machine share its card") {
  // 2 machines of 2: at distance 1 one rank of each machine talks to the other machine, at distance 2 both do.
  const Communication two =
      gossip(cluster_of(2, 2), kith::parse_topology("one-peer-exponential"), {.bytes = 11e6}, rounds);
  REQUIRE(two.rounds.size() == 2);
  CHECK(two.rounds[0].card_bytes == 11e6);
  CHECK(two.rounds[1].card_bytes == 22e6);
  CHECK(two.rounds[1].us[0] == Approx(20 + 2000));
  CHECK(two.rounds[0].us[0] == Approx(20 + 1000));  // hears 3, of the other machine; tells 1
  CHECK(two.inter_bytes() == 33e6);                 // (2 + 4) / 2 models
  // 4 machines of 8 ranks and 8 cards, 500 MB: what a card sends (reference: 94 to 121, 500, 62.5 MB).
  const Cluster trap = cluster_of(4, 8, 8);
  const kith::AnyTopology one_peer = kith::parse_topology("one-peer-exponential");
  CHECK(gossip(trap, one_peer, {.bytes = 500e6}, rounds).card_bytes() == 500e6);
  CHECK(best_all_reduce(trap, 500e6).card_bytes == Approx(93.75e6));
  CHECK(time_of(trap, "hierarchical, halving and doubling", 500e6) ==
        Approx(14 + 1.75 * 500e6 / 360e3 + 4 * 20 + 93.75e6 / 11e3));
  const Communication sharded = sharded_gossip(trap, one_peer, 500e6, {.bytes = 62.5e6}, rounds);
  CHECK(sharded.card_bytes() == 62.5e6);
  CHECK(sharded.inter_bytes() == 4 * 500e6);
  // Inside, reduce-scatter and all-gather: 2 * 7/8 of a model, 14 latencies.
  CHECK(sharded.round_us() == Approx(20 + 62.5e6 / 11e3 + 14 + 1.75 * 500e6 / 360e3));
  // With one card for all 8 ranks a machine sends one model.
  CHECK(sharded_gossip(cluster_of(4, 8), one_peer, 500e6, {.bytes = 62.5e6}, rounds).card_bytes() == 500e6);
}

TEST_CASE("all-reduce by the formulas of each algorithm") {
  const Cluster cluster = cluster_of(16);
  CHECK(time_of(cluster, "ring", 500e6) == Approx(30 * 20 + 2 * 15.0 / 16 * 500e6 / 11e3));
  CHECK(time_of(cluster, "ring", 500e6) == Approx(86e3).epsilon(0.01));  // as published for 100 Gbit/s
  CHECK(time_of(cluster, "recursive doubling", 64e3) == Approx(4 * (20 + 64.0 / 11)));
  CHECK(time_of(cluster, "halving and doubling", 500e6) == Approx(8 * 20 + 2 * 15.0 / 16 * 500e6 / 11e3));
  // 64 ranks, 64 KB, 20 us: 2.5 ms and 0.24 ms.
  CHECK(time_of(cluster_of(64), "ring", 64e3) == Approx(2.5e3).epsilon(0.02));
  CHECK(time_of(cluster_of(64), "tree", 64e3) == Approx(0.25e3).epsilon(0.02));
  // 6 ranks: two give their model to a neighbour first and get it back last.
  CHECK(time_of(cluster_of(6), "halving and doubling", 11e6) == Approx(2 * (20 + 1000) + 4 * 20 + 1500));
  CHECK(best_all_reduce(cluster, 100).algorithm == "recursive doubling");
  // In Open MPI 18 latencies, three for each message, once messages are larger than 64 KiB.
  CHECK(open_mpi_all_reduce(cluster_of(8), 4096).us == Approx(3 * (20 + 4.096 / 11)));
  CHECK(open_mpi_all_reduce(cluster_of(8), 11e6).us == Approx(18 * 20 + 1750));
}

TEST_CASE("waiting for stragglers: the published slowdowns, and limits that are known") {
  const Rank ranks = 16;
  const AllReduce nothing{"none"};
  const Communication all = nothing.communication(ranks);
  const Communication pairs = at_once(ranks, kith::OnePeerHypercube{});
  const ComputeTimes times{{.us = 1, .jitter = 0.2}, ranks, 4000, 1};
  // The largest of n times: 1 - j + j H_n, 1.476 for 16. Measured elsewhere: 1.47, 1.22, 1.08, 1.05.
  CHECK(step_us(all, times, Launch::now) == Approx(0.8 + 0.2 * harmonic(ranks)).epsilon(0.01));
  CHECK(step_us(pairs, times, Launch::now) == Approx(1.22).epsilon(0.015));
  CHECK(step_us(all, times, Launch::hidden) == Approx(1.08).epsilon(0.015));
  CHECK(step_us(pairs, times, Launch::hidden) == Approx(1.05).epsilon(0.015));

  const ComputeTimes even{{.us = 100}, 8, 100, 1};
  for (const double round_us : {30.0, 250.0}) {
    const AllReduce some{"some", round_us};
    CHECK(step_us(some.communication(8), even, Launch::now) == Approx(100 + round_us));
    CHECK(step_us(some.communication(8), even, Launch::hidden) == Approx(std::max(100.0, round_us)));
  }
  // A permanently slow rank sets everybody's pace.
  const ComputeTimes slow{{.us = 100, .jitter = 0, .slow_rank = 2}, 8, 100, 1};
  for (const char* name : {"one-peer-exponential", "ring"})
    for (const Launch launch : {Launch::now, Launch::hidden})
      CHECK(step_us(at_once(8, kith::parse_topology(name)), slow, launch) == Approx(200).epsilon(0.01));
}

TEST_CASE("steps until the models are within 1 %") {
  const auto steps = [](const char* name, Rank size) { return steps_to_1_percent(kith::parse_topology(name), size); };
  const double ring = 1 - 4.0 / 3 * std::pow(std::sin(std::acos(-1.0) / 8), 2);
  CHECK(steps("ring", 8) == Approx(std::log(0.01) / std::log(ring)));
  CHECK(steps("one-peer-exponential", 8) == 3);
  CHECK(steps("one-peer-exponential", 25) == Approx(std::log(0.01) / (std::log(0.1921) / 5)).epsilon(0.001));
  CHECK(steps("base-graph:1", 25) == Approx(17));  // 9 from round 0, 17 from the worst
  CHECK(steps("complete", 8) == 1);
  CHECK(std::isinf(steps("isolated", 8)));
}

TEST_CASE("what is recommended") {
  SUBCASE("one machine with fast links: all-reduce") {
    const Plan plan = make_plan(question_of(cluster_of(1, 8), 50));
    CHECK(plan.recommended == 0);
    CHECK(plan.reasons.back().find("Inside one machine") == 0);
    CHECK(recommended(make_plan(question_of(cluster_of(1, 8), 50, 0.1))).is_all_reduce());  // hidden, because of jitter
  }
  SUBCASE("single ranks on slow links: fewer bytes") {
    Cluster cluster = cluster_of(16);
    cluster.inter.bytes_per_us = 125;  // 1 Gbit/s: a model takes 4 s
    const Line best = recommended(make_plan(question_of(cluster, 50)));
    CHECK(best.exchange == "choco:int4-block");
    CHECK(best.topology == "one-peer-exponential");
    CHECK(best.card_bytes == 500e6 * 0.140625);  // 4 bits, and a scale of 4 bytes for 64
  }
  SUBCASE("fast cards, machines of 8: shards, hidden") {
    const Line best = recommended(make_plan(question_of(cluster_of(16, 8), 50)));
    CHECK(best.topology == "hierarchical:one-peer-exponential");
    CHECK(best.launch == Launch::hidden);
    CHECK(best.step_us == Approx(50e3).epsilon(0.03));
  }
  SUBCASE("what mixes too slowly is not recommended, however fast it is") {
    std::vector<Line> lines(2, Line{.algorithm = "ring", .step_us = 100});
    lines[1] = {.topology = "ring", .step_us = 1, .steps_to_1_percent = 1000, .concessions = 1};
    CHECK(recommend(lines) == 0);
    lines[1].steps_to_1_percent = 10;
    CHECK(recommend(lines) == 1);
    lines[1].step_us = 96;  // not worth a concession
    CHECK(recommend(lines) == 0);
  }
  SUBCASE("what cannot be is refused") {
    CHECK_THROWS_AS(require_cluster({.ranks = 1}), kith::UsageError);
    CHECK_THROWS_AS(require_cluster({.ranks = 6, .ranks_per_machine = 4}), kith::UsageError);
    CHECK_THROWS_AS(require_cluster({.ranks = 8, .ranks_per_machine = 4, .cards_per_machine = 3}), kith::UsageError);
    CHECK_THROWS_AS((void)gossip(cluster_of(6), kith::parse_topology("hypercube"), {}, rounds), kith::UsageError);
  }
}
