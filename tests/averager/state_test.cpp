// SPDX-License-Identifier: Apache-2.0
#include <kith/averager/state.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <kith/averager.hpp>
#include <kith/testing/message_passing.hpp>
#include <kith/topology/any.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace averager_state_test {

using kith::AnyTopology;
using kith::DType;
using kith::Rank;
using kith::UsageError;

namespace {

using Blob = std::vector<std::byte>;

const std::vector<reference::Shape>& shapes() {
  static const std::vector<reference::Shape> all = {{DType::f32, 200}, {DType::bf16, 30}, {DType::f64, 3}};
  return all;
}

// The state of an averager of one rank after `rounds` rounds; whatever may tell averagers apart is a parameter.
Blob state_of(const AnyTopology& topology, Rank size, const std::vector<reference::Shape>& of, int rounds) {
  Blob blob;
  kith::thread::run(size, [&](kith::thread::Communicator& communicator) {
    reference::Model model{of};
    kith::DecentralizedAverager averager{communicator, topology, model.views()};
    for (int t = 0; t < rounds; ++t) averager.average();
    if (communicator.rank() == 0) blob = averager.state();
  });
  return blob;
}

}  // namespace

TEST_CASE("state: the continuation from a checkpoint is bit-identical") {
  constexpr Rank size = 4;
  kith::AveragerOptions options;
  options.every = 2;
  options.warmup_rounds = 1;
  options.global_every = 4;
  const auto initial = reference::random_models(size, shapes(), 1);
  // Saved after an odd number of calls, between two due ones, with a mixing factor changed on the way.
  for (const int saved_after : {0, 1, 7, 12}) {
    CAPTURE(saved_after);
    std::atomic<int> wrong{0};
    std::vector<Blob> blobs(size);
    auto saved = initial;
    auto final_models = initial;
    std::vector<kith::Metrics> final_metrics(size);
    kith::testing::run_both_ways(size, [&](auto& communicator) {
      const auto rank = static_cast<std::size_t>(communicator.rank());
      reference::Model model = initial[rank];
      kith::DecentralizedAverager averager{communicator, AnyTopology{kith::OnePeerExponential{}}, model.views(),
                                           options};
      averager.set_mixing(0.75);
      for (int call = 0; call < 25; ++call) {
        if (call == saved_after) {
          blobs[rank] = averager.state();
          saved[rank] = model;
        }
        averager.average();
        model.set(0, 5, model.get(0, 5) + 0.25 * static_cast<double>(rank));  // a step of an optimizer
      }
      final_models[rank] = model;
      final_metrics[rank] = averager.metrics();
    });
    kith::testing::run_both_ways(size, [&](auto& communicator) {
      const auto rank = static_cast<std::size_t>(communicator.rank());
      reference::Model model = saved[rank];
      kith::DecentralizedAverager averager{communicator, AnyTopology{kith::OnePeerExponential{}}, model.views(),
                                           options};
      averager.restore(blobs[rank]);
      if (averager.state() != blobs[rank]) ++wrong;
      for (int call = saved_after; call < 25; ++call) {
        averager.average();
        model.set(0, 5, model.get(0, 5) + 0.25 * static_cast<double>(rank));
      }
      const kith::Metrics& metrics = averager.metrics();
      const kith::Metrics& expected = final_metrics[rank];
      if (!(model == final_models[rank])) ++wrong;
      if (metrics.rounds != expected.rounds || metrics.global_rounds != expected.global_rounds) ++wrong;
      if (metrics.messages_sent != expected.messages_sent || metrics.bytes_sent != expected.bytes_sent ||
          metrics.bytes_received != expected.bytes_received)
        ++wrong;
    });
    CHECK(wrong == 0);
  }
}

