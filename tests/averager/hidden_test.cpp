// SPDX-License-Identifier: Apache-2.0
// Hidden rounds: begin() and finish(), between which the model goes on.
#include <kith/averager.hpp>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <kith/codec/int8_block.hpp>
#include <kith/codec/min_max_uint8.hpp>
#include <kith/exchange/choco.hpp>
#include <kith/exchange/difference.hpp>
#include <kith/exchange/sharded.hpp>
#include <kith/testing/message_passing.hpp>
#include <kith/topology/analysis.hpp>
#include <kith/topology/any.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace averager_hidden_test {

using kith::DType;
using kith::PeerError;
using kith::Rank;
using kith::Round;

namespace {

// What the host does to its model between begin() and finish(): the same numbers whoever asks.
double step_of(std::size_t rank, Round round, std::size_t element) {
  return 0.01 * std::sin(static_cast<double>(1 + rank * 131 + round * 17 + element * 7));
}

void step_locally(reference::Model& model, std::size_t rank, Round round) {
  for (std::size_t b = 0; b < model.buffers(); ++b)
    for (std::size_t i = 0; i < model.shape(b).count; ++i) model.set(b, i, model.get(b, i) + step_of(rank, round, i));
}

// x + (y - s), each operation rounded to T, and to the element's type at the end.
template <class T>
double combined(double x, double y, double s) {
  volatile T difference = static_cast<T>(y) - static_cast<T>(s);
  volatile T sum = static_cast<T>(x) + difference;
  return static_cast<double>(sum);
}

void combine(reference::Model& model, const reference::Model& averaged, const reference::Model& snapshot) {
  for (std::size_t b = 0; b < model.buffers(); ++b)
    for (std::size_t i = 0; i < model.shape(b).count; ++i) {
      const double x = model.get(b, i);
      const double y = averaged.get(b, i);
      const double s = snapshot.get(b, i);
      model.set(b, i, model.shape(b).dtype == DType::f64 ? combined<double>(x, y, s) : combined<float>(x, y, s));
    }
}

// In place: an averager works on `target`.
void assign(reference::Model& target, const reference::Model& source) {
  for (std::size_t b = 0; b < target.buffers(); ++b)
    for (std::size_t i = 0; i < target.shape(b).count; ++i) target.set(b, i, source.get(b, i));
}

template <class F>
bool refuses(const F& f) {
  try {
    f();
  } catch (const kith::UsageError&) {
    return true;
  }
  return false;
}

}  // namespace

TEST_CASE("hidden: rounds are those of combine-then-adapt D-PSGD, and keep the mean") {
  constexpr std::size_t count = 37;
  constexpr Round rounds = 6;
  for (const char* name : {"ring", "one-peer-exponential", "static-exponential", "random-matching:3"})
    for (const Rank size : {1, 2, 3, 5, 8}) {
      const kith::AnyTopology topology = kith::parse_topology(name);
      const auto n = static_cast<std::size_t>(size);
      // X <- W X + U, in double.
      const auto initial = reference::random_models(size, {{DType::f64, count}}, 11);
      std::vector<std::vector<double>> x(n, std::vector<double>(count));
      for (std::size_t r = 0; r < n; ++r)
        for (std::size_t i = 0; i < count; ++i) x[r][i] = initial[r].get(0, i);
      std::vector<double> mean(count, 0.0);
      for (std::size_t i = 0; i < count; ++i)
        for (std::size_t r = 0; r < n; ++r) mean[i] += x[r][i] / static_cast<double>(size);
      for (Round t = 0; t < rounds; ++t) {
        const kith::MixingMatrix w = kith::mixing_matrix(topology, size, t);
        const auto old = x;
        for (std::size_t r = 0; r < n; ++r)
          for (std::size_t i = 0; i < count; ++i) {
            x[r][i] = step_of(r, t, i);
            mean[i] += step_of(r, t, i) / static_cast<double>(size);
            for (std::size_t j = 0; j < n; ++j) x[r][i] += w(static_cast<Rank>(r), static_cast<Rank>(j)) * old[j][i];
          }
      }
      std::vector<reference::Model> result = initial;
      const auto body = [&](auto& communicator) {
        const auto rank = static_cast<std::size_t>(communicator.rank());
        reference::Model model = initial[rank];
        kith::DecentralizedAverager averager{communicator, topology, model.views()};
        for (Round t = 0; t < rounds; ++t) {
          averager.begin();
          step_locally(model, rank, t);
          averager.finish();
        }
        result[rank] = model;
      };
      const auto worst = [&] {
        double distance = 0;
        for (std::size_t i = 0; i < count; ++i) {
          distance = std::max(distance, std::abs(reference::sum_over_ranks(result, 0, i) / size - mean[i]));
          for (std::size_t r = 0; r < n; ++r) distance = std::max(distance, std::abs(result[r].get(0, i) - x[r][i]));
        }
        return distance;
      };
      CAPTURE(name);
      CAPTURE(size);
      kith::thread::run(size, body);
      CHECK(worst() < 1e-12 * 64);
      kith::thread::run(size, [&](kith::thread::Communicator& communicator) {
        kith::testing::MessagePassing<kith::thread::Communicator> messages{communicator};
        body(messages);
      });
      CHECK(worst() < 1e-12 * 64);
    }
}

