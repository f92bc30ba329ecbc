// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <utility>
#include <vector>

#include <kith/numeric/counter_rng.hpp>
#include <kith/types.hpp>

/// The linear algebra behind kith::analyze: sparse rounds, and the spectral norm of an operator known only by what it
/// does to a vector.
namespace kith::detail {

using Vector = std::vector<double>;

/// One round's mixing matrix without its diagonal, row by row, because the rounds of a period are applied many times.
class SparseRound {
public:
  SparseRound() = default;
  explicit SparseRound(Rank size) { row_begin_.reserve(static_cast<std::size_t>(size) + 1); }

  /// Adds W(row, peer) = weight to the row that end_row() has not ended yet. Peers ascend.
  void add(Rank peer, double weight) {
    peers_.push_back(peer);
    weights_.push_back(weight);
  }
  void end_row() { row_begin_.push_back(static_cast<std::uint32_t>(peers_.size())); }

  /// Rows that were ended.
  [[nodiscard]] std::size_t size() const noexcept { return row_begin_.size() - 1; }
  /// Rows, edges and something for the object itself: what the round costs in time and memory.
  [[nodiscard]] std::size_t entries() const noexcept { return row_begin_.size() + peers_.size() + 16; }

  /// Calls visit(i, j, W(i, j)) for every entry off the diagonal, by row and in ascending j.
  template <class Visit>
  void for_each_edge(const Visit& visit) const {
    const Rank* const peers = peers_.data();  // plain pointers: these loops are what an analysis spends its time in
    const double* const weights = weights_.data();
    std::uint32_t edge = 0;
    for (std::size_t i = 0; i < size(); ++i)
      for (const std::uint32_t end = row_begin_[i + 1]; edge < end; ++edge)
        visit(i, static_cast<std::size_t>(peers[edge]), weights[edge]);
  }

  /// The columns of this round as the rows of another.
  [[nodiscard]] SparseRound transposed() const {
    SparseRound result;
    result.row_begin_.assign(size() + 1, 0);
    result.peers_.resize(peers_.size());
    result.weights_.resize(peers_.size());
    for (const Rank peer : peers_) ++result.row_begin_[static_cast<std::size_t>(peer) + 1];
    for (std::size_t i = 0; i < size(); ++i) result.row_begin_[i + 1] += result.row_begin_[i];
    std::vector<std::uint32_t> next{result.row_begin_.begin(), result.row_begin_.end() - 1};
    for_each_edge([&](std::size_t i, std::size_t j, double weight) {
      const std::uint32_t place = next[j]++;
      result.peers_[place] = static_cast<Rank>(i);
      result.weights_[place] = weight;
    });
    return result;
  }

  /// Whether both have the same entries, each to `tolerance`.
  [[nodiscard]] bool near(const SparseRound& other, double tolerance) const {
    if (row_begin_ != other.row_begin_ || peers_ != other.peers_) return false;
    for (std::size_t e = 0; e < weights_.size(); ++e)
      if (std::abs(weights_[e] - other.weights_[e]) > tolerance) return false;
    return true;
  }

