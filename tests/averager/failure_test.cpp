// SPDX-License-Identifier: Apache-2.0
// What the averager promises when a rank fails: the others throw PeerError by the deadline, with their parameters as
// they were before the call.
#include <kith/averager.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <kith/testing/message_passing.hpp>
#include <kith/topology/any.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace averager_failure_test {

using kith::AnyTopology;
using kith::DType;
using kith::PeerError;
using kith::Rank;

namespace {

constexpr Rank ranks = 4;
constexpr Rank culprit = 2;

const std::vector<reference::Shape>& shapes() {
  static const std::vector<reference::Shape> all = {{DType::f32, 3000}, {DType::bf16, 70, 1}};
  return all;
}

enum class Operation {
  average,
  average_globally,
  mean_into,
  broadcast,
  buffers_agree,
  consensus_distance,
  agree_on_steps
};
constexpr Operation operations[] = {
    Operation::average,       Operation::average_globally,   Operation::mean_into,     Operation::broadcast,
    Operation::buffers_agree, Operation::consensus_distance, Operation::agree_on_steps};

template <class A>
void perform(A& averager, Operation operation, reference::Model& target) {
  switch (operation) {
    case Operation::average:
      return averager.average();
    case Operation::average_globally:
      return averager.average_globally();
    case Operation::mean_into:
      return averager.mean_into(target.views());
    case Operation::broadcast:
      return averager.broadcast(1);
    case Operation::buffers_agree:
      return (void)averager.buffers_agree();
    case Operation::consensus_distance:
      return (void)averager.consensus_distance();
    case Operation::agree_on_steps:
      return (void)averager.agree_on_steps(7);
  }
}

// After one good round the culprit calls `misbehave(averager)` and the others perform `operation`: each must throw
// PeerError for `reason`, name the culprit, and keep its model and its target to the last bit, then and later.
template <class Misbehave>
void check_failure(Operation operation, PeerError::Reason reason, double deadline_s, const Misbehave& misbehave) {
  CAPTURE(static_cast<int>(operation));
  const auto initial = reference::random_models(ranks, shapes(), 3);
  auto after = initial;
  reference::round(after, kith::Ring{}, 0);
  std::atomic<int> wrong{0};
  std::atomic<int> errors{0};
  const auto body = [&](auto& communicator) {
    const auto rank = static_cast<std::size_t>(communicator.rank());
    reference::Model model = initial[rank];
    reference::Model target = initial[0];
    kith::AveragerOptions options;
    options.deadline = kith::Seconds{deadline_s};
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, model.views(), options};
    averager.average();
    const bool blamed = communicator.rank() == culprit;
    for (int call = 0; call < 3; ++call) {  // the first, and two later ones
      try {
        if (blamed)
          misbehave(averager);
        else
          perform(averager, operation, target);
        ++wrong;
      } catch (const PeerError& error) {
        ++errors;
        if (!blamed && (error.peer() != culprit || error.reason() != reason)) ++wrong;
        if (blamed && error.peer() == culprit) ++wrong;
      }
      if (!(model == after[rank]) || !(target == initial[0])) ++wrong;
      if (averager.metrics().rounds != 1 || averager.metrics().global_rounds != 0) ++wrong;
    }
  };
  const auto start = std::chrono::steady_clock::now();
  try {
    kith::testing::run_both_ways(ranks, body);
  } catch (const std::domain_error&) {  // the culprit's own: let the other way have its turn too
    try {
      kith::thread::run(ranks, [&](kith::thread::Communicator& communicator) {
        kith::testing::MessagePassing<kith::thread::Communicator> messages{communicator};
        body(messages);
      });
    } catch (const std::domain_error&) {
    }
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds{20});
  CHECK(wrong == 0);
  CHECK(errors >= 2 * 3 * (ranks - 1));
}

}  // namespace

TEST_CASE("failure: a rank throws between rounds") {
  for (const Operation operation : operations)
    check_failure(operation, PeerError::lost, 60, [](auto&) { throw std::domain_error("the optimizer diverged"); });
}

TEST_CASE("failure: a rank is not there by the deadline, and comes when all is over") {
  for (const Operation operation : {Operation::average, Operation::mean_into}) {
    int calls = 0;  // of the culprit, three in each of two ways; it is late for the first of each
    check_failure(operation, PeerError::timeout, 0.5, [&](auto& averager) {
      if (calls++ % 3 == 0) std::this_thread::sleep_for(std::chrono::milliseconds{1200});
      averager.average();
    });
  }
}

TEST_CASE("failure: a rank makes another call") {
  for (const Operation operation : operations) {
    check_failure(operation, PeerError::protocol, 60, [&](auto& averager) {
      if (operation == Operation::buffers_agree)
        averager.average_globally();
      else
        (void)averager.buffers_agree();
    });
  }
  check_failure(Operation::broadcast, PeerError::protocol, 60, [](auto& averager) { averager.broadcast(3); });
  check_failure(Operation::average, PeerError::protocol, 60, [](auto& averager) {
    averager.set_mixing(0.5);
    averager.average();
  });
}

