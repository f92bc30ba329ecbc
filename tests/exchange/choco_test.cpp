// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/choco.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <map>
#include <string>
#include <utility>
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

namespace exchange_choco_test {

using namespace encoded;

namespace {

template <class T>
[[nodiscard]] std::vector<T> difference(std::vector<T> a, const std::vector<T>& b) {
  for (std::size_t e = 0; e < a.size(); ++e) a[e] = minus(a[e], b[e]);
  return a;
}

// One replica of each rank: r_i <- r_i + Q(x_i - r_i), x_i <- x_i + a gamma sum_j w_ij (r_j - r_i).
template <class T, class Q>
struct StaticReference {
  Q codec;
  double gamma;
  std::size_t buffer;
  Rows<T> replicas;

  void step(Rows<T>& x, const kith::MixingMatrix& w, Round t, double mixing) {
    for (std::size_t i = 0; i < x.size(); ++i)
      add(replicas[i], coded(codec, difference(x[i], replicas[i]), {static_cast<Rank>(i), t, buffer}));
    for (Rank i = 0; i < w.size(); ++i)
      for (std::size_t e = 0; e < x[0].size(); ++e) {
        T& value = x[static_cast<std::size_t>(i)][e];
        value = plus(value, times(static_cast<T>(gamma * mixing), sum_of_differences(w, replicas, i, e)));
      }
  }
};

// One replica r_ik for each directed edge i -> k of any round. When the edge is used, r_ik <- r_ik + Q(x_i - r_ik);
// then x_i <- x_i + a gamma (sum_j w_ij r_ji - sum_k w_ki r_ik).
template <class T, class Q>
struct EdgeReference {
  Q codec;
  double gamma;
  std::size_t buffer;
  Round period;
  std::map<std::pair<Rank, Rank>, std::vector<T>> replicas{};