TEST_CASE("state: what is no state of such an averager is refused, and nothing has changed") {
  const AnyTopology topology = kith::RandomMatching{.seed = 3};
  const Blob good = state_of(topology, 2, shapes(), 5);
  std::vector<Blob> bad = {{}};
  for (std::size_t length = 0; length < good.size(); ++length)
    bad.emplace_back(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(length));
  bad.push_back(good);
  bad.back().push_back(std::byte{0});
  bad.push_back(good);
  bad.back().insert(bad.back().end(), good.begin(), good.end());
  bad.emplace_back(good.size(), std::byte{0});
  bad.emplace_back(good.size(), std::byte{0xFF});
  for (const double mixing : {std::nan(""), 3.0}) {  // a factor that set_mixing() would refuse
    bad.push_back(good);
    const double one = 1;  // where it stands: the only 1.0 in the blob
    const auto* pattern = reinterpret_cast<const std::byte*>(&one);
    const auto place = std::search(bad.back().begin(), bad.back().end(), pattern, pattern + sizeof one);
    REQUIRE(place != bad.back().end());
    std::memcpy(&*place, &mixing, sizeof mixing);
  }
  const std::size_t mutilated = bad.size();
  bad.push_back(state_of(kith::Ring{}, 2, shapes(), 5));
  bad.push_back(state_of(kith::RandomMatching{.seed = 4}, 2, shapes(), 5));
  bad.push_back(state_of(topology, 3, shapes(), 5));
  bad.push_back(state_of(topology, 2, {{DType::f32, 200}, {DType::bf16, 30}}, 5));
  bad.push_back(state_of(topology, 2, {{DType::f32, 201}, {DType::bf16, 30}, {DType::f64, 3}}, 5));
  bad.push_back(state_of(topology, 2, {{DType::f32, 200}, {DType::f16, 30}, {DType::f64, 3}}, 5));
  bad.push_back(state_of(topology, 2, {{DType::bf16, 30}, {DType::f32, 200}, {DType::f64, 3}}, 5));
  const char* const said[] = {
      "ring", "random-matching:4", "3", "counts or dtypes", "counts or dtypes", "counts or dtypes", "counts or dtypes"};

  const auto initial = reference::random_models(2, shapes(), 8);
  auto expected = initial;
  for (kith::Round t = 0; t < 3; ++t) reference::round(expected, topology, t);
  std::atomic<int> wrong{0};
  kith::thread::run(2, [&](kith::thread::Communicator& communicator) {
    const auto rank = static_cast<std::size_t>(communicator.rank());
    reference::Model model = initial[rank];
    kith::DecentralizedAverager averager{communicator, topology, model.views()};
    averager.average();
    const Blob before = averager.state();
    for (std::size_t i = 0; i < bad.size(); ++i) {
      std::string message;
      try {
        averager.restore(bad[i]);
      } catch (const UsageError& error) {
        message = error.what();
      }
      if (message.find("restore") == std::string::npos) ++wrong;
      if (i >= mutilated && message.find(said[i - mutilated]) == std::string::npos) ++wrong;
      if (averager.state() != before) ++wrong;
    }
    averager.average();
    averager.average();
    if (!(model == expected[rank])) ++wrong;
    averager.restore(good);
    if (averager.metrics().rounds != 5) ++wrong;
  });
  CHECK(wrong == 0);
}

TEST_CASE("state: bytes that came from anywhere are refused or read, but do no harm") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937_64 random{seed};
  const Blob good = state_of(kith::Ring{}, 1, shapes(), 2);
  kith::thread::run(1, [&](kith::thread::Communicator& communicator) {
    reference::Model model{shapes()};
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, model.views()};
    int refused = 0;
    for (int repeat = 0; repeat < 2000; ++repeat) {
      Blob blob = good;
      for (std::size_t flips = 1 + random() % 3; flips > 0; --flips)
        blob[random() % blob.size()] ^= static_cast<std::byte>(1 + random() % 255);
      try {
        averager.restore(blob);
      } catch (const UsageError&) {
        ++refused;
      }
    }
    CHECK(refused > 200);
    averager.restore(good);
    CHECK(averager.metrics().rounds == 2);
  });
}

TEST_CASE("state: parameters that have moved") {
  constexpr Rank size = 3;
  const auto initial = reference::random_models(size, shapes(), 5);
  auto expected = initial;
  for (kith::Round t = 0; t < 2; ++t) reference::round(expected, kith::Ring{}, t);
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    const auto rank = static_cast<std::size_t>(communicator.rank());
    reference::Model first = initial[rank];
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, first.views()};
    averager.average();
    reference::Model second = first;
    const reference::Model kept = first;
    averager.rebind(second.views());
    averager.average();
    if (!(second == expected[rank]) || !(first == kept)) ++wrong;
  });
  CHECK(wrong == 0);
}

TEST_CASE("state: places that do not fit are refused, and the old ones stay in force") {
  kith::testing::run_both_ways(2, [](auto& communicator) {
    std::vector<float> a(10, static_cast<float>(communicator.rank())), b(10);
    std::vector<double> wide(10);
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, {kith::view(a), kith::view(b)}};
    const auto refuses = [&](const std::vector<kith::BufferView>& buffers, const char* why) {
      std::string message;
      try {
        averager.rebind(buffers);
      } catch (const UsageError& error) {
        message = error.what();
      }
      CAPTURE(message);
      CHECK(message.find(why) != std::string::npos);
    };
    refuses({}, "0 buffers");
    refuses({kith::view(b)}, "1 buffers");
    refuses({kith::view(b), kith::view(a.data(), 9)}, "buffer 1 has 9 elements");
    refuses({kith::view(b), kith::view(wide)}, "f64");
    refuses({kith::view(b), kith::view(b)}, "overlap");
    refuses({kith::view(static_cast<float*>(nullptr), 10), kith::view(b)}, "null");
    averager.average();
    CHECK(a == std::vector<float>(10, 0.5F));
    averager.rebind({kith::view(b), kith::view(a)});  // exchanged: both are still this rank's own
    averager.average();
    CHECK(a == std::vector<float>(10, 0.5F));
  });
}

}  // namespace averager_state_test
