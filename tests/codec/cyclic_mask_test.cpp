// SPDX-License-Identifier: Apache-2.0
#include <kith/codec/cyclic_mask.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include "masks.hpp"

namespace codec_cyclic_mask_test {

using kith::CyclicMask;
using kith::DType;
namespace checks = codec_checks;

TEST_CASE("cyclic-mask: keeps the elements that it names, exactly, the same on every rank") {
  for (const double fraction : {0.01, 0.3, 0.5, 0.7, 1.0}) checks::check_mask<CyclicMask>(fraction);
}

TEST_CASE("cyclic-mask: non-finite values and impossible bytes are refused") {
  checks::check_mask_errors<CyclicMask>();
}

TEST_CASE("cyclic-mask: ceil(count / k) rounds from any round on keep every element, once where k divides count") {
  for (const double fraction : {0.05, 0.3, 0.7}) {
    for (const std::size_t count : {1U, 7U, 20U, 100U, 333U}) {
      for (const kith::Round start : {kith::Round{0}, kith::Round{5}, ~kith::Round{0} - 1000}) {
        const CyclicMask mask{.fraction = fraction, .seed = 6};
        const std::size_t k = mask.kept(count);
        const std::size_t rounds = (count + k - 1) / k;
        std::vector<int> hits(count, 0);
        for (std::size_t r = 0; r < rounds; ++r)
          for (const std::size_t i : checks::indices(mask, count, start + r)) ++hits[i];
        CHECK(*std::min_element(hits.begin(), hits.end()) == 1);
        CHECK(*std::max_element(hits.begin(), hits.end()) <= (count % k == 0 ? 1 : 2));
      }
    }
  }
}

TEST_CASE("cyclic-mask: on average over seeds a contraction by 1 - k / count") {
  checks::Values values{DType::f32, 100};
  for (std::size_t i = 0; i < values.count(); ++i) values.set(i, i == 60 ? 20 : std::cos(static_cast<double>(i)));
  double sum = 0;
  constexpr int seeds = 4000;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    const CyclicMask mask{.fraction = 0.2, .seed = seed};
    sum += checks::relative_square(values, checks::decoded(mask, checks::encoded(mask, values), DType::f32, 100));
  }
  CHECK(sum / seeds == doctest::Approx(0.8).epsilon(0.02));
}

TEST_CASE("cyclic-mask: the elements of a round are spread, not every k-th, and depend on the seed") {
  const auto first = checks::indices(CyclicMask{.fraction = 0.1, .seed = 1}, 1000, 0);
  const auto second = checks::indices(CyclicMask{.fraction = 0.1, .seed = 2}, 1000, 0);
  CHECK(first != second);
  CHECK(std::is_sorted(first.begin(), first.end()));
  std::vector<int> phases(10, 0);
  for (const std::size_t i : first) ++phases[i % 10];
  CHECK(*std::min_element(phases.begin(), phases.end()) > 0);
}

}  // namespace codec_cyclic_mask_test
