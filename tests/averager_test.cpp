// SPDX-License-Identifier: Apache-2.0
#include <kith/averager.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <kith/codec/int8_block.hpp>
#include <kith/exchange/choco.hpp>
#include <kith/testing/message_passing.hpp>
#include <kith/topology/any.hpp>

#include <doctest/doctest.h>

#include "reference.hpp"

namespace averager_test {

using kith::AnyTopology;
using kith::DType;
using kith::Rank;

TEST_CASE("averager: eight ranks hold exactly 3.5 after three one-peer rounds") {
  kith::testing::run_both_ways(8, [](auto& communicator) {
    std::vector<float> weights(1003, static_cast<float>(communicator.rank()));
    kith::DecentralizedAverager averager{communicator, kith::OnePeerExponential{}, {kith::view(weights)}};
    for (int step = 0; step < 3; ++step) averager.average();
    const bool exact = std::all_of(weights.begin(), weights.end(), [](float x) { return x == 3.5F; });
    CHECK(exact);
  });
}

TEST_CASE("averager: two ranks of one address space and of messages meet half way in one round") {
  kith::testing::run_both_ways(2, [](auto& communicator) {
    std::vector<double> weights{communicator.rank() == 0 ? -1.0 : 4.0};
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, {kith::view(weights)}};
    averager.average();
    CHECK(weights[0] == 1.5);
  });
}

TEST_CASE("averager: dyadic weights keep the sum of integers exactly, round after round") {
  // Multiples of 2^10 below 2^20: twelve halvings leave integers, sums stay below 2^24.
  const std::vector<reference::Shape> shapes = {{DType::f32, 203}, {DType::f64, 50}};
  struct Dyadic {
    AnyTopology topology;
    Rank size;
    kith::Round rounds;
  };
  for (const auto& [topology, size, rounds] :
       {Dyadic{kith::OnePeerExponential{}, 8, 9}, Dyadic{kith::OnePeerExponential{}, 5, 9},
        Dyadic{kith::Complete{}, 4, 2}, Dyadic{kith::Hypercube{}, 8, 3}, Dyadic{kith::RandomMatching{.seed = 4}, 7, 9},
        Dyadic{kith::Torus{2, 4}, 8, 4}}) {
    const std::string name = topology.full_name();
    CAPTURE(name);
    std::mt19937_64 random{9};
    std::vector<reference::Model> models(static_cast<std::size_t>(size), reference::Model{shapes});
    for (auto& model : models)
      for (std::size_t b = 0; b < shapes.size(); ++b)
        for (std::size_t i = 0; i < shapes[b].count; ++i)
          model.set(b, i, 1024.0 * (static_cast<double>(random() % 1024) - 512));
    const auto initial = models;
    const AnyTopology chosen = topology;
    const kith::Round times = rounds;
    std::atomic<bool> moved{false};
    kith::thread::run(size, [&](auto& communicator) {
      auto& model = models[static_cast<std::size_t>(communicator.rank())];
      kith::DecentralizedAverager averager{communicator, chosen, model.views()};
      for (kith::Round t = 0; t < times; ++t) averager.average();
      if (!(model == initial[static_cast<std::size_t>(communicator.rank())])) moved = true;
    });
    CHECK(moved);
    std::size_t wrong = 0;
    for (std::size_t b = 0; b < shapes.size(); ++b)
      for (std::size_t i = 0; i < shapes[b].count; ++i)
        wrong += reference::sum_over_ranks(models, b, i) != reference::sum_over_ranks(initial, b, i);
    CHECK(wrong == 0);
  }
}

namespace {

// A noisy walk: what an optimizer would add to the model of `rank` before round t. The noise alone has no mean.
struct Noise {
  std::mt19937 random;
  explicit Noise(Rank rank) : random(static_cast<std::mt19937::result_type>(rank + 1)) {}
  float next() { return static_cast<float>(static_cast<int>(random() % 2001) - 1000) * 1e-6F; }
};
constexpr int drift_rounds = 20000;
constexpr std::size_t drift_elements = 8;
constexpr Rank drift_ranks = 4;

// By how far the mean over ranks and elements has moved besides what the noise did to it, relative to the values (1).
double drift_of(const std::vector<std::vector<float>>& models, double noise) {
  double sum = -noise;
  for (const auto& model : models)
    for (const float x : model) sum += static_cast<double>(x) - 1.0;
  return std::fabs(sum) / static_cast<double>(models.size() * drift_elements);
}

// One step of an optimizer; returns what it really did to the sum, since adding rounds as well.
double disturb(std::vector<float>& model, Noise& noise) {
  double sum = 0;
  for (float& x : model) {
    const float before = x;
    volatile float after = before + noise.next();
    x = after;
    sum += static_cast<double>(x) - static_cast<double>(before);
  }
  return sum;
}

}  // namespace

