// SPDX-License-Identifier: Apache-2.0
// The noisy quadratic: n workers minimise f_i(x) = x^2 / 2, each with gradients x + xi_i of independent unit-variance
// noise, and average after each step:
//
//   x <- W ((1 - gamma) x - gamma xi)          (adapt, then combine; x and xi have one entry for each worker)
//
// The mean model m = 1^T x / n. As 1^T W = 1^T, it follows m <- (1 - gamma) m - gamma mean(xi), whatever W is: SGD with
// the batches of all workers together. Its variance V solves V = (1 - gamma)^2 V + gamma^2 / n:
//
//   V = gamma / (n (2 - gamma)).                                                                              (1)
//
// The spread around the mean. Let W be one normal matrix (symmetric, or circulant) with eigenvalues 1, lambda_2 ...
// lambda_n and orthonormal eigenvectors u_k. The component y_k = u_k^* x follows y <- lambda_k ((1 - gamma) y - gamma
// eta) with unit-variance eta, so its variance is
//
//   v_k = |lambda_k|^2 gamma^2 / (1 - |lambda_k|^2 (1 - gamma)^2),                                            (2)
//
// and sum_i (x_i - m)^2 = sum_{k >= 2} |y_k|^2. So the sample variance of the workers' models, with n - 1 below, is in
// the mean the average of v_k over the n - 1 eigenvalues left when one 1 is taken away; the square of
// consensus_distance(), with n below, is (n - 1) / n of that.
//
// Source: derived above; the general case (any smooth cost, small gamma) is A. H. Sayed, Adaptation, Learning, and
// Optimization over Networks, Foundations and Trends in Machine Learning 7(4-5), 2014.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numbers>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <kith/topology/analysis.hpp>
#include <kith/topology/any.hpp>

#include "convergence.hpp"

