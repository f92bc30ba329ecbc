// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <kith/error.hpp>
#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>
#include <kith/topology/machines.hpp>
#include <kith/topology/spectral.hpp>
#include <kith/topology/traffic.hpp>

namespace kith {

/// @brief The mixing matrix of one round, dense: W(i, j) is the weight that rank i gives to the value of rank j.
///
/// The diagonal holds what is left of a row, so every row sums to one.
///
/// @par Cost size^2 doubles. For looking at small groups; analyze() needs no matrix.
class MixingMatrix {
public:
  /// The identity: nobody hears anybody.
  explicit MixingMatrix(Rank size)
      : size_(size), weights_(static_cast<std::size_t>(size) * static_cast<std::size_t>(size)) {
    for (Rank rank = 0; rank < size; ++rank) (*this)(rank, rank) = 1;
  }

  [[nodiscard]] Rank size() const noexcept { return size_; }

  /// The weight that rank `i` gives to the value of rank `j`, 0 <= i, j < size().
  [[nodiscard]] double operator()(Rank i, Rank j) const noexcept { return weights_[index(i, j)]; }
  [[nodiscard]] double& operator()(Rank i, Rank j) noexcept { return weights_[index(i, j)]; }

  friend bool operator==(const MixingMatrix&, const MixingMatrix&) = default;

private:
  [[nodiscard]] std::size_t index(Rank i, Rank j) const noexcept {
    return static_cast<std::size_t>(i) * static_cast<std::size_t>(size_) + static_cast<std::size_t>(j);
  }

