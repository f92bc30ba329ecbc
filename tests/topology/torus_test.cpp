// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numbers>

#include <kith/topology/ring.hpp>
#include <kith/topology/torus.hpp>

namespace topology_torus_test {

using kith::Rank;
using kith::Torus;

namespace {

// Metropolis-Hastings weights of the graph in which ranks one step apart along one side, around the edge, are joined.
dense::Matrix expected_mixing(Rank rows, Rank columns) {
  const auto beside = [](Rank a, Rank b, Rank side) { return a != b && ((a + 1) % side == b || (b + 1) % side == a); };
  const Rank size = rows * columns;
  dense::Matrix edges(size);
  std::vector<int> degree(static_cast<std::size_t>(size));
  for (Rank i = 0; i < size; ++i) {
    for (Rank j = 0; j < size; ++j) {
      const bool below = i % columns == j % columns && beside(i / columns, j / columns, rows);
      const bool right = i / columns == j / columns && beside(i % columns, j % columns, columns);
      edges(i, j) = below || right ? 1 : 0;
      degree[static_cast<std::size_t>(i)] += below || right;
    }
  }
  dense::Matrix w = dense::identity(size);
  for (Rank i = 0; i < size; ++i) {
    for (Rank j = 0; j < size; ++j) {
      if (edges(i, j) == 0) continue;
      w(i, j) = 1.0 / (1 + std::max(degree[static_cast<std::size_t>(i)], degree[static_cast<std::size_t>(j)]));
      w(i, i) -= w(i, j);
    }
  }
  return w;
}

}  // namespace

TEST_CASE("torus: every size, every rank") { dense::check_family(Torus{}, 40); }

TEST_CASE("torus: all sides up to 7 have the weights of Metropolis-Hastings and the report that is measured") {
  for (Rank rows = 1; rows <= 7; ++rows) {
    for (Rank columns = 1; columns <= 7; ++columns) {
      CAPTURE(rows);
      CAPTURE(columns);
      const Torus torus{rows, columns};
      const Rank size = rows * columns;
      CHECK(dense::largest_difference(dense::mixing(torus, size, 0), expected_mixing(rows, columns)) < 1e-15);
      dense::check_rounds(torus, size);
      dense::check_equal(torus.report(size), dense::measure(torus, size));
    }
  }
}

TEST_CASE("torus: the default is the most square one") {
  for (Rank size = 1; size <= 300; ++size) {
    Rank rows = 1;
    for (Rank r = 1; r * r <= size; ++r)
      if (size % r == 0) rows = r;
    CAPTURE(size);
    CHECK(dense::same(dense::plan(Torus{}, size, 0), dense::plan(Torus{rows, size / rows}, size, 0)));
  }
  // 1000 x 1000: rank 0 has its peers beside it and a row away, around both edges.
  kith::Neighborhood row;
  kith::plan_round(Torus{}, 0, 1'000'000, 0, row);
  REQUIRE(row.sources().size() == 4);
  CHECK(row.targets()[0] == 1);
  CHECK(row.targets()[1] == 999);
  CHECK(row.targets()[2] == 1000);
  CHECK(row.targets()[3] == 999'000);
  CHECK(row.sources()[0].weight == 0.2);
}

TEST_CASE("torus: one row is a ring, two by two is a ring of four in another order") {
  for (const Rank size : {2, 3, 5, 8}) {
    CHECK(dense::same(dense::plan(Torus{1, size}, size, 0), dense::plan(kith::Ring{}, size, 0)));
    CHECK(dense::same(dense::plan(Torus{size, 1}, size, 0), dense::plan(kith::Ring{}, size, 0)));
  }
  CHECK(Torus{2, 2}.max_degree(4) == 2);
  CHECK(dense::mixing(Torus{2, 2}, 4, 0)(0, 1) == 1.0 / 3);
  CHECK(Torus{4, 2}.max_degree(8) == 3);
  CHECK(dense::mixing(Torus{4, 2}, 8, 0)(0, 1) == 0.25);
}

// For sides of at least 3: (2/5) (1 - cos(2 pi / longer side)).
TEST_CASE("torus: the gap of large tori") {
  for (const auto& [rows, columns] : {std::pair{3, 3}, {4, 5}, {30, 40}, {1000, 1000}}) {
    const double expected = 0.4 * (1 - std::cos(2 * std::numbers::pi / std::max(rows, columns)));
    CHECK(std::abs(Torus{rows, columns}.report(rows * columns).spectral_gap - expected) < 1e-14);
  }
  CHECK(Torus{}.report(1'000'000).spectral_gap == Torus{1000, 1000}.report(1'000'000).spectral_gap);
}

TEST_CASE("torus: the sides multiply to the size, or the torus is refused") {
  const std::string words = dense::refusal(Torus{4, 2}, 6);
  CHECK(dense::mentions(words, "torus:4x2"));
  CHECK(dense::mentions(words, "6 ranks"));
  CHECK(dense::mentions(words, "torus:2x3"));
  CHECK(dense::refusal(Torus{4, 2}, 8).empty());
  CHECK_FALSE(dense::refusal(Torus{0, 8}, 8).empty());
  CHECK_FALSE(dense::refusal(Torus{-2, -4}, 8).empty());
  CHECK_FALSE(dense::refusal(Torus{65'536, 65'537}, 65'536).empty());  // 2^16 (2^16 + 1) is 2^16 modulo 2^32
  CHECK(Torus{4, 2}.max_degree(1) == 0);
}

TEST_CASE("torus: parameters and back") {
  CHECK(kith::topology_name(Torus{}) == "torus");
  CHECK(kith::topology_name(Torus{4, 2}) == "torus:4x2");
  CHECK(Torus::from_parameters("4x2") == Torus{.rows = 4, .columns = 2});
  CHECK(Torus::from_parameters("") == Torus{});
  for (const char* wrong : {"4", "x", "4x", "x2", "4x2x1", "0x0", "-4x-2", "4X2", " 4x2", "4x2 ", "99999999999x1"}) {
    CAPTURE(wrong);
    CHECK_THROWS_WITH_AS((void)Torus::from_parameters(wrong), doctest::Contains("torus:4x2"), kith::UsageError);
  }
}

}  // namespace topology_torus_test
