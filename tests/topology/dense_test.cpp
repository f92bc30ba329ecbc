// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <cmath>
#include <numbers>
#include <optional>

namespace dense {

Matrix identity(Rank size) {
  Matrix result(size);
  for (Rank i = 0; i < size; ++i) result(i, i) = 1;
  return result;
}

Matrix mean(Rank size) {
  Matrix result(size);
  for (Rank i = 0; i < size; ++i)
    for (Rank j = 0; j < size; ++j) result(i, j) = 1.0 / size;
  return result;
}

Matrix product(const Matrix& a, const Matrix& b) {
  Matrix result(a.size());
  for (Rank i = 0; i < a.size(); ++i)
    for (Rank k = 0; k < a.size(); ++k)
      if (const double factor = a(i, k); factor != 0)
        for (Rank j = 0; j < a.size(); ++j) result(i, j) += factor * b(k, j);
  return result;
}

Matrix transpose(const Matrix& a) {
  Matrix result(a.size());
  for (Rank i = 0; i < a.size(); ++i)
    for (Rank j = 0; j < a.size(); ++j) result(i, j) = a(j, i);
  return result;
}

Matrix sum(const Matrix& a, const Matrix& b, double factor) {
  Matrix result(a.size());
  for (Rank i = 0; i < a.size(); ++i)
    for (Rank j = 0; j < a.size(); ++j) result(i, j) = a(i, j) + factor * b(i, j);
  return result;
}

double largest_difference(const Matrix& a, const Matrix& b) {
  double largest = a.size() == b.size() ? 0 : INFINITY;
  for (std::size_t i = 0; a.size() == b.size() && i < a.values().size(); ++i)
    largest = std::max(largest, std::abs(a.values()[i] - b.values()[i]));
  return largest;
}

double spectral_norm(const Matrix& a) {
  const Eigen::Map<const Eigen::Matrix<double, -1, -1, Eigen::RowMajor>> m(a.values().data(), a.size(), a.size());
  // The root of an eigenvalue of M^T M has half its digits: of no use where M is next to nothing.
  if (const double frobenius = m.norm(); frobenius < 1e-12) return frobenius;
  const Eigen::MatrixXd square = m.transpose() * m;
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(square, Eigen::EigenvaluesOnly);
  return std::sqrt(std::max(0.0, solver.eigenvalues().maxCoeff()));
}

Matrix mixing(const Plan& plan) {
  const auto size = static_cast<Rank>(plan.size());
  Matrix w = identity(size);
  for (Rank i = 0; i < size; ++i) {
    for (const auto& [peer, weight] : plan[static_cast<std::size_t>(i)].sources()) {
      w(i, peer) += weight;
      w(i, i) -= weight;
    }
  }
  return w;
}

std::string fault(const Plan& plan, Rank max_degree) {
  const auto size = static_cast<Rank>(plan.size());
  Matrix hears(size);
  Matrix tells(size);
  for (Rank i = 0; i < size; ++i) {
    const std::string who = "rank " + std::to_string(i);
    const Neighborhood& row = plan[static_cast<std::size_t>(i)];
    if (static_cast<Rank>(row.sources().size()) > max_degree) return who + " hears more than max_degree says";
    if (static_cast<Rank>(row.targets().size()) > max_degree) return who + " tells more than max_degree says";
    double own = 1;
    for (const auto& [peer, weight] : row.sources()) {
      if (peer < 0 || peer >= size || peer == i) return who + " hears " + std::to_string(peer);
      if (!(weight > 0 && weight <= 1)) return who + " gives the weight " + std::to_string(weight);
      if (hears(i, peer) != 0) return who + " hears somebody twice";
      hears(i, peer) = weight;
      own -= weight;
    }
    if (own < -1e-12) return who + " gives more than there is";
    hears(i, i) = own;
    for (const Rank peer : row.targets()) {
      if (peer < 0 || peer >= size || peer == i) return who + " tells " + std::to_string(peer);
      if (tells(i, peer) != 0) return who + " tells somebody twice";
      tells(i, peer) = 1;
    }
  }
  for (Rank j = 0; j < size; ++j) {
    double column = 0;
    for (Rank i = 0; i < size; ++i) {
      column += hears(i, j);
      if (i != j && (hears(i, j) != 0) != (tells(j, i) != 0))
        return "ranks " + std::to_string(i) + " and " + std::to_string(j) + " disagree";
    }
    if (std::abs(column - 1) > 1e-12) return "column " + std::to_string(j) + " sums to " + std::to_string(column);
  }
  return {};
}

bool same(const Plan& a, const Plan& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Neighborhood& x, const Neighborhood& y) {
    return std::equal(x.sources().begin(), x.sources().end(), y.sources().begin(), y.sources().end()) &&
           std::equal(x.targets().begin(), x.targets().end(), y.targets().begin(), y.targets().end());
  });
}