  void step(Rows<T>& x, const kith::MixingMatrix& w, Round t, double mixing) {
    const Round codec_round = t / period + (t % period << 32U);  // consecutive in each phase of the schedule
    const auto edge = [&](Rank from, Rank to) { return from != to && w(to, from) != 0; };
    for (Rank i = 0; i < w.size(); ++i)
      for (Rank k = 0; k < w.size(); ++k) {
        if (!edge(i, k)) continue;
        const std::vector<T>& values = x[static_cast<std::size_t>(i)];
        std::vector<T>& replica = replicas.try_emplace({i, k}, values.size(), T{0}).first->second;
        add(replica, coded(codec, difference(values, replica), {i, codec_round, buffer}));
      }
    for (Rank i = 0; i < w.size(); ++i)
      for (std::size_t e = 0; e < x[0].size(); ++e) {
        T sum = 0;
        for (Rank j = 0; j < w.size(); ++j)
          if (edge(j, i)) sum = plus(sum, times(static_cast<T>(w(i, j)), replicas[{j, i}][e]));
        for (Rank k = 0; k < w.size(); ++k)
          if (edge(i, k)) sum = minus(sum, times(static_cast<T>(w(k, i)), replicas[{i, k}][e]));
        T& value = x[static_cast<std::size_t>(i)][e];
        value = plus(value, times(static_cast<T>(gamma * mixing), sum));
      }
  }
};

template <class Q>
void check_choco(const kith::Choco<Q>& exchange, const Case& c, std::uint64_t seed) {
  if (c.topology.period(c.size) == 1)
    check(exchange, c, seed, [&]<class T>(Rank size, std::size_t b, std::size_t count) {
      return StaticReference<T, Q>{exchange.codec, exchange.gamma, b,
                                   Rows<T>(static_cast<std::size_t>(size), std::vector<T>(count))};
    });
  else
    check(exchange, c, seed, [&]<class T>(Rank, std::size_t b, std::size_t) {
      return EdgeReference<T, Q>{exchange.codec, exchange.gamma, b, c.topology.period(c.size)};
    });
}

}  // namespace

TEST_CASE("choco: the arithmetic is pinned, for every codec") {
  for (const AnyTopology& topology : {AnyTopology{kith::Ring{}}, AnyTopology{kith::OnePeerExponential{}}}) {
    const Case c{topology, 4, every_dtype()};
    check_choco(kith::Choco{kith::Cast<kith::bfloat16>{}}, c, 1);
    check_choco(kith::Choco{kith::Cast<kith::float16>{}}, c, 2);
    check_choco(kith::Choco{kith::Int8Block{}}, c, 3);
    check_choco(kith::Choco{kith::Int4Block{.block = 16}, 0.9}, c, 4);
    check_choco(kith::Choco{kith::MinMaxUInt8{.chunk = 100}}, c, 5);
    check_choco(kith::Choco{kith::TopK{.fraction = 0.1}, 0.3}, c, 6);
    check_choco(kith::Choco{kith::RandomK{.fraction = 0.1, .seed = 3}, 0.1}, c, 7);
    check_choco(kith::Choco{kith::CyclicMask{.fraction = 0.1, .seed = 3}, 0.1}, c, 8);
    check_choco(kith::Choco{kith::QSGD{.levels = 120, .seed = 5}}, c, 10);
  }
  check_choco(kith::Choco{kith::SignMean{}, 0.4}, {kith::Ring{}, 4, every_dtype()}, 9);
}

TEST_CASE("choco: the arithmetic is pinned, for every topology and mixing factor") {
  for (const Rank size : {1, 2, 3, 5, 8})
    for (const char* name : {"ring", "one-peer-exponential", "static-exponential", "complete", "star", "base-graph:1",
                             "base-graph:2", "hyper-cuboid", "cycle:[ring,one-peer-exponential]"})
      check_choco(kith::Choco{kith::Int8Block{}}, {kith::parse_topology(name), size, every_dtype(), 1, 7}, 20);
  check_choco(kith::Choco{kith::Int8Block{}}, {kith::parse_topology("shift-one"), 6, every_dtype(), 1, 8}, 21);
  check_choco(kith::Choco{kith::Int8Block{}, 0.5}, {directed(), 4, every_dtype()}, 22);
  for (const double mixing : {0.0, 1.0 / 3, 2.0}) {
    check_choco(kith::Choco{kith::Int8Block{}, 0.7}, {kith::Ring{}, 5, every_dtype(), mixing}, 23);
    check_choco(kith::Choco{kith::Int8Block{}, 0.7}, {kith::OnePeerExponential{}, 5, every_dtype(), mixing}, 24);
  }
}

TEST_CASE("choco: a mask of a period of its own does not lock to that of the topology") {
  // 16 ranks meet in 4 phases, and the mask has 20: by the plain round each edge would always send the same elements.
  kith::thread::run(16, [](kith::thread::Communicator& communicator) {
    std::vector<double> values(40);
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = std::sin(static_cast<double>(40 * static_cast<std::size_t>(communicator.rank()) + i));
    kith::DecentralizedAverager averager{communicator,
                                         kith::OnePeerExponential{},
                                         {kith::view(values)},
                                         kith::Choco{kith::CyclicMask{.fraction = 0.05}},
                                         kith::AveragerOptions{.encode_from_bytes = 0}};
    const double start = averager.consensus_distance();
    for (int t = 0; t < 4000; ++t) averager.average();
    CHECK(averager.consensus_distance() < 0.01 * start);
  });
}

TEST_CASE("choco: small buffers travel as they are") {
  for (const std::size_t from : {std::size_t{1}, std::size_t{300}, std::size_t{4096}, std::size_t{1} << 40})
    for (const AnyTopology& topology : {AnyTopology{kith::Ring{}}, AnyTopology{kith::OnePeerExponential{}}})
      check_choco(kith::Choco{kith::Int4Block{}, 0.8}, {topology, 3, every_dtype(), 0.7, 3, from}, 30);
}

TEST_CASE("choco: what it cannot serve is refused with the reason") {
  const kith::Int8Block codec;
  for (const char* name : {"random-matching:1", "equi-dynamic:1"})
    check_all_say(refusals(4, kith::parse_topology(name), kith::Choco{codec}), "draws its edges anew");
  CHECK(refusals(1, kith::parse_topology("random-matching:1"), kith::Choco{codec}) == std::vector<std::string>(2));
  for (const double gamma : {0.0, -0.5, 1.01, std::numeric_limits<double>::quiet_NaN()})
    check_all_say(refusals(2, kith::Ring{}, kith::Choco{codec, gamma}), "at most 1");
  check_all_say(refusals(4, kith::OnePeerExponential{}, kith::Choco{kith::SignMean{}}), "diverges on directed");
  check_all_say(refusals(8, kith::StaticExponential{}, kith::Choco{kith::SignMean{}}), "diverges on directed");
  check_all_say(refusals(2, kith::Ring{}, kith::Choco{kith::QSGD{.levels = 44}}), "less than levels^2 = 1936");
  CHECK(refusals(2, kith::Ring{}, kith::Choco{kith::QSGD{.levels = 45}}) == std::vector<std::string>(4));
  CHECK(refusals(4, kith::OnePeerHypercube{}, kith::Choco{kith::SignMean{}}) == std::vector<std::string>(8));
  CHECK(refusals(4, kith::Ring{}, kith::Choco{kith::SignMean{}}) == std::vector<std::string>(8));
}

TEST_CASE("choco: the default of gamma") {
  CHECK(kith::Choco{kith::Int8Block{}}.gamma == 1);
  CHECK(kith::Choco{kith::Int4Block{}}.gamma == 1);
  CHECK(kith::Choco{kith::Cast<kith::bfloat16>{}}.gamma == 1);
  CHECK(kith::Choco{kith::TopK{.fraction = 0.01}}.gamma == 0.02);
  CHECK(kith::Choco{kith::TopK{.fraction = 0.9}}.gamma == 1);
  CHECK(kith::Choco{kith::RandomK{.fraction = 0.01}}.gamma == 0.005);
  CHECK(kith::Choco{kith::SignMean{}}.gamma == 0.45);
}

TEST_CASE("choco: memory is a replica for each edge, or for each rank that is heard and the own one") {
  // Of 1000 floats, 4032 bytes with the alignment.
  const auto staging = [](const AnyTopology& topology, Rank size) {
    std::size_t bytes[2] = {};
    kith::testing::run_both_ways(size, [&](auto& communicator) {
      std::vector<float> values(1000);
      kith::DecentralizedAverager full{communicator, topology, {kith::view(values)}, kith::AveragerOptions{}};
      kith::DecentralizedAverager averager{communicator,
                                           topology,
                                           {kith::view(values)},
                                           kith::Choco{kith::Int8Block{}},
                                           kith::AveragerOptions{.encode_from_bytes = 0}};
      if (communicator.rank() == 0)
        bytes[kith::SharedAddressSpace<std::remove_reference_t<decltype(communicator)>> ? 0 : 1] =
            averager.staging_bytes() - full.staging_bytes();
    });
    return bytes[0];
  };
  // The difference to FullPrecision has other parts, which are the same for equal degrees: cancel them.
  const auto ring = staging(kith::Ring{}, 8);                                      // hears 2 each round: 3 replicas
  const auto alternating = staging(kith::parse_topology("cycle:[ring,ring]"), 8);  // the same edges, and both ends
  CHECK(alternating - ring == 4032 + 1000 + 4 * 4);  // 2 + 2 replicas; and a message for each target
}

}  // namespace exchange_choco_test