TEST_CASE("failure: a rank returns early") {
  const auto initial = reference::random_models(ranks, shapes(), 4);
  std::atomic<int> wrong{0};
  std::atomic<int> lost{0};
  kith::testing::run_both_ways(ranks, [&](auto& communicator) {
    const auto rank = static_cast<std::size_t>(communicator.rank());
    reference::Model model = initial[rank];
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::OnePeerExponential{}}, model.views()};
    if (communicator.rank() == culprit) return;
    try {
      averager.average();
      ++wrong;
    } catch (const PeerError& error) {
      lost += error.reason() == PeerError::lost && error.peer() == culprit;
    }
    if (!(model == initial[rank])) ++wrong;
  });
  CHECK(wrong == 0);
  CHECK(lost == 2 * (ranks - 1));
}

TEST_CASE("failure: averagers of one communicator that are called in different orders") {
  std::atomic<int> protocol{0};
  kith::testing::run_both_ways(2, [&](auto& communicator) {
    std::vector<float> a(10), b(10);
    kith::DecentralizedAverager first{communicator, AnyTopology{kith::Ring{}}, {kith::view(a)}};
    kith::DecentralizedAverager second{communicator, AnyTopology{kith::Ring{}}, {kith::view(b)}};
    try {
      if (communicator.rank() == 0)
        first.average();
      else
        second.average();
    } catch (const PeerError& error) {
      protocol += error.reason() == PeerError::protocol && error.peer() == 1 - communicator.rank();
    }
    CHECK_THROWS_AS(first.average(), PeerError);  // the communicator has failed for both of them
    CHECK_THROWS_AS(second.average_globally(), PeerError);
  });
  CHECK(protocol == 4);
}

TEST_CASE("failure: ranks that restored different states do not average with each other") {
  std::vector<std::byte> early;
  kith::thread::run(2, [&](kith::thread::Communicator& communicator) {
    std::vector<float> model(10);
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, {kith::view(model)}};
    averager.average();
    if (communicator.rank() == 1) early = averager.state();
    averager.average();
    if (communicator.rank() == 1) averager.restore(early);
    try {
      averager.average();
      FAIL("one rank is a round behind");
    } catch (const PeerError& error) {
      CHECK(error.reason() == PeerError::protocol);
      CHECK(std::string{error.what()}.find("gossip round 1") != std::string::npos);
    }
  });
}

// Random topologies, sizes and points of failure: whoever survives holds exactly what the rounds that committed make of
// the initial models, and that is the same number of rounds on every rank.
TEST_CASE("failure: at random points, every model is that of a whole number of rounds") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937_64 random{seed};
  const std::vector<std::string> names = kith::topology_names();
  struct Planned {};
  for (int repeat = 0; repeat < 60;) {
    const AnyTopology topology = kith::parse_topology(names[random() % names.size()]);
    const auto size = static_cast<Rank>(2 + random() % 7);
    try {
      kith::require_size(topology, size);
    } catch (const kith::UsageError&) {
      continue;
    }
    if (topology.max_degree(size) == 0) continue;  // nobody waits for anybody
    ++repeat;
    const std::string name = topology.full_name();
    CAPTURE(name);
    CAPTURE(size);
    const auto failing = static_cast<Rank>(random() % static_cast<std::uint64_t>(size));
    const kith::Round at = random() % 5;
    const bool returns = random() % 2 == 0;
    const auto delay = std::chrono::microseconds{random() % 2 * (random() % 300)};
    const auto initial =
        reference::random_models(size, {{DType::f32, 300}, {DType::f64, 20}, {DType::f16, 9}}, random());
    auto expected = initial;
    for (kith::Round t = 0; t < at; ++t) reference::round(expected, topology, t);
    std::atomic<int> wrong{0};
    std::atomic<int> survivors{0};
    const auto body = [&](auto& communicator) {
      const auto rank = static_cast<std::size_t>(communicator.rank());
      reference::Model model = initial[rank];
      kith::DecentralizedAverager averager{communicator, topology, model.views()};
      for (kith::Round t = 0; t < 5; ++t) {
        if (t == at && communicator.rank() == failing) {
          std::this_thread::sleep_for(delay);
          if (returns) return;
          throw Planned{};
        }
        try {
          averager.average();
        } catch (const PeerError& error) {
          if (t != at || error.peer() != failing || error.reason() != PeerError::lost) ++wrong;
          if (averager.metrics().rounds != at) ++wrong;
          break;
        }
      }
      if (!(model == expected[rank])) ++wrong;
      ++survivors;
    };
    const auto with_messages = [&](kith::thread::Communicator& communicator) {
      kith::testing::MessagePassing<kith::thread::Communicator> messages{communicator};
      body(messages);
    };
    if (returns) {
      CHECK_NOTHROW(kith::thread::run(size, body));
      CHECK_NOTHROW(kith::thread::run(size, with_messages));
    } else {
      CHECK_THROWS_AS(kith::thread::run(size, body), Planned);
      CHECK_THROWS_AS(kith::thread::run(size, with_messages), Planned);
    }
    REQUIRE(wrong == 0);
    REQUIRE(survivors == 2 * (size - 1));
  }
}

}  // namespace averager_failure_test