// The design's figures for this experiment: 1e-6 with differences, 6e-4 with weighted values, whose three rounded
// thirds add up to 1 + 2^-25: 20,000 * 2^-25 = 6e-4.
TEST_CASE("averager: the mean does not drift in 20,000 noisy rounds on a ring, as it would with weighted values") {
  constexpr double bound = 1e-5;
  std::vector<std::vector<float>> models(drift_ranks, std::vector<float>(drift_elements, 1.0F));
  std::vector<double> noise(drift_ranks);
  kith::thread::run(drift_ranks, [&](auto& communicator) {
    const auto rank = static_cast<std::size_t>(communicator.rank());
    Noise own{communicator.rank()};
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, {kith::view(models[rank])}};
    for (int t = 0; t < drift_rounds; ++t) {
      noise[rank] += disturb(models[rank], own);
      averager.average();
    }
  });
  double total = 0;
  for (const double n : noise) total += n;
  CHECK(drift_of(models, total) < bound);

  std::vector<std::vector<float>> weighted(drift_ranks, std::vector<float>(drift_elements, 1.0F));
  std::vector<Noise> noises;
  for (Rank r = 0; r < drift_ranks; ++r) noises.emplace_back(r);
  total = 0;
  for (int t = 0; t < drift_rounds; ++t) {
    for (std::size_t r = 0; r < drift_ranks; ++r) total += disturb(weighted[r], noises[r]);
    const auto old = weighted;
    for (std::size_t r = 0; r < drift_ranks; ++r)
      for (std::size_t i = 0; i < drift_elements; ++i) {
        const float third = 1.0F / 3;
        volatile float a = third * old[(r + 3) % 4][i];
        volatile float b = third * old[r][i];
        volatile float c = third * old[(r + 1) % 4][i];
        volatile float two = a + b;
        weighted[r][i] = two + c;
      }
  }
  CHECK(drift_of(weighted, total) > 10 * bound);  // so the bound above tells the two apart
}

TEST_CASE("averager: equal models stay as they are, to the last bit") {
  const std::vector<reference::Shape> shapes = {
      {DType::f32, 500}, {DType::f64, 100, 1}, {DType::f16, 300}, {DType::bf16, 300}};
  const auto seed = static_cast<std::uint64_t>(std::random_device{}());
  CAPTURE(seed);
  reference::Model same = reference::random_models(1, shapes, seed)[0];
  for (std::size_t b = 0; b < shapes.size(); ++b)
    for (std::size_t i = 0; i < shapes[b].count; ++i)
      if (same.get(b, i) == 0) same.set(b, i, 0);  // x + (x - x) makes -0 a +0: the pinned formula, not an error
  for (const Rank size : {3, 5, 7})
    for (const char* name : {"ring", "one-peer-exponential", "complete", "base-graph:1", "star", "equi-dynamic:1"}) {
      CAPTURE(size);
      CAPTURE(name);
      std::atomic<int> changed{0};
      kith::testing::run_both_ways(size, [&](auto& communicator) {
        reference::Model model = same;
        kith::DecentralizedAverager averager{communicator, kith::parse_topology(name), model.views()};
        for (int t = 0; t < 4; ++t) averager.average();
        if (!(model == same)) ++changed;
        averager.average_globally();
        if (!(model == same)) ++changed;
        if (averager.consensus_distance() != 0) ++changed;
      });
      CHECK(changed == 0);
    }
}

