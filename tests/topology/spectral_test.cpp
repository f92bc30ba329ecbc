// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <vector>

#include <doctest/doctest.h>

#include <kith/topology/spectral.hpp>

namespace topology_spectral_test {

namespace {

using kith::Rank;
using kith::detail::SparseRound;
using kith::detail::Vector;

// Row i hears 1 + i % 3 ranks with uneven weights: neither symmetric nor doubly stochastic.
SparseRound lopsided(Rank size) {
  SparseRound round{size};
  for (Rank i = 0; i < size; ++i) {
    for (Rank j = 0; j <= i % 3; ++j) round.add(i < size / 2 ? size - 3 + j : j, 0.1 + 0.05 * j);
    round.end_row();
  }
  return round;
}

// Every rank hears the next two.
SparseRound ahead_by_two(Rank size, double weight) {
  SparseRound round{size};
  for (Rank i = 0; i < size; ++i) {
    const Rank a = (i + 1) % size;
    const Rank b = (i + 2) % size;
    round.add(a < b ? a : b, weight);
    round.add(a < b ? b : a, weight);
    round.end_row();
  }
  return round;
}

// The entry (i, j) of the matrix that `apply` stands for.
template <class Apply>
double entry(const Apply& apply, std::size_t columns, std::size_t i, std::size_t j) {
  Vector unit(columns);
  unit[j] = 1;
  Vector image;
  apply(unit, image);
  return image[i];
}

TEST_CASE("spectral: a sparse round applies its matrix, and the transposed one") {
  const SparseRound round = lopsided(8);
  Vector unit(8);
  Vector image(8);
  unit[7] = 1;
  kith::detail::apply(round, unit.data(), image.data());
  // Rank 2 hears ranks 5, 6 and 7 with 0.1, 0.15 and 0.2.
  CHECK(image[2] == doctest::Approx(0.2));
  kith::detail::apply_transposed(round, unit.data(), image.data());
  CHECK(image[1] == doctest::Approx(0.15));  // rank 7 hears 0 and 1
  CHECK(image[7] == doctest::Approx(0.75));  // and keeps the rest

  const SparseRound back = round.transposed();
  CHECK(back.entries() == round.entries());
  CHECK_FALSE(back.near(round, 1e-3));
  CHECK(back.transposed().near(round, 0));
  std::size_t edges = 0;
  back.for_each_edge([&](std::size_t i, std::size_t j, double weight) {
    ++edges;
    unit.assign(8, 0);
    unit[i] = 1;  // back's rows are round's columns
    kith::detail::apply(round, unit.data(), image.data());
    CHECK(image[j] == doctest::Approx(weight));
  });
  CHECK(edges == 1 + 2 + 3 + 1 + 2 + 3 + 1 + 2);
}

TEST_CASE("spectral: equal values stay equal to the last bit") {
  const SparseRound round = lopsided(16);
  const Vector x(16, 0.1);
  Vector y(16);
  kith::detail::apply(round, x.data(), y.data());
  CHECK(y == x);
}

TEST_CASE("spectral: operators and their transposes belong together") {
  const std::vector<SparseRound> rounds{ahead_by_two(9, 0.3), lopsided(9), ahead_by_two(9, 0.125)};
  kith::detail::ProductOperator product{rounds};
  kith::detail::StackedOperator stacked{rounds};
  const auto check = [](auto& operation, std::size_t rows) {
    for (std::size_t i = 0; i < rows; ++i)
      for (std::size_t j = 0; j < operation.columns(); ++j) {
        const double forth = entry([&](const Vector& x, Vector& y) { operation.apply(x, y); }, 9, i, j);
        const double back = entry([&](const Vector& x, Vector& y) { operation.apply_transposed(x, y); }, rows, j, i);
        REQUIRE(forth == doctest::Approx(back).epsilon(1e-13));
      }
  };
  check(product, 9);
  check(stacked, 27);
  // The first round is applied first.
  Vector x(9);
  x[1] = 9;
  Vector expected(9);
  Vector y(9);
  kith::detail::apply(rounds[0], x.data(), expected.data());
  kith::detail::apply(rounds[1], expected.data(), y.data());
  kith::detail::apply(rounds[2], y.data(), expected.data());
  product.apply(x, y);
  for (std::size_t i = 0; i < 9; ++i) CHECK(y[i] == doctest::Approx(expected[i] - 1).epsilon(1e-13));
}

// The matrix with a on the diagonal and b beside it has the eigenvalues a + 2 b cos(k pi / (n + 1)), and the entries of
// the eigenvectors are sqrt(2 / (n + 1)) sin(i k pi / (n + 1)): Noschese, Pasquini, Reichel, Tridiagonal Toeplitz
// matrices: properties and novel applications, Numer. Linear Algebra Appl. 20 (2013).
TEST_CASE("spectral: the top eigenpair of a tridiagonal Toeplitz matrix") {
  for (std::size_t n = 1; n <= 60; ++n) {
    CAPTURE(n);
    const double angle = std::numbers::pi / static_cast<double>(n + 1);
    const auto top = kith::detail::top_eigenpair(Vector(n, 0.5), Vector(n - 1, 0.2));
    CHECK(top.value == doctest::Approx(0.5 + 0.4 * std::cos(angle)).epsilon(1e-15));
    const double last = std::sqrt(2 / static_cast<double>(n + 1)) * std::sin(static_cast<double>(n) * angle);
    CHECK(std::abs(top.last_entry) == doctest::Approx(last).epsilon(1e-9));
    CHECK(top.residual < 1e-14);
  }
}

TEST_CASE("spectral: a matrix in two parts that do not meet") {
  const auto top = kith::detail::top_eigenpair({1, 3, 2}, {0, 0});
  CHECK(top.value == doctest::Approx(3));
  CHECK(std::abs(top.last_entry) < 1e-12);
}

TEST_CASE("spectral: random vectors are seeded, have no mean and variance 1") {
  const Vector x = kith::detail::random_vector(10'000, 5);
  CHECK(x == kith::detail::random_vector(10'000, 5));
  CHECK(x != kith::detail::random_vector(10'000, 6));
  CHECK(std::abs(kith::detail::mean(x.data(), x.size())) < 1e-15);
  CHECK(kith::detail::dot(x, x) / 10'000 == doctest::Approx(1).epsilon(0.05));  // standard deviation 0.014
  double fourth = 0;
  for (const double value : x) fourth += value * value * value * value;
  CHECK(fourth / 10'000 == doctest::Approx(3).epsilon(0.1));  // normal: 3; standard deviation 0.1
}

TEST_CASE("spectral: the bound for a random start") {
  CHECK(kith::detail::random_start_bound(1, 100, 1) == std::numeric_limits<double>::infinity());
  // 1.648e9 sqrt(100) = 1.648e10 = exp(23.5254...); 2 steps - 1 = 199; e = 0.013976; 1 / sqrt(1 - e) - 1 = 0.0070619
  CHECK(kith::detail::random_start_bound(1, 100, 100) == doctest::Approx(0.0070619).epsilon(1e-4));
}

// The eigenvalues of the circulant (1 - 2 w) I + w S + w S^2 are 1 - 2 w + w z + w z^2 for the n-th roots of unity z.
TEST_CASE("spectral: the norm of a circulant, in full and cut short") {
  const Rank size = 200;
  const std::vector<SparseRound> rounds{ahead_by_two(size, 0.3)};
  double expected = 0;
  for (Rank k = 1; k < size; ++k) {
    const double angle = 2 * std::numbers::pi * k / size;
    expected = std::max(expected, std::hypot(0.4 + 0.3 * std::cos(angle) + 0.3 * std::cos(2 * angle),
                                             0.3 * std::sin(angle) + 0.3 * std::sin(2 * angle)));
  }
  kith::detail::ProductOperator operation{rounds};
  const auto full = kith::detail::spectral_norm(operation, 1000, 1);
  CHECK(std::abs(full.norm - expected) < 1e-12);
  CHECK(full.error < 1e-11);
  for (const std::size_t steps : {std::size_t{1}, std::size_t{5}, std::size_t{20}, std::size_t{40}}) {
    CAPTURE(steps);
    const auto cut = kith::detail::spectral_norm(operation, steps, 1);
    CHECK(cut.norm < expected);
    CHECK(cut.norm + cut.error >= expected);
    CHECK(cut.norm + cut.error <= 1 + 1e-13);
  }
}

}  // namespace

}  // namespace topology_spectral_test
