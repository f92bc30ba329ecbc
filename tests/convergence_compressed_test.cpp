// SPDX-License-Identifier: Apache-2.0
// Where compressed exchanges end. Averaging alone, of fixed vectors on a ring of 8, distances relative to the first:
//
// Direct stops. Once every rank's value is encoded as the same number nothing moves any more, so what is left is a
// distance within a codec's step s: for values spread evenly over it, rms s / sqrt(12).
// Choco does not stop: its error is relative to what is left, down to the rounding of fp32.
//
// Over time rounding must not move the mean. A rank's rounding error is at most half of 2^-23 |x| a round and of random
// sign; with n ranks and t rounds the mean moves by about 2^-24 |x| sqrt(t / (3 n)), 2e-6 |x| for t = 30,000 and n = 8.
// The published form of CHOCO with a running weighted sum in fp32 is far off that.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <kith/codec/cast.hpp>
#include <kith/codec/cyclic_mask.hpp>
#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/min_max_uint8.hpp>
#include <kith/codec/qsgd.hpp>
#include <kith/codec/random_k.hpp>
#include <kith/codec/sign_mean.hpp>
#include <kith/codec/top_k.hpp>
#include <kith/exchange/choco.hpp>
#include <kith/exchange/difference.hpp>
#include <kith/exchange/direct.hpp>
#include <kith/exchange/masked_mean.hpp>

#include "convergence.hpp"

