// SPDX-License-Identifier: Apache-2.0
#include <kith/codec/random_k.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

#include <doctest/doctest.h>

#include "masks.hpp"

namespace codec_random_k_test {

using kith::DType;
using kith::RandomK;
namespace checks = codec_checks;

TEST_CASE("random-k: keeps the elements that it names, exactly, the same on every rank") {
  for (const double fraction : {0.01, 0.3, 0.5, 0.7, 1.0}) checks::check_mask<RandomK>(fraction);
}

TEST_CASE("random-k: non-finite values and impossible bytes are refused") { checks::check_mask_errors<RandomK>(); }

TEST_CASE("random-k: every element is kept with the probability k / count") {
  for (const double fraction : {0.15, 0.4}) {  // neither 3 of 20 nor 7 of 18 are equal parts
    for (const std::size_t count : {20U, 18U}) {
      const RandomK mask{.fraction = fraction, .seed = 77};
      constexpr int rounds = 20000;
      std::vector<int> hits(count, 0);
      for (kith::Round round = 0; round < rounds; ++round)
        for (const std::size_t i : checks::indices(mask, count, round)) ++hits[i];
      const double p = static_cast<double>(mask.kept(count)) / static_cast<double>(count);
      const double deviation = std::sqrt(rounds * p * (1 - p));
      for (const int n : hits) CHECK(std::fabs(n - rounds * p) < 4.5 * deviation);
    }
  }
}

TEST_CASE("random-k: on average a contraction by 1 - k / count") {
  checks::Values values{DType::f32, 97};
  for (std::size_t i = 0; i < values.count(); ++i) values.set(i, i == 60 ? 20 : std::cos(static_cast<double>(i)));
  double sum = 0;
  constexpr int seeds = 4000;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    const RandomK mask{.fraction = 0.2, .seed = seed};
    sum += checks::relative_square(values, checks::decoded(mask, checks::encoded(mask, values), DType::f32, 97));
  }
  CHECK(sum / seeds == doctest::Approx(1 - 19.0 / 97).epsilon(0.02));
}

TEST_CASE("random-k: another round or seed keeps others, and round and seed are not interchangeable") {
  std::set<std::vector<std::size_t>> all;
  for (std::uint64_t seed = 0; seed < 8; ++seed)
    for (kith::Round round = 0; round < 8; ++round)
      all.insert(checks::indices(RandomK{.fraction = 0.1, .seed = seed}, 1000, round));
  CHECK(all.size() == 64);
}

}  // namespace codec_random_k_test