  Rank size_;
  std::vector<double> weights_;
};

/// @brief The mixing matrix of `round` among `size` ranks.
///
/// Throws UsageError for a size that the topology refuses.
///
/// @par Cost Plans the round for every rank; size^2 doubles.
template <Topology T>
[[nodiscard]] MixingMatrix mixing_matrix(const T& topology, Rank size, Round round) {
  require_size(topology, size);
  MixingMatrix matrix{size};
  Neighborhood neighborhood{topology.max_degree(size)};
  for (Rank rank = 0; rank < size; ++rank) {
    plan_round(topology, rank, size, round, neighborhood);
    double others = 0;
    for (const auto& [peer, weight] : neighborhood.sources()) {
      matrix(rank, peer) += weight;
      others += weight;
    }
    matrix(rank, rank) -= others;
  }
  return matrix;
}

namespace detail {

/// What bounds the work and the memory of measure(), whatever the topology; small ones are for tests.
struct MeasureLimits {
  /// Of planned rounds, as SparseRound::entries() counts them: 12 bytes each at most.
  std::size_t entries = std::size_t{1} << 25;
  /// Entries visited by one search or iteration: some ten seconds.
  std::size_t visits = std::size_t{1} << 33;
  /// Rounds of a randomised schedule that are averaged: a multiple of 2..6, 8, 9 and 10, so that the members of a Cycle
  /// have equal shares.
  Round samples = 720;
};

/// The norm below which what is left of P - J is rounding, and the mean exact.
inline constexpr double exact_below = 1e-12;

/// Rounds 0, 1, ... of a schedule as flat arrays: planned once, applied to vectors hundreds of times.
struct PlannedRounds {
  std::vector<SparseRound> rounds;
  std::size_t entries = 0;
  Rank max_degree = 0;
};

/// Plans `count` rounds, or as many as `most_entries` allow. Throws UsageError where they do not allow one.
template <Topology T>
[[nodiscard]] PlannedRounds plan_rounds(const T& topology, Rank size, Round count, std::size_t most_entries) {
  PlannedRounds planned;
  Neighborhood neighborhood;
  while (planned.rounds.size() < count) {
    SparseRound round{size};
    Rank degree = 0;
    for (Rank rank = 0; rank < size; ++rank) {
      plan_round(topology, rank, size, planned.rounds.size(), neighborhood);
      for (const auto& [peer, weight] : neighborhood.sources()) round.add(peer, weight);
      round.end_row();
      degree = std::max(degree, static_cast<Rank>(neighborhood.targets().size()));
      if (planned.entries + round.entries() <= most_entries) continue;
      if (!planned.rounds.empty()) return planned;
      throw UsageError(topology_name(topology) + " has too many edges at size " + std::to_string(size) +
                       " to be measured: analyze a smaller size, or give the topology a report(size) in closed form");
    }
    planned.entries += round.entries();
    planned.max_degree = std::max(planned.max_degree, degree);
    planned.rounds.push_back(std::move(round));
  }
  return planned;
}

/// What the matrices say entry by entry.
struct Structure {
  bool doubly_stochastic = true;
  bool symmetric = true;
  bool connected = true;
  /// No P - J of some of the rounds has a larger spectral norm. 1 where all of them are doubly stochastic.
  double norm_bound = 1;
};

/// Whether W, whose rows sum to one by construction, is doubly stochastic; if not, multiplies `product_bound` by
/// sqrt(largest row sum of |W| x largest column sum of |W|), which is no less than the spectral norm of W.
inline bool check_sums(const SparseRound& round, double tolerance, double& product_bound) {
  Vector kept(round.size(), 1);  // the diagonal
  Vector rows(round.size());
  Vector columns(round.size());
  bool in_range = true;
  round.for_each_edge([&](std::size_t i, std::size_t j, double weight) {
    in_range = in_range && weight > 0;
    kept[i] -= weight;
    rows[i] += std::abs(weight);
    columns[j] += std::abs(weight);
  });
  double largest_row = 0;
  double largest_column = 0;
  for (std::size_t i = 0; i < round.size(); ++i) {
    in_range = in_range && kept[i] >= -tolerance && std::abs(kept[i] + columns[i] - 1) <= tolerance;
    largest_row = std::max(largest_row, rows[i] + std::abs(kept[i]));
    largest_column = std::max(largest_column, columns[i] + std::abs(kept[i]));
  }
  if (!in_range) product_bound *= std::sqrt(largest_row * largest_column);
  return in_range;
}

/// Whether rank 0 is reached from everybody along the rows of the rounds taken together.
[[nodiscard]] inline bool reaches_everybody(const std::vector<SparseRound>& rounds) {
  std::vector<char> marked(rounds.front().size());
  std::vector<std::size_t> reached{0};
  marked[0] = 1;
  for (std::size_t next = 0; next < reached.size(); ++next)
    for (const SparseRound& round : rounds) round.reach(reached[next], marked, reached);
  return reached.size() == marked.size();
}

[[nodiscard]] inline Structure structure_of(const std::vector<SparseRound>& rounds) {
  constexpr double tolerance = 1e-12;
  Structure structure;
  double product_bound = 1;
  for (const SparseRound& round : rounds) {
    structure.doubly_stochastic = check_sums(round, tolerance, product_bound) && structure.doubly_stochastic;
    structure.symmetric = structure.symmetric && round.near(round.transposed(), tolerance);
  }
  structure.connected = reaches_everybody(rounds);
  if (structure.doubly_stochastic) return structure;  // as much flows in as out: what is reached reaches back
  structure.norm_bound = product_bound + 1;
  std::vector<SparseRound> reversed;
  reversed.reserve(rounds.size());
  for (const SparseRound& round : rounds) reversed.push_back(round.transposed());
  structure.connected = structure.connected && reaches_everybody(reversed);
  return structure;
}

/// @brief Finds after how many rounds the mean is exact, by what the rounds do to four seeded random vectors.
///
/// For a vector v of independent entries of mean 0 and variance 1, E norm((P - J) v)^2 is the sum of the squares of
/// P - J (Hutchinson's estimator), which is between the square of its spectral norm and size times that. So a norm
/// below 1e-12 shows as such, and a larger one can hide only if all four vectors are orthogonal to it to that many
/// digits. The entries are normal deviates: signs would be orthogonal to a difference of two ranks half of the time.
class ExactnessSearch {
public:
  explicit ExactnessSearch(const std::vector<SparseRound>& rounds) : rounds_(rounds), next_(rounds.front().size()) {
    for (std::uint64_t seed = 0; seed < start_.size(); ++seed) start_[seed] = random_vector(next_.size(), seed);
  }

