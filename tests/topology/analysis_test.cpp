// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <kith/topology/analysis.hpp>
#include <kith/topology/any.hpp>
#include <kith/topology/cycle.hpp>

#include "dense.hpp"

namespace topology_analysis_test {

namespace {

using kith::Rank;
using kith::Round;
using kith::TopologyReport;
using kith::detail::measure;

constexpr double pi = std::numbers::pi;

// A doubly stochastic matrix that is neither symmetric nor normal: permutations with uneven weights.
dense::Matrix random_doubly_stochastic(Rank size, std::mt19937& random) {
  dense::Matrix matrix(size);
  std::vector<Rank> order(static_cast<std::size_t>(size));
  std::iota(order.begin(), order.end(), 0);
  for (const double weight : {0.4, 0.3, 0.2, 0.1}) {
    std::shuffle(order.begin(), order.end(), random);
    for (Rank i = 0; i < size; ++i) matrix(i, order[static_cast<std::size_t>(i)]) += weight;
  }
  return matrix;
}

// norm(matrix - J) by Eigen's dense singular values.
double dense_norm(const dense::Matrix& matrix) {
  return dense::spectral_norm(dense::sum(matrix, dense::mean(matrix.size()), -1));
}

// max over k of |sin(2^tau pi k / n)| / (2^tau |sin(pi k / n)|): the eigenvalues of the product of (I + S^(2^j)) / 2.
double one_peer_exponential_norm(Rank size) {
  int tau = 0;
  while ((std::int64_t{1} << tau) < size) ++tau;
  const double hops = std::ldexp(1.0, tau);
  double largest = 0;
  for (Rank k = 1; k < size; ++k) {
    const auto turn = static_cast<double>((std::int64_t{k} << tau) % size);
    largest = std::max(largest, std::abs(std::sin(pi * turn / size) / (hops * std::sin(pi * k / size))));
  }
  return largest;
}

// Broken on purpose: everybody but rank 0 hears the rank before it, and (Closed) rank 0 hears the last with less
// weight.
template <bool Closed>
struct Chain {
  static constexpr std::string_view name = "chain";
  static Round period(Rank) { return 1; }
  static Rank max_degree(Rank size) { return size < 2 ? 0 : 1; }
  static void neighbors(Rank rank, Rank size, Round, kith::Neighborhood& out) {
    if (rank > 0) out.hear(rank - 1, 0.5);
    if (rank == 0 && Closed) out.hear(size - 1, 0.25);
    if (rank < size - 1 || Closed) out.tell((rank + 1) % size);
  }
};

// Everybody hears rank 0, which hears nobody: not what keeps a mean.
struct Leader {
  static constexpr std::string_view name = "leader";
  static Round period(Rank) { return 1; }
  static Rank max_degree(Rank size) { return size - 1; }
  static void neighbors(Rank rank, Rank size, Round, kith::Neighborhood& out) {
    if (rank > 0) out.hear(0, 0.5);
    for (Rank peer = 1; rank == 0 && peer < size; ++peer) out.tell(peer);
  }
};

// Rank 0 hears everybody, and nobody hears it.
struct Listener {
  static constexpr std::string_view name = "listener";
  static Round period(Rank) { return 1; }
  static Rank max_degree(Rank size) { return size - 1; }
  static void neighbors(Rank rank, Rank size, Round, kith::Neighborhood& out) {
    if (rank > 0) out.tell(0);
    for (Rank peer = 1; rank == 0 && peer < size; ++peer) out.hear(peer, 0.5 / size);
  }
};

// ShiftOne with a period that nobody could go through, and a degree that it does not need.
struct Endless {
  static constexpr std::string_view name = "endless";
  static Round period(Rank size) { return size < 2 ? 1 : Round{1} << 50; }
  static Rank max_degree(Rank size) { return size < 2 ? 0 : 2; }
  static void neighbors(Rank rank, Rank size, Round round, kith::Neighborhood& out) {
    kith::ShiftOne::neighbors(rank, size, round, out);
  }
};

// What analyze() asks for: a report of its own for even sizes.
struct Opinionated : kith::Ring {
  static std::optional<TopologyReport> report(Rank size) {
    if (size % 2 != 0) return std::nullopt;
    TopologyReport report;
    report.contraction = 0.75;
    return report;
  }
};

TEST_CASE("analysis: the mixing matrix of a ring and of a directed round") {
  const kith::MixingMatrix ring = kith::mixing_matrix(kith::Ring{}, 5, 7);
  CHECK(ring.size() == 5);
  for (Rank i = 0; i < 5; ++i)
    for (Rank j = 0; j < 5; ++j) {
      const bool near = (i - j + 5) % 5 <= 1 || (j - i + 5) % 5 <= 1;
      CHECK(ring(i, j) == doctest::Approx(near ? 1.0 / 3 : 0.0));
    }
  // Round 2 of the one-peer exponential graph: rank i hears i - 4.
  const kith::MixingMatrix directed = kith::mixing_matrix(kith::OnePeerExponential{}, 6, 2);
  for (Rank i = 0; i < 6; ++i)
    for (Rank j = 0; j < 6; ++j) CHECK(directed(i, j) == (j == i || j == (i + 2) % 6 ? 0.5 : 0.0));
  CHECK(directed != kith::mixing_matrix(kith::OnePeerExponential{}, 6, 1));
  CHECK(directed == kith::mixing_matrix(kith::OnePeerExponential{}, 6, 5));
}

TEST_CASE("analysis: sizes that a topology refuses, and a group of one") {
  CHECK_THROWS_AS((void)kith::mixing_matrix(kith::Hypercube{}, 6, 0), kith::UsageError);
  CHECK_THROWS_AS((void)kith::mixing_matrix(kith::Ring{}, 0, 0), kith::UsageError);
  CHECK_THROWS_AS((void)kith::analyze(kith::Hypercube{}, 6), kith::UsageError);
  CHECK_THROWS_AS((void)kith::analyze(kith::Ring{}, -1), kith::UsageError);
  CHECK_THROWS_AS((void)measure(kith::Hypercube{}, 6), kith::UsageError);
  CHECK(kith::mixing_matrix(kith::Ring{}, 1, 3)(0, 0) == 1);
  for (const std::string& name : kith::topology_names()) {
    CAPTURE(name);
    const TopologyReport report = kith::analyze(kith::parse_topology(name), 1);
    CHECK(report.period == 1);
    CHECK(report.max_degree == 0);
    CHECK((report.doubly_stochastic && report.symmetric && report.connected && !report.randomized));
    CHECK(report.contraction == 0);
    CHECK(report.spectral_gap == 1);
    CHECK(report.exact_after == Round{0});
    CHECK(report.exact_after_any_phase == Round{0});
  }
}

TEST_CASE("analysis: analyze prefers the topology's own report and measures where there is none") {
  CHECK(kith::analyze(Opinionated{}, 8).contraction == 0.75);
  CHECK(kith::analyze(Opinionated{}, 9).contraction ==
        doctest::Approx(1 - 4.0 / 3 * std::pow(std::sin(pi / 9), 2)).epsilon(1e-12));
}

TEST_CASE("analysis: measured contractions are the closed forms") {
  for (Rank n = 2; n <= 64; ++n) {
    CAPTURE(n);
    const auto contraction = [n](const auto& topology) {
      const TopologyReport report = measure(topology, n);
      CHECK(report.contraction_error < 1e-10);
      return report.contraction;
    };
    CHECK(std::abs(contraction(kith::Star{}) - (1 - 1.0 / n) * (n > 2)) < 1e-9);
    CHECK(contraction(kith::Complete{}) == 0);
    CHECK(std::abs(contraction(kith::OnePeerExponential{}) - one_peer_exponential_norm(n)) < 1e-9);
    if (n > 3) CHECK(std::abs(contraction(kith::Ring{}) - (1 - 4.0 / 3 * std::pow(std::sin(pi / n), 2))) < 1e-9);
    if (n % 2 == 0 && n > 2)
      CHECK(std::abs(contraction(kith::ShiftOne{}) - std::pow(std::cos(2 * pi / n), n / 2 - 1)) < 1e-9);
    if ((n & (n - 1)) == 0) CHECK(std::abs(contraction(kith::Hypercube{}) - (1 - 2 / (std::log2(n) + 1))) < 1e-9);
    // Ying et al., NeurIPS 2021, theorem 1 (even sizes): the gap of the static exponential graph.
    if (n % 2 == 0)
      CHECK(std::abs(contraction(kith::StaticExponential{}) - (1 - 2 / (std::ceil(std::log2(n)) + 1))) < 1e-9);
  }
}

TEST_CASE("analysis: gaps, degrees and flags of what is measured") {
  const TopologyReport shift = measure(kith::ShiftOne{}, 12);
  CHECK(shift.period == 6);
  CHECK(shift.max_degree == 1);
  CHECK((shift.doubly_stochastic && shift.symmetric && shift.connected && !shift.randomized));
  CHECK(shift.spectral_gap == doctest::Approx(1 - std::pow(std::cos(pi / 6), 5.0 / 6)).epsilon(1e-12));
  CHECK_FALSE(shift.exact_after);
  CHECK_FALSE(shift.exact_after_any_phase);

  const TopologyReport star = measure(kith::Star{}, 9);
  CHECK(star.max_degree == 8);
  CHECK(star.symmetric);
  CHECK_FALSE(measure(kith::OnePeerExponential{}, 5).symmetric);
  CHECK(measure(kith::OnePeerExponential{}, 5).doubly_stochastic);

  const TopologyReport nobody = measure(kith::Isolated{}, 5);
  CHECK_FALSE(nobody.connected);
  CHECK(nobody.max_degree == 0);
  CHECK(nobody.contraction == doctest::Approx(1).epsilon(1e-12));
  CHECK(std::abs(nobody.spectral_gap) < 1e-12);
}

// Base-(k+1) at degree k: Takezawa, Sato, Bao, Niwa, Yamada, Beyond Exponential Graph, NeurIPS 2023; the lengths
// are those of the figures in the authors' repository. The phases for n = 25 were computed from the authors' matrices.
TEST_CASE("analysis: rounds to the exact mean, published and computed elsewhere") {
  struct Known {
    Rank size;
    Rank degree;
    Round aligned;
  };
  for (const Known& known :
       {Known{5, 1, 5}, {6, 1, 4}, {5, 2, 3}, {6, 2, 2}, {5, 3, 3}, {6, 3, 2}, {25, 1, 9}, {100, 1, 11}}) {
    CAPTURE(known.size);
    CAPTURE(known.degree);
    const TopologyReport report = measure(kith::BaseGraph{known.degree}, known.size);
    CHECK(report.exact_after == known.aligned);
    CHECK(report.contraction == 0);
    CHECK(report.spectral_gap == 1);
    CHECK(report.max_degree <= known.degree);
  }
  CHECK(measure(kith::BaseGraph{1}, 25).exact_after_any_phase == Round{17});
  for (const Rank n : {4, 8, 16, 32, 64}) {
    CAPTURE(n);
    const auto tau = static_cast<Round>(std::log2(n));
    const TopologyReport one_peer = measure(kith::OnePeerExponential{}, n);
    CHECK(one_peer.exact_after == tau);
    CHECK(one_peer.exact_after_any_phase == tau);
    const TopologyReport halving = measure(kith::HalvingShift{}, n);
    CHECK(halving.exact_after == tau);
    CHECK(halving.exact_after_any_phase == (n == 4 ? tau : tau + 1));
  }
  CHECK(measure(kith::ShiftOne{}, 4).exact_after == Round{2});
}

TEST_CASE("analysis: isolated rounds in between delay the exact mean by as many") {
  const TopologyReport report = kith::analyze(kith::Cycle{kith::OnePeerExponential{}, kith::Isolated{}}, 8);
  CHECK(report.period == 6);
  CHECK(report.exact_after == Round{5});            // rounds 0, 2 and 4
  CHECK(report.exact_after_any_phase == Round{6});  // from round 1 on: 2, 4 and 6
  const TopologyReport late = kith::analyze(kith::Cycle{kith::Isolated{}, kith::Ring{}, kith::Complete{}}, 8);
  CHECK(late.exact_after == Round{3});
  CHECK(late.exact_after_any_phase == Round{3});
}

// The de Bruijn graph on n = 2^m ranks: rank i hears 2 i and 2 i + 1 (mod n), halves. W^m = J, though
// norm(W - J) = 1, as W is not normal. Two periods, 2 rounds, are enough for n = 4 and not for n = 8.
TEST_CASE("analysis: a matrix that is exact though its norm is 1") {
  for (const Rank n : {4, 8}) {
    CAPTURE(n);
    std::vector<double> matrix(static_cast<std::size_t>(n * n));
    for (Rank i = 0; i < n; ++i)
      for (const Rank j : {2 * i % n, (2 * i + 1) % n}) matrix[static_cast<std::size_t>(i * n + j)] += 0.5;
    const TopologyReport report = kith::analyze(kith::Custom::from_matrix(n, matrix), n);
    CHECK(report.contraction == doctest::Approx(1).epsilon(1e-12));
    CHECK(std::abs(report.spectral_gap) < 1e-12);
    CHECK_FALSE(report.symmetric);
    CHECK(report.connected);
    CHECK(report.exact_after == (n == 4 ? std::optional<Round>{2} : std::nullopt));
    CHECK(report.exact_after_any_phase == report.exact_after);
  }
}

TEST_CASE("analysis: products of matrices that are not symmetric, against a dense computation") {
  std::mt19937 random{20'240'601};
  for (int turn = 0; turn < 12; ++turn) {
    const Rank size = turn == 0 ? 64 : std::uniform_int_distribution<Rank>{3, 40}(random);
    const int rounds = 1 + turn % 4;
    CAPTURE(size);
    CAPTURE(rounds);
    std::vector<std::vector<double>> matrices;
    dense::Matrix product = dense::identity(size);
    for (int t = 0; t < rounds; ++t) {
      const dense::Matrix matrix = random_doubly_stochastic(size, random);
      matrices.emplace_back(matrix.values().begin(), matrix.values().end());
      product = dense::product(matrix, product);
    }
    const double expected = dense_norm(product);
    const TopologyReport report = measure(kith::Custom::from_matrices(size, matrices), size);
    CHECK(report.doubly_stochastic);
    CHECK_FALSE(report.symmetric);
    CHECK(std::abs(report.contraction - expected) < 1e-9);
    CHECK(report.contraction_error < 1e-9);
    CHECK(report.spectral_gap == doctest::Approx(1 - std::pow(expected, 1.0 / rounds)).epsilon(1e-9));
  }
}

TEST_CASE("analysis: topologies that do not keep the mean are seen, and measured all the same") {
  const Rank n = 9;
  const TopologyReport open = measure(Chain<false>{}, n);
  CHECK_FALSE(open.doubly_stochastic);
  CHECK_FALSE(open.connected);                    // nobody's value reaches rank 0
  CHECK_FALSE(measure(Listener{}, n).connected);  // rank 0's value reaches nobody
  const TopologyReport closed = measure(Chain<true>{}, n);
  CHECK_FALSE(closed.doubly_stochastic);
  CHECK(closed.connected);
  dense::Matrix chain(n);
  for (Rank i = 0; i < n; ++i) {
    chain(i, (i + n - 1) % n) = i == 0 ? 0.25 : 0.5;
    chain(i, i) = i == 0 ? 0.75 : 0.5;
  }
  CHECK(std::abs(closed.contraction - dense_norm(chain)) < 1e-9);

  dense::Matrix leader = dense::identity(n);
  for (Rank i = 1; i < n; ++i) leader(i, 0) = leader(i, i) = 0.5;
  const double expected = dense_norm(leader);
  CHECK(expected > 1);  // it drives the models apart from the mean that they had
  const TopologyReport led = measure(Leader{}, n);
  CHECK_FALSE(led.doubly_stochastic);
  CHECK(std::abs(led.contraction - expected) < 1e-9);
  // Even cut short, the error covers the truth: there is no bound of 1 here.
  kith::detail::MeasureLimits limits;
  limits.visits = 1;
  const TopologyReport estimate = measure(Chain<true>{}, 200, limits);
  CHECK(estimate.contraction_error > 0.001);
  CHECK(estimate.contraction + estimate.contraction_error >= measure(Chain<true>{}, 200).contraction);
}

TEST_CASE("analysis: 1024 ranks to 1e-9") {
  const TopologyReport ring = measure(kith::Ring{}, 1024);
  CHECK(std::abs(ring.contraction - (1 - 4.0 / 3 * std::pow(std::sin(pi / 1024), 2))) < 1e-9);
  CHECK(ring.contraction_error < 1e-9);
  const TopologyReport one_peer = measure(kith::OnePeerExponential{}, 1023);
  CHECK(std::abs(one_peer.contraction - one_peer_exponential_norm(1023)) < 1e-9);
  CHECK(measure(kith::OnePeerExponential{}, 1024).exact_after_any_phase == Round{10});
}

TEST_CASE("analysis: 10,001 ranks where the norm is well apart from what is below it") {
  const TopologyReport measured = measure(kith::OnePeerExponential{}, 10'001);
  CHECK(std::abs(measured.contraction - one_peer_exponential_norm(10'001)) <= measured.contraction_error);
  CHECK(measured.contraction_error < 1e-9);
}

TEST_CASE("analysis: 100,000 ranks, an estimate with its error") {
  const Rank n = 100'000;
  // A ring's largest singular values are 1e-9 apart: few steps cannot part them, and the error says so.
  const double ring = 1 - 4.0 / 3 * std::pow(std::sin(pi / n), 2);
  kith::detail::MeasureLimits limits;
  limits.visits = 16'000'000;
  const TopologyReport estimate = measure(kith::Ring{}, n, limits);
  CHECK(estimate.contraction < ring);
  CHECK(estimate.contraction + estimate.contraction_error >= ring);
  CHECK(estimate.contraction_error < 1e-2);
}

TEST_CASE("analysis: schedules too long to go through are bounded by their first rounds") {
  kith::detail::MeasureLimits limits;
  limits.entries = 2'000;
  const Rank n = 16;
  const TopologyReport report = measure(Endless{}, n, limits);
  // A round is 16 rows, 16 edges and 17 more: 40 rounds. ShiftOne among 16: cos(pi / 8)^(t - 1) after t rounds.
  const double first_rounds = std::pow(std::cos(pi / 8), 39);
  CHECK(report.period == Round{1} << 50);
  CHECK(report.max_degree == 2);  // what it declares: not all rounds were seen
  CHECK(report.connected);
  CHECK(report.contraction == doctest::Approx(first_rounds).epsilon(1e-9));
  CHECK(report.contraction_error == report.contraction);
  CHECK(report.spectral_gap >= 0);
  CHECK(report.spectral_gap < 1e-12);
  CHECK_FALSE(report.exact_after);

  limits.entries = 20'000;  // enough for ShiftOne among 4, exact after 2 rounds
  const TopologyReport exact = measure(Endless{}, 4, limits);
  CHECK(exact.exact_after == Round{2});
  CHECK(exact.exact_after_any_phase == (Round{1} << 50) + 1);
  CHECK(exact.contraction == 0);

  limits.entries = 40;
  CHECK_THROWS_AS((void)measure(Endless{}, n, limits), kith::UsageError);
}

TEST_CASE("analysis: randomised schedules are averaged over a sample, with its error") {
  for (const std::uint64_t seed : {std::uint64_t{7}, std::uint64_t{8}})
    for (const Rank n : {8, 15}) {
      CAPTURE(n);
      CAPTURE(seed);
      // E[W^T W] - J: (n - 2) / (2 (n - 1)), or 1/2 for an odd size.
      const double matching = n % 2 == 0 ? (n - 2) / (2.0 * (n - 1)) : 0.5;
      const TopologyReport report = measure(kith::RandomMatching{seed}, n);
      CHECK(report.randomized);
      CHECK(report.period == 0);
      CHECK(report.max_degree == 1);
      CHECK(report.symmetric);
      CHECK(report.connected);
      CHECK_FALSE(report.exact_after);
      CHECK(std::abs(report.contraction - std::sqrt(matching)) < 0.05);
      CHECK(std::abs(report.contraction - std::sqrt(matching)) <= report.contraction_error);
      CHECK(report.contraction_error < 0.2);
      CHECK(report.spectral_gap == 1 - report.contraction);
      // Half of the rounds reach the mean: the expectation halves.
      const TopologyReport half = kith::analyze(kith::Cycle{kith::RandomMatching{seed}, kith::Complete{}}, n);
      CHECK(half.period == 0);
      CHECK(half.max_degree == n - 1);
      CHECK(std::abs(half.contraction - std::sqrt(matching / 2)) < 0.05);
      const TopologyReport directed = measure(kith::EquiDynamic{seed}, n);
      CHECK_FALSE(directed.symmetric);
      CHECK(std::abs(directed.contraction - std::sqrt(0.5 - 0.5 / n)) < 0.05);
    }
}

TEST_CASE("analysis: what the library's topologies report is what is measured") {
  for (const std::string& name : kith::topology_names())
    for (const Rank n : {2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 20, 27, 33}) {
      CAPTURE(name);
      CAPTURE(n);
      const kith::AnyTopology topology = kith::parse_topology(name);
      std::optional<TopologyReport> report;
      try {
        kith::require_size(topology, n);
        report = topology.report(n);
      } catch (const kith::UsageError&) {
        continue;
      }
      if (!report || report->randomized) continue;
      const TopologyReport measured = measure(topology, n);
      CHECK(report->period == measured.period);
      CHECK(report->max_degree == measured.max_degree);
      CHECK(report->doubly_stochastic == measured.doubly_stochastic);
      CHECK(report->symmetric == measured.symmetric);
      CHECK(report->connected == measured.connected);
      CHECK(std::abs(report->contraction - measured.contraction) < 1e-9);
      CHECK(std::abs(report->spectral_gap - measured.spectral_gap) < 1e-9);
      CHECK(report->exact_after == measured.exact_after);
      CHECK(report->exact_after_any_phase == measured.exact_after_any_phase);
    }
}

}  // namespace

}  // namespace topology_analysis_test
