// SPDX-License-Identifier: Apache-2.0
#include <kith/averager/options.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <kith/averager.hpp>
#include <kith/testing/message_passing.hpp>
#include <kith/topology/any.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace averager_options_test {

using kith::AnyTopology;
using kith::AveragerOptions;
using kith::DType;
using kith::Rank;
using kith::Round;

namespace {

// A ring that writes down which rounds it is asked for; every rank has a list of its own.
struct Recorder {
  static constexpr std::string_view name = "recorder";
  std::vector<Round>* asked = nullptr;
  [[nodiscard]] static Round period(Rank) { return 1; }
  [[nodiscard]] static Rank max_degree(Rank size) { return kith::Ring::max_degree(size); }
  void neighbors(Rank rank, Rank size, Round round, kith::Neighborhood& out) const {
    asked->push_back(round);
    kith::Ring::neighbors(rank, size, round, out);
  }
};

// What each of `calls` calls of average() does under the options: 'g' a gossip round, 'm' the global mean, '.' nothing.
// As seen from outside: the rounds that the topology was asked for, and the counters.
std::string trace(const AveragerOptions& options, int calls) {
  std::string trace_of_rank_0;
  kith::testing::run_both_ways(3, [&](auto& communicator) {
    std::vector<float> model(5, static_cast<float>(communicator.rank()));
    std::vector<Round> asked;
    kith::DecentralizedAverager averager{communicator, Recorder{&asked}, {kith::view(model)}, options};
    std::string seen;
    Round expected = 0;
    for (int call = 0; call < calls; ++call) {
      const kith::Metrics before = averager.metrics();
      asked.clear();
      averager.average();
      const bool gossip = averager.metrics().rounds > before.rounds;
      const bool global = averager.metrics().global_rounds > before.global_rounds;
      seen += gossip && !global ? 'g' : global && !gossip ? 'm' : !gossip && !global ? '.' : '?';
      // The topology counts gossip rounds only, and is asked for each of them in turn.
      if (gossip) CHECK(asked == std::vector<Round>{expected++});
      if (!gossip) CHECK(asked.empty());
      if (global) CHECK(model == std::vector<float>(5, 1.0F));
    }
    if (communicator.rank() == 0) trace_of_rank_0 = seen;
  });
  return trace_of_rank_0;
}

AveragerOptions schedule(Round every, Round warmup_rounds, Round global_every) {
  AveragerOptions options;
  options.every = every;
  options.warmup_rounds = warmup_rounds;
  options.global_every = global_every;
  return options;
}

}  // namespace

TEST_CASE("options: the schedule, call by call") {
  CHECK(trace({}, 6) == "gggggg");
  CHECK(trace(schedule(2, 0, 0), 7) == ".g.g.g.");
  CHECK(trace(schedule(3, 0, 0), 9) == "..g..g..g");
  CHECK(trace(schedule(1, 2, 0), 6) == "mmgggg");
  CHECK(trace(schedule(1, 0, 3), 7) == "ggmggmg");
  CHECK(trace(schedule(1, 0, 1), 3) == "mmm");
  CHECK(trace(schedule(2, 1, 3), 13) == ".m.g.m.g.g.m.");  // warm-up counts as due: the 3rd due call is global
  CHECK(trace(schedule(4, 0, 2), 16) == "...g...m...g...m");
}

TEST_CASE("options: no choice of `every` keeps the schedule from mixing") {
  // 16 ranks need 4 gossip rounds, whatever lies between them. A topology that counted calls would, for an even
  // `every`, use only every second of its 4 distances and never mix.
  for (const Round every : {1U, 2U, 3U, 4U, 8U})
    for (const bool global_before : {false, true}) {
      CAPTURE(every);
      std::atomic<int> wrong{0};
      kith::thread::run(16, [&](kith::thread::Communicator& communicator) {
        std::vector<double> model(3, communicator.rank());
        AveragerOptions options = schedule(every, global_before ? 1 : 0, 0);
        kith::DecentralizedAverager averager{
            communicator, AnyTopology{kith::OnePeerExponential{}}, {kith::view(model)}, options};
        if (global_before) {
          for (Round call = 0; call < every; ++call) averager.average();
          model.assign(3, communicator.rank());
        }
        for (Round call = 0; call < 4 * every; ++call) averager.average();
        if (model != std::vector<double>(3, 7.5)) ++wrong;
      });
      CHECK(wrong == 0);
    }
}

TEST_CASE("options: calls between due rounds wait for nobody") {
  kith::testing::run_both_ways(2, [](auto& communicator) {
    std::vector<float> model(3, static_cast<float>(communicator.rank()));
    AveragerOptions options = schedule(100, 0, 0);
    options.deadline = kith::Seconds{20};
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, {kith::view(model)}, options};
    for (int call = 0; call < (communicator.rank() == 0 ? 99 : 3); ++call) averager.average();
    CHECK(model == std::vector<float>(3, static_cast<float>(communicator.rank())));
  });
}

