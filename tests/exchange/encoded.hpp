// SPDX-License-Identifier: Apache-2.0
// What the tests of the encoding exchanges share: rounds by the averager, on both data paths, against the same rounds
// by an independent computation, one element after another, to the bit.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <kith/averager.hpp>
#include <kith/codec.hpp>
#include <kith/testing/message_passing.hpp>
#include <kith/topology/analysis.hpp>
#include <kith/topology/any.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace encoded {

using kith::AnyTopology;
using kith::DType;
using kith::Rank;
using kith::Round;

/// The values of one buffer on all ranks, in the type that they are computed in.
template <class T>
using Rows = std::vector<std::vector<T>>;

// Each rounded on its own, whatever the compiler would like.
template <class T>
[[nodiscard]] T plus(T a, T b) {
  volatile T result = a + b;
  return result;
}
template <class T>
[[nodiscard]] T minus(T a, T b) {
  volatile T result = a - b;
  return result;
}
template <class T>
[[nodiscard]] T times(T a, T b) {
  volatile T result = a * b;
  return result;
}

/// What a codec makes of some values. The codecs have tests of their own.
template <class Q, class T>
[[nodiscard]] std::vector<T> coded(const Q& codec, std::vector<T> values, kith::CodecContext context) {
  const kith::BufferView view = kith::view(values);
  std::vector<std::byte> wire(codec.wire_bytes(view.count, view.dtype));
  codec.encode(view, wire, context);
  codec.decode(wire, view, context);
  return values;
}

template <class T>
void add(std::vector<T>& sum, const std::vector<T>& values) {
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] = plus(sum[i], values[i]);
}

/// sum_j w_ij (q_j - q_i) for element e, in ascending rank.
template <class T>
[[nodiscard]] T sum_of_differences(const kith::MixingMatrix& w, const Rows<T>& q, Rank i, std::size_t e) {
  T sum = 0;
  for (Rank j = 0; j < w.size(); ++j) {
    if (j == i || w(i, j) == 0) continue;
    const T difference = minus(q[static_cast<std::size_t>(j)][e], q[static_cast<std::size_t>(i)][e]);
    sum = plus(sum, times(static_cast<T>(w(i, j)), difference));
  }
  return sum;
}

struct Case {
  AnyTopology topology;
  Rank size;
  std::vector<reference::Shape> shapes;
  double mixing = 1;
  Round rounds = 5;
  std::size_t encode_from_bytes = 0;
};

/// Every dtype, tails of blocks and tiles, single elements and empty buffers, at places of no alignment.
[[nodiscard]] inline const std::vector<reference::Shape>& every_dtype() {
  static const std::vector<reference::Shape> shapes = {{DType::f32, 1100, 1}, {DType::f64, 65, 1}, {DType::f16, 130, 3},
                                                       {DType::bf16, 257},    {DType::f32, 0},     {DType::f32, 1},
                                                       {DType::f64, 1030}};
  return shapes;
}

/// Numbers of one magnitude: what a codec's error is to be seen against.
[[nodiscard]] inline std::vector<reference::Model> normal_models(Rank size, const std::vector<reference::Shape>& shapes,
                                                                 std::uint64_t seed) {
  std::mt19937_64 random{seed};
  std::normal_distribution<double> normal;
  std::vector<reference::Model> models(static_cast<std::size_t>(size), reference::Model{shapes});
  for (reference::Model& model : models)
    for (std::size_t b = 0; b < model.buffers(); ++b)
      for (std::size_t i = 0; i < model.shape(b).count; ++i) model.set(b, i, normal(random));
  return models;
}

/// Buffer `b` of all models through `step(rows)`, which works in T.
template <class T, class Step>
void with_rows(std::vector<reference::Model>& models, std::size_t b, const Step& step) {
  Rows<T> rows;
  for (const reference::Model& model : models) {
    std::vector<T>& row = rows.emplace_back();
    for (std::size_t i = 0; i < model.shape(b).count; ++i) row.push_back(static_cast<T>(model.get(b, i)));
  }
  step(rows);
  for (std::size_t r = 0; r < models.size(); ++r)
    for (std::size_t i = 0; i < rows[r].size(); ++i) models[r].set(b, i, static_cast<double>(rows[r][i]));
}

