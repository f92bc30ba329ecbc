// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/full_precision.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include <kith/averager.hpp>
#include <kith/testing/message_passing.hpp>
#include <kith/topology/any.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace exchange_full_precision_test {

using kith::AnyTopology;
using kith::DType;
using kith::Rank;

namespace {

// Directed, of two different matrices, neither symmetric.
kith::Custom directed() {
  return kith::Custom::from_matrices(
      4, {{0.5, 0.25, 0.25, 0, 0.125, 0.625, 0, 0.25, 0.375, 0, 0.5, 0.125, 0, 0.125, 0.25, 0.625},
          {0, 1, 0, 0, 0, 0, 0.9, 0.1, 1, 0, 0, 0, 0, 0, 0.1, 0.9}});
}

struct Case {
  AnyTopology topology;
  Rank size;
  std::vector<reference::Shape> shapes;
  double mixing = 1;
  kith::Round rounds = 3;
  std::size_t bucket_bytes = 0;
};

// Rounds by the averager on both data paths, against the same rounds one element after another.
void check(const Case& c, std::uint64_t seed) {
  const std::string name = c.topology.full_name();
  CAPTURE(name);
  CAPTURE(c.size);
  CAPTURE(c.mixing);
  CAPTURE(c.bucket_bytes);
  const auto initial = reference::random_models(c.size, c.shapes, seed);
  auto expected = initial;
  for (kith::Round t = 0; t < c.rounds; ++t) reference::round(expected, c.topology, t, c.mixing);
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(c.size, [&](auto& communicator) {
    const auto r = static_cast<std::size_t>(communicator.rank());
    reference::Model model = initial[r];
    kith::AveragerOptions options;
    options.mixing = c.mixing;
    options.bucket_bytes = c.bucket_bytes;
    kith::DecentralizedAverager averager{communicator, c.topology, model.views(), options};
    for (kith::Round t = 0; t < c.rounds; ++t) averager.average();
    if (!(model == expected[r])) ++wrong;
  });
  CHECK(wrong == 0);
}

const std::vector<reference::Shape>& every_dtype() {
  static const std::vector<reference::Shape> shapes = {
      {DType::f32, 1000, 1}, {DType::f64, 64},   {DType::f16, 3, 1},  {DType::bf16, 1000, 3},
      {DType::f32, 0},       {DType::f16, 1000}, {DType::f32, 1},     {DType::f64, 1000, 1},
      {DType::bf16, 1},      {DType::f64, 0},    {DType::f32, 64, 5}, {DType::f16, 64, 7}};
  return shapes;
}

}  // namespace

TEST_CASE("full precision: the arithmetic is pinned, for every topology") {
  for (const Rank size : {1, 2, 3, 4, 5, 7, 8})
    for (const char* name : {"ring", "one-peer-exponential", "static-exponential", "complete", "star", "torus",
                             "random-matching:3", "base-graph:1", "base-graph:2", "equi-dynamic:9"})
      check({kith::parse_topology(name), size, every_dtype(), 1, 3}, 100 + static_cast<std::uint64_t>(size));
  check({directed(), 4, every_dtype(), 1, 4}, 1);
  check({kith::Custom::from_edges(5, {{0, 1}, {1, 2}, {3, 4}, {4, 2}, {0, 4}}), 5, every_dtype()}, 2);
  check({kith::Custom::from_edges(3, {{0, 2}}), 3, every_dtype()}, 3);  // rank 1 has nobody
}

TEST_CASE("full precision: the arithmetic is pinned, for every mixing factor") {
  for (const double mixing : {0.0, 0.5, 1.0 / 3, 1.25, 2.0}) {
    check({kith::Ring{}, 5, every_dtype(), mixing}, 21);
    check({kith::OnePeerExponential{}, 3, every_dtype(), mixing}, 22);
  }
}

TEST_CASE("full precision: the arithmetic is pinned, for large models and whatever they are cut into") {
  const std::vector<reference::Shape> large = {
      {DType::f32, 100003, 1}, {DType::bf16, 40001}, {DType::f64, 30011, 3}, {DType::f16, 50021, 1}};
  check({kith::Ring{}, 4, large, 1, 1}, 31);
  check({kith::OnePeerExponential{}, 8, {{DType::f32, 100003}}, 1, 2}, 32);
  for (const std::size_t bucket : {1U, 4096U, 10000U, 1U << 20})
    check({kith::StaticExponential{}, 5, {{DType::f16, 20021, 1}, {DType::f32, 5003}}, 1, 2, bucket}, 33);
}

TEST_CASE("full precision: a single buffer, an empty one, and no buffers at all") {
  for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16})
    for (const std::size_t count : {0U, 1U, 3U, 64U, 1000U}) check({kith::Ring{}, 3, {{dtype, count, 1}}}, count);
  check({kith::Ring{}, 3, {}}, 1);
}

TEST_CASE("full precision: random shapes, topologies and sizes") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937_64 random{seed};
  constexpr DType dtypes[] = {DType::f32, DType::f64, DType::f16, DType::bf16};
  const std::vector<std::string> names = kith::topology_names();
  for (int repeat = 0; repeat < 60;) {
    Case c{kith::parse_topology(names[random() % names.size()]), static_cast<Rank>(1 + random() % 8), {}};
    try {
      kith::require_size(c.topology, c.size);
    } catch (const kith::UsageError&) {
      continue;
    }
    for (std::size_t b = random() % 6; b > 0; --b)
      c.shapes.push_back({dtypes[random() % 4], random() % 700, random() % 9});
    c.mixing = random() % 2 == 0 ? 1 : static_cast<double>(random() % 1000) / 500;
    c.rounds = 1 + random() % 4;
    c.bucket_bytes = random() % 3 * 3000;
    check(c, random());
    ++repeat;
  }
}

TEST_CASE("full precision: a message is as large as the buffer") {
  CHECK(kith::FullPrecision::wire_bytes(1000, DType::f32) == 4000);
  CHECK(kith::FullPrecision::wire_bytes(3, DType::bf16) == 6);
  CHECK(kith::FullPrecision::wire_bytes(0, DType::f64) == 0);
}

}  // namespace exchange_full_precision_test
