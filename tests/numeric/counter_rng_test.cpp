// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstdint>

#include <kith/numeric/counter_rng.hpp>

namespace numeric_counter_rng_test {

namespace {

using Words = std::array<std::uint32_t, 4>;

}  // namespace

// The known answers of "philox4x32 10" in the file kat_vectors of Random123, the library that the authors published
// with Salmon et al., SC 2011 (github.com/DEShawResearch/random123).
TEST_CASE("counter_rng: philox4x32 gives the published answers") {
  CHECK(kith::philox4x32({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  constexpr std::uint32_t ones = 0xffffffff;
  CHECK(kith::philox4x32({ones, ones, ones, ones}, {ones, ones}) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(kith::philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

// The first numbers from the seeds 0 and 1234567, as Vigna's splitmix64.c (prng.di.unimi.it) and java.util's
// SplittableRandom give them.
TEST_CASE("counter_rng: splitmix64 gives the published sequence") {
  CHECK(kith::splitmix64(0, 0) == 0xe220a8397b1dcdaf);
  CHECK(kith::splitmix64(0, 1) == 0x6e789e6aa1b965f4);
  CHECK(kith::splitmix64(0, 2) == 0x06c45d188009454f);
  CHECK(kith::splitmix64(1234567, 0) == 6457827717110365317u);
  CHECK(kith::splitmix64(1234567, 1) == 3203168211198807973u);
  CHECK(kith::splitmix64(1234567, 2) == 9817491932198370423u);
}

TEST_CASE("counter_rng: each of seed, round and counter reaches the bits, with both of its halves") {
  constexpr kith::CounterRng rng{.seed = 0x299f31d0'a4093822};
  static_assert(rng.bits(0x03707344'13198a2e, 0x85a308d3'243f6a88) == 0x94fdcceb'd16cfe09);  // the third answer above
  constexpr std::uint64_t bit = 1;
  for (int i = 0; i < 64; ++i) {
    CHECK(rng.bits(0) != rng.bits(bit << i));
    CHECK(rng.bits(0) != rng.bits(0, bit << i));
    CHECK(rng.bits(0) != kith::CounterRng{rng.seed ^ (bit << i)}.bits(0));
  }
}

TEST_CASE("counter_rng: below() stays below and reaches everything equally often") {
  const kith::CounterRng rng{7};
  std::array<double, 6> counts{};
  const int draws = 60'000;
  for (int i = 0; i < draws; ++i) {
    const std::uint64_t face = rng.below(6, static_cast<kith::Round>(i));
    REQUIRE(face < 6);
    ++counts[face];
  }
  // Pearson's statistic has 5 degrees of freedom: above 25.7 once in 10,000 seeds (and this one is fixed).
  double statistic = 0;
  for (const double count : counts) statistic += (count - draws / 6.0) * (count - draws / 6.0) / (draws / 6.0);
  CHECK(statistic < 25.7);

  for (kith::Round round = 0; round < 100; ++round) {
    CHECK(rng.below(1, round) == 0);
    // At the largest bound it is the upper half of the bits.
    CHECK(rng.below(std::uint64_t{1} << 32, round) == (rng.bits(round) >> 32));
  }
}

TEST_CASE("counter_rng: uniform() has the mean 1/2 and the variance 1/12") {
  const kith::CounterRng rng{3};
  const int draws = 20'000;
  double total = 0;
  double squares = 0;
  for (int i = 0; i < draws; ++i) {
    const double x = rng.uniform(5, static_cast<std::uint64_t>(i));
    REQUIRE((x >= 0 && x < 1));
    total += x;
    squares += (x - 0.5) * (x - 0.5);
  }
  CHECK(std::abs(total / draws - 0.5) < 4 * std::sqrt(1.0 / 12 / draws));
  CHECK(std::abs(squares / draws - 1.0 / 12) < 4 * std::sqrt(1.0 / 180 / draws));  // of (x - 1/2)^2: 1/80 - 1/144
}

}  // namespace numeric_counter_rng_test