/// The same rounds by a `Reference<T>` for each encoded buffer, made by make.operator()<T>(size, buffer, count):
/// `step(rows, w, round, mixing)` does one round of all ranks.
template <class Make>
class Simulation {
public:
  Simulation(const Case& c, const Make& make) : case_(c) {
    for (std::size_t b = 0; b < c.shapes.size(); ++b) {
      const reference::Shape& shape = c.shapes[b];
      if (shape.count == 0 || shape.count * kith::size_of(shape.dtype) < c.encode_from_bytes)
        steps_.emplace_back();
      else if (shape.dtype == DType::f64)
        steps_.push_back(step_of<double>(make, b));
      else
        steps_.push_back(step_of<float>(make, b));
    }
  }

  void round(std::vector<reference::Model>& models, Round t) {
    const kith::MixingMatrix w = kith::mixing_matrix(case_.topology, case_.size, t);
    std::vector<reference::Model> plain = models;
    reference::round(plain, case_.topology, t, case_.mixing);
    for (std::size_t b = 0; b < steps_.size(); ++b) {
      if (steps_[b]) {
        steps_[b](models, w, t);
        continue;
      }
      for (std::size_t r = 0; r < models.size(); ++r)
        for (std::size_t i = 0; i < models[r].shape(b).count; ++i) models[r].set(b, i, plain[r].get(b, i));
    }
  }

private:
  using Step = std::function<void(std::vector<reference::Model>&, const kith::MixingMatrix&, Round)>;

  template <class T>
  Step step_of(const Make& make, std::size_t b) {
    auto reference = std::make_shared<decltype(make.template operator()<T>(Rank{}, b, b))>(
        make.template operator()<T>(case_.size, b, case_.shapes[b].count));
    return [reference, b, mixing = case_.mixing](std::vector<reference::Model>& models, const kith::MixingMatrix& w,
                                                 Round t) {
      with_rows<T>(models, b, [&](Rows<T>& rows) { reference->step(rows, w, t, mixing); });
    };
  }

  Case case_;
  std::vector<Step> steps_;
};

/// Rounds by the averager against those of the references.
template <class E, class Make>
void check(const E& exchange, const Case& c, std::uint64_t seed, const Make& make) {
  const std::string name = exchange_name(exchange);
  const std::string topology = c.topology.full_name();
  CAPTURE(name);
  CAPTURE(topology);
  CAPTURE(c.size);
  CAPTURE(c.mixing);
  CAPTURE(seed);
  const auto initial = normal_models(c.size, c.shapes, seed);
  auto expected = initial;
  Simulation simulation{c, make};
  if (c.size > 1)
    for (Round t = 0; t < c.rounds; ++t) simulation.round(expected, t);
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(c.size, [&](auto& communicator) {
    const auto r = static_cast<std::size_t>(communicator.rank());
    reference::Model model = initial[r];
    kith::AveragerOptions options;
    options.mixing = c.mixing;
    options.encode_from_bytes = c.encode_from_bytes;
    kith::DecentralizedAverager averager{communicator, c.topology, model.views(), exchange, options};
    for (Round t = 0; t < c.rounds; ++t) averager.average();
    if (!(model == expected[r])) ++wrong;
  });
  CHECK(wrong == 0);
}

/// Directed, of two different matrices, neither symmetric, several edges a round.
[[nodiscard]] inline kith::Custom directed() {
  return kith::Custom::from_matrices(
      4, {{0.5, 0.25, 0.25, 0, 0.125, 0.625, 0, 0.25, 0.375, 0, 0.5, 0.125, 0, 0.125, 0.25, 0.625},
          {0, 1, 0, 0, 0, 0, 0.9, 0.1, 1, 0, 0, 0, 0, 0, 0.1, 0.9}});
}

/// What the construction of an averager throws on each of `size` ranks; of both data paths one after the other.
template <class E>
[[nodiscard]] std::vector<std::string> refusals(Rank size, const AnyTopology& topology, const E& exchange,
                                                const kith::AveragerOptions& options = {}) {
  std::vector<std::string> texts(2 * static_cast<std::size_t>(size));
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    std::vector<float> values(2000);
    try {
      kith::DecentralizedAverager averager{communicator, topology, {kith::view(values)}, exchange, options};
    } catch (const kith::UsageError& error) {
      const bool messages = !kith::SharedAddressSpace<std::remove_reference_t<decltype(communicator)>>;
      texts[2 * static_cast<std::size_t>(communicator.rank()) + (messages ? 1 : 0)] = error.what();
    }
  });
  return texts;
}

/// Every rank refuses, and says why.
inline void check_all_say(const std::vector<std::string>& texts, const std::string& why) {
  for (const std::string& text : texts) {
    CAPTURE(text);
    CHECK(text.find(why) != std::string::npos);
  }
}

}  // namespace encoded