namespace {

// Hidden rounds of one averager, beside the same rounds by average() of another one, which is given the snapshots:
// its own tests say what they are. What each keeps of its peers goes on with its rounds.
template <class E>
void check_exchange(const char* topology, const E& exchange, kith::AveragerOptions options = {}) {
  constexpr Rank size = 5;
  options.encode_from_bytes = 300;
  options.bucket_bytes = 4096;
  const std::vector<reference::Shape> shapes = {{DType::f32, 1100, 1}, {DType::f64, 65}, {DType::f16, 1030, 3},
                                                {DType::bf16, 257},    {DType::f32, 0},  {DType::bf16, 3}};
  const auto initial = reference::random_models(size, shapes, 7);
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    const auto rank = static_cast<std::size_t>(communicator.rank());
    reference::Model model = initial[rank];
    reference::Model twin = initial[rank];
    reference::Model expected = initial[rank];
    kith::DecentralizedAverager averager{communicator, kith::parse_topology(topology), model.views(), exchange,
                                         options};
    kith::DecentralizedAverager plain{communicator, kith::parse_topology(topology), twin.views(), exchange, options};
    const std::size_t before = averager.staging_bytes();
    for (Round t = 0; t < 9; ++t) {
      const reference::Model snapshot = model;
      assign(twin, model);
      averager.begin();
      step_locally(model, rank, t);
      step_locally(expected, rank, t);
      // Another averager's round comes behind the one in flight, or after it.
      if (t % 2 == 0) plain.average();
      averager.finish();
      if (t % 2 != 0) plain.average();
      combine(expected, twin, snapshot);
      if (!(model == expected)) ++wrong;
    }
    const kith::Metrics& hidden = averager.metrics();
    const kith::Metrics& open = plain.metrics();
    if (hidden.rounds != open.rounds || hidden.global_rounds != open.global_rounds || hidden.rounds == 0 ||
        hidden.messages_sent != open.messages_sent || hidden.bytes_sent != open.bytes_sent ||
        hidden.bytes_received != open.bytes_received || hidden.replica_distance != open.replica_distance)
      ++wrong;
    if (averager.staging_bytes() < before + 2 * model.bytes()) ++wrong;
  });
  CAPTURE(topology);
  CAPTURE(kith::exchange_name(exchange));
  CHECK(wrong == 0);
}

}  // namespace