TEST_CASE("averager: one rank alone: every operation leaves the model as it is") {
  const std::vector<reference::Shape> shapes = {{DType::f32, 70}, {DType::f16, 70}, {DType::f64, 3}, {DType::bf16, 5}};
  const reference::Model own = reference::random_models(1, shapes, 3)[0];
  for (const std::string& name : kith::topology_names()) {
    CAPTURE(name);
    kith::testing::run_both_ways(1, [&](auto& communicator) {
      reference::Model model = own;
      reference::Model target{shapes};
      kith::AveragerOptions options;
      options.global_every = 2;
      options.check_finite = true;
      kith::DecentralizedAverager averager{communicator, kith::parse_topology(name), model.views(), options};
      for (int t = 0; t < 4; ++t) averager.average();
      averager.average_globally();
      averager.broadcast(0);
      averager.mean_into(target.views());
      const bool kept = model == own && target == own;
      CHECK(kept);
      CHECK(averager.buffers_agree());
      CHECK(averager.consensus_distance() == 0);
      CHECK(averager.metrics().rounds == 2);
      CHECK(averager.metrics().global_rounds == 3);
      CHECK(averager.metrics().messages_sent == 0);
      CHECK(averager.metrics().bytes_sent == 0);
      CHECK(averager.metrics().bytes_received == 0);
      CHECK_NOTHROW(averager.restore(averager.state()));
    });
  }
}

TEST_CASE("averager: isolated ranks do not wait for each other") {
  kith::testing::run_both_ways(3, [](auto& communicator) {
    std::vector<float> model(10, static_cast<float>(communicator.rank()));
    kith::AveragerOptions options;
    options.deadline = kith::Seconds{20};
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Isolated{}}, {kith::view(model)}, options};
    // Different numbers of calls: a rank that waited would wait for ever.
    for (int t = 0; t <= 10 * communicator.rank(); ++t) averager.average();
    CHECK(averager.metrics().rounds == static_cast<kith::Round>(10 * communicator.rank() + 1));
    CHECK(averager.metrics().messages_sent == 0);
    CHECK(averager.metrics().seconds_waiting == 0);
    CHECK(model == std::vector<float>(10, static_cast<float>(communicator.rank())));
  });
}

TEST_CASE("averager: agree_on_steps gives the largest number on every rank") {
  constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
  for (const Rank size : {1, 2, 3, 8})
    kith::testing::run_both_ways(size, [&](auto& communicator) {
      std::vector<float> model(3, static_cast<float>(communicator.rank()));
      kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Isolated{}}, {kith::view(model)}};
      const auto rank = static_cast<std::uint64_t>(communicator.rank());
      const auto last = static_cast<std::uint64_t>(size - 1);
      CHECK(averager.agree_on_steps(0) == 0);
      CHECK(averager.agree_on_steps(100 + rank) == 100 + last);                    // of the last rank,
      CHECK(averager.agree_on_steps(100 - rank) == 100);                           // the first,
      CHECK(averager.agree_on_steps(rank == last / 2 ? most : most - 1) == most);  // and one in between
      CHECK(model == std::vector<float>(3, static_cast<float>(rank)));
      CHECK(averager.metrics().rounds + averager.metrics().global_rounds + averager.metrics().bytes_sent == 0);
    });
}

// A rank that stops when its data are used up would leave the others waiting. Here it goes on averaging, and the models
// are those of the same epochs written out.
TEST_CASE("averager: uneven data: a rank that has no more goes on averaging") {
  constexpr Rank size = 4;
  constexpr std::uint64_t batches[2][size] = {{3, 7, 0, 5}, {4, 2, 6, 1}};
  const auto step = [](double x, Rank rank, std::uint64_t batch) {
    return x - 0.25 * (x - rank - 0.125 * static_cast<double>(batch));
  };
  std::vector<reference::Model> expected(size, reference::Model{{{DType::f64, 2}}});
  kith::Round round = 0;
  for (const auto& local : batches)
    for (std::uint64_t batch = 0; batch < *std::max_element(local, local + size); ++batch) {
      for (Rank r = 0; r < size; ++r) {
        auto& model = expected[static_cast<std::size_t>(r)];
        if (batch < local[r])
          for (std::size_t i = 0; i < 2; ++i) model.set(0, i, step(model.get(0, i), r, batch));
      }
      reference::round(expected, kith::OnePeerExponential{}, round++);
    }
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    const Rank rank = communicator.rank();
    std::vector<double> model(2);
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::OnePeerExponential{}}, {kith::view(model)}};
    for (const auto& local : batches) {
      const std::uint64_t steps = averager.agree_on_steps(local[rank]);
      for (std::uint64_t batch = 0; batch < steps; ++batch) {
        if (batch < local[rank])
          for (double& x : model) x = step(x, rank, batch);
        averager.average();
      }
    }
    CHECK(model[0] == expected[static_cast<std::size_t>(rank)].get(0, 0));
    CHECK(model[1] == expected[static_cast<std::size_t>(rank)].get(0, 1));
    CHECK(averager.metrics().rounds == 13);
  });
}

