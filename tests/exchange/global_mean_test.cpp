// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/global_mean.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include <kith/averager.hpp>
#include <kith/testing/message_passing.hpp>
#include <kith/topology/ring.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace exchange_global_mean_test {

using kith::DType;
using kith::Rank;
using kith::UsageError;

namespace {

const std::vector<reference::Shape>& every_dtype() {
  static const std::vector<reference::Shape> shapes = {{DType::f16, 1000, 1}, {DType::f32, 0},  {DType::f64, 64, 3},
                                                       {DType::f32, 1000, 1}, {DType::bf16, 3}, {DType::f32, 1}};
  return shapes;
}
const std::vector<reference::Shape>& large() {  // several claims, and slices that end inside buffers
  static const std::vector<reference::Shape> shapes = {
      {DType::f32, 30011}, {DType::bf16, 50021, 1}, {DType::f64, 12007, 1}};
  return shapes;
}

// sqrt((1/n) sum_i norm(x_i - mean)^2), straight from the definition.
double distance_of(const std::vector<reference::Model>& models, const reference::Model& mean) {
  long double sum = 0;
  for (const reference::Model& model : models)
    for (std::size_t b = 0; b < model.buffers(); ++b)
      for (std::size_t i = 0; i < model.shape(b).count; ++i) {
        const long double difference =
            static_cast<long double>(model.get(b, i)) - static_cast<long double>(mean.get(b, i));
        sum += difference * difference;
      }
  return static_cast<double>(std::sqrt(sum / static_cast<long double>(models.size())));
}

}  // namespace

TEST_CASE("global mean: its arithmetic is pinned, and every rank has the same bits") {
  for (const auto& shapes : {every_dtype(), large(), std::vector<reference::Shape>{}})
    for (const Rank size : {1, 2, 3, 5, 8}) {
      CAPTURE(size);
      const auto initial = reference::random_models(size, shapes, static_cast<std::uint64_t>(size));
      const reference::Model mean = reference::mean(initial);
      std::atomic<int> wrong{0};
      kith::testing::run_both_ways(size, [&](auto& communicator) {
        reference::Model model = initial[static_cast<std::size_t>(communicator.rank())];
        kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views()};
        averager.average_globally();
        if (!(model == mean)) ++wrong;
      });
      CHECK(wrong == 0);
    }
}

TEST_CASE("global mean: exact where the numbers allow it") {
  kith::testing::run_both_ways(8, [](auto& communicator) {
    std::vector<double> f64(100, communicator.rank() * 1024.0);
    std::vector<kith::bfloat16> bf16(100,
                                     kith::bfloat16{static_cast<std::uint16_t>(communicator.rank() == 5 ? 0x4100 : 0)});
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(f64), kith::view(bf16)}};
    averager.average_globally();
    const bool exact = std::all_of(f64.begin(), f64.end(), [](double x) { return x == 3.5 * 1024; }) &&
                       std::all_of(bf16.begin(), bf16.end(), [](auto x) { return x.bits == 0x3f80; });  // 8 / 8
    CHECK(exact);
  });
}

TEST_CASE("global mean: into other buffers, with the own model untouched") {
  for (const auto& shapes : {every_dtype(), large()})
    for (const Rank size : {1, 3, 4}) {
      const auto initial = reference::random_models(size, shapes, 40 + static_cast<std::uint64_t>(size));
      const reference::Model mean = reference::mean(initial);
      std::atomic<int> wrong{0};
      kith::testing::run_both_ways(size, [&](auto& communicator) {
        const auto& own = initial[static_cast<std::size_t>(communicator.rank())];
        reference::Model model = own;
        reference::Model target{shapes};
        kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views()};
        averager.mean_into(target.views());
        if (!(model == own) || !(target == mean)) ++wrong;
        if (averager.metrics().rounds + averager.metrics().global_rounds + averager.metrics().bytes_sent != 0) ++wrong;
      });
      CHECK(wrong == 0);
    }
}

TEST_CASE("global mean: targets that do not fit are refused, on each rank by itself, and nothing is written") {
  kith::testing::run_both_ways(2, [](auto& communicator) {
    const auto value = static_cast<float>(communicator.rank());
    std::vector<float> a(10, value), b(20, value), to_a(10, -1), to_b(20, -1);
    std::vector<double> wide(20, -1);
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(a), kith::view(b)}};
    const auto refuses = [&](const std::vector<kith::BufferView>& targets) {
      CHECK_THROWS_AS(averager.mean_into(targets), UsageError);
    };
    refuses({});
    refuses({kith::view(to_a)});
    refuses({kith::view(to_a), kith::view(to_b), kith::view(wide)});
    refuses({kith::view(to_a), kith::view(to_b.data(), 19)});
    refuses({kith::view(to_a), kith::view(wide)});
    refuses({kith::view(to_b.data(), 10), kith::view(to_b)});                   // targets overlap each other
    refuses({kith::view(to_a), kith::view(b)});                                 // a target is the model
    refuses({kith::view(b.data() + 19, 10), kith::view(to_b)});                 // or reaches into it
    refuses({kith::view(static_cast<float*>(nullptr), 10), kith::view(to_b)});  // or is nowhere
    CHECK(to_a == std::vector<float>(10, -1));
    CHECK(to_b == std::vector<float>(20, -1));
    averager.mean_into({kith::view(to_a), kith::view(to_b)});  // the group is as good as new
    CHECK(to_a == std::vector<float>(10, 0.5F));
    CHECK(b == std::vector<float>(20, value));
  });
}