// Of those that encode, the two that keep something of their peers: the others do no more.
TEST_CASE("hidden: every kind of exchange and every schedule, to the bit") {
  kith::AveragerOptions schedule;
  schedule.every = 2;
  schedule.warmup_rounds = 1;
  schedule.global_every = 3;
  schedule.mixing = 0.75;
  kith::AveragerOptions warm;
  warm.warmup_rounds = 1;
  warm.check_finite = true;
  check_exchange("one-peer-exponential", kith::FullPrecision{}, schedule);
  check_exchange("ring", kith::FullPrecision{}, warm);
  check_exchange("one-peer-exponential", kith::Choco{kith::Int8Block{}}, warm);
  check_exchange("ring", kith::Choco{kith::Int8Block{}}, schedule);
  check_exchange("ring", kith::Difference{kith::MinMaxUInt8{}}, warm);
  check_exchange("hierarchical:2,ring", kith::Sharded{}, schedule);  // machines of 2, 2 and 1 ranks
  check_exchange("hierarchical:3,one-peer-exponential", kith::Sharded{}, warm);
}

TEST_CASE("hidden: without a step in between, a rank alone keeps its bits, and several rounds are in flight") {
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(3, [&](auto& communicator) {
    const auto value = static_cast<double>(communicator.rank());
    std::vector<double> first(9, value);
    std::vector<double> second(9, 10 * value);
    std::vector<double> third(2, value == 1 ? -0.0 : 0.1);
    kith::DecentralizedAverager a{communicator, kith::parse_topology("complete"), {kith::view(first)}};
    kith::DecentralizedAverager b{communicator, kith::parse_topology("complete"), {kith::view(second)}};
    kith::DecentralizedAverager alone{communicator, kith::parse_topology("isolated"), {kith::view(third)}};
    a.begin();
    b.begin();
    alone.begin();
    alone.finish();
    b.finish();
    a.finish();
    if (std::abs(first[8] - 1) > 1e-15 || std::abs(second[0] - 10) > 1e-14) ++wrong;
    if (std::signbit(third[1]) != (value == 1)) ++wrong;
    // Moved while it flies.
    a.begin();
    auto moved = std::move(a);
    moved.finish();
    if (moved.metrics().rounds != 2) ++wrong;
  });
  CHECK(wrong == 0);
}

TEST_CASE("hidden: any other call between begin and finish is refused, and the round goes on") {
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(2, [&](auto& communicator) {
    std::vector<float> values(100, static_cast<float>(communicator.rank()));
    std::vector<float> target(100);
    kith::DecentralizedAverager averager{communicator, kith::parse_topology("complete"), {kith::view(values)}};
    const auto blob = averager.state();
    if (!refuses([&] { averager.finish(); })) ++wrong;
    for (const bool due : {true, false}) {
      kith::AveragerOptions options;
      if (!due) options.every = 2;
      kith::DecentralizedAverager other{communicator, kith::parse_topology("complete"), {kith::view(target)}, options};
      auto& a = due ? averager : other;
      a.begin();
      const bool refused =
          refuses([&] { a.begin(); }) && refuses([&] { a.average(); }) && refuses([&] { a.average_globally(); }) &&
          refuses([&] { a.broadcast(); }) && refuses([&] { a.mean_into({kith::view(target)}); }) &&
          refuses([&] { (void)a.buffers_agree(); }) && refuses([&] { (void)a.consensus_distance(); }) &&
          refuses([&] { a.set_mixing(0.5); }) && refuses([&] { (void)a.metrics(); }) &&
          refuses([&] { (void)a.staging_bytes(); }) && refuses([&] { (void)a.state(); }) &&
          refuses([&] { a.restore(blob); }) && refuses([&] { a.rebind({kith::view(target)}); });
      if (!refused) ++wrong;
      a.finish();
      if (!refuses([&] { a.finish(); })) ++wrong;
      if (a.metrics().rounds != (due ? 1U : 0U)) ++wrong;
    }
    for (const float value : values)
      if (value != 0.5F) ++wrong;
    averager.restore(blob);
    averager.average();
  });
  CHECK(wrong == 0);
}