  /// Appends the peers of row `i` that are not marked yet to `reached`, and marks them.
  void reach(std::size_t i, std::vector<char>& marked, std::vector<std::size_t>& reached) const {
    for (std::uint32_t e = row_begin_[i]; e < row_begin_[i + 1]; ++e) {
      const auto peer = static_cast<std::size_t>(peers_[e]);
      if (marked[peer] == 0) reached.push_back(peer);
      marked[peer] = 1;
    }
  }

private:
  std::vector<std::uint32_t> row_begin_{0};
  std::vector<Rank> peers_;
  std::vector<double> weights_;
};

/// y = W x, as differences: a vector of equal values stays one to the last bit.
inline void apply(const SparseRound& round, const double* x, double* y) {
  std::copy(x, x + round.size(), y);
  round.for_each_edge([x, y](std::size_t i, std::size_t j, double weight) { y[i] += weight * (x[j] - x[i]); });
}

/// y = W^T x.
inline void apply_transposed(const SparseRound& round, const double* x, double* y) {
  std::copy(x, x + round.size(), y);
  round.for_each_edge([x, y](std::size_t i, std::size_t j, double weight) {
    const double moved = weight * x[i];
    y[j] += moved;
    y[i] -= moved;
  });
}

[[nodiscard]] inline double dot(const Vector& x, const Vector& y) {
  const double* const a = x.data();
  const double* const b = y.data();
  double lanes[4] = {};  // four sums, or each addition would wait for the one before
  const std::size_t count = x.size();
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (std::size_t lane = 0; lane < 4; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  for (; i < count; ++i) lanes[0] += a[i] * b[i];
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

[[nodiscard]] inline double norm(const Vector& x) { return std::sqrt(dot(x, x)); }

/// y += factor * x
inline void add_multiple(double factor, const Vector& x, Vector& y) {
  const double* const from = x.data();
  double* const to = y.data();
  for (std::size_t i = 0, count = x.size(); i < count; ++i) to[i] += factor * from[i];
}

[[nodiscard]] inline double mean(const double* x, std::size_t count) {
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += x[i];
  return sum / static_cast<double>(count);
}

/// A seeded vector of independent normal deviates with their mean taken off: the ones are in the kernel of everything
/// that is measured here. Its own Box-Muller, because std::normal_distribution differs between libraries.
[[nodiscard]] inline Vector random_vector(std::size_t count, std::uint64_t seed) {
  const CounterRng random{seed};
  Vector x(count);
  for (std::size_t i = 0; i < count; ++i) {
    const double radius = std::sqrt(-2 * std::log(1 - random.uniform(0, i)));
    x[i] = radius * std::cos(2 * std::numbers::pi * random.uniform(1, i));
  }
  const double offset = mean(x.data(), count);
  for (double& value : x) value -= offset;
  return x;
}

/// P - J for the product P of some rounds, the first applied first.
class ProductOperator {
public:
  explicit ProductOperator(const std::vector<SparseRound>& rounds) : rounds_(rounds), scratch_(rounds.front().size()) {}

  [[nodiscard]] std::size_t columns() const noexcept { return scratch_.size(); }

  void apply(const Vector& x, Vector& y) {
    y = x;
    for (const SparseRound& round : rounds_) {
      detail::apply(round, y.data(), scratch_.data());
      y.swap(scratch_);
    }
    take_off(mean(x.data(), x.size()), y);
  }

  void apply_transposed(const Vector& x, Vector& y) {
    y = x;
    for (auto round = rounds_.rbegin(); round != rounds_.rend(); ++round) {
      detail::apply_transposed(*round, y.data(), scratch_.data());
      y.swap(scratch_);
    }
    take_off(mean(x.data(), x.size()), y);
  }

private:
  static void take_off(double offset, Vector& y) {
    for (double& value : y) value -= offset;
  }

  const std::vector<SparseRound>& rounds_;
  Vector scratch_;
};

/// The rounds' W - J on top of each other, each divided by the square root of their number S: the square of this
/// operator's norm is the norm of (sum of W^T W) / S - J.
class StackedOperator {
public:
  explicit StackedOperator(const std::vector<SparseRound>& rounds)
      : rounds_(rounds), scratch_(rounds.front().size()), scale_(1 / std::sqrt(static_cast<double>(rounds.size()))) {}

  [[nodiscard]] std::size_t columns() const noexcept { return scratch_.size(); }

  void apply(const Vector& x, Vector& y) {
    const std::size_t count = columns();
    const double offset = mean(x.data(), count);
    y.resize(count * rounds_.size());
    for (std::size_t t = 0; t < rounds_.size(); ++t) {
      double* const part = y.data() + t * count;
      detail::apply(rounds_[t], x.data(), part);
      for (std::size_t i = 0; i < count; ++i) part[i] = scale_ * (part[i] - offset);
    }
  }

  void apply_transposed(const Vector& x, Vector& y) {
    const std::size_t count = columns();
    y.assign(count, 0);
    for (std::size_t t = 0; t < rounds_.size(); ++t) {
      const double* const part = x.data() + t * count;
      const double offset = mean(part, count);
      detail::apply_transposed(rounds_[t], part, scratch_.data());
      for (std::size_t i = 0; i < count; ++i) y[i] += scale_ * (scratch_[i] - offset);
    }
  }

private:
  const std::vector<SparseRound>& rounds_;
  Vector scratch_;
  double scale_;
};

/// The largest eigenvalue of a symmetric tridiagonal matrix, and a unit vector near to its eigenvector.
struct TopEigenpair {
  double value = 0;
  /// The last entry of the vector, which is what a Lanczos residual needs.
  double last_entry = 0;
  /// norm(T y - value y)
  double residual = 0;
};

/// Whether the tridiagonal matrix is below `shift`, all of it: every pivot of shift I - T is positive.
[[nodiscard]] inline bool all_below(double shift, const Vector& diagonal, const Vector& beside, Vector& pivots) {
  for (std::size_t i = 0; i < diagonal.size(); ++i) {
    pivots[i] = shift - diagonal[i] - (i == 0 ? 0 : beside[i - 1] * beside[i - 1] / pivots[i - 1]);
    if (!(pivots[i] > 0)) return false;
  }
  return true;
}

/// By bisection and inverse iteration: short, and never more than a few hundred passes over the two diagonals.
[[nodiscard]] inline TopEigenpair top_eigenpair(const Vector& diagonal, const Vector& beside) {
  const std::size_t count = diagonal.size();
  const auto side = [&](std::size_t i) { return i + 1 < count ? beside[i] : 0.0; };  // entry (i, i + 1)
  double low = 0;
  double high = std::numeric_limits<double>::min();
  for (std::size_t i = 0; i < count; ++i) {
    low = std::max(low, diagonal[i]);
    high = std::max(high, diagonal[i] + std::abs(side(i)) + (i == 0 ? 0 : std::abs(side(i - 1))));
  }
  high *= 1 + 1e-12;
  Vector pivots(count);
  for (double middle = low + (high - low) / 2; low < middle && middle < high; middle = low + (high - low) / 2)
    (all_below(middle, diagonal, beside, pivots) ? high : low) = middle;
  (void)all_below(high, diagonal, beside, pivots);  // `high` is above: the pivots of high I - T are positive

  Vector y(count, 1 / std::sqrt(static_cast<double>(count)));
  for (int turn = 0; turn < 4; ++turn) {
    for (std::size_t i = 1; i < count; ++i) y[i] += y[i - 1] * beside[i - 1] / pivots[i - 1];
    for (std::size_t i = count; i-- > 0;) y[i] = (y[i] + (i + 1 < count ? beside[i] * y[i + 1] : 0)) / pivots[i];
    const double length = norm(y);
    for (double& entry : y) entry /= length;
  }
  double squares = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double off = (diagonal[i] - high) * y[i] + (i + 1 < count ? beside[i] * y[i + 1] : 0) +
                       (i == 0 ? 0 : beside[i - 1] * y[i - 1]);
    squares += off * off;
  }
  return {high, y.back(), std::sqrt(squares)};
}

/// A spectral norm from below, and how much larger the truth may be.
struct NormEstimate {
  double norm = 0;
  double error = 0;
};

/// How much larger a largest singular value may be than what `steps` of Lanczos from a random start found, except with
/// probability 1e-9. Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13 (1992), theorem 4.2: the largest
/// eigenvalue of a positive semidefinite matrix is missed by a share of more than e with probability at most
/// 1.648 sqrt(columns) exp(-sqrt(e) (2 steps - 1)).
[[nodiscard]] inline double random_start_bound(double norm, std::size_t columns, std::size_t steps) {
  const double root =
      std::log(1.648e9 * std::sqrt(static_cast<double>(columns))) / (2 * static_cast<double>(steps) - 1);
  const double share = root * root;
  return share < 1 ? norm * (1 / std::sqrt(1 - share) - 1) : std::numeric_limits<double>::infinity();
}

/// @brief The largest singular value of A, by Lanczos on A^T A (Golub-Kahan bidiagonalisation of A, kept as the square
/// of its bidiagonal) from a seeded random start, every new vector made orthogonal to all before.
///
/// Only the right vectors are kept, at most `max_steps` of them. It ends when the residual is 1e-12 of the norm or the
/// vectors span everything; the error is then the residual (a singular value is that near; it is the largest one unless
/// the start was almost orthogonal to what belongs to that). Otherwise the error is random_start_bound, or what is
/// missing to `norm_bound`, a bound on the norm that the caller knows.
template <class Operator>
[[nodiscard]] NormEstimate spectral_norm(Operator& a, std::size_t max_steps, double norm_bound) {
  std::vector<Vector> basis{random_vector(a.columns(), 0x6b697468)};
  Vector diagonal;
  Vector beside;
  Vector image;
  Vector next(a.columns());
  const double start = norm(basis[0]);
  for (double& value : basis[0]) value /= start;
  for (std::size_t step = 1;; ++step) {
    a.apply(basis.back(), image);
    a.apply_transposed(image, next);
    diagonal.push_back(dot(image, image));
    if (diagonal[0] < 1e-28) return {0, 1e-12};  // A shrinks a random vector to nothing: it is zero, up to rounding
    add_multiple(-diagonal.back(), basis.back(), next);
    if (step > 1) add_multiple(-beside.back(), basis[step - 2], next);
    const double before = norm(next);
    for (const Vector& old : basis) add_multiple(-dot(old, next), old, next);
    double length = norm(next);
    if (length < before / 2) {  // most of it was rounding: what is left needs a second pass
      for (const Vector& old : basis) add_multiple(-dot(old, next), old, next);
      length = norm(next);
    }
    const bool complete = step + 1 >= a.columns() || length <= 1e-15 * std::sqrt(diagonal[0]);
    if (complete || step >= max_steps || step % 8 == 0) {
      const TopEigenpair top = top_eigenpair(diagonal, beside);
      const double found = std::sqrt(top.value);
      const double residual = (length * std::abs(top.last_entry) + top.residual) / found;
      if (complete || residual <= 1e-12 * found + 1e-15) return {found, residual};
      if (step >= max_steps)
        return {found,
                std::min(std::max(0.0, norm_bound - found), random_start_bound(found, a.columns(), step)) + 1e-14};
    }
    beside.push_back(length);
    for (double& value : next) value /= length;
    basis.push_back(next);
  }
}

}  // namespace kith::detail