  /// The rounds from round `first` on until everybody holds the mean; empty if `limit` do not suffice. `hint`: do not
  /// look before, it is known to be too early, or does not matter.
  [[nodiscard]] std::optional<Round> from(std::size_t first, std::size_t limit, std::size_t hint = 1) {
    now_ = start_;
    for (std::size_t done = 1; done <= limit; ++done) {
      const SparseRound& round = rounds_[(first + done - 1) % rounds_.size()];
      double squares = 0;
      for (Vector& x : now_) {
        apply(round, x.data(), next_.data());
        x.swap(next_);
        if (done >= hint) squares += dot(x, x);
      }
      if (done >= hint && squares < exact_below * exact_below * static_cast<double>(now_.size())) return done;
    }
    return std::nullopt;
  }

private:
  const std::vector<SparseRound>& rounds_;
  std::array<Vector, 4> start_;
  std::array<Vector, 4> now_;
  Vector next_;
};

/// Fills in both exact_after. `whole`: the rounds are a whole period, so that the schedule goes round.
inline void search_exactness(const PlannedRounds& planned, bool whole, std::size_t most_visits,
                             TopologyReport& report) {
  const std::size_t length = planned.rounds.size();
  ExactnessSearch search{planned.rounds};
  report.exact_after = search.from(0, whole ? 2 * length : length);
  if (!report.exact_after) return;
  std::size_t worst = *report.exact_after;
  // Where columns sum to one, waiting for round 0 and going on from there always suffices.
  const auto enough = static_cast<std::size_t>(report.period) - 1 + worst;
  if (report.doubly_stochastic) report.exact_after_any_phase = enough;
  if (!whole || 4 * enough * planned.entries > most_visits) return;
  for (std::size_t first = 1; first < length; ++first) {
    const std::optional<Round> rounds = search.from(first, 2 * length, worst);
    if (!rounds) {
      report.exact_after_any_phase.reset();
      return;
    }
    worst = std::max(worst, static_cast<std::size_t>(*rounds));
  }
  report.exact_after_any_phase = worst;
}

/// Steps of Lanczos that keep it within seconds: steps^2 x columns for the vectors, and what applying the rounds costs.
[[nodiscard]] inline std::size_t most_steps(std::size_t columns, std::size_t entries, std::size_t most_visits) {
  const auto by_vectors = static_cast<std::size_t>(std::sqrt(0x1p31 / static_cast<double>(columns)));
  return std::max<std::size_t>(8, std::min(by_vectors, most_visits / (2 * entries)));
}

/// Fills in contraction and spectral_gap for a schedule with a period.
inline void measure_period(const PlannedRounds& planned, const Structure& structure, const MeasureLimits& limits,
                           TopologyReport& report) {
  const bool whole = planned.rounds.size() == report.period;
  search_exactness(planned, whole, limits.visits, report);
  if (report.exact_after && *report.exact_after <= planned.rounds.size()) {
    report.contraction_error = exact_below;
  } else {
    ProductOperator operation{planned.rounds};
    const std::size_t size = operation.columns();
    const NormEstimate estimate =
        spectral_norm(operation, most_steps(size, planned.entries, limits.visits), structure.norm_bound);
    const double rounding = 1e-15 * std::sqrt(static_cast<double>(planned.rounds.size()));
    report.contraction = estimate.norm < exact_below ? 0 : estimate.norm;
    report.contraction_error = estimate.error + rounding + (estimate.norm < exact_below ? exact_below : 0);
    if (!whole) {  // the rounds beyond shrink it further: all that is known is an upper bound
      report.contraction = std::min(structure.norm_bound, report.contraction + report.contraction_error);
      report.contraction_error =
          structure.doubly_stochastic ? report.contraction : std::numeric_limits<double>::infinity();
    }
  }
  // 1 - contraction^(1/period), also where the contraction is near to 1
  report.spectral_gap = 0 - std::expm1(std::log(report.contraction) / static_cast<double>(report.period));
}

/// @brief Fills in contraction and spectral_gap for a randomised schedule, from the average of W^T W over a sample.
///
/// The average of S independent positive semidefinite matrices with norms up to L is off by more than e in norm with
/// probability at most 2 size exp(-S e^2 / (2 L (norm of the expectation + e / 3))): the matrix Bernstein inequality
/// (Tropp, An Introduction to Matrix Concentration Inequalities, 2015, theorem 6.1.1). The error is stated for 1e-6.
inline void measure_sample(const PlannedRounds& planned, const Structure& structure, const MeasureLimits& limits,
                           TopologyReport& report) {
  StackedOperator operation{planned.rounds};
  const std::size_t size = operation.columns();
  const NormEstimate estimate =
      spectral_norm(operation, most_steps(size, planned.entries, limits.visits), structure.norm_bound);
  const double most = structure.norm_bound * structure.norm_bound;
  const double share =
      most * std::log(2e6 * static_cast<double>(size)) / static_cast<double>(planned.rounds.size());  // L log(2n/p) / S
  // E is the expectation's norm and A the average's. Solved for E, with e^2 = 2 share (E + e / 3) in both:
  const double high = (estimate.norm + estimate.error) * (estimate.norm + estimate.error);  // E <= A + e
  const double above = 4 * share / 3 + std::sqrt(16 * share * share / 9 + 2 * share * high);
  const double low = estimate.norm * estimate.norm;  // E >= A - e
  const double below = std::sqrt(4 * share * share / 9 + 2 * share * low) - 2 * share / 3;
  report.contraction = estimate.norm;
  report.contraction_error =
      std::max(std::sqrt(high + above) - estimate.norm, estimate.norm - std::sqrt(std::max(0.0, low - below)));
  report.spectral_gap = 1 - report.contraction;
}

/// @brief What analyze() does for a topology that has no closed form: plans the rounds of a period, looks at them, and
/// multiplies vectors with them. Works for every topology.
///
/// A schedule whose period has more entries than the limits allow is measured by its first rounds. As rounds that keep
/// the mean never push the models apart, their contraction is an upper bound on the period's: it is reported as
/// `contraction`, with all of it as `contraction_error`. The flags then hold of those rounds, exact_after is searched
/// among them, and exact_after_any_phase is the bound exact_after + period - 1 (as where a search would cost too much).
/// Throws UsageError if not even one round fits.
///
/// @par Cost Some ten seconds and a gigabyte at worst, whatever the size and the period.
template <Topology T>
[[nodiscard]] TopologyReport measure(const T& topology, Rank size, const MeasureLimits& limits = {}) {
  require_size(topology, size);
  if (size == 1) return report_of_one();
  const Round period = topology.period(size);
  const PlannedRounds planned = plan_rounds(topology, size, period == 0 ? limits.samples : period, limits.entries);
  const Structure structure = structure_of(planned.rounds);
  TopologyReport report;
  report.period = period;
  report.randomized = period == 0;
  report.max_degree = planned.rounds.size() == period ? planned.max_degree : topology.max_degree(size);
  report.doubly_stochastic = structure.doubly_stochastic;
  report.symmetric = structure.symmetric;
  report.connected = structure.connected;
  if (report.randomized)
    measure_sample(planned, structure, limits, report);
  else
    measure_period(planned, structure, limits, report);
  return report;
}

/// In closed form, or measured.
template <Topology T>
[[nodiscard]] TopologyReport report_or_measure(const T& topology, Rank size) {
  if (size == 1) return report_of_one();
  if constexpr (requires {
                  { topology.report(size) } -> std::same_as<TopologyReport>;
                }) {
    return topology.report(size);
  } else if constexpr (requires {
                         { topology.report(size) } -> std::same_as<std::optional<TopologyReport>>;
                       }) {
    if (const std::optional<TopologyReport> report = topology.report(size)) return *report;
  }
  return measure(topology, size);
}

}  // namespace detail

/// @brief How fast a topology mixes among `size` ranks: see TopologyReport.
///
/// Closed forms where the topology has one (`report(size)`), else detail::measure: contraction to 1e-9 up to size 1024,
/// beyond that with the error that contraction_error states. Where the topology says which ranks share a machine, also
/// what travels inside machines and between them, counted over the first rounds of a period (720 at most). Throws
/// UsageError for a size that the topology refuses.
///
/// @par Cost          None to speak of in closed form; else see detail::measure. No dense matrix.
/// @par Thread safety A pure function.
template <Topology T>
[[nodiscard]] TopologyReport analyze(const T& topology, Rank size) {
  require_size(topology, size);
  TopologyReport report = detail::report_or_measure(topology, size);
  if (const std::optional<detail::Machines> machines = detail::machines_of(topology, size))
    report.traffic = detail::count_traffic(topology, size, *machines, true);
  return report;
}

}  // namespace kith
