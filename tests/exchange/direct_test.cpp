// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/direct.hpp>

#include <cstddef>
#include <string>
#include <vector>

#include <kith/codec/cast.hpp>
#include <kith/codec/cyclic_mask.hpp>
#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/min_max_uint8.hpp>
#include <kith/codec/qsgd.hpp>
#include <kith/codec/random_k.hpp>
#include <kith/codec/sign_mean.hpp>
#include <kith/codec/top_k.hpp>

#include "encoded.hpp"

namespace exchange_direct_test {

using namespace encoded;

namespace {

// x_i + a sum_j w_ij (Q(x_j) - Q(x_i))
template <class T, class Q>
struct DirectReference {
  Q codec;
  std::size_t buffer;

  void step(Rows<T>& x, const kith::MixingMatrix& w, Round t, double mixing) const {
    Rows<T> q;
    for (Rank i = 0; i < w.size(); ++i) q.push_back(coded(codec, x[static_cast<std::size_t>(i)], {i, t, buffer}));
    for (Rank i = 0; i < w.size(); ++i)
      for (std::size_t e = 0; e < q[0].size(); ++e) {
        T& value = x[static_cast<std::size_t>(i)][e];
        value = plus(value, times(static_cast<T>(mixing), sum_of_differences(w, q, i, e)));
      }
  }
};

template <class Q>
void check_direct(const Q& codec, const Case& c, std::uint64_t seed) {
  check(kith::Direct{codec}, c, seed, [&]<class T>(Rank, std::size_t b, std::size_t) {
    return DirectReference<T, Q>{codec, b};
  });
}

}  // namespace

TEST_CASE("direct: the arithmetic is pinned, for every codec") {
  const Case c{kith::Ring{}, 4, every_dtype()};
  check_direct(kith::Cast<kith::bfloat16>{}, c, 1);
  check_direct(kith::Cast<kith::float16>{}, c, 2);
  check_direct(kith::Int8Block{}, c, 3);
  check_direct(kith::Int4Block{.block = 16}, c, 4);
  check_direct(kith::MinMaxUInt8{.chunk = 100}, c, 5);
  check_direct(kith::TopK{.fraction = 0.1}, c, 6);
  check_direct(kith::RandomK{.fraction = 0.1, .seed = 3}, c, 7);
  check_direct(kith::CyclicMask{.fraction = 0.1, .seed = 3}, c, 8);
  check_direct(kith::SignMean{}, c, 9);
  check_direct(kith::QSGD{.levels = 20, .seed = 5}, c, 10);
}

TEST_CASE("direct: the arithmetic is pinned, for every topology and mixing factor") {
  for (const Rank size : {1, 2, 3, 5, 8})
    for (const char* name : {"ring", "one-peer-exponential", "static-exponential", "complete", "star",
                             "random-matching:3", "base-graph:2", "equi-dynamic:9"})
      check_direct(kith::Int8Block{}, {kith::parse_topology(name), size, every_dtype(), 1, 3}, 20);
  check_direct(kith::Int8Block{}, {directed(), 4, every_dtype()}, 21);
  for (const double mixing : {0.0, 1.0 / 3, 2.0})
    check_direct(kith::Int8Block{}, {kith::Ring{}, 5, every_dtype(), mixing}, 22);
}

TEST_CASE("direct: small buffers travel as they are") {
  for (const std::size_t from : {std::size_t{1}, std::size_t{300}, std::size_t{4096}, std::size_t{1} << 40})
    check_direct(kith::Int4Block{}, {kith::Ring{}, 3, every_dtype(), 0.7, 3, from}, 30);
}

TEST_CASE("direct: a message has the size of the codec's encoding, in f32 or f64") {
  const kith::Direct exchange{kith::Int8Block{.block = 256}};
  CHECK(exchange.wire_bytes(1000, DType::f32) == 1000 + 4 * 4);
  CHECK(exchange.wire_bytes(1000, DType::bf16) == 1000 + 4 * 4);
  CHECK(exchange.wire_bytes(1000, DType::f64) == 1000 + 4 * 8);
  kith::testing::run_both_ways(3, [&](auto& communicator) {
    std::vector<float> large(2000, 1), small(100, 2);
    std::vector<double> empty;
    kith::DecentralizedAverager averager{
        communicator, kith::Ring{}, {kith::view(small), kith::view(large), kith::view(empty)}, exchange};
    for (int t = 0; t < 3; ++t) averager.average();
    const kith::Metrics& metrics = averager.metrics();
    CHECK(metrics.messages_sent == 6);
    CHECK(metrics.bytes_sent == 6 * (400 + 2000 + 8 * 4));  // 2000 elements are 8 blocks
    CHECK(metrics.bytes_received == metrics.bytes_sent);
    CHECK(metrics.replica_distance == 0);
  });
}

TEST_CASE("direct: impossible parameters are refused") {
  check_all_say(refusals(3, kith::Ring{}, kith::Direct{kith::Int8Block{.block = 0}}), "a block of 0 elements");
  check_all_say(refusals(3, kith::Ring{}, kith::Direct{kith::TopK{.fraction = 1.5}}), "a fraction of 1.5");
}

}  // namespace exchange_direct_test
