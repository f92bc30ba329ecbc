// SPDX-License-Identifier: Apache-2.0
// The claims of docs/integrating.md, each as the smallest training run that shows it.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include <kith/averager.hpp>
#include <kith/numeric/convert.hpp>
#include <kith/thread/run.hpp>
#include <kith/topology/complete.hpp>
#include <kith/topology/one_peer_exponential.hpp>
#include <kith/topology/ring.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace docs_integrating_test {

namespace {

using kith::Rank;

constexpr Rank ranks = 8;

/// Where one worker's Adam pulls: towards the optimum of its own data, for each coordinate.
using Optima = std::vector<std::vector<double>>;

constexpr std::size_t coordinates = 128;

/// Optima drawn from an exponential distribution: skewed, so that their mean is not their median.
Optima skewed_optima(std::uint64_t seed) {
  std::mt19937_64 engine{seed};
  std::exponential_distribution<double> draw{1.0};
  Optima optima(ranks, std::vector<double>(coordinates));
  for (std::vector<double>& one : optima)
    for (double& b : one) b = draw(engine);
  return optima;
}

/// For each coordinate what `choose` makes of the workers' sorted optima.
template <class Choose>
std::vector<double> of_sorted(const Optima& optima, const Choose& choose) {
  std::vector<double> chosen(coordinates);
  for (std::size_t d = 0; d < coordinates; ++d) {
    std::vector<double> values;
    for (const std::vector<double>& one : optima) values.push_back(one[d]);
    std::sort(values.begin(), values.end());
    chosen[d] = choose(values);
  }
  return chosen;
}

std::vector<double> mean_optimum(const Optima& optima) {
  return of_sorted(optima, [](const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value / ranks;
    return sum;
  });
}

double rms_difference(const std::vector<float>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t d = 0; d < a.size(); ++d) sum += (a[d] - b[d]) * (a[d] - b[d]) / static_cast<double>(a.size());
  return std::sqrt(sum);
}

struct Adam {
  double noise = 0;               // standard deviation of the gradients
  kith::Round moments_every = 0;  // the second averager's `every`; 0: the moments stay local
};

/// Trains f_i(x) = norm(x - b_i)^2 / 2 with Adam on each rank, a decaying learning rate, and averaging after every
/// step. Returns the merged model.
template <kith::Topology T>
std::vector<float> train(const T& topology, const Optima& optima, const Adam& adam) {
  constexpr int steps = 1500;
  std::vector<float> merged(coordinates);
  kith::thread::run(ranks, [&](kith::thread::Communicator& communicator) {
    const std::vector<double>& optimum = optima[static_cast<std::size_t>(communicator.rank())];
    std::mt19937_64 engine{static_cast<std::uint64_t>(communicator.rank())};
    std::vector<float> x(coordinates), m(coordinates), v(coordinates);
    kith::DecentralizedAverager weights{communicator, topology, {kith::view(x)}};
    kith::DecentralizedAverager moments{communicator,
                                        topology,
                                        {kith::view(v)},
                                        kith::AveragerOptions{.every = std::max<kith::Round>(1, adam.moments_every)}};
    for (int t = 1; t <= steps; ++t) {
      const double rate = 0.1 / (1 + t / 50.0);
      const double correct_m = 1 - std::pow(0.9, t);
      const double correct_v = 1 - std::pow(0.99, t);
      for (std::size_t d = 0; d < coordinates; ++d) {
        const double sign = (engine() & 1U) != 0 ? 1 : -1;
        const double gradient = x[d] - optimum[d] + adam.noise * sign;
        m[d] = static_cast<float>(0.9 * m[d] + 0.1 * gradient);
        v[d] = static_cast<float>(0.99 * v[d] + 0.01 * gradient * gradient);
        x[d] -= static_cast<float>(rate * (m[d] / correct_m) / (std::sqrt(v[d] / correct_v) + 1e-8));
      }
      weights.average();
      if (adam.moments_every > 0) moments.average();
    }
    std::vector<float> mine(coordinates);
    weights.mean_into({kith::view(mine)});
    if (communicator.rank() == 0) merged = mine;
  });
  return merged;
}

}  // namespace

