// SPDX-License-Identifier: Apache-2.0
// The bias floor on heterogeneous data: n workers minimise f_i(x) = (x - b_i)^2 / 2 without noise and average after
// each step, x <- W ((1 - gamma) x + gamma b). The fixed point of a static W is
//
//   x* = (I - (1 - gamma) W)^{-1} gamma W b.                                                                  (1)
//
// Its mean is exactly the optimum of sum f_i: 1^T W = 1^T gives m = (1 - gamma) m + gamma mean(b). For symmetric W its
// component along an eigenvector with eigenvalue lambda is
//
//   gamma lambda / (1 - lambda + gamma lambda) b_lambda = gamma (1 - d) lambda / (1 - lambda) b_lambda        (2)
//   with d = gamma lambda / (1 - lambda + gamma lambda),
//
// so the distance of the workers from the mean is gamma norm((I - W)^+ W b), but for a share of at most max |d|: it
// shrinks in proportion to the step size and is 0 only where all those lambda are 0, on the complete graph.
//
// Source: worked out above; that D-PSGD with constant step has such a floor: Yuan, Ling, Yin, On the Convergence of
// Decentralized Gradient Descent, SIAM J. Optim. 26(3), 2016.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <Eigen/Dense>

#include "convergence.hpp"

namespace convergence_bias_test {

namespace {

using namespace convergence;
using Edges = std::vector<std::pair<Rank, Rank>>;

constexpr std::size_t coordinates = 16;

/// Metropolis-Hastings weights: every edge 1 / (1 + the larger degree of its ends).
Eigen::MatrixXd metropolis(Rank size, const Edges& edges) {
  std::vector<int> degree(index(size));
  for (const auto& [a, b] : edges) {
    ++degree[index(a)];
    ++degree[index(b)];
  }
  Eigen::MatrixXd w = Eigen::MatrixXd::Identity(size, size);
  for (const auto& [a, b] : edges) {
    const double weight = 1.0 / (1 + std::max(degree[index(a)], degree[index(b)]));
    w(a, b) += weight;
    w(b, a) += weight;
    w(a, a) -= weight;
    w(b, b) -= weight;
  }
  return w;
}

/// sum_k weights[k] S^distances[k]: rank i hears the rank that is a distance behind it.
Eigen::MatrixXd circulant(Rank size, const std::vector<Rank>& distances, const std::vector<double>& weights) {
  Eigen::MatrixXd w = Eigen::MatrixXd::Zero(size, size);
  for (std::size_t k = 0; k < distances.size(); ++k)
    for (Rank i = 0; i < size; ++i) w(i, (i - distances[k] + size) % size) += weights[k];
  return w;
}

Eigen::MatrixXd ring(Rank size) { return circulant(size, {0, 1, size - 1}, {1.0 / 3, 1.0 / 3, 1.0 / 3}); }

const Edges star_of_6{{0, 1}, {0, 2}, {0, 3}, {0, 4}, {0, 5}};
const Edges torus_3x3{{0, 1}, {1, 2}, {2, 0}, {3, 4}, {4, 5}, {5, 3}, {6, 7}, {7, 8}, {8, 6},
                      {0, 3}, {3, 6}, {6, 0}, {1, 4}, {4, 7}, {7, 1}, {2, 5}, {5, 8}, {8, 2}};
const Edges cube{{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {1, 3}, {4, 6}, {5, 7}, {0, 4}, {1, 5}, {2, 6}, {3, 7}};

Eigen::MatrixXd to_eigen(const Models& models) {
  Eigen::MatrixXd matrix(models.size(), models.front().size());
  for (Eigen::Index i = 0; i < matrix.rows(); ++i)
    for (Eigen::Index d = 0; d < matrix.cols(); ++d)
      matrix(i, d) = models[static_cast<std::size_t>(i)][static_cast<std::size_t>(d)];
  return matrix;
}

double largest(const Eigen::MatrixXd& matrix) { return matrix.cwiseAbs().maxCoeff(); }

struct Trained {
  Eigen::MatrixXd models;  // a row for each rank
  double consensus_distance = 0;
};

/// `steps` steps from the models `start` towards the workers' optima `b`.
Trained train(const std::string& topology, const Models& b, double gamma, int steps, const Models& start) {
  Trained trained;
  trained.models = to_eigen(on_ranks(topology, start, {}, [&](Rank rank, std::vector<double>& model, auto& averager) {
    for (int step = 0; step < steps; ++step) {
      for (std::size_t d = 0; d < model.size(); ++d) model[d] -= gamma * (model[d] - b[index(rank)][d]);
      averager.average();
    }
    const double distance = averager.consensus_distance();
    if (rank == 0) trained.consensus_distance = distance;
  }));
  return trained;
}

Models zeros_like(const Models& models) { return Models(models.size(), std::vector<double>(models.front().size())); }

struct Case {
  std::string topology;
  std::vector<Eigen::MatrixXd> period;  // W of each of its rounds
};

}  // namespace

TEST_CASE("convergence: the fixed point on heterogeneous data, and its mean, the optimum") {
  const double half = 0.5;
  std::uint64_t seed = 1;
  for (const Case& one : std::vector<Case>{
           {"ring", {ring(8)}},
           {"torus:3x3", {metropolis(9, torus_3x3)}},
           {"star", {metropolis(6, star_of_6)}},
           {"hypercube", {metropolis(8, cube)}},
           {"complete", {Eigen::MatrixXd::Constant(5, 5, 0.2)}},
           {"static-exponential", {circulant(6, {0, 1, 2, 4}, {0.25, 0.25, 0.25, 0.25})}},
           {"one-peer-exponential",
            {circulant(8, {0, 1}, {half, half}), circulant(8, {0, 2}, {half, half}),
             circulant(8, {0, 4}, {half, half})}},
           {"one-peer-exponential",
            {circulant(5, {0, 1}, {half, half}), circulant(5, {0, 2}, {half, half}),
             circulant(5, {0, 4}, {half, half})}},
           {"one-peer-hypercube", {metropolis(4, {{0, 1}, {2, 3}}), metropolis(4, {{0, 2}, {1, 3}})}},
       }) {
    constexpr double gamma = 0.1;
    const auto size = static_cast<Rank>(one.period.front().rows());
    CAPTURE(one.topology);
    CAPTURE(size);
    CAPTURE(++seed);
    const Models optima = random_models(size, coordinates, seed);
    const Eigen::MatrixXd b = to_eigen(optima);

    // One period is the affine map x -> A x + c; its fixed point is (1) where the period is one round.
    Eigen::MatrixXd a = Eigen::MatrixXd::Identity(size, size);
    Eigen::MatrixXd c = Eigen::MatrixXd::Zero(size, coordinates);
    for (const Eigen::MatrixXd& w : one.period) {
      a = (1 - gamma) * w * a;
      c = w * ((1 - gamma) * c + gamma * b);
    }
    const Eigen::MatrixXd fixed_point = (Eigen::MatrixXd::Identity(size, size) - a).partialPivLu().solve(c);

    // 0.9^360 = 3e-17: nothing is left of the start.
    const Trained trained = train(one.topology, optima, gamma, 360, zeros_like(optima));
    CHECK(largest(trained.models - fixed_point) < 1e-13);
    CHECK(largest(trained.models.colwise().mean() - b.colwise().mean()) < 1e-14);
    const double apart = (fixed_point.rowwise() - fixed_point.colwise().mean()).norm() / std::sqrt(size);
    if (one.topology == "complete") {
      CHECK(apart < 1e-15);
      CHECK(trained.consensus_distance < 1e-15);
    } else {
      CHECK(apart > 0.05);
      CHECK(trained.consensus_distance == doctest::Approx(apart).epsilon(1e-12));
    }
  }
}

TEST_CASE("convergence: the bias floor is proportional to the step size") {
  const std::uint64_t seed = 20;
  CAPTURE(seed);
  for (const Case& one : std::vector<Case>{{"ring", {ring(8)}},
                                           {"ring", {ring(5)}},
                                           {"torus:3x3", {metropolis(9, torus_3x3)}},
                                           {"star", {metropolis(6, star_of_6)}},
                                           {"hypercube", {metropolis(8, cube)}}}) {
    const auto size = static_cast<Rank>(one.period.front().rows());
    CAPTURE(one.topology);
    CAPTURE(size);
    const Models optima = random_models(size, coordinates, seed);
    const std::vector<double> optimum = mean_of(optima);
    const Models start(index(size), optimum);  // the mean stays there, and only lambda_2 ... lambda_n matter
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(one.period.front());
    const Eigen::MatrixXd b = solver.eigenvectors().transpose() * to_eigen(optima);

    double limit = 0;                      // of the distance over gamma
    for (Rank k = 0; k + 1 < size; ++k) {  // ascending: the last one is 1
      const double lambda = solver.eigenvalues()(k);
      limit += (lambda / (1 - lambda) * b.row(k)).squaredNorm() / size;
    }
    limit = std::sqrt(limit);

    for (const double gamma : {0.1, 0.05, 0.025, 0.0125}) {
      double share = 0;  // the largest d of (2)
      for (Rank k = 0; k + 1 < size; ++k) {
        const double lambda = solver.eigenvalues()(k);
        share = std::max(share, std::abs(gamma * lambda / (1 - lambda + gamma * lambda)));
      }
      CAPTURE(gamma);
      CHECK(share < 5 * gamma);
      // lambda_2 is at most 5/6, and (5/6)^150 = 1e-12.
      const Trained trained = train(one.topology, optima, gamma, 150, start);
      CHECK(std::abs(trained.consensus_distance / (gamma * limit) - 1) < share + 1e-9);
    }
  }
  const Models optima = random_models(8, coordinates, seed);
  CHECK(train("complete", optima, 0.1, 150, zeros_like(optima)).consensus_distance < 1e-15);
}

}  // namespace convergence_bias_test
