// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <kith/error.hpp>
#include <kith/numeric/counter_rng.hpp>
#include <kith/topology.hpp>

namespace kith {

/// @brief A schedule that you write down: an undirected edge list, one doubly stochastic matrix, or a list of them that
/// is gone through round by round.
///
/// What is not valid is refused at construction, by row or column, so an object of this type always keeps the mean. It
/// serves the one size that it was made for. Copies share the schedule.
///
/// @par Cost          As many messages of the model's size each way as the rank has edges. Memory in proportion to the
///                    edges, held once for all copies.
/// @par Thread safety A value that never changes; every member is a pure function.
class Custom {
public:
  static constexpr std::string_view name = "custom";

  /// Two ranks that average with each other.
  using Edge = std::pair<Rank, Rank>;

  /// @brief An undirected graph with Metropolis-Hastings weights: the edge {i, j} weighs 1 / (1 + max(degree(i),
  /// degree(j))), which makes the matrix symmetric and doubly stochastic for any graph.
  ///
  /// Throws UsageError for a rank that is out of range, an edge from a rank to itself and an edge named twice.
  /// @par Source Xiao, Boyd, Lall, A Scheme for Robust Distributed Sensor Fusion Based on Average Consensus, IPSN 2005.
  [[nodiscard]] static Custom from_edges(Rank size, const std::vector<Edge>& edges) {
    require_ranks(size);
    std::vector<Rank> degrees(static_cast<std::size_t>(size));
    for (const auto& [a, b] : edges) {
      if (a < 0 || b < 0 || a >= size || b >= size || a == b)
        throw UsageError("the edge " + spell(a, b) + " does not connect two different ranks among 0.." +
                         std::to_string(size - 1));
      ++degrees[static_cast<std::size_t>(a)];
      ++degrees[static_cast<std::size_t>(b)];
    }
    std::vector<Entry> entries;
    entries.reserve(2 * edges.size());
    for (const auto& [a, b] : edges) {
      const double weight =
          1.0 / (1.0 + std::max(degrees[static_cast<std::size_t>(a)], degrees[static_cast<std::size_t>(b)]));
      entries.push_back({0, a, b, weight});
      entries.push_back({0, b, a, weight});
    }
    const auto place = [](const Entry& entry) { return std::pair{entry.row, entry.column}; };
    std::sort(entries.begin(), entries.end(), [&](const Entry& x, const Entry& y) { return place(x) < place(y); });
    const auto twice = std::adjacent_find(entries.begin(), entries.end(),
                                          [&](const Entry& x, const Entry& y) { return place(x) == place(y); });
    if (twice != entries.end())
      throw UsageError("the edge " + spell(twice->row, twice->column) + " is named twice (either order counts)");
    return Custom(size, 1, entries);
  }

  /// @brief A mixing matrix W, row-major [size * size]: W(i, j) is the weight that rank i gives to the value of rank j.
  ///
  /// Throws UsageError, naming the row or column, unless every entry is a number >= 0 and every row and every column
  /// sums to 1 within 1e-9. The diagonal may be left inexact: a rank's own weight is what its peers leave.
  [[nodiscard]] static Custom from_matrix(Rank size, std::span<const double> matrix) {
    return from_views(size, std::array{matrix});
  }

  /// @brief Mixing matrices as from_matrix() takes them, one for each round of a period.
  [[nodiscard]] static Custom from_matrices(Rank size, const std::vector<std::vector<double>>& matrices) {
    const std::vector<std::span<const double>> views(matrices.begin(), matrices.end());
    return from_views(size, views);
  }

  /// The number of ranks it was made for.
  [[nodiscard]] Rank size() const noexcept { return schedule_->size; }

  [[nodiscard]] Round period(Rank size) const noexcept { return size < 2 ? 1 : schedule_->period; }

  /// The most messages that a rank sends, or receives, in one round.
  [[nodiscard]] Rank max_degree(Rank size) const noexcept { return size < 2 ? 0 : schedule_->max_degree; }

  /// Appends what `rank` does in `round`. Requires 0 <= rank < size = size().
  void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const {
    if (size < 2) return;
    const Schedule& all = *schedule_;
    const auto row =
        static_cast<std::size_t>(round % all.period) * static_cast<std::size_t>(size) + static_cast<std::size_t>(rank);
    for (std::size_t i = all.first_source[row]; i < all.first_source[row + 1]; ++i)
      out.hear(all.sources[i].rank, all.sources[i].weight);
    for (std::size_t i = all.first_target[row]; i < all.first_target[row + 1]; ++i) out.tell(all.targets[i]);
  }

  /// Throws UsageError unless `size` is the one that it was made for.
  void require(Rank size) const {
    if (size < 2 || size == schedule_->size) return;
    throw UsageError("this custom topology is for " + std::to_string(schedule_->size) + " ranks, not " +
                     std::to_string(size) + "; make one for that size");
  }