TEST_CASE("integrating: local Adam moments move the optimum of heterogeneous data, averaged second moments do not") {
  const std::uint64_t seed = 5;
  CAPTURE(seed);
  const Optima optima = skewed_optima(seed);
  const std::vector<double> optimum = mean_optimum(optima);

  // Gradients without noise: near the end v_i = g_i^2, so that a worker's step is the sign of its gradient. The workers
  // vote, and the merged model stops at their median, with exact averaging as well as with one peer.
  const std::vector<float> exact = train(kith::Complete{}, optima, {});
  const std::vector<double> fourth = of_sorted(optima, [](const std::vector<double>& values) { return values[3]; });
  const std::vector<double> fifth = of_sorted(optima, [](const std::vector<double>& values) { return values[4]; });
  int outside = 0;
  for (std::size_t d = 0; d < coordinates; ++d)
    outside += exact[d] < fourth[d] - 0.01 || exact[d] > fifth[d] + 0.01 ? 1 : 0;
  CHECK(outside == 0);
  const double biased = rms_difference(exact, optimum);
  CHECK(biased > 0.25);
  const double biased_too = rms_difference(train(kith::OnePeerExponential{}, optima, {}), optimum);
  CHECK(biased_too > 0.25);

  // Averaged second moments give all workers one scale, and the gradients add up again.
  const double every_step = rms_difference(train(kith::OnePeerExponential{}, optima, {.moments_every = 1}), optimum);
  CHECK(every_step < 0.02);
  const double every_sixth = rms_difference(train(kith::OnePeerExponential{}, optima, {.moments_every = 6}), optimum);
  CHECK(every_sixth < 0.06);

  // Where noise is most of a gradient the workers' v are alike anyway, and there is less to mend.
  const double noisy = rms_difference(train(kith::OnePeerExponential{}, optima, {.noise = 3}), optimum);
  CHECK(noisy < 0.5 * biased);
}

TEST_CASE("integrating: a model that is kept in bf16 only stops half way") {
  // f(x) = (x - 3)^2 / 2 from x = 1 with a learning rate of 0.007. From 2 to 4 bf16 numbers are 1/64 apart: at 2 the
  // step, 0.007, is less than half of that and rounds to nothing. Below 2 they are 1/128 apart and the step is larger.
  kith::bfloat16 only = kith::to_bfloat16(1);
  float master = 1;
  kith::bfloat16 copy = only;
  for (int step = 0; step < 5000; ++step) {
    only = kith::to_bfloat16(kith::to_float(only) - 0.007F * (kith::to_float(only) - 3));
    master -= 0.007F * (kith::to_float(copy) - 3);  // the gradient is taken at what the forward pass uses
    copy = kith::to_bfloat16(master);
  }
  CHECK(kith::to_float(only) == 2);
  CHECK(kith::to_float(copy) == 3);
}

TEST_CASE("integrating: averaging bf16 buffers loses a worker's step, averaging fp32 masters keeps it") {
  // One of eight workers moves by the smallest step that bf16 has. Its neighbours' share of it, a third or a half of
  // that step, rounds to nothing at both ends; in fp32 all of it arrives: 1/8 of the step at everybody.
  constexpr float ulp = 1.0F / 128;
  const auto run = [](auto topology, bool masters, int rounds) {
    std::vector<float> result(ranks);
    kith::thread::run(ranks, [&](kith::thread::Communicator& communicator) {
      const float start = communicator.rank() == 0 ? 1 + ulp : 1;
      std::vector<float> master{start};
      std::vector<kith::bfloat16> model{kith::to_bfloat16(start)};
      kith::DecentralizedAverager averager{communicator, topology, {masters ? kith::view(master) : kith::view(model)}};
      for (int round = 0; round < rounds; ++round) averager.average();
      result[static_cast<std::size_t>(communicator.rank())] = masters ? master[0] : kith::to_float(model[0]);
    });
    return result;
  };
  CHECK(run(kith::Ring{}, false, 1) == std::vector<float>(ranks, 1));
  CHECK(run(kith::OnePeerExponential{}, false, 1) == std::vector<float>(ranks, 1));
  for (const float value : run(kith::Ring{}, true, 300)) CHECK(value == doctest::Approx(1 + ulp / 8).epsilon(1e-6));
  CHECK(run(kith::OnePeerExponential{}, true, 3) == std::vector<float>(ranks, 1 + ulp / 8));
}

TEST_CASE("integrating: the mean of the workers' running variances is not the variance under the merged model") {
  // A unit y = w x with x of variance 1: under worker i its variance is w_i^2. The mean of those is the variance under
  // the mean of w plus the variance of the w_i.
  std::vector<float> merged(1), merged_variance(1);
  kith::thread::run(ranks, [&](kith::thread::Communicator& communicator) {
    std::vector<float> w{communicator.rank() % 2 == 0 ? 0.5F : 1.5F};
    std::vector<float> running_variance{w[0] * w[0]};
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(w), kith::view(running_variance)}};
    std::vector<float> mean(1), mean_variance(1);
    averager.mean_into({kith::view(mean), kith::view(mean_variance)});
    if (communicator.rank() != 0) return;
    merged = mean;
    merged_variance = mean_variance;
  });
  CHECK(merged[0] * merged[0] == 1);
  CHECK(merged_variance[0] == 1.25F);
}

}  // namespace docs_integrating_test