TEST_CASE("averager: several on one communicator take turns without disturbing each other") {
  constexpr Rank size = 4;
  const auto weights = reference::random_models(size, {{DType::f32, 300}}, 1);
  const auto moments = reference::random_models(size, {{DType::f64, 70}, {DType::f32, 5}}, 2);
  auto expected_weights = weights;
  auto expected_moments = moments;
  for (kith::Round t = 0; t < 12; ++t) {
    reference::round(expected_weights, kith::OnePeerExponential{}, t);
    if (t % 6 == 5) reference::round(expected_moments, kith::Ring{}, t / 6, 0.5);
  }
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    const auto rank = static_cast<std::size_t>(communicator.rank());
    reference::Model w = weights[rank];
    reference::Model m = moments[rank];
    kith::AveragerOptions rarely;
    rarely.every = 6;
    rarely.mixing = 0.5;
    kith::DecentralizedAverager first{communicator, AnyTopology{kith::OnePeerExponential{}}, w.views()};
    kith::DecentralizedAverager second{communicator, AnyTopology{kith::Ring{}}, m.views(), rarely};
    for (int t = 0; t < 12; ++t) {
      first.average();
      second.average();
    }
    if (!(w == expected_weights[rank]) || !(m == expected_moments[rank])) ++wrong;
    {
      kith::DecentralizedAverager third{communicator, AnyTopology{kith::Ring{}}, w.views()};  // one after the other
      third.average_globally();
    }
    if (!first.buffers_agree()) ++wrong;
  });
  CHECK(wrong == 0);
}

namespace {

// Weights in every call, in eight bits; second moments in every sixth, as they are, over another graph.
using Weights =
    kith::DecentralizedAverager<kith::thread::Communicator, kith::OnePeerExponential, kith::Choco<kith::Int8Block>>;
using Moments = kith::DecentralizedAverager<kith::thread::Communicator, AnyTopology>;
constexpr Rank pair_size = 4;
constexpr int pair_calls = 40;
constexpr int pair_saved = 22;  // between two due calls of the moments

struct Averaged {
  std::vector<float> model;
  kith::Metrics metrics;
};

// One step of an optimizer and one call, so many times.
template <class A>
void train(A& averager, std::vector<float>& model, Rank rank, int from, int to) {
  for (int t = from; t < to; ++t) {
    for (std::size_t i = 0; i < model.size(); ++i) model[i] += 0.01F * static_cast<float>((t + rank) % 5) - 0.02F;
    averager.average();
  }
}

// What a rank begins with: no two ranks and no two elements alike.
std::vector<float> beginning(Rank rank, std::size_t count) {
  std::vector<float> model(count);
  for (std::size_t i = 0; i < count; ++i) model[i] = std::sin(static_cast<float>(rank + 1) * static_cast<float>(i + 1));
  return model;
}

Weights make_weights(kith::thread::Communicator& communicator, std::vector<float>& model) {
  return {communicator, {}, {kith::view(model)}, kith::Choco{kith::Int8Block{}}};
}

Moments make_moments(kith::thread::Communicator& communicator, std::vector<float>& model) {
  return {communicator,
          AnyTopology{kith::BaseGraph{1}},
          {kith::view(model)},
          kith::AveragerOptions{.every = 6, .warmup_rounds = 1}};
}

// Every rank's end where the averager is the only one of its communicator.
template <class Make>
std::vector<Averaged> alone(const Make& make, std::size_t count) {
  std::vector<Averaged> ends(pair_size);
  kith::thread::run(pair_size, [&](kith::thread::Communicator& communicator) {
    std::vector<float> model = beginning(communicator.rank(), count);
    auto averager = make(communicator, model);
    train(averager, model, communicator.rank(), 0, pair_calls);
    ends[static_cast<std::size_t>(communicator.rank())] = {model, averager.metrics()};
  });
  return ends;
}

bool same_counts(const kith::Metrics& a, const kith::Metrics& b) {
  return a.rounds == b.rounds && a.global_rounds == b.global_rounds && a.messages_sent == b.messages_sent &&
         a.bytes_sent == b.bytes_sent && a.bytes_received == b.bytes_received &&
         a.replica_distance == b.replica_distance;
}

}  // namespace

