// SPDX-License-Identifier: Apache-2.0
// Pure averaging, x <- W x: how fast the averager really brings the models together, against what analyze() says.
//
// With e the models less their mean, a period gives e <- (P - J) e, so norm(e) shrinks by at most the spectral norm of
// P - J, TopologyReport::contraction, and by exactly that from the right singular vector that belongs to it. No start
// shrinks less than that norm, so a start that shrinks by exactly the reported number proves it.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <Eigen/Dense>

#include <kith/topology/analysis.hpp>
#include <kith/topology/any.hpp>

#include "convergence.hpp"

namespace convergence_rate_test {

namespace {

using namespace convergence;

/// P - J for one period.
Eigen::MatrixXd product_off_mean(const kith::AnyTopology& topology, Rank size) {
  Eigen::MatrixXd product = Eigen::MatrixXd::Identity(size, size);
  for (Round round = 0; round < topology.period(size); ++round) {
    const kith::MixingMatrix mixing = kith::mixing_matrix(topology, size, round);
    Eigen::MatrixXd w(size, size);
    for (Rank i = 0; i < size; ++i)
      for (Rank j = 0; j < size; ++j) w(i, j) = mixing(i, j);
    product = w * product;
  }
  return product.array() - 1.0 / size;
}

Eigen::VectorXd start_of(const Models& models, std::size_t coordinate) {
  Eigen::VectorXd column(models.size());
  for (std::size_t i = 0; i < models.size(); ++i) column(static_cast<Eigen::Index>(i)) = models[i][coordinate];
  return column.array() - column.mean();
}

struct Setting {
  std::string topology;
  Rank size;
};

/// Schedules that never give the exact mean.
std::vector<Setting> inexact() {
  std::vector<Setting> settings;
  for (const Rank size : {5, 6, 8, 12})
    for (const char* topology : {"ring", "star", "static-exponential"}) settings.push_back({topology, size});
  for (const Rank size : {5, 6, 12}) settings.push_back({"one-peer-exponential", size});
  settings.insert(settings.end(), {{"torus:3x4", 12}, {"torus:2x3", 6}, {"hypercube", 8}, {"shift-one", 6}});
  return settings;
}

}  // namespace

TEST_CASE(
    "convergence: a period shrinks the distance by at most the reported contraction, and the worst start by just "
    "that") {
  std::uint64_t seed = 700;
  for (const Setting& setting : inexact()) {
    CAPTURE(setting.topology);
    CAPTURE(setting.size);
    CAPTURE(++seed);
    const kith::AnyTopology topology = kith::parse_topology(setting.topology);
    const double contraction = kith::analyze(topology, setting.size).contraction;
    const Eigen::JacobiSVD<Eigen::MatrixXd> svd(product_off_mean(topology, setting.size), Eigen::ComputeFullV);
    Models start = random_models(setting.size, 100, seed);
    for (Rank i = 0; i < setting.size; ++i) start[index(i)][0] = svd.matrixV()(i, 0);

    const std::vector<double> before = squared_spread(start);
    const std::vector<double> after = squared_spread(averaged(setting.topology, start, topology.period(setting.size)));
    CHECK(std::sqrt(after[0] / before[0]) == doctest::Approx(contraction).epsilon(1e-12));
    int above = 0;
    for (std::size_t d = 0; d < before.size(); ++d)
      above += std::sqrt(after[d] / before[d]) > contraction + 1e-12 ? 1 : 0;
    CHECK(above == 0);
  }
}

TEST_CASE("convergence: from any start the distance shrinks geometrically, in the end by the reported contraction") {
  // For a normal P - J (symmetric, or a product of circulants) the energies of the components in its singular subspaces
  // shrink independently, by s_1^2 > s_2^2 > ... a period. After t of them the next one shrinks norm(e) by a factor
  // between s_1 / sqrt(1 + k (s_2 / s_1)^(2t)) and s_1, where k is the energy of the start outside the first subspace
  // over that inside.
  std::uint64_t seed = 800;
  for (const Setting& setting : inexact()) {
    if (setting.topology == "shift-one") continue;  // not normal
    CAPTURE(setting.topology);
    CAPTURE(setting.size);
    CAPTURE(++seed);
    const kith::AnyTopology topology = kith::parse_topology(setting.topology);
    const double contraction = kith::analyze(topology, setting.size).contraction;
    const Eigen::JacobiSVD<Eigen::MatrixXd> svd(product_off_mean(topology, setting.size), Eigen::ComputeFullV);
    Eigen::Index first = 0;  // the dimension of the first subspace
    while (first < setting.size && svd.singularValues()(first) > svd.singularValues()(0) - 1e-9) ++first;
    const double ratio = svd.singularValues()(first) / svd.singularValues()(0);

    constexpr std::size_t starts = 50;
    // As many periods as leave a millionth of the distance: rounding errors, at 1e-16, then change a factor by 1e-10.
    const auto periods = static_cast<Round>(std::min(40.0, std::log(1e-6) / std::log(contraction)));
    const Models start = random_models(setting.size, starts, seed);
    const Round rounds = periods * topology.period(setting.size);
    const Models late = averaged(setting.topology, start, rounds);
    const std::vector<double> before = squared_spread(late);
    const std::vector<double> after =
        squared_spread(averaged(setting.topology, start, rounds + topology.period(setting.size)));
    int outside = 0;
    int narrow = 0;
    for (std::size_t d = 0; d < starts; ++d) {
      const Eigen::VectorXd e = start_of(start, d);
      const double inside = (svd.matrixV().leftCols(first).transpose() * e).squaredNorm();
      const double others = e.squaredNorm() / inside - 1;
      const double least = contraction / std::sqrt(1 + others * std::pow(ratio, 2.0 * static_cast<double>(periods)));
      const double factor = std::sqrt(after[d] / before[d]);
      outside += factor < least * (1 - 1e-8) || factor > contraction * (1 + 1e-8) ? 1 : 0;
      narrow += least > 0.999 * contraction ? 1 : 0;
    }
    CHECK(outside == 0);
    // The bounds have closed in on the reported number, but where the second singular value is at 0.92 of the first.
    if (ratio < 0.9) CHECK(narrow > 40);
  }
}

TEST_CASE("convergence: exact after `exact_after` rounds, and not before") {
  const std::vector<std::string> finite{"complete",     "hyper-cuboid",         "base-graph:1",       "base-graph:2",
                                        "base-graph:3", "one-peer-exponential", "one-peer-hypercube", "halving-shift"};
  std::uint64_t seed = 900;
  int tried = 0;
  for (const Rank size : {5, 6, 8, 12})
    for (const std::string& name : finite) {
      const bool powers_of_two_only = name.starts_with("one-peer") || name == "halving-shift";
      if (powers_of_two_only && size != 8) continue;
      CAPTURE(name);
      CAPTURE(size);
      CAPTURE(++seed);
      const kith::TopologyReport report = kith::analyze(kith::parse_topology(name), size);
      REQUIRE(report.exact_after.has_value());
      const Round rounds = *report.exact_after;
      if (powers_of_two_only) CHECK(rounds == 3);  // log2 8
      if (name == "complete") CHECK(rounds == 1);
      if (name == "hyper-cuboid") CHECK(rounds == (size == 5 ? 1 : size == 6 ? 2 : 3));  // prime factors
      // Takezawa et al., Beyond Exponential Graph, NeurIPS 2023: at most 2 log_{k+1} n + 2 rounds.
      if (name.starts_with("base-graph")) {
        const double base = name.back() - '0' + 1;
        CHECK(static_cast<double>(rounds) <= 2 * std::log(size) / std::log(base) + 2);
      }
      const Models start = random_models(size, 50, seed);
      const Models exact(index(size), mean_of(start));
      CHECK(largest_difference(averaged(name, start, rounds), exact) < 1e-14);
      CHECK(largest_difference(averaged(name, start, rounds - 1), exact) > 0.1);
      ++tried;
    }
  CHECK(tried == 4 * 5 + 3);
}

TEST_CASE("convergence: exact after `exact_after_any_phase` rounds, whatever the round in which the models change") {
  std::uint64_t seed = 1000;
  for (const Rank size : {5, 6, 8, 12})
    for (const std::string name : {"hyper-cuboid", "base-graph:1", "base-graph:2", "one-peer-exponential"}) {
      if (name == "one-peer-exponential" && size != 8) continue;
      CAPTURE(name);
      CAPTURE(size);
      CAPTURE(++seed);
      const kith::TopologyReport report = kith::analyze(kith::parse_topology(name), size);
      REQUIRE(report.exact_after_any_phase.has_value());
      const Models start = random_models(size, 20, seed);
      const Models exact(index(size), mean_of(start));
      double one_round_less = 0;  // the worst over phases
      for (Round phase = 0; phase < report.period; ++phase) {
        CAPTURE(phase);
        const auto after = [&](Round rounds) {
          return on_ranks(name, start, {}, [&](Rank rank, std::vector<double>& model, auto& averager) {
            for (Round t = 0; t < phase; ++t) averager.average();
            std::copy(start[index(rank)].begin(), start[index(rank)].end(), model.begin());
            for (Round t = 0; t < rounds; ++t) averager.average();
          });
        };
        CHECK(largest_difference(after(*report.exact_after_any_phase), exact) < 1e-14);
        one_round_less = std::max(one_round_less, largest_difference(after(*report.exact_after_any_phase - 1), exact));
      }
      CHECK(one_round_less > 0.01);
    }
}

TEST_CASE("convergence: randomised schedules shrink the squared distance by the reported factor in the mean") {
  // For both schedules E[W^T W] - J = c^2 (I - J), so E[norm(W e)^2 | e] = c^2 norm(e)^2 for every e: c^2 is
  // (n-2) / (2 (n-1)) for a uniform perfect matching, 1/2 with one rank left over, and 1/2 - 1/(2n) for EquiDynamic
  // (Song et al., NeurIPS 2022, with eta = 1/2). The factors of successive rounds less c^2 are martingale differences,
  // so the standard error of their mean is that of independent ones.
  struct Case {
    std::string topology;
    Rank size;
    double square;
  };
  constexpr int chains = 200;
  constexpr int length = 15;  // 0.5^15: far from rounding errors
  for (const Case& one : {Case{"random-matching:3", 8, 6.0 / 14}, Case{"random-matching:3", 5, 0.5},
                          Case{"equi-dynamic:3", 6, 0.5 - 1.0 / 12}}) {
    CAPTURE(one.topology);
    CAPTURE(one.size);
    const std::uint64_t seed = 1100;
    CAPTURE(seed);
    const double reported = kith::analyze(kith::parse_topology(one.topology), one.size).contraction;
    CHECK(reported * reported == doctest::Approx(one.square).epsilon(1e-12));
    std::vector<double> factors;
    (void)on_ranks(one.topology, Models(index(one.size), std::vector<double>(4)), {},
                   [&](Rank rank, std::vector<double>& model, auto& averager) {
                     Signs start(seed, rank);
                     for (int chain = 0; chain < chains; ++chain) {
                       for (double& x : model) x = start() * (1 + rank);
                       double before = averager.consensus_distance();
                       // Some matchings in a row happen to give the exact mean: there is no factor after that.
                       for (int t = 0; t < length && before > 1e-9; ++t) {
                         averager.average();
                         const double after = averager.consensus_distance();
                         if (rank == 0) factors.push_back(after * after / (before * before));
                         before = after;
                       }
                     }
                   });
    const double mean = average(factors);
    double variance = 0;
    for (const double factor : factors) variance += (factor - mean) * (factor - mean);
    variance /= static_cast<double>(factors.size() - 1);
    const double standard_error = std::sqrt(variance / static_cast<double>(factors.size()));
    CHECK(standard_error < 0.006);
    CHECK(std::abs(mean - one.square) < 5 * standard_error);
  }
}

}  // namespace convergence_rate_test
