// SPDX-License-Identifier: Apache-2.0
#include <kith/codec/top_k.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "checks.hpp"

namespace codec_top_k_test {

using kith::DType;
using kith::TopK;
namespace checks = codec_checks;

namespace {

// By sorting all of them.
std::vector<double> largest(const std::vector<double>& values, std::size_t k) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return std::fabs(values[a]) > std::fabs(values[b]); });
  std::vector<double> kept(values.size(), 0);
  for (std::size_t j = 0; j < k; ++j) kept[order[j]] = values[order[j]];
  return kept;
}

}  // namespace

TEST_CASE("top-k: keeps what sorting by magnitude puts first, exactly, the earlier of equals") {
  for (const double fraction : {0.01, 0.3, 1.0}) {
    CAPTURE(fraction);
    const std::vector<std::size_t> counts = {0, 1, 2, 50, 149, 150, 1001};
    checks::check_codec(TopK{fraction}, counts, [&](const auto& values, const auto& result) {
      const std::size_t count = values.count();
      if (count == 0) return;
      const auto k = static_cast<std::size_t>(std::lround(fraction * static_cast<double>(count)));
      const bool same = result.all() == largest(values.all(), std::clamp<std::size_t>(k, 1, count));
      CHECK(same);
    });
  }
}

TEST_CASE("top-k: the wire has ascending indices, then the values") {
  CHECK(TopK{}.wire_bytes(0, DType::f32) == 0);
  CHECK(TopK{}.wire_bytes(1, DType::f32) == 8);
  CHECK(TopK{}.wire_bytes(100, DType::f32) == 8);
  CHECK(TopK{}.wire_bytes(1000, DType::f64) == 120);
  CHECK(TopK{}.wire_bytes(149, DType::bf16) == 6);
  CHECK(TopK{}.wire_bytes(151, DType::bf16) == 12);
  CHECK(TopK{.fraction = 0.07}.kept(100) == 7);  // 0.07 * 100 is a little more than 7
  CHECK(TopK{}.wire_bytes(std::size_t{1} << 32, DType::f32) == 42949673ULL * 8);
  CHECK(TopK{}.wire_bytes((std::size_t{1} << 32) + 1, DType::f32) == 42949673ULL * 12);
  for (const double fraction : {0.0, -0.1, 1.01, std::nan("")})
    CHECK_THROWS_AS((void)TopK{fraction}.wire_bytes(10, DType::f32), kith::UsageError);

  checks::Values values{DType::bf16, {0, -2, 1, 2, 0.5, 1, -1, 4}};
  CHECK(
      checks::bytes_of(checks::encoded(TopK{.fraction = 0.5}, values)) ==
      std::vector<int>{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 7, 0, 0, 0, 0x00, 0xC0, 0x80, 0x3F, 0x00, 0x40, 0x80, 0x40});
}

TEST_CASE("top-k: a contraction by 1 - k / count, exactly so for equal magnitudes") {
  const TopK codec{.fraction = 0.1};
  const auto square = [&](checks::Values& x) {
    return checks::relative_square(x, checks::decoded(codec, checks::encoded(codec, x), x.dtype(), x.count()));
  };
  checks::Values equal{DType::f32, 1000};
  for (std::size_t i = 0; i < 1000; ++i) equal.set(i, i % 3 == 0 ? -2 : 2);
  CHECK(square(equal) == doctest::Approx(0.9));
  // For N(0, 1), what is below the 95 % quantile q = 1.645: 0.9 - 2 q phi(q) = 0.5607.
  constexpr std::uint64_t seed = 9;
  INFO("seed ", seed);
  std::mt19937_64 random{seed};
  checks::Values normal{DType::f32, 20000};
  for (std::size_t i = 0; i < normal.count(); ++i) normal.set(i, std::normal_distribution<>{}(random));
  CHECK(square(normal) == doctest::Approx(0.5607).epsilon(0.02));
}

TEST_CASE("top-k: impossible bytes are refused") {
  for (const DType dtype : checks::dtypes) {
    CAPTURE(kith::to_string(dtype));
    checks::Values values{dtype, {5, 1, 6, 1, 7, 1, 1, 1}};
    const TopK codec{.fraction = 0.375};
    const checks::Wire good = checks::encoded(codec, values);  // indices 0, 2, 4
    const auto with_index = [&](std::size_t j, std::uint32_t index) {
      checks::Wire wire = good;
      std::memcpy(wire.data() + 4 * j, &index, 4);
      return wire;
    };
    CHECK_NOTHROW(codec.decode(with_index(1, 3), values.view()));
    checks::check_refused(codec, with_index(2, 8), dtype, 8);
    checks::check_refused(codec, with_index(2, 0xFFFFFFFF), dtype, 8);
    checks::check_refused(codec, with_index(1, 0), dtype, 8);
    checks::check_refused(codec, with_index(1, 4), dtype, 8);
    checks::check_refused(codec, with_index(0, 5), dtype, 8);
    for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
      checks::Values number{dtype, {bad}};
      checks::Wire wire = good;
      std::memcpy(wire.data() + 12 + 2 * kith::size_of(dtype), number.view().data, kith::size_of(dtype));
      checks::check_refused(codec, wire, dtype, 8);
    }
  }
}

}  // namespace codec_top_k_test
