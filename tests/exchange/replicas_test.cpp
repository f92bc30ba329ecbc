// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/replicas.hpp>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/top_k.hpp>
#include <kith/exchange/choco.hpp>
#include <kith/exchange/difference.hpp>

#include "encoded.hpp"

namespace exchange_replicas_test {

using namespace encoded;

namespace {

const std::vector<reference::Shape>& shapes() {
  static const std::vector<reference::Shape> all = {{DType::f32, 300}, {DType::bf16, 40}, {DType::f64, 30}};
  return all;
}

constexpr std::size_t threshold = 100;  // the bf16 buffer travels as it is

template <class F>
void for_each_exchange(const F& f) {
  f(kith::Difference{kith::Int8Block{}}, AnyTopology{kith::Ring{}});
  f(kith::Choco{kith::Int4Block{}}, AnyTopology{kith::Ring{}});
  f(kith::Choco{kith::Int4Block{}}, AnyTopology{kith::OnePeerExponential{}});
}

}  // namespace

TEST_CASE("replicas: the continuation from a checkpoint is bit-identical") {
  constexpr Rank size = 4;
  const auto initial = normal_models(size, shapes(), 1);
  for_each_exchange([&](const auto& exchange, const AnyTopology& topology) {
    const std::string name = exchange_name(exchange);
    CAPTURE(name);
    std::vector<std::vector<std::byte>> blobs(size);
    auto saved = initial;
    auto last = initial;
    std::atomic<int> wrong{0};
    // Saved by one engine and restored by the other: what is in a state does not depend on the engine.
    kith::testing::run_both_ways(size, [&](auto& communicator) {
      const auto r = static_cast<std::size_t>(communicator.rank());
      reference::Model model = initial[r];
      kith::DecentralizedAverager averager{communicator, topology, model.views(), exchange,
                                           kith::AveragerOptions{.encode_from_bytes = threshold}};
      const auto rounds = [&](auto& by, reference::Model& of, int first) {
        for (int t = first; t < 12; ++t) {
          by.average();
          of.set(0, 5, of.get(0, 5) + 0.25 * static_cast<double>(r));  // a step of an optimizer
        }
      };
      if (blobs[r].empty()) {
        for (int t = 0; t < 5; ++t) averager.average();
        saved[r] = model;
        blobs[r] = averager.state();
        rounds(averager, model, 5);
        last[r] = model;
        return;
      }
      averager.average();  // anything: restore() replaces it all
      model = saved[r];
      averager.rebind(model.views());
      averager.restore(blobs[r]);
      if (averager.state() != blobs[r]) ++wrong;
      rounds(averager, model, 5);
      if (!(model == last[r])) ++wrong;
      // The parameters alone are not enough.
      reference::Model forgetful = saved[r];
      kith::DecentralizedAverager other{communicator, topology, forgetful.views(), exchange,
                                        kith::AveragerOptions{.encode_from_bytes = threshold}};
      rounds(other, forgetful, 5);
      if (forgetful == last[r]) ++wrong;
    });
    CHECK(wrong == 0);
  });
}

TEST_CASE("replicas: a state of another exchange, or of other encoded buffers, is refused and nothing has changed") {
  kith::thread::run(2, [](kith::thread::Communicator& communicator) {
    std::vector<float> values(300, static_cast<float>(communicator.rank()));
    const auto make = [&](const auto& exchange, std::size_t from) {
      return kith::DecentralizedAverager{
          communicator, kith::Ring{}, {kith::view(values)}, exchange, kith::AveragerOptions{.encode_from_bytes = from}};
    };
    auto averager = make(kith::Choco{kith::Int8Block{}}, 0);
    averager.average();
    const std::vector<std::byte> state = averager.state();
    const auto refuses = [&](const std::vector<std::byte>& blob, const std::string& why) {
      std::string message;
      try {
        averager.restore(blob);
      } catch (const kith::UsageError& error) {
        message = error.what();
      }
      CAPTURE(message);
      CHECK(message.find(why) != std::string::npos);
      CHECK(averager.state() == state);
    };
    refuses(make(kith::Choco{kith::Int8Block{.block = 128}}, 0).state(), "choco:int8-block:128,gamma=1");
    refuses(make(kith::Choco{kith::Int8Block{}, 0.5}, 0).state(), "gamma=0.5");
    refuses(make(kith::FullPrecision{}, 0).state(), "full-precision");
    refuses(make(kith::Choco{kith::Int8Block{}}, 4096).state(), "encode_from_bytes");
    std::vector<std::byte> cut = state;
    cut.pop_back();
    refuses(cut, "not a whole state");
  });
}

TEST_CASE("replicas: a broadcast and an exact mean set them to the common model, at no cost in bytes") {
  constexpr Rank size = 4;
  for_each_exchange([&](const auto& exchange, const AnyTopology& topology) {
    const std::string name = exchange_name(exchange);
    CAPTURE(name);
    const auto initial = normal_models(size, shapes(), 2);
    for (int way = 0; way < 3; ++way) {
      CAPTURE(way);
      std::atomic<int> wrong{0};
      kith::testing::run_both_ways(size, [&](auto& communicator) {
        reference::Model model = initial[static_cast<std::size_t>(communicator.rank())];
        kith::DecentralizedAverager averager{
            communicator, topology, model.views(), exchange,
            kith::AveragerOptions{.warmup_rounds = way == 2 ? 1U : 0U, .encode_from_bytes = threshold}};
        if (way == 0) averager.broadcast(2);
        if (way == 1) averager.average_globally();
        if (way == 2) averager.average();
        const reference::Model common = model;
        const auto sent = averager.metrics().bytes_sent;
        if (way == 0 && sent != 0) ++wrong;
        for (int t = 0; t < 3; ++t) {
          averager.average();
          // Nothing is left to say: the models stay as they are.
          if (averager.metrics().replica_distance != 0 || !(model == common)) ++wrong;
        }
        model.set(0, 3, model.get(0, 3) + 2);
        averager.average();
        if (std::abs(averager.metrics().replica_distance - 2) > 1e-5) ++wrong;
      });
      CHECK(wrong == 0);
    }
  });
}

TEST_CASE("replicas: they stay when parameters move") {
  constexpr Rank size = 3;
  const auto initial = normal_models(size, shapes(), 3);
  for_each_exchange([&](const auto& exchange, const AnyTopology& topology) {
    std::atomic<int> wrong{0};
    kith::testing::run_both_ways(size, [&](auto& communicator) {
      const auto r = static_cast<std::size_t>(communicator.rank());
      const auto rounds = [&](bool moves) {
        reference::Model first = initial[r];
        kith::DecentralizedAverager averager{communicator, topology, first.views(), exchange,
                                             kith::AveragerOptions{.encode_from_bytes = threshold}};
        for (int t = 0; t < 3; ++t) averager.average();
        reference::Model second = first;
        if (moves) averager.rebind(second.views());
        for (int t = 0; t < 3; ++t) averager.average();
        return moves ? second : first;
      };
      if (!(rounds(true) == rounds(false))) ++wrong;
    });
    CHECK(wrong == 0);
  });
}

TEST_CASE("replicas: a difference, and the sum of its squares") {
  std::vector<float> values(3000), replica(3000), target(3000);
  double expected = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i % 97) / 7;
    replica[i] = static_cast<float>(i % 89) / 11;
    const double difference = static_cast<double>(values[i] - replica[i]);
    expected += difference * difference;
  }
  double squares = 1;
  kith::detail::subtract(kith::view(values), replica.data(), target.data(), squares);
  CHECK(squares == doctest::Approx(1 + expected));
  for (std::size_t i = 0; i < values.size(); ++i) REQUIRE(target[i] == values[i] - replica[i]);
}

}  // namespace exchange_replicas_test