namespace {

bool is_connected(const std::vector<Plan>& period) {  // edges of a doubly stochastic W lie on cycles: one way suffices
  std::vector<bool> reached(period[0].size());
  std::vector<std::size_t> open{0};
  reached[0] = true;
  while (!open.empty()) {
    const std::size_t rank = open.back();
    open.pop_back();
    for (const Plan& plan : period)
      for (const Rank peer : plan[rank].targets())
        if (const auto p = static_cast<std::size_t>(peer); !reached[p]) {
          reached[p] = true;
          open.push_back(p);
        }
  }
  return std::count(reached.begin(), reached.end(), true) == static_cast<std::ptrdiff_t>(reached.size());
}

std::optional<Round> rounds_to_mean(const std::vector<Matrix>& rounds, std::size_t start) {
  const Matrix exact = mean(rounds[0].size());
  Matrix reached = identity(rounds[0].size());
  for (Round done = 0; done <= 2 * rounds.size(); ++done) {
    if (reached.size() * largest_difference(reached, exact) < 1e-12) return done;  // no less than the norm
    reached = product(rounds[(start + done) % rounds.size()], reached);
  }
  return std::nullopt;
}

}  // namespace

TopologyReport measure(const std::vector<Plan>& period) {
  TopologyReport report;
  report.period = period.size();
  report.connected = is_connected(period);
  const auto size = static_cast<Rank>(period[0].size());
  Matrix all = identity(size);
  std::vector<Matrix> rounds;
  for (const Plan& plan : period) {
    for (const Neighborhood& row : plan)
      report.max_degree = std::max(report.max_degree, static_cast<Rank>(row.targets().size()));
    rounds.push_back(mixing(plan));
    report.symmetric = report.symmetric && largest_difference(rounds.back(), transpose(rounds.back())) == 0;
    all = product(rounds.back(), all);
  }
  const double norm = spectral_norm(sum(all, mean(size), -1));
  report.contraction = norm < 1e-12 ? 0 : norm;
  report.spectral_gap = 1 - std::pow(report.contraction, 1.0 / static_cast<double>(report.period));
  report.exact_after = rounds_to_mean(rounds, 0);
  Round worst = 0;
  for (std::size_t start = 0; start < rounds.size(); ++start) {
    const std::optional<Round> found = rounds_to_mean(rounds, start);
    if (!found) return report;
    worst = std::max(worst, *found);
  }
  report.exact_after_any_phase = worst;
  return report;
}

void check_equal(const TopologyReport& said, const TopologyReport& measured) {
  CHECK(said.period == measured.period);
  CHECK(said.max_degree == measured.max_degree);
  CHECK(said.doubly_stochastic == measured.doubly_stochastic);
  CHECK(said.symmetric == measured.symmetric);
  CHECK(said.connected == measured.connected);
  CHECK(said.randomized == measured.randomized);
  CHECK(std::abs(said.contraction - measured.contraction) <= 1e-12);
  CHECK(said.contraction_error == 0);
  CHECK(std::abs(said.spectral_gap - measured.spectral_gap) <= 1e-12);
  CHECK(said.exact_after == measured.exact_after);
  CHECK(said.exact_after_any_phase == measured.exact_after_any_phase);
}

std::vector<Rank> sizes_between(Rank first, Rank last) {
  std::vector<Rank> sizes;
  for (Rank size = first; size <= last; ++size) sizes.push_back(size);
  return sizes;
}

}  // namespace dense

// The helpers are what everything else leans on: they are tested first, on matrices whose answers are known.

TEST_CASE("dense: the spectral norm is the largest singular value") {
  dense::Matrix shear(2);  // [[1, 1], [0, 1]]: its singular values are the golden ratio and its inverse
  shear(0, 0) = shear(0, 1) = shear(1, 1) = 1;
  CHECK(dense::spectral_norm(shear) == doctest::Approx(std::numbers::phi).epsilon(1e-13));
  CHECK(dense::spectral_norm(dense::mean(7)) == doctest::Approx(1).epsilon(1e-13));
  CHECK(dense::spectral_norm(dense::sum(dense::mean(7), dense::mean(7), -1)) == 0);
}

TEST_CASE("dense: a plan with a fault is found out") {
  dense::Plan plan(3);
  plan[0].swap_with(1, 0.5);
  CHECK(dense::fault(plan, 1) == "ranks 1 and 0 disagree");
  plan[1].swap_with(0, 0.25);
  CHECK(dense::fault(plan, 1) == "column 0 sums to 0.750000");
  plan[1].clear();
  plan[1].swap_with(0, 0.5);
  CHECK(dense::fault(plan, 1) == "");
  CHECK(dense::fault(plan, 0) == "rank 0 hears more than max_degree says");
  plan[2].swap_with(2, 0.5);
  CHECK(dense::fault(plan, 1) == "rank 2 hears 2");
}

TEST_CASE("dense: two ranks that halve their difference are measured right") {
  dense::Plan plan(2);
  plan[0].swap_with(1, 0.25);
  plan[1].swap_with(0, 0.25);
  const kith::TopologyReport report = dense::measure({plan});  // W - J has the eigenvalues 0 and 1/2
  CHECK(report.contraction == doctest::Approx(0.5).epsilon(1e-13));
  CHECK(report.symmetric);
  CHECK(report.connected);
  CHECK_FALSE(report.exact_after);
}
