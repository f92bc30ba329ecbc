// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <cmath>
#include <cstdint>
#include <numbers>

#include <kith/topology/detail.hpp>

namespace topology_detail_test {

using kith::Rank;
namespace detail = kith::detail;

namespace {

constexpr Rank largest = 2'147'483'647;

}  // namespace

TEST_CASE("topology detail: the logarithm is right on both sides of every power of two") {
  CHECK(detail::ceil_log2(1) == 0);
  for (int power = 1; power < 31; ++power) {
    const Rank size = Rank{1} << power;
    CHECK(detail::ceil_log2(size) == power);
    CHECK(detail::ceil_log2(size / 2 + 1) == power);
    CHECK(detail::is_power_of_two(size));
    if (power > 1) CHECK_FALSE(detail::is_power_of_two(size - 1));
  }
  CHECK(detail::ceil_log2(largest) == 31);
}

TEST_CASE("topology detail: steps around a ring, also one of 2^31 - 1 ranks") {
  for (const Rank size : {1, 2, 7, largest}) {
    for (const Rank rank : {0, size / 2, size - 1}) {
      for (const Rank distance : {0, 1, size / 2, size - 1, size}) {
        const auto forward = (std::int64_t{rank} + distance) % size;
        const auto backward = (std::int64_t{rank} - distance + size) % size;
        CHECK(detail::ahead(rank, distance, size) == forward);
        CHECK(detail::behind(rank, distance, size) == backward);
      }
    }
  }
}

TEST_CASE("topology detail: sin_pi is exact at both ends and symmetric between") {
  CHECK(detail::sin_pi(0, 5) == 0);
  CHECK(detail::sin_pi(5, 5) == 0);
  CHECK(detail::sin_pi(1, 2) == 1);
  CHECK(std::abs(detail::sin_pi(1, 6) - 0.5) < 1e-16);
  CHECK(std::abs(detail::sin_pi(2, 3) - std::numbers::sqrt3 / 2) < 1e-15);
  CHECK(detail::sin_pi(1, 1e9) == detail::sin_pi(1e9 - 1, 1e9));
}

TEST_CASE("topology detail: a number is all of the text") {
  Rank number = -5;
  CHECK(detail::parse_number<Rank>("17", 1, number));
  CHECK(number == 17);
  for (const char* wrong : {"", "0", "-1", "+1", " 1", "1 ", "1x", "0x10", "2147483648"}) {
    CAPTURE(wrong);
    CHECK_FALSE(detail::parse_number<Rank>(wrong, 1, number));
    CHECK(number == 17);
  }
}

}  // namespace topology_detail_test