TEST_CASE("global mean: broadcast from every root") {
  constexpr Rank size = 5;
  for (const auto& shapes : {every_dtype(), large()}) {
    const auto initial = reference::random_models(size, shapes, 77);
    std::atomic<int> wrong{0};
    kith::testing::run_both_ways(size, [&](auto& communicator) {
      const auto rank = static_cast<std::size_t>(communicator.rank());
      reference::Model model = initial[rank];
      kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views()};
      for (std::size_t root = 0; root < size; ++root) {
        model = initial[rank];
        averager.rebind(model.views());
        if (averager.buffers_agree()) ++wrong;
        averager.broadcast(static_cast<Rank>(root));
        if (!(model == initial[root]) || !averager.buffers_agree()) ++wrong;
      }
      CHECK_THROWS_AS(averager.broadcast(-1), UsageError);
      CHECK_THROWS_AS(averager.broadcast(size), UsageError);
      averager.broadcast();  // the default root is rank 0
      if (!(model == initial[size - 1])) ++wrong;
    });
    CHECK(wrong == 0);
  }
}

TEST_CASE("global mean: one bit of difference anywhere is seen by every rank") {
  const std::vector<reference::Shape> shapes = {{DType::f32, 7}, {DType::bf16, 3}, {DType::f64, 65}, {DType::f16, 1}};
  kith::testing::run_both_ways(3, [&](auto& communicator) {
    reference::Model model = reference::random_models(1, shapes, 6)[0];  // the same on every rank
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views()};
    CHECK(averager.buffers_agree());
    int missed = 0;
    for (std::size_t b = 0; b < shapes.size(); ++b)
      for (std::size_t i = 0; i < shapes[b].count; i += 3) {
        auto* byte = static_cast<unsigned char*>(model.views()[b].data) + i * size_of(shapes[b].dtype);
        if (communicator.rank() == 1) *byte = static_cast<unsigned char>(*byte ^ 1U);
        missed += averager.buffers_agree();
        if (communicator.rank() == 1) *byte = static_cast<unsigned char>(*byte ^ 1U);
      }
    CHECK(missed == 0);
    CHECK(averager.buffers_agree());
  });
}

TEST_CASE("global mean: the consensus distance is the definition's, with the same bits everywhere") {
  for (const auto& shapes : {every_dtype(), large(), std::vector<reference::Shape>{}})
    for (const Rank size : {1, 2, 3, 8}) {
      CAPTURE(size);
      const auto initial = reference::random_models(size, shapes, 60 + static_cast<std::uint64_t>(size));
      const double expected = distance_of(initial, reference::mean(initial));
      std::vector<double> found;
      std::mutex mutex;
      std::atomic<int> changed{0};
      kith::testing::run_both_ways(size, [&](auto& communicator) {
        const auto& own = initial[static_cast<std::size_t>(communicator.rank())];
        reference::Model model = own;
        kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views()};
        const double first = averager.consensus_distance();
        const double second = averager.consensus_distance();
        if (!(model == own)) ++changed;
        const std::lock_guard lock{mutex};
        found.push_back(first);
        found.push_back(second);
      });
      CHECK(changed == 0);
      CHECK(found.size() == 4 * static_cast<std::size_t>(size));
      CHECK(found[0] == doctest::Approx(expected).epsilon(1e-12));
      CHECK(std::all_of(found.begin(), found.end(), [&](double d) { return d == found[0]; }));
    }
}

TEST_CASE("global mean: the consensus distance of numbers that can be checked by hand") {
  kith::testing::run_both_ways(4, [](auto& communicator) {
    // 0, 2, 4, 6 in four elements: mean 3, squares 9 + 1 + 1 + 9 = 20 per element, 4 * 20 / 4 ranks = 20.
    std::vector<float> model(4, 2.0F * static_cast<float>(communicator.rank()));
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(model)}};
    CHECK(averager.consensus_distance() == std::sqrt(20.0));
    averager.average_globally();
    CHECK(averager.consensus_distance() == 0);
  });
}

}  // namespace exchange_global_mean_test