namespace convergence_test {

namespace {

using namespace convergence;

constexpr std::size_t samples = 16384;
constexpr int steps = 40;
constexpr double sigmas = 5;  // a right program fails one check in 1.7 million; the seeds are fixed, so it never does

struct Setting {
  std::string topology;
  Rank size;
  double gamma;
};

/// The models after `steps` steps from 0.
Models train(const Setting& setting, std::uint64_t seed) {
  const double gamma = setting.gamma;
  return on_ranks(setting.topology, Models(index(setting.size), std::vector<double>(samples)), {},
                  [&](Rank rank, std::vector<double>& model, auto& averager) {
                    Signs noise(seed, rank);
                    for (int step = 0; step < steps; ++step) {
                      for (double& x : model) x -= gamma * (x + noise());
                      averager.average();
                    }
                  });
}

/// One worker that does SGD with the noise of all of them.
std::vector<double> train_with_large_batches(const Setting& setting, std::uint64_t seed) {
  std::vector<Signs> noises;
  for (Rank rank = 0; rank < setting.size; ++rank) noises.emplace_back(seed, rank);
  std::vector<double> model(samples);
  for (int step = 0; step < steps; ++step) {
    for (double& x : model) {
      double noise = 0;
      for (Signs& one : noises) noise += one() / setting.size;
      x -= setting.gamma * (x + noise);
    }
  }
  return model;
}

/// The variance (2) after `steps` steps from 0 instead of for ever: the same geometric series, cut off.
double variance_of_component(double lambda_squared, double gamma) {
  const double shrink = lambda_squared * (1 - gamma) * (1 - gamma);
  return lambda_squared * gamma * gamma * (1 - std::pow(shrink, steps)) / (1 - shrink);
}

/// What is expected of the sample variance over workers, and the standard error of its average over the samples.
struct Expected {
  double spread = 0;
  double standard_error = 0;
};

/// From the squared moduli of the eigenvalues but one 1. The components are uncorrelated, and a component's square
/// has a variance of at most 2 v_k^2 (see Signs).
Expected from_eigenvalues(const std::vector<double>& lambda_squared, double gamma) {
  Expected expected;
  double squares = 0;
  for (const double square : lambda_squared) {
    const double v = variance_of_component(square, gamma);
    expected.spread += v / static_cast<double>(lambda_squared.size());
    squares += v * v;
  }
  expected.standard_error = std::sqrt(2 * squares / samples) / static_cast<double>(lambda_squared.size());
  return expected;
}

/// The same where W changes: the covariance of the workers' models, C <- W_t ((1 - gamma)^2 C + gamma^2 I) W_t^T, and
/// of it what is left when the mean is taken out of rows and columns.
Expected from_matrices(const Setting& setting, const std::function<kith::MixingMatrix(Round)>& matrix_of) {
  const Rank n = setting.size;
  const double gamma = setting.gamma;
  const auto multiplied = [n](const kith::MixingMatrix& a, const kith::MixingMatrix& b, bool transposed) {
    kith::MixingMatrix c{n};
    for (Rank i = 0; i < n; ++i)
      for (Rank j = 0; j < n; ++j) {
        c(i, j) = 0;
        for (Rank k = 0; k < n; ++k) c(i, j) += a(i, k) * (transposed ? b(j, k) : b(k, j));
      }
    return c;
  };
  kith::MixingMatrix covariance{n};
  for (Rank i = 0; i < n; ++i) covariance(i, i) = 0;
  for (Round t = 0; t < steps; ++t) {
    for (Rank i = 0; i < n; ++i)
      for (Rank j = 0; j < n; ++j)
        covariance(i, j) = (1 - gamma) * (1 - gamma) * covariance(i, j) + (i == j ? gamma * gamma : 0);
    const kith::MixingMatrix w = matrix_of(t);
    covariance = multiplied(multiplied(w, covariance, false), w, true);
  }
  kith::MixingMatrix centering{n};
  for (Rank i = 0; i < n; ++i)
    for (Rank j = 0; j < n; ++j) centering(i, j) -= 1.0 / n;
  covariance = multiplied(multiplied(centering, covariance, false), centering, true);
  Expected expected;
  double squares = 0;
  for (Rank i = 0; i < n; ++i) {
    expected.spread += covariance(i, i) / (n - 1);
    for (Rank j = 0; j < n; ++j) squares += covariance(i, j) * covariance(i, j);
  }
  expected.standard_error = std::sqrt(2 * squares / samples) / (n - 1);
  return expected;
}

/// The workers' sample variance, averaged over the samples.
double measured_spread(const Models& models) {
  return average(squared_spread(models)) / static_cast<double>(models.size() - 1);
}

/// The expected spread of independent workers: every eigenvalue is 1, and each is a worker of its own.
double spread_of_isolated(double gamma) { return gamma / (2 - gamma); }

double cosine(Rank k, Rank n) { return std::cos(2 * std::numbers::pi * k / n); }

std::vector<double> squares(std::vector<double> values) {
  for (double& value : values) value *= value;
  return values;
}

std::vector<double> eigenvalues_of_ring(Rank n) {
  std::vector<double> lambda;
  for (Rank k = 1; k < n; ++k) lambda.push_back((1 + 2 * cosine(k, n)) / 3);
  return lambda;
}

std::vector<double> eigenvalues_of_torus(Rank rows, Rank columns) {
  std::vector<double> lambda;  // of the outer sum of two rings
  for (Rank k = 0; k < rows; ++k)
    for (Rank l = 0; l < columns; ++l)
      if (k + l > 0) lambda.push_back((1 + 2 * cosine(k, rows) + 2 * cosine(l, columns)) / 5);
  return lambda;
}

std::vector<double> squared_eigenvalues_of_exponential_graph(Rank n, Rank hops) {
  std::vector<double> lambda_squared;  // of the circulant (I + S + S^2 + S^4 + ...) / (hops + 1)
  for (Rank k = 1; k < n; ++k) {
    double real = 1;
    double imaginary = 0;
    for (Rank hop = 0; hop < hops; ++hop) {
      real += cosine(k << hop, n);
      imaginary += std::sin(2 * std::numbers::pi * (k << hop) / n);
    }
    lambda_squared.push_back((real * real + imaginary * imaginary) / ((hops + 1) * (hops + 1)));
  }
  return lambda_squared;
}

}  // namespace

TEST_CASE("convergence: the mean model is SGD with the batches of all workers, whatever the topology") {
  std::uint64_t seed = 101;
  for (const Setting& setting : std::vector<Setting>{{"complete", 8, 0.2},
                                                     {"ring", 8, 0.2},
                                                     {"ring", 5, 0.5},
                                                     {"torus:3x4", 12, 0.2},
                                                     {"star", 6, 0.2},
                                                     {"static-exponential", 6, 0.5},
                                                     {"one-peer-exponential", 8, 0.2},
                                                     {"one-peer-exponential", 6, 0.5},
                                                     {"random-matching:7", 8, 0.2},
                                                     {"random-matching:7", 5, 0.5},
                                                     {"equi-dynamic:7", 6, 0.2},
                                                     {"base-graph:1", 5, 0.2},
                                                     {"hyper-cuboid", 12, 0.5},
                                                     {"shift-one", 6, 0.2},
                                                     {"isolated", 8, 0.2}}) {
    CAPTURE(setting.topology);
    CAPTURE(setting.size);
    CAPTURE(++seed);
    const std::vector<double> mean = mean_of(train(setting, seed));
    CHECK(largest_difference(mean, train_with_large_batches(setting, seed)) < 1e-13);

    double variance = 0;  // around 0, the expectation
    for (const double m : mean) variance += m * m / samples;
    const double stationary = setting.gamma / (setting.size * (2 - setting.gamma));  // (1)
    const double expected = stationary * (1 - std::pow(1 - setting.gamma, 2 * steps));
    CHECK(expected == doctest::Approx(stationary).epsilon(2e-8));  // 40 steps are as good as for ever
    CHECK(std::abs(variance - expected) < sigmas * expected * std::sqrt(2.0 / samples));
  }
}

TEST_CASE("convergence: the workers' spread around the mean follows from the eigenvalues of W") {
  struct Case {
    Setting setting;
    std::vector<double> lambda_squared;
  };
  std::uint64_t seed = 201;
  for (const Case& one : std::vector<Case>{
           {{"complete", 8, 0.2}, std::vector<double>(7, 0.0)},
           {{"ring", 8, 0.2}, squares(eigenvalues_of_ring(8))},
           {{"ring", 12, 0.1}, squares(eigenvalues_of_ring(12))},
           {{"ring", 5, 0.5}, squares(eigenvalues_of_ring(5))},
           {{"torus:3x4", 12, 0.2}, squares(eigenvalues_of_torus(3, 4))},
           {{"star", 6, 0.2}, squares({0, 5.0 / 6, 5.0 / 6, 5.0 / 6, 5.0 / 6})},
           {{"hypercube", 8, 0.2}, squares({0.5, 0.5, 0.5, 0, 0, 0, -0.5})},  // 1 - 2k/4, as often as 3 choose k
           {{"static-exponential", 6, 0.5}, squared_eigenvalues_of_exponential_graph(6, 3)},
           {{"static-exponential", 8, 0.2}, squared_eigenvalues_of_exponential_graph(8, 3)},
       }) {
    const Setting& setting = one.setting;
    CAPTURE(setting.topology);
    CAPTURE(setting.size);
    CAPTURE(++seed);
    const Expected expected = from_eigenvalues(one.lambda_squared, setting.gamma);
    const double spread = measured_spread(train(setting, seed));
    CHECK(std::abs(spread - expected.spread) <= sigmas * expected.standard_error + 1e-28);
    // Isolated workers are another matter: no connected topology comes near to them.
    CHECK(spread < 0.5 * spread_of_isolated(setting.gamma));
  }
}

TEST_CASE("convergence: the spread under schedules that change from round to round") {
  std::uint64_t seed = 301;
  for (const Setting& setting : std::vector<Setting>{{"one-peer-exponential", 8, 0.2},
                                                     {"one-peer-exponential", 6, 0.5},
                                                     {"random-matching:7", 8, 0.2},
                                                     {"random-matching:7", 5, 0.5},
                                                     {"equi-dynamic:7", 6, 0.2},
                                                     {"base-graph:1", 6, 0.2},
                                                     {"shift-one", 6, 0.2}}) {
    CAPTURE(setting.topology);
    CAPTURE(setting.size);
    CAPTURE(++seed);
    const kith::AnyTopology topology = kith::parse_topology(setting.topology);
    const Expected expected =
        from_matrices(setting, [&](Round t) { return kith::mixing_matrix(topology, setting.size, t); });
    CHECK(std::abs(measured_spread(train(setting, seed)) - expected.spread) < sigmas * expected.standard_error);
  }
}

TEST_CASE("convergence: the spread under one-peer exponential, from the eigenvalues of each round") {
  // W_t = (I + S^d) / 2 with d = 2^(t mod 3): circulants share their eigenvectors, and |lambda_k|^2 =
  // (1 + cos(2 pi k d / 8)) / 2, so each component's variance has a recursion of its own.
  constexpr double gamma = 0.2;
  std::vector<double> v(7);
  for (int t = 0; t < steps; ++t)
    for (Rank k = 1; k < 8; ++k)
      v[index(k - 1)] =
          (1 + cosine(k * (1 << t % 3), 8)) / 2 * ((1 - gamma) * (1 - gamma) * v[index(k - 1)] + gamma * gamma);
  double squares_of_v = 0;
  for (const double one : v) squares_of_v += one * one;
  const std::uint64_t seed = 400;
  CAPTURE(seed);
  const double spread = measured_spread(train({"one-peer-exponential", 8, gamma}, seed));
  CHECK(std::abs(spread - average(v)) < sigmas * std::sqrt(2 * squares_of_v / samples) / 7);
}

TEST_CASE("convergence: isolated workers spread as workers that never met") {
  // All eigenvalues are 1: (2) is gamma / (2 - gamma), the variance of SGD with one worker's batches, and the only
  // thing that is not lost is the mean, which (1) holds for as for everybody.
  constexpr double gamma = 0.2;
  const std::uint64_t seed = 500;
  CAPTURE(seed);
  const Expected isolated = from_eigenvalues(std::vector<double>(7, 1.0), gamma);
  CHECK(isolated.spread == doctest::Approx(spread_of_isolated(gamma)).epsilon(2e-8));
  const double spread = measured_spread(train({"isolated", 8, gamma}, seed));
  CHECK(std::abs(spread - isolated.spread) < sigmas * isolated.standard_error);
  const Expected ring = from_eigenvalues(squares(eigenvalues_of_ring(8)), gamma);
  CHECK(spread > ring.spread + 100 * isolated.standard_error);
}

TEST_CASE("convergence: consensus_distance() is the spread over n, not n - 1") {
  const std::uint64_t seed = 600;
  CAPTURE(seed);
  double distance = 0;
  const Models models =
      on_ranks("ring", random_models(6, samples, seed), {}, [&](Rank rank, std::vector<double>&, auto& averager) {
        averager.average();
        const double mine = averager.consensus_distance();
        if (rank == 0) distance = mine;
      });
  CHECK(distance * distance / samples == doctest::Approx(measured_spread(models) * 5 / 6).epsilon(1e-12));
}

}  // namespace convergence_test
