// SPDX-License-Identifier: Apache-2.0
#include <kith/codec/min_max_uint8.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "checks.hpp"

namespace codec_min_max_uint8_test {

using kith::DType;
using kith::MinMaxUInt8;
namespace checks = codec_checks;

namespace {

// Bagua's formulas for a chunk, written from their description, one rounded operation after another. `valid` is false
// where the integers are too large for float, and a code below 0 is taken for 0.
struct Bagua {
  volatile float scale;
  volatile float upper;
  volatile float lower;
  bool valid;

  Bagua(float least, float greatest) {
    volatile float range = greatest - least;
    volatile float widened = range + 1e-7F;
    scale = 255.0F / widened;
    volatile float product = greatest * scale;
    upper = std::rint(product);
    lower = upper - 255.0F;
    valid = std::isfinite(range) && std::fabs(upper) <= 0x1p24F && std::fabs(lower) <= 0x1p24F;
  }
  [[nodiscard]] int code(float x) const {
    volatile float product = x * scale;
    volatile float level = std::fmin(std::rint(product), upper);
    volatile float difference = level - lower;
    return difference < 0 ? 0 : static_cast<int>(difference);
  }
  [[nodiscard]] float value(int code) const {
    volatile float level = static_cast<float>(code) + lower;
    return level / scale;
  }
};

struct Extremes {
  double least;
  double greatest;
};
Extremes extremes(const checks::Values& values, std::size_t begin, std::size_t end) {
  Extremes found{values[begin], values[begin]};
  for (std::size_t i = begin; i < end; ++i) {
    found.least = std::min(found.least, values[i]);
    found.greatest = std::max(found.greatest, values[i]);
  }
  return found;
}

// Half a step; and what the product, the quotient and the storage of the result are rounded by.
void check_half_step(const checks::Values& values, const checks::Values& result, std::size_t chunk) {
  const double unit = values.dtype() == DType::f64 ? 0x1p-53 : 0x1p-24;
  for (std::size_t begin = 0; begin < values.count(); begin += chunk) {
    const std::size_t end = std::min(begin + chunk, values.count());
    const auto [least, greatest] = extremes(values, begin, end);
    const double step = greatest / 255 - least / 255 + 1e-7 / 255;
    for (std::size_t i = begin; i < end; ++i) {
      const double rounding = kith::size_of(values.dtype()) == 2 ? 0.5 * checks::ulp(values.dtype(), result[i]) : 0;
      const double bound =
          0.50001 * step + 2.01 * unit * std::max(std::fabs(values[i]), std::fabs(result[i])) + rounding;
      if (std::fabs(values[i] - result[i]) <= bound) continue;
      CAPTURE(i);
      CAPTURE(values[i]);
      CAPTURE(result[i]);
      CHECK(std::fabs(values[i] - result[i]) <= bound);
      return;
    }
  }
}

std::vector<double> decoded_f32(const std::vector<double>& values) {
  checks::Values x{DType::f32, values};
  return checks::decoded(MinMaxUInt8{}, checks::encoded(MinMaxUInt8{}, x), DType::f32, values.size()).all();
}

}  // namespace

TEST_CASE("min-max-uint8: any input is decoded to within half a step") {
  for (const std::size_t chunk : {0U, 1U, 33U, 2048U}) {
    CAPTURE(chunk);
    const auto check = [&](const auto& values, const auto& result) {
      check_half_step(values, result, chunk == 0 ? 1U << 20 : chunk);
    };
    checks::check_codec(MinMaxUInt8{chunk}, chunk == 0 ? checks::usual_counts : std::vector<std::size_t>{5, 2100},
                        check);
  }
}

TEST_CASE("min-max-uint8: the wire has 32 bytes of extremes and padded codes for each chunk") {
  CHECK(MinMaxUInt8{}.wire_bytes(0, DType::f32) == 0);
  CHECK(MinMaxUInt8{}.wire_bytes(1, DType::f32) == 64);
  CHECK(MinMaxUInt8{}.wire_bytes(32, DType::f64) == 64);
  CHECK(MinMaxUInt8{}.wire_bytes(33, DType::f16) == 96);
  CHECK(MinMaxUInt8{.chunk = 50}.wire_bytes(100, DType::f32) == 2 * 96);
  CHECK(MinMaxUInt8{.chunk = 50}.wire_bytes(101, DType::f32) == 2 * 96 + 64);
  CHECK(MinMaxUInt8{.chunk = 1000}.wire_bytes(33, DType::f32) == 96);

  checks::Values values{DType::f32, {0, 255, 100, 0.5, 1.5, 254.4}};
  const auto bytes = checks::bytes_of(checks::encoded(MinMaxUInt8{}, values));
  std::vector<int> expected(64, 0);
  expected[6] = 0x7F;  // 255 is 0x437F0000
  expected[7] = 0x43;
  const int codes[] = {0, 255, 100, 0, 2, 254};
  std::copy(std::begin(codes), std::end(codes), expected.begin() + 32);
  CHECK(bytes == expected);
  CHECK(decoded_f32({0, 255, 100, 0.5, 1.5, 254.4}) == std::vector<double>{0, 255, 100, 0, 2, 254});
}

TEST_CASE("min-max-uint8: byte for byte what Bagua's formulas give") {
  constexpr std::uint64_t seed = 31;
  INFO("seed ", seed);
  std::mt19937_64 random{seed};
  std::normal_distribution<double> normal;
  for (const DType dtype : {DType::f32, DType::f16}) {
    for (int repeat = 0; repeat < 60; ++repeat) {
      const std::size_t count = 64 + random() % 400;
      const double magnitude = std::ldexp(1, static_cast<int>(random() % 21) - 14);
      const double offset = repeat % 3 == 0 ? 50 * normal(random) : 0;
      checks::Values values{dtype, count};
      for (std::size_t i = 0; i < count; ++i) values.set(i, magnitude * (normal(random) + offset));
      const auto [least, greatest] = extremes(values, 0, count);
      const Bagua bagua{static_cast<float>(least), static_cast<float>(greatest)};
      REQUIRE(bagua.valid);
      const checks::Wire wire = checks::encoded(MinMaxUInt8{}, values);
      checks::Values stored{dtype, {least, greatest}};
      CHECK(std::memcmp(wire.data(), stored.view().data, stored.view().bytes()) == 0);
      checks::Values expected{dtype, count};
      bool same = true;
      for (std::size_t i = 0; i < count; ++i) {
        const int code = bagua.code(static_cast<float>(values[i]));
        same = same && code == std::to_integer<int>(wire[32 + i]);
        expected.set(i, static_cast<double>(bagua.value(code)));
      }
      CHECK(same);
      const bool decoded_alike = expected == checks::decoded(MinMaxUInt8{}, wire, dtype, count);
      CHECK(decoded_alike);
    }
  }
}

TEST_CASE("min-max-uint8: the smallest value stays the smallest where upper is a tie") {
  // Between -1 and 1, scale is 127.5 and upper rint(127.5) = 128: -1 would get the code -128 + 127 = -1, or 255.
  CHECK(Bagua{-1, 1}.upper == 128);
  checks::Values values{DType::f32, {-1, 1, 0}};
  const auto wire = checks::encoded(MinMaxUInt8{}, values);
  CHECK(checks::bytes_of(wire)[32] == 0);
  CHECK(checks::bytes_of(wire)[33] == 255);
  const std::vector<double> result = decoded_f32({-1, 1, 0});
  CHECK(result[0] == doctest::Approx(-127 / 127.5));
  CHECK(result[1] == doctest::Approx(128 / 127.5));
  CHECK(result[2] == 0);
}

TEST_CASE("min-max-uint8: the largest value does not wrap where the levels are no integers of float") {
  const double after_one = 1 + 0x1p-23;
  CHECK_FALSE(Bagua{1, static_cast<float>(1 + 1e-6)}.valid);
  CHECK(decoded_f32({1, after_one}) == std::vector<double>{1, after_one});
  CHECK(decoded_f32({-after_one, -1}) == std::vector<double>{-after_one, -1});
  // Eight neighbours lie further apart than 1/255 of their range: all are decoded exactly.
  std::vector<double> neighbours;
  for (int i = 0; i <= 8; ++i) neighbours.push_back(1000 + i * 0x1p-14);
  CHECK(decoded_f32(neighbours) == neighbours);
  // The uppermost level is still an integer of float, 255 below it is not. A step is less than the distance of
  // neighbours: half of it is rounded away.
  const double greatest = -999.912109375;
  neighbours.clear();
  for (int i = 0; i < 250; ++i) neighbours.push_back(greatest - i * 0x1p-14);
  const Bagua edge{static_cast<float>(neighbours.back()), static_cast<float>(greatest)};
  CHECK(edge.upper >= -0x1p24F);
  CHECK_FALSE(edge.valid);
  CHECK(decoded_f32(neighbours) == neighbours);
  // A constant is decoded exactly from where its level leaves the integers of float on; 1e30 times the scale is
  // infinite.
  for (const double constant : {1.0, -5.0, 1e6, 1e30, -3e38}) {
    const auto stored = static_cast<double>(static_cast<float>(constant));
    CHECK(decoded_f32({constant, constant, constant}) == std::vector<double>(3, stored));
  }
  // The range itself overflows.
  const double most = checks::largest(DType::f32);
  const std::vector<double> result = decoded_f32({-most, most, 0});
  CHECK(result[0] == -most);
  CHECK(result[1] == most);
  CHECK(std::fabs(result[2]) <= most / 254);
}

TEST_CASE("min-max-uint8: magnitudes of 1e-10 fall between the levels, which are 4e-10 apart") {
  const double step = 1e-7 / 255;
  for (const double x : decoded_f32({1e-10, -1e-10, 0.5e-10})) CHECK(std::fabs(x) <= step / 2);
  const std::vector<double> larger = decoded_f32({3 * step, -3 * step});
  CHECK(larger[0] == doctest::Approx(3 * step).epsilon(0.05));
}

TEST_CASE("min-max-uint8: impossible bytes are refused") {
  for (const DType dtype : checks::dtypes) {
    CAPTURE(kith::to_string(dtype));
    const std::size_t width = kith::size_of(dtype);
    checks::Values values{dtype, 70};
    for (std::size_t i = 0; i < 70; ++i) values.set(i, static_cast<double>(i));
    const MinMaxUInt8 codec{.chunk = 40};
    const checks::Wire good = checks::encoded(codec, values);  // chunks of 32 + 64 and 32 + 32 bytes
    REQUIRE(good.size() == 160);
    const auto with = [&](std::size_t offset, std::initializer_list<double> extremes) {
      checks::Values replacement{dtype, extremes};
      checks::Wire wire = good;
      std::memcpy(wire.data() + offset, replacement.view().data, replacement.view().bytes());
      return wire;
    };
    for (const std::size_t offset : {std::size_t{0}, std::size_t{96}}) {
      checks::check_refused(codec, with(offset, {2, 1}), dtype, 70);
      checks::check_refused(codec, with(offset, {0, -0.0}), dtype, 70);
      checks::check_refused(codec, with(offset, {0, HUGE_VAL}), dtype, 70);
      checks::check_refused(codec, with(offset, {-HUGE_VAL, 0}), dtype, 70);
      checks::check_refused(codec, with(offset, {std::nan(""), 1}), dtype, 70);
      checks::check_refused(codec, with(offset, {1, std::nan("")}), dtype, 70);
    }
    for (const std::size_t padding : {2 * width, std::size_t{31}, std::size_t{72}, std::size_t{95}, 96 + 2 * width,
                                      std::size_t{127}, std::size_t{158}, std::size_t{159}}) {
      checks::Wire wire = good;
      wire[padding] = std::byte{1};
      checks::check_refused(codec, wire, dtype, 70);
    }
  }
}

}  // namespace codec_min_max_uint8_test
