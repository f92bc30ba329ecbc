// SPDX-License-Identifier: Apache-2.0
#include <kith/numeric/convert.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <doctest/doctest.h>

namespace numeric_convert_test {

namespace {

/// A 16-bit format, seen as what it means: the magnitudes with bits 0, 1, 2, ... in ascending order, ending with the
/// first power of two that is too large. Rounding to nearest even is then a search in a list.
struct Format {
  int fraction_bits;
  int bias;
  std::uint32_t infinity;  // its bits
  std::vector<double> magnitudes;

  Format(int fraction, int exponent_bias, std::uint32_t infinity_bits)
      : fraction_bits(fraction), bias(exponent_bias), infinity(infinity_bits) {
    for (std::uint32_t bits = 0; bits <= infinity; ++bits) {
      const int exponent = static_cast<int>(bits >> fraction_bits);
      const int fraction_part = static_cast<int>(bits) & ((1 << fraction_bits) - 1);
      const int implicit = exponent == 0 ? 0 : 1 << fraction_bits;
      magnitudes.push_back(std::ldexp(implicit + fraction_part, (exponent == 0 ? 1 : exponent) - bias - fraction_bits));
    }
  }

  [[nodiscard]] std::uint16_t nearest(float value) const {
    const double magnitude = std::fabs(static_cast<double>(value));
    const std::uint32_t sign = std::signbit(value) ? 0x8000U : 0U;
    std::uint32_t bits = infinity;
    if (magnitude < magnitudes.back()) {
      const auto above = std::upper_bound(magnitudes.begin(), magnitudes.end(), magnitude);
      bits = static_cast<std::uint32_t>(above - magnitudes.begin()) - 1;
      const double down = magnitude - magnitudes[bits];  // exact: both are multiples of a common small power of two
      const double up = *above - magnitude;
      if (up < down || (up == down && bits % 2 == 1)) ++bits;
    }
    return static_cast<std::uint16_t>(sign | bits);
  }
};

const Format& half() {
  static const Format format(10, 15, 0x7c00);
  return format;
}
const Format& brain() {
  static const Format format(7, 127, 0x7f80);
  return format;
}

std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }

template <class T>
void check_widening(const Format& format) {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const std::uint32_t magnitude = bits & 0x7fffU;
    const float value = kith::to_float(T{static_cast<std::uint16_t>(bits)});
    bool good = std::signbit(value) == (bits >= 0x8000U);
    if (magnitude > format.infinity) {
      good = good && std::isnan(value);
    } else if (magnitude == format.infinity) {
      good = good && std::isinf(value);
    } else {
      good = good && std::fabs(static_cast<double>(value)) == format.magnitudes[magnitude];
    }
    wrong += good ? 0 : 1;
  }
  CHECK(wrong == 0);
}

template <class T, class Narrow>
void check_narrowing(const Format& format, Narrow narrow) {
  int wrong = 0;
  const auto check = [&](float value) {
    const std::uint16_t bits = narrow(value).bits;
    const bool good = std::isnan(value) ? (bits & 0x7fffU) > format.infinity : bits == format.nearest(value);
    if (!good && ++wrong < 5) FAIL_CHECK("narrowing ", value, " gave bits ", bits);
  };
  for (std::uint32_t bits = 0; bits < format.infinity; ++bits) {
    const double low = format.magnitudes[bits];
    const double tie = (low + format.magnitudes[bits + 1]) / 2;
    for (const double magnitude : {low, tie}) {
      const auto at = static_cast<float>(magnitude);
      for (const float value : {at, std::nextafter(at, 0.0F), std::nextafter(at, HUGE_VALF)}) {
        check(value);
        check(-value);
      }
    }
  }
  std::mt19937 random(20240601);
  for (int i = 0; i < 200000; ++i) check(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float value : {infinity, std::numeric_limits<float>::max(), std::numeric_limits<float>::denorm_min()}) {
    check(value);
    check(-value);
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("convert: every 16-bit value widens to the number it stands for") {
  check_widening<kith::float16>(half());
  check_widening<kith::bfloat16>(brain());
}

TEST_CASE("convert: narrowing takes the nearest value, the even one of two") {
  check_narrowing<kith::float16>(half(), [](float value) { return kith::to_float16(value); });
  check_narrowing<kith::bfloat16>(brain(), [](float value) { return kith::to_bfloat16(value); });
}

TEST_CASE("convert: a NaN keeps its sign and the upper part of its payload, and becomes quiet") {
  for (const std::uint32_t sign : {0U, 0x80000000U}) {
    for (const std::uint32_t payload : {1U, 0x1fffU, 0x2000U, 0x2aaaaaU, 0x3fffffU, 0x400000U, 0x5b6db6U, 0x7fffffU}) {
      const float nan = std::bit_cast<float>(sign | 0x7f800000U | payload);
      CAPTURE(sign);
      CAPTURE(payload);
      CHECK(kith::to_float16(nan).bits == ((sign >> 16) | 0x7e00U | (payload >> 13)));
      CHECK(kith::to_bfloat16(nan).bits == ((sign >> 16) | 0x7fc0U | (payload >> 16)));
      const auto payload16 = static_cast<std::uint16_t>(payload >> 13);
      if (payload16 != 0) {
        const kith::float16 nan16{static_cast<std::uint16_t>((sign >> 16) | 0x7c00U | payload16)};
        CHECK(bits_of(kith::to_float(nan16)) == (sign | 0x7fc00000U | static_cast<std::uint32_t>(payload16) << 13));
      }
    }
  }
}

TEST_CASE("convert: published values") {
  // Examples of the articles "Half-precision floating-point format" and "bfloat16 floating-point format", Wikipedia.
  static_assert(kith::to_float(kith::float16{0x0001}) == 0.000000059604645F);
  static_assert(kith::to_float(kith::float16{0x03ff}) == 0.000060975552F);
  static_assert(kith::to_float(kith::float16{0x0400}) == 0.00006103515625F);
  static_assert(kith::to_float(kith::float16{0x3555}) == 0.33325195F);
  static_assert(kith::to_float(kith::float16{0x7bff}) == 65504.0F);
  static_assert(kith::to_float16(1.0F / 3.0F).bits == 0x3555);
  static_assert(kith::to_float16(65504.0F).bits == 0x7bff);
  static_assert(kith::to_float16(65519.996F).bits == 0x7bff);
  static_assert(kith::to_float16(65520.0F).bits == 0x7c00);
  static_assert(kith::to_float16(-2.0F).bits == 0xc000);
  static_assert(kith::to_float(kith::bfloat16{0x3eab}) == 0.333984375F);
  static_assert(kith::to_float(kith::bfloat16{0x4049}) == 3.140625F);
  static_assert(kith::to_bfloat16(3.14159265F).bits == 0x4049);
  static_assert(kith::to_bfloat16(1.0F / 3.0F).bits == 0x3eab);
  CHECK(kith::to_float(kith::bfloat16{0x7f7f}) == doctest::Approx(3.38953139e38));
}

}  // namespace numeric_convert_test