TEST_CASE("options: the mixing factor, from the start and changed on the way") {
  constexpr Rank size = 4;
  const auto initial = reference::random_models(size, {{DType::f32, 200}, {DType::bf16, 30}, {DType::f64, 3}}, 12);
  auto expected = initial;
  const double factors[] = {0.5, 0.5, 1.5, 1, 0, 2};
  for (Round t = 0; t < 6; ++t) reference::round(expected, kith::Ring{}, t, factors[t]);
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    const auto rank = static_cast<std::size_t>(communicator.rank());
    reference::Model model = initial[rank];
    AveragerOptions options;
    options.mixing = factors[0];
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, model.views(), options};
    for (Round t = 0; t < 6; ++t) {
      if (t >= 2) averager.set_mixing(factors[t]);
      for (const double bad : {-0.1, 2.1, std::nan(""), std::numeric_limits<double>::infinity()})
        CHECK_THROWS_AS(averager.set_mixing(bad), kith::UsageError);  // and leaves the factor as it was
      averager.average();
    }
    if (!(model == expected[rank])) ++wrong;
    const reference::Model before = model;
    averager.set_mixing(0.25);
    averager.average_globally();  // exact whatever the factor
    if (model == before || averager.consensus_distance() != 0) ++wrong;
  });
  CHECK(wrong == 0);
}

TEST_CASE("options: values that nobody can work with are refused on every rank") {
  const auto refused = [](const AveragerOptions& options, const char* what) {
    kith::testing::run_both_ways(2, [&](auto& communicator) {
      std::vector<float> model(3);
      std::string message;
      try {
        kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, {kith::view(model)}, options};
      } catch (const kith::UsageError& error) {
        message = error.what();
      }
      CAPTURE(message);
      CHECK(message.find(what) != std::string::npos);
    });
  };
  for (const double mixing : {-1e-9, 2.5, std::nan("")}) {
    AveragerOptions options;
    options.mixing = mixing;
    refused(options, "mixing");
  }
  refused(schedule(0, 0, 0), "every");
  for (const double deadline : {0.0, -1.0, std::nan("")}) {
    AveragerOptions options;
    options.deadline = kith::Seconds{deadline};
    refused(options, "deadline");
  }
}

namespace {

struct Traffic {
  std::uint64_t messages = 0, sent = 0, received = 0;
};

// The counters of every rank after some calls of average().
std::vector<Traffic> traffic(const AnyTopology& topology, Rank size, int calls, const AveragerOptions& options) {
  std::vector<Traffic> all(static_cast<std::size_t>(size));
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    std::vector<float> a(1000);
    std::vector<kith::bfloat16> b(301);  // 4602 bytes together
    kith::DecentralizedAverager averager{communicator, topology, {kith::view(a), kith::view(b)}, options};
    const std::size_t staging = averager.staging_bytes();
    CHECK(staging > 0);
    for (int call = 0; call < calls; ++call) averager.average();
    (void)averager.consensus_distance();  // not counted
    averager.broadcast(0);
    const kith::Metrics& metrics = averager.metrics();
    all[static_cast<std::size_t>(communicator.rank())] = {metrics.messages_sent, metrics.bytes_sent,
                                                          metrics.bytes_received};
    CHECK(averager.staging_bytes() == staging);
  });
  return all;
}

}  // namespace

TEST_CASE("options: metrics of gossip rounds: a model in one message for each out-neighbour") {
  constexpr std::uint64_t model = 4602;
  for (const Traffic& rank : traffic(kith::OnePeerExponential{}, 8, 3, {})) {
    CHECK(rank.messages == 3);
    CHECK(rank.sent == 3 * model);
    CHECK(rank.received == 3 * model);
  }
  for (const Traffic& rank : traffic(kith::Ring{}, 5, 4, {})) {
    CHECK(rank.messages == 8);
    CHECK(rank.sent == 8 * model);
  }
  const auto star = traffic(kith::Star{}, 4, 2, schedule(2, 0, 0));  // one round in two calls
  CHECK(star[0].messages == 3);
  CHECK(star[3].messages == 1);
  CHECK(star[0].received == 3 * model);
}

TEST_CASE("options: metrics of exact means: those of a reduce-scatter and an all-gather") {
  constexpr std::uint64_t model = 4602;
  for (const Rank size : {1, 2, 3, 7, 8}) {
    CAPTURE(size);
    const auto n = static_cast<std::uint64_t>(size);
    std::uint64_t sent = 0;
    std::uint64_t received = 0;
    for (const Traffic& rank : traffic(kith::Ring{}, size, 2, schedule(1, 2, 0))) {
      CHECK(rank.messages == 2 * 2 * (n - 1));
      // 2 (n-1)/n models each round, to the size of a slice's remainder.
      CHECK(static_cast<double>(rank.sent) ==
            doctest::Approx(2.0 * 2.0 * static_cast<double>(n - 1) / static_cast<double>(n) * model).epsilon(0.005));
      sent += rank.sent;
      received += rank.received;
    }
    CHECK(sent == 2 * 2 * (n - 1) * model);
    CHECK(received == sent);
  }
}

TEST_CASE("options: metrics know who waited") {
  std::atomic<int> waiting{0};
  kith::thread::run(2, [&](kith::thread::Communicator& communicator) {
    std::vector<float> model(3);
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, {kith::view(model)}};
    const double before = averager.metrics().seconds_waiting;
    if (communicator.rank() == 1) {
      while (waiting == 0) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds{50});
    }
    ++waiting;
    averager.average();
    if (communicator.rank() == 0) CHECK(averager.metrics().seconds_waiting - before > 0.01);
    if (communicator.rank() == 1) CHECK(averager.metrics().seconds_waiting - before < 0.04);
  });
}

}  // namespace averager_options_test