namespace convergence_compressed_test {

namespace {

using namespace convergence;
using kith::bfloat16;
using kith::Cast;
using kith::Choco;
using kith::Difference;
using kith::Direct;
using kith::Int4Block;
using kith::Int8Block;
using kith::TopK;

using Floats = std::vector<std::vector<float>>;

constexpr Rank ranks = 8;
const kith::AveragerOptions encode_all{.encode_from_bytes = 0};

/// What is left of the consensus distance, and of the replicas', after some rounds.
struct Left {
  int rounds;
  double consensus;
  double replica;
};

/// Averages fixed vectors and looks at `marks`, in ascending order.
template <class T, class E>
std::vector<Left> left_after(const E& exchange, const std::string& topology, std::vector<std::vector<T>> models,
                             const std::vector<int>& marks) {
  std::vector<Left> left;
  (void)on_ranks(topology, std::move(models), exchange, encode_all, [&](Rank rank, std::vector<T>&, auto& averager) {
    const double start = averager.consensus_distance();
    int t = 0;
    for (const int mark : marks) {
      for (; t < mark; ++t) averager.average();
      const double distance = averager.consensus_distance();
      if (rank == 0) left.push_back({mark, distance / start, averager.metrics().replica_distance / start});
    }
  });
  return left;
}

/// Values in [1/2, 1): one binade, so that a bf16 has the same step everywhere.
Floats values_of_one_binade(std::uint64_t seed) {
  std::mt19937_64 engine{seed};
  std::uniform_real_distribution<float> uniform(0.5F, 1);
  Floats models(index(ranks), std::vector<float>(512));
  for (std::vector<float>& model : models)
    for (float& value : model) value = uniform(engine);
  return models;
}

Floats normal_floats(std::size_t coordinates, std::uint64_t seed) {
  Floats models;
  for (const std::vector<double>& model : random_models(ranks, coordinates, seed))
    models.emplace_back(model.begin(), model.end());
  return models;
}

/// A uniform density over [1/2, 1) has the standard deviation 1/2 / sqrt(12): the distance at the start.
const double start_rms = 0.5 / std::sqrt(12.0);

}  // namespace

TEST_CASE("compressed: Direct stops at a distance of the codec's step") {
  const auto check = [](const auto& exchange, double step) {
    const std::vector<Left> left = left_after(exchange, "ring", values_of_one_binade(1), {200, 400});
    const double plateau = step / std::sqrt(12.0) / start_rms;
    CAPTURE(left[1].consensus);
    CAPTURE(plateau);
    CHECK(left[1].consensus > 0.3 * plateau);
    CHECK(left[1].consensus < 1.2 * plateau);
    CHECK(left[1].consensus > 0.8 * left[0].consensus);  // and stays there
  };
  check(Direct{Int8Block{}}, 1.0 / 127);  // of the largest magnitude, which is 1
  check(Direct{Cast<bfloat16>{}}, 0x1p-8);
  check(Direct{Int4Block{}}, 1.0 / 7);
}

TEST_CASE("compressed: Choco reaches the rounding of fp32 with the same codecs") {
  const auto check = [](const auto& exchange, const char* topology) {
    CAPTURE(topology);
    const std::vector<Left> left = left_after(exchange, topology, values_of_one_binade(1), {100, 400});
    CHECK(left[1].consensus < 0x1p-23 / start_rms);  // two units in the last place
    CHECK(left[1].replica < 1e-6);
  };
  for (const char* topology : {"ring", "one-peer-exponential", "static-exponential", "base-graph:2"}) {
    check(Choco{Int8Block{}}, topology);
    check(Choco{Cast<bfloat16>{}}, topology);
    check(Choco{Int4Block{}}, topology);
  }
}

TEST_CASE("compressed: in f64 Choco with one-peer exponential graphs reaches zero") {
  for (const Rank size : {8, 16}) {
    CHECK(left_after(Choco{Int8Block{}}, "one-peer-exponential", random_models(size, 300, 4), {400})[0].consensus <
          1e-16);
    CHECK(left_after(Choco{Int4Block{}}, "one-peer-exponential", random_models(size, 300, 4), {400})[0].consensus <
          1e-16);
  }
}

TEST_CASE("compressed: Choco and Direct keep the mean with every codec, on static and on changing graphs") {
  const auto check = [](const auto& exchange, const char* topology) {
    const std::string name = exchange_name(exchange) + " on " + topology;
    CAPTURE(name);
    const Models start = random_models(ranks, 200, 9);
    const Models end = on_ranks(topology, start, exchange, encode_all, [](Rank, std::vector<double>&, auto& averager) {
      for (int t = 0; t < 200; ++t) averager.average();
    });
    CHECK(largest_difference(start, end) > 0.1);
    CHECK(largest_difference(mean_of(start), mean_of(end)) < 1e-13);
  };
  for (const char* topology : {"ring", "one-peer-exponential", "base-graph:2"}) {
    check(Choco{Cast<bfloat16>{}}, topology);
    check(Choco{Cast<kith::float16>{}}, topology);
    check(Choco{Int8Block{}}, topology);
    check(Choco{Int4Block{}}, topology);
    check(Choco{kith::MinMaxUInt8{}}, topology);
    check(Choco{TopK{.fraction = 0.1}}, topology);
    check(Choco{kith::RandomK{.fraction = 0.1}}, topology);
    check(Choco{kith::CyclicMask{.fraction = 0.1}}, topology);
    check(Choco{kith::QSGD{}}, topology);
    check(Direct{Int8Block{}}, topology);
    check(Direct{kith::QSGD{}}, topology);
  }
  check(Choco{kith::SignMean{}}, "ring");
  check(Choco{kith::SignMean{}}, "base-graph:1");
}

TEST_CASE("compressed: 30,000 noisy rounds of fp32 do not move the mean") {
  constexpr std::size_t coordinates = 32;
  constexpr int rounds = 30000;
  // What the averaging adds to each rank's values, apart from the noise in between.
  const auto drift = [&](const auto& exchange) {
    Models moved(index(ranks), std::vector<double>(coordinates));
    (void)on_ranks("ring", normal_floats(coordinates, 1), exchange, encode_all,
                   [&](Rank rank, std::vector<float>& model, auto& averager) {
                     Signs noise(3, rank);
                     std::vector<float> before;
                     for (int t = 0; t < rounds; ++t) {
                       for (float& value : model) value += static_cast<float>(1e-3 * noise());
                       before = model;
                       averager.average();
                       for (std::size_t d = 0; d < coordinates; ++d)
                         moved[index(rank)][d] += static_cast<double>(model[d]) - static_cast<double>(before[d]);
                     }
                   });
    double squares = 0;
    for (const double mean : mean_of(moved)) squares += mean * mean / coordinates;
    return std::sqrt(squares);
  };
  CHECK(drift(kith::FullPrecision{}) < 2e-6);
  CHECK(drift(Choco{Int8Block{}}) < 2e-6);
  CHECK(drift(Choco{Int4Block{}}) < 2e-6);
  CHECK(drift(Choco{Cast<bfloat16>{}}) < 2e-6);
  CHECK(drift(Direct{Int8Block{}}) < 2e-6);
  CHECK(drift(Difference{Int8Block{}}) > 1e-4);  // which does not claim to keep it
}

TEST_CASE("compressed: that test would find the form with a running weighted sum") {
  // s_i <- s_i + sum_j w_ij q_j, x_i <- x_i + s_i - r_i in fp32, weights of one third, q sent without any loss.
  Floats x = normal_floats(32, 1);
  Floats replica(x.size(), std::vector<float>(32)), sum = replica;
  const Floats start = x;
  std::vector<double> noise_mean(32);
  std::vector<Signs> noises;
  for (Rank rank = 0; rank < ranks; ++rank) noises.emplace_back(3, rank);
  for (int t = 0; t < 30000; ++t) {
    Floats q = x;
    for (std::size_t i = 0; i < x.size(); ++i)
      for (std::size_t d = 0; d < 32; ++d) {
        const float before = x[i][d];
        x[i][d] += static_cast<float>(1e-3 * noises[i]());
        noise_mean[d] += (static_cast<double>(x[i][d]) - static_cast<double>(before)) / ranks;
        q[i][d] = x[i][d] - replica[i][d];
        replica[i][d] += q[i][d];
      }
    for (std::size_t i = 0; i < x.size(); ++i)
      for (std::size_t d = 0; d < 32; ++d) {
        const float third = 1.0F / 3;
        sum[i][d] += third * q[(i + 7) % 8][d] + third * q[i][d] + third * q[(i + 1) % 8][d];
        x[i][d] += sum[i][d] - replica[i][d];
      }
  }
  double largest = 0;
  for (std::size_t d = 0; d < 32; ++d) {
    double moved = -noise_mean[d];
    for (std::size_t i = 0; i < x.size(); ++i)
      moved += (static_cast<double>(x[i][d]) - static_cast<double>(start[i][d])) / ranks;
    largest = std::max(largest, std::abs(moved));
  }
  CHECK(largest > 1e-3);
}

TEST_CASE("compressed: top-k contracts linearly at a stable gamma, and diverges at one that is too large") {
  const std::vector<Left> stable =
      left_after(Choco{TopK{.fraction = 0.05}}, "ring", random_models(ranks, 1000, 1), {200, 400, 600});
  const double first = stable[1].consensus / stable[0].consensus;
  const double second = stable[2].consensus / stable[1].consensus;
  CAPTURE(first);
  CHECK(first < 0.05);
  CHECK(second == doctest::Approx(first).epsilon(0.3));
  CHECK(stable[2].replica < 0.05 * stable[1].replica);

  // It looks converged for hundreds of rounds.
  const std::vector<Left> unstable =
      left_after(Choco{TopK{.fraction = 0.1}, 0.4}, "ring", random_models(ranks, 1000, 1), {50, 200, 400, 800, 1200});
  CHECK(unstable[1].consensus < 0.01);
  CHECK(unstable[1].replica < 0.01);
  for (std::size_t k = 2; k < unstable.size(); ++k) CHECK(unstable[k].replica > 2 * unstable[k - 1].replica);
  CHECK(unstable.back().consensus > 10);
}

TEST_CASE("compressed: a cyclic mask gives the rounds of full precision, in as many rounds as it has slices") {
  const Models start = random_models(ranks, 200, 5);
  const auto end = [&](const auto& exchange, int rounds) {
    return on_ranks("ring", start, exchange, encode_all, [&](Rank, std::vector<double>&, auto& averager) {
      for (int t = 0; t < rounds; ++t) averager.average();
    });
  };
  CHECK(end(kith::MaskedMean{kith::CyclicMask{.fraction = 0.05, .seed = 3}}, 3 * 20) == end(kith::FullPrecision{}, 3));
}

namespace {

/// The noisy quadratic of convergence_test.cpp on a ring, its optimum at 10: (1/(n-1)) sum_i (x_i - mean)^2 at the end,
/// relative to the mean of variance(lambda) over the eigenvalues of W that are left when one 1 is taken away.
constexpr double gamma_of_quadratic = 0.2;
template <class E, class Variance>
double spread_on_quadratic(const E& exchange, bool begin_in_common, const Variance& variance) {
  constexpr std::size_t samples = 4096;
  const Models end = on_ranks("ring", Models(index(ranks), std::vector<double>(samples, 10)), exchange,
                              kith::AveragerOptions{.warmup_rounds = begin_in_common ? 1U : 0U},
                              [&](Rank rank, std::vector<double>& model, auto& averager) {
                                Signs noise(7, rank);
                                for (int step = 0; step < 60; ++step) {
                                  for (double& x : model) x -= gamma_of_quadratic * (x - 10 + noise());
                                  averager.average();
                                }
                              });
  double expected = 0;
  for (Rank k = 1; k < ranks; ++k)
    expected += variance(1.0 / 3 + 2.0 / 3 * std::cos(2 * std::numbers::pi * k / ranks)) / (ranks - 1);
  return average(squared_spread(end)) / (ranks - 1) / expected;
}

}  // namespace

TEST_CASE("compressed: training with noise ends where full precision does, but for Direct") {
  constexpr double g = gamma_of_quadratic;
  // Equation (2): adapt, then combine, y <- lambda ((1 - g) y - g eta).
  const auto after = [](double lambda) {
    const double square = lambda * lambda;
    return square * g * g / (1 - square * (1 - g) * (1 - g));
  };
  // DCD-PSGD combines what was before the step, y <- lambda y - g (y + eta).
  const auto before = [](double lambda) { return g * g / (1 - (lambda - g) * (lambda - g)); };
  // 4096 coordinates and 7 dimensions: a standard deviation of sqrt(2 / 28672) = 0.8 %.
  const auto one = doctest::Approx(1).epsilon(0.04);
  CHECK(spread_on_quadratic(kith::FullPrecision{}, false, after) == one);
  CHECK(spread_on_quadratic(Choco{Int8Block{}}, false, after) == one);
  CHECK(spread_on_quadratic(Choco{Int8Block{}}, true, after) == one);
  CHECK(spread_on_quadratic(Choco{Int4Block{}}, true, after) == one);
  CHECK(spread_on_quadratic(Difference{Int8Block{}}, true, before) == one);
  CHECK(spread_on_quadratic(Direct{Int4Block{}}, true, after) > 3);
}

}  // namespace convergence_compressed_test