  /// 16 hex digits that stand for the size, the period and every weight: equal schedules have equal ones.
  [[nodiscard]] std::string parameters() const {
    std::string digits(16, '0');
    std::array<char, 16> text{};
    const auto written = std::to_chars(text.data(), text.data() + text.size(), schedule_->digest, 16).ptr;
    std::copy(text.data(), written, digits.end() - (written - text.data()));
    return digits;
  }

private:
  struct Entry {
    Round round;
    Rank row;
    Rank column;
    double weight;
  };

  // The peers of rank r in round t are those from first_xxx[t * size + r] to the next one's first.
  struct Schedule {
    Rank size = 1;
    Round period = 1;
    Rank max_degree = 0;
    std::uint64_t digest = 0;
    std::vector<std::size_t> first_source;
    std::vector<std::size_t> first_target;
    std::vector<Neighborhood::Source> sources;
    std::vector<Rank> targets;
  };

  static void require_ranks(Rank size) {
    if (size < 1) throw UsageError("a custom topology has at least 1 rank, not " + std::to_string(size));
  }

  static std::string spell(Rank a, Rank b) { return std::to_string(a) + '-' + std::to_string(b); }

  static std::string spell(double number) {
    std::array<char, 32> text{};
    return {text.data(), std::to_chars(text.data(), text.data() + text.size(), number).ptr};
  }

  template <class Matrices>
  [[nodiscard]] static Custom from_views(Rank size, const Matrices& matrices) {
    require_ranks(size);
    if (matrices.size() == 0) throw UsageError("a custom topology has at least one matrix");
    std::vector<Entry> entries;
    Round round = 0;
    for (const std::span<const double> matrix : matrices) {
      const std::string which = matrices.size() == 1 ? "" : " of matrix " + std::to_string(round);
      collect(size, round++, matrix, which, entries);
    }
    return Custom(size, round, entries);
  }

  // Appends the weights off the diagonal, row by row, or throws.
  static void collect(Rank size, Round round, std::span<const double> matrix, const std::string& which,
                      std::vector<Entry>& entries) {
    const auto n = static_cast<std::size_t>(size);
    if (matrix.size() != n * n)
      throw UsageError("a mixing matrix for " + std::to_string(size) + " ranks has " + std::to_string(n * n) +
                       " entries, not " + std::to_string(matrix.size()));
    std::vector<double> column_sums(n);
    for (std::size_t row = 0; row < n; ++row) {
      double row_sum = 0;
      for (std::size_t column = 0; column < n; ++column) {
        const double weight = matrix[row * n + column];
        if (!(weight >= 0 && std::isfinite(weight)))
          throw UsageError("row " + std::to_string(row) + ", column " + std::to_string(column) + which + " is " +
                           spell(weight) + ": a weight is a number >= 0");
        row_sum += weight;
        column_sums[column] += weight;
        if (weight > 0 && row != column)
          entries.push_back({round, static_cast<Rank>(row), static_cast<Rank>(column), std::min(weight, 1.0)});
      }
      require_one("row ", row, which, row_sum);
    }
    for (std::size_t column = 0; column < n; ++column) require_one("column ", column, which, column_sums[column]);
  }

  static void require_one(std::string_view line, std::size_t index, const std::string& which, double sum) {
    if (std::abs(sum - 1) <= 1e-9) return;
    throw UsageError(std::string{line} + std::to_string(index) + which + " sums to " + spell(sum) +
                     ", not 1: the mean of the models would not be kept");
  }

  // Requires entries in the order of round, row and column.
  Custom(Rank size, Round period, const std::vector<Entry>& entries) {
    Schedule all;
    all.size = size;
    all.period = period;
    all.digest = splitmix64(static_cast<std::uint64_t>(size), period);
    const std::size_t rows = static_cast<std::size_t>(period) * static_cast<std::size_t>(size);
    const auto place = [&](Round round, Rank rank) {
      return static_cast<std::size_t>(round) * static_cast<std::size_t>(size) + static_cast<std::size_t>(rank);
    };
    all.first_source.resize(rows + 1);
    all.first_target.resize(rows + 1);
    for (const Entry& entry : entries) {
      all.sources.push_back({entry.column, entry.weight});
      ++all.first_source[place(entry.round, entry.row) + 1];
      ++all.first_target[place(entry.round, entry.column) + 1];
      for (const std::uint64_t word :
           {entry.round, static_cast<std::uint64_t>(entry.row), static_cast<std::uint64_t>(entry.column),
            std::bit_cast<std::uint64_t>(entry.weight)})
        all.digest = splitmix64(all.digest ^ word);
    }
    for (std::size_t row = 0; row < rows; ++row) {
      const std::size_t most = std::max(all.first_source[row + 1], all.first_target[row + 1]);  // still counts
      all.max_degree = std::max(all.max_degree, static_cast<Rank>(most));
      all.first_source[row + 1] += all.first_source[row];
      all.first_target[row + 1] += all.first_target[row];
    }
    all.targets.resize(entries.size());
    std::vector<std::size_t> next = all.first_target;
    for (const Entry& entry : entries) all.targets[next[place(entry.round, entry.column)]++] = entry.row;
    schedule_ = std::make_shared<const Schedule>(std::move(all));
  }

  std::shared_ptr<const Schedule> schedule_;
};

static_assert(Topology<Custom>);

}  // namespace kith
