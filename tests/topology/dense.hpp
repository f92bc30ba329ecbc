// SPDX-License-Identifier: Apache-2.0
// Mixing matrices written out, and what follows from them, computed in the plainest way: what the topologies' own
// answers are compared with. Nothing here knows a closed form. The functions that need Eigen are in dense_test.cpp, so
// that a test of one family compiles without it.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <kith/error.hpp>
#include <kith/topology.hpp>

namespace dense {

using kith::Neighborhood;
using kith::Rank;
using kith::Round;
using kith::TopologyReport;

/// A square matrix of size() rows.
class Matrix {
public:
  explicit Matrix(Rank size) : size_(size), values_(static_cast<std::size_t>(size) * static_cast<std::size_t>(size)) {}
  [[nodiscard]] Rank size() const { return size_; }
  [[nodiscard]] double& operator()(Rank i, Rank j) { return values_[index(i, j)]; }
  [[nodiscard]] double operator()(Rank i, Rank j) const { return values_[index(i, j)]; }
  [[nodiscard]] std::span<const double> values() const { return values_; }

private:
  [[nodiscard]] std::size_t index(Rank i, Rank j) const {
    return static_cast<std::size_t>(i) * static_cast<std::size_t>(size_) + static_cast<std::size_t>(j);
  }
  Rank size_;
  std::vector<double> values_;
};

[[nodiscard]] Matrix identity(Rank size);
/// J: every entry 1/size.
[[nodiscard]] Matrix mean(Rank size);
[[nodiscard]] Matrix product(const Matrix& a, const Matrix& b);
[[nodiscard]] Matrix transpose(const Matrix& a);
/// The sum of a and factor * b.
[[nodiscard]] Matrix sum(const Matrix& a, const Matrix& b, double factor = 1);
[[nodiscard]] double largest_difference(const Matrix& a, const Matrix& b);
/// The largest singular value, by Eigen.
[[nodiscard]] double spectral_norm(const Matrix& a);

/// What every rank does in a round.
using Plan = std::vector<Neighborhood>;

template <kith::Topology T>
[[nodiscard]] Plan plan(const T& topology, Rank size, Round round) {
  Plan all(static_cast<std::size_t>(size));
  for (Rank rank = 0; rank < size; ++rank)
    kith::plan_round(topology, rank, size, round, all[static_cast<std::size_t>(rank)]);
  return all;
}

/// W of a planned round: what the sources leave of 1 is on the diagonal.
[[nodiscard]] Matrix mixing(const Plan& plan);

template <kith::Topology T>
[[nodiscard]] Matrix mixing(const T& topology, Rank size, Round round) {
  return mixing(plan(topology, size, round));
}

/// What is wrong with a planned round, in words, or nothing: peers out of range or twice, weights outside (0, 1], sides
/// that disagree, columns that do not sum to one, more than `max_degree` messages.
[[nodiscard]] std::string fault(const Plan& plan, Rank max_degree);

[[nodiscard]] bool same(const Plan& a, const Plan& b);

/// The report of a schedule, from the plans of one period. `max_degree` is counted.
[[nodiscard]] TopologyReport measure(const std::vector<Plan>& period);

template <kith::Topology T>
[[nodiscard]] TopologyReport measure(const T& topology, Rank size) {
  std::vector<Plan> period;
  for (Round round = 0; round < topology.period(size); ++round) period.push_back(plan(topology, size, round));
  return measure(period);
}

/// CHECKs that two reports are equal, the numbers to 1e-12.
void check_equal(const TopologyReport& said, const TopologyReport& measured);

/// The sizes among `sizes` that the topology accepts.
template <kith::Topology T>
[[nodiscard]] std::vector<Rank> accepted(const T& topology, std::vector<Rank> sizes) {
  std::erase_if(sizes, [&](Rank size) {
    try {
      kith::require_size(topology, size);
      return false;
    } catch (const kith::UsageError&) {
      return true;
    }
  });
  return sizes;
}

/// first, first + 1, ..., last.
[[nodiscard]] std::vector<Rank> sizes_between(Rank first, Rank last);

/// CHECKs the rounds of a topology at a size, `some` of a schedule that is randomised or longer than that: without
/// fault, the same again after a period, also near the end of the counter, and of the degree that max_degree says.
template <kith::Topology T>
void check_rounds(const T& topology, Rank size, Round some = 64) {
  CAPTURE(kith::topology_name(topology));
  CAPTURE(size);
  const Round period = topology.period(size);
  const Rank max_degree = topology.max_degree(size);
  const Round last = ~Round{0};
  Rank most = 0;
  for (Round round = 0; round < (period == 0 ? some / 10 : std::min(period, some)); ++round) {
    CAPTURE(round);
    const Plan now = plan(topology, size, round);
    CHECK(fault(now, max_degree) == "");
    for (const Neighborhood& row : now) most = std::max(most, static_cast<Rank>(row.targets().size()));
    if (period == 0) continue;
    CHECK(same(now, plan(topology, size, round + period)));
  }
  if (period == 0) {
    CHECK(fault(plan(topology, size, last), max_degree) == "");
  } else {
    CHECK(same(plan(topology, size, last), plan(topology, size, last % period)));
    if (period <= some) CHECK(most == max_degree);  // the bound is reached
  }
  if (size == 1) {
    CHECK(period == 1);
    CHECK(max_degree == 0);
  }
}

/// CHECKs a few ranks of a large group: whom they hear tells them, whom they tell hears them, and what the group gives
/// to them adds up to one. Of many peers it looks at some, in one round.
template <kith::Topology T>
void check_sampled(const T& topology, Rank size, Round rounds = 25) {
  CAPTURE(kith::topology_name(topology));
  CAPTURE(size);
  const Rank max_degree = topology.max_degree(size);
  const auto weight_of = [](const Neighborhood& row, Rank peer) {
    for (const auto& source : row.sources())
      if (source.rank == peer) return source.weight;
    return 0.0;
  };
  const auto tells = [](const Neighborhood& row, Rank peer) {
    return std::find(row.targets().begin(), row.targets().end(), peer) != row.targets().end();
  };
  Neighborhood own, other;
  int wrong = 0;
  const std::size_t stride = max_degree > 100 ? 61 : 1;
  for (Round round = 0; round < (stride > 1 ? 1 : rounds); ++round) {
    for (const Rank rank : {0, 1, size / 3, size / 2 - 1, size / 2, size - 2, size - 1}) {
      kith::plan_round(topology, rank, size, round, own);
      wrong += static_cast<Rank>(own.sources().size()) > max_degree;
      wrong += static_cast<Rank>(own.targets().size()) > max_degree;
      double given = 1;
      for (std::size_t i = 0; i < own.sources().size(); i += stride) {
        const auto& [peer, weight] = own.sources()[i];
        given -= weight;
        wrong += peer < 0 || peer >= size || peer == rank || weight <= 0 || weight > 1;
        kith::plan_round(topology, peer, size, round, other);
        wrong += !tells(other, rank);
      }
      for (std::size_t i = 0; i < own.targets().size(); i += stride) {
        kith::plan_round(topology, own.targets()[i], size, round, other);
        given += weight_of(other, rank);
        wrong += weight_of(other, rank) == 0;
      }
      wrong += given < 1 - 1e-12 || given > 1 + 1e-12;
    }
  }
  CHECK(wrong == 0);
}

/// CHECKs all of the above at sizes 1..64 and some large ones, as far as the topology accepts them, and that sizes up
/// to `measured` report what is measured.
template <kith::Topology T>
void check_family(const T& topology, Rank measured = 33) {
  CHECK_NOTHROW(kith::require_size(topology, 1));
  for (const Rank size : accepted(topology, sizes_between(1, 64))) {
    check_rounds(topology, size);
    if constexpr (requires { topology.report(size); }) {
      if (topology.period(size) == 0 || size > measured) continue;
      CAPTURE(kith::topology_name(topology));
      CAPTURE(size);
      const std::optional<TopologyReport> said = topology.report(size);  // some families know it for some sizes only
      if (said) check_equal(*said, measure(topology, size));
    }
  }
  for (const Rank size : accepted(topology, {997, 1000, 1024})) check_sampled(topology, size);
  for (const Rank size : accepted(topology, {1'000'000, 1 << 20, (1 << 30) + 2, 2'147'483'647}))
    if (topology.max_degree(size) < 100) check_sampled(topology, size);
}

/// The words with which a topology refuses a size; nothing if it does not.
template <kith::Topology T>
[[nodiscard]] std::string refusal(const T& topology, Rank size) {
  try {
    kith::require_size(topology, size);
  } catch (const kith::UsageError& error) {
    return error.what();
  }
  return {};
}

[[nodiscard]] inline bool mentions(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace dense