TEST_CASE("averager: two on one communicator, of other exchanges, topologies and periods, end as each would alone") {
  constexpr std::size_t many = 1500;
  constexpr std::size_t few = 70;
  const std::vector<Averaged> weights_alone = alone(make_weights, many);
  const std::vector<Averaged> moments_alone = alone(make_moments, few);
  CHECK(weights_alone[0].metrics.rounds == 40);
  CHECK(weights_alone[0].metrics.bytes_sent == 40 * (many + 4 * 6));  // a byte each, and 4 for each block of 256
  CHECK(moments_alone[0].metrics.rounds == 5);
  CHECK(moments_alone[0].metrics.global_rounds == 1);
  std::atomic<int> wrong{0};
  kith::thread::run(pair_size, [&](kith::thread::Communicator& communicator) {
    const Rank rank = communicator.rank();
    const auto as_alone = [&](const auto& averager, const std::vector<float>& model, const auto& ends) {
      const Averaged& end = ends[static_cast<std::size_t>(rank)];
      if (model != end.model || !same_counts(averager.metrics(), end.metrics)) ++wrong;
    };
    std::vector<float> w = beginning(rank, many);
    std::vector<float> m = beginning(rank, few);
    Weights weights = make_weights(communicator, w);
    Moments moments = make_moments(communicator, m);
    std::vector<float> saved_w, saved_m;
    std::vector<std::byte> state_of_weights, state_of_moments;
    for (int t = 0; t < pair_calls; ++t) {
      if (t == pair_saved) {
        saved_w = w;
        saved_m = m;
        state_of_weights = weights.state();
        state_of_moments = moments.state();
      }
      train(weights, w, rank, t, t + 1);
      train(moments, m, rank, t, t + 1);
    }
    as_alone(weights, w, weights_alone);
    as_alone(moments, m, moments_alone);
    // A state is one averager's: taken back, it moves the other neither back nor on.
    CHECK_THROWS_AS(moments.restore(state_of_weights), kith::UsageError);
    moments.restore(state_of_moments);
    m = saved_m;
    as_alone(weights, w, weights_alone);
    train(moments, m, rank, pair_saved, pair_calls);
    as_alone(moments, m, moments_alone);
    weights.restore(state_of_weights);
    w = saved_w;
    train(weights, w, rank, pair_saved, pair_calls);
    as_alone(weights, w, weights_alone);
    as_alone(moments, m, moments_alone);
  });
  CHECK(wrong == 0);
}

TEST_CASE("averager: can be moved between rounds") {
  constexpr Rank size = 3;
  const auto initial = reference::random_models(size, {{DType::f32, 100}, {DType::bf16, 100}}, 4);
  auto expected = initial;
  for (kith::Round t = 0; t < 4; ++t) reference::round(expected, kith::OnePeerExponential{}, t);
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    const auto rank = static_cast<std::size_t>(communicator.rank());
    reference::Model model = initial[rank];
    kith::DecentralizedAverager first{communicator, AnyTopology{kith::OnePeerExponential{}}, model.views()};
    first.average();
    std::vector<decltype(first)> list;
    list.push_back(std::move(first));
    list[0].average();
    auto last = std::move(list[0]);
    list.clear();
    last.average();
    last.average();
    if (!(model == expected[rank])) ++wrong;
    if (last.metrics().rounds != 4) ++wrong;
    last.average_globally();
    if (!last.buffers_agree()) ++wrong;
  });
  CHECK(wrong == 0);
}

}  // namespace averager_test
