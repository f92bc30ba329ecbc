// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <cmath>
#include <numbers>

#include <kith/topology/shift_one.hpp>

namespace topology_shift_one_test {

using kith::Rank;
using kith::Round;
using kith::ShiftOne;

TEST_CASE("shift-one: every size, every rank") { dense::check_family(ShiftOne{}, 32); }

// Bagua's decentralized full-precision algorithm, peer_selection_mode "shift_one": with h = n/2, rank r < h meets
// h + (t + r) mod h, and rank r >= h meets (r - h - t) mod h.
TEST_CASE("shift-one: the pairs are Bagua's") {
  for (const Rank size : {2, 6, 8, 20}) {
    const Rank half = size / 2;
    for (Rank step = 0; step < 2 * half; ++step) {
      const dense::Plan plan = dense::plan(ShiftOne{}, size, static_cast<Round>(step));
      for (Rank r = 0; r < size; ++r) {
        const Rank peer = r < half ? half + (step + r) % half : ((r - half - step) % half + half) % half;
        REQUIRE(plan[static_cast<std::size_t>(r)].sources().size() == 1);
        CHECK(plan[static_cast<std::size_t>(r)].sources()[0] == kith::Neighborhood::Source{peer, 0.5});
      }
    }
  }
}

TEST_CASE("shift-one: after t rounds the error has shrunk by cos(2 pi / n)^(t-1), like a ring") {
  const Rank size = 10;
  dense::Matrix reached = dense::identity(size);
  for (Round round = 0; round < 12; ++round) {
    reached = dense::product(dense::mixing(ShiftOne{}, size, round), reached);
    const double expected = std::pow(std::cos(2 * std::numbers::pi / size), static_cast<double>(round));
    CHECK(std::abs(dense::spectral_norm(dense::sum(reached, dense::mean(size), -1)) - expected) < 1e-12);
  }
  // 64 ranks need 2864 rounds for a factor of a million: 89.5 periods of 32. Each period makes 31 turns of the ring.
  const double cosine = std::cos(2 * std::numbers::pi / 64);
  CHECK(std::ceil(1 - 6 * std::log(10) / std::log(cosine)) == 2864);
  CHECK(ShiftOne::report(64).contraction == doctest::Approx(std::pow(cosine, 31)).epsilon(1e-13));
  // A million ranks: log cos(x) = -x^2/2 - x^4/12 - ..., x = 2 pi / n, over n/2 - 1 turns.
  const double x = 2 * std::numbers::pi / 1'000'000;
  CHECK(1 - ShiftOne::report(1'000'000).contraction == doctest::Approx(499'999 * x * x / 2).epsilon(1e-5));
  CHECK(ShiftOne::report(1'000'000).spectral_gap == doctest::Approx(499'999.0 / 500'000 * x * x / 2).epsilon(1e-10));
}

TEST_CASE("shift-one: two and four ranks reach the mean, more never do") {
  CHECK(ShiftOne::report(2).exact_after == 1);
  CHECK(ShiftOne::report(4).exact_after == 2);
  CHECK(ShiftOne::report(4).exact_after_any_phase == 2);
  CHECK_FALSE(ShiftOne::report(6).exact_after);
}

TEST_CASE("shift-one: odd sizes are refused") {
  const std::string words = dense::refusal(ShiftOne{}, 7);
  CHECK(dense::mentions(words, "even"));
  CHECK(dense::mentions(words, "6"));
  CHECK(dense::mentions(words, "not 7"));
  CHECK(dense::mentions(words, "random-matching"));
  for (Rank size = 2; size <= 64; ++size) CHECK(dense::refusal(ShiftOne{}, size).empty() == (size % 2 == 0));
}

}  // namespace topology_shift_one_test