TEST_CASE("hidden: what fails comes out of finish, and leaves the parameters as the host has left them") {
  constexpr Rank size = 4;
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    const Rank rank = communicator.rank();
    std::vector<float> values(300, static_cast<float>(rank));
    kith::AveragerOptions options;
    options.check_finite = true;
    options.deadline = kith::Seconds{0.2};
    kith::DecentralizedAverager averager{communicator, kith::parse_topology("ring"), {kith::view(values)}, options};
    // Rank 0's snapshot is not finite: ranks 1 and 3 would hear of it.
    if (rank == 0) values[5] = std::numeric_limits<float>::quiet_NaN();
    averager.begin();
    for (float& value : values) value = 7;
    bool thrown = false;
    try {
      averager.finish();
    } catch (const kith::NonFiniteError& error) {
      thrown = error.rank() == 0 && error.index() == 5 && values[3] == 7 &&
               std::string{error.what()}.find("gossip round 0 ") != std::string::npos;
    }
    if (thrown != (rank != 2)) ++wrong;
    // The round is spent everywhere, and the next one works.
    averager.begin();
    averager.finish();
    if (averager.metrics().rounds != (rank == 2 ? 2U : 1U)) ++wrong;
    // Rank 2 never comes.
    if (rank == 2) return;
    averager.begin();
    for (float& value : values) value = 3;
    try {
      averager.finish();
      if (rank != 0) ++wrong;
    } catch (const PeerError&) {
    }
    for (const float value : values)
      if (value != 3) ++wrong;
    try {
      averager.average();
      ++wrong;
    } catch (const PeerError&) {
    }
  });
  CHECK(wrong == 0);
}

TEST_CASE("hidden: where a value cannot be encoded, the round has not begun, mended, it is begun again") {
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(2, [&](auto& communicator) {
    std::vector<float> values(3000, static_cast<float>(communicator.rank()));
    std::vector<float> moments(7, static_cast<float>(communicator.rank()));
    kith::DecentralizedAverager averager{
        communicator, kith::parse_topology("complete"), {kith::view(values)}, kith::Choco{kith::Int8Block{}}};
    kith::DecentralizedAverager other{communicator, kith::parse_topology("complete"), {kith::view(moments)}};
    if (communicator.rank() == 1) values[2] = std::numeric_limits<float>::infinity();
    try {
      averager.begin();
      if (communicator.rank() == 1) ++wrong;
    } catch (const kith::NonFiniteError& error) {
      if (communicator.rank() != 1 || error.index() != 2) ++wrong;
      values[2] = 1;
      averager.begin();
    }
    other.begin();  // in the same order on all ranks, whoever had to mend something
    averager.finish();
    other.finish();
    if (std::abs(values[2] - 0.5F) > 0.01F || averager.metrics().rounds != 1) ++wrong;
    if (moments[6] != 0.5F) ++wrong;
  });
  CHECK(wrong == 0);
}

TEST_CASE("hidden: an averager can end, and a rank be unwound, with a round in flight") {
  std::atomic<int> untouched{0};
  const auto body = [&](auto& communicator) {
    std::vector<float> values(5000, static_cast<float>(communicator.rank()));
    {
      kith::DecentralizedAverager averager{communicator, kith::parse_topology("ring"), {kith::view(values)}};
      averager.begin();
    }
    if (values[4999] == static_cast<float>(communicator.rank())) ++untouched;
    kith::DecentralizedAverager next{communicator, kith::parse_topology("ring"), {kith::view(values)}};
    next.begin();
    if (communicator.rank() == 1) throw std::runtime_error{"the host has failed"};
    next.finish();
    next.average();
  };
  CHECK_THROWS_WITH(kith::testing::run_both_ways(3, body), "the host has failed");
  CHECK(untouched == 3);
  // Alone: the others never begin.
  std::atomic<int> ended{0};
  kith::thread::run(2, [&](kith::thread::Communicator& communicator) {
    std::vector<float> values(10);
    kith::AveragerOptions options;
    options.deadline = kith::Seconds{0.1};
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(values)}, options};
    if (communicator.rank() == 0) averager.begin();
    ++ended;
  });
  CHECK(ended == 2);
}

}  // namespace averager_hidden_test
