// SPDX-License-Identifier: Apache-2.0
#include <kith/codec/int8_block.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <doctest/doctest.h>

#include "checks.hpp"

namespace codec_int8_block_test {

using kith::DType;
using kith::Int8Block;
namespace checks = codec_checks;

namespace {

// Half of the largest magnitude over 127, and the rounding of the result: to the dtype, and in the products before
// (127 roundings of 2^-24 are less than 1e-4 of a step). Never larger than the largest.
void check_half_step(const checks::Values& values, const checks::Values& result, std::size_t block) {
  for (std::size_t begin = 0; begin < values.count(); begin += block) {
    const std::size_t end = std::min(begin + block, values.count());
    double most = 0;
    for (std::size_t i = begin; i < end; ++i) most = std::max(most, std::fabs(values[i]));
    for (std::size_t i = begin; i < end; ++i) {
      const double step = most / 127;
      const double bound = 0.50005 * step + 0.5 * checks::ulp(values.dtype(), result[i]);
      const bool near = std::fabs(values[i] - result[i]) <= bound && std::fabs(result[i]) <= most;
      if (near) continue;
      CAPTURE(i);
      CAPTURE(values[i]);
      CAPTURE(result[i]);
      CHECK(near);
      return;
    }
  }
}

}  // namespace

TEST_CASE("int8-block: any input is decoded to within half a step") {
  for (const std::size_t block : {256U, 1U, 7U, 3000U}) {
    CAPTURE(block);
    const auto check = [&](const auto& values, const auto& result) { check_half_step(values, result, block); };
    checks::check_codec(Int8Block{block}, block == 256 ? checks::usual_counts : std::vector<std::size_t>{5, 2100},
                        check);
  }
}

TEST_CASE("int8-block: the wire has each block's largest magnitude and a byte per element") {
  CHECK(Int8Block{}.wire_bytes(0, DType::f32) == 0);
  CHECK(Int8Block{}.wire_bytes(1, DType::f32) == 1 + 4);
  CHECK(Int8Block{}.wire_bytes(256, DType::bf16) == 256 + 2);
  CHECK(Int8Block{}.wire_bytes(257, DType::f64) == 257 + 16);
  CHECK(Int8Block{.block = 4}.wire_bytes(1000, DType::f32) == 1000 + 1000);
  CHECK_THROWS_AS((void)Int8Block{.block = 0}.wire_bytes(1, DType::f32), kith::UsageError);

  // Blocks of 4 with the largest magnitudes 127, 254 and 0: codes are the values, half of them, nothing. Ties to even.
  for (const DType dtype : checks::dtypes) {
    checks::Values values{dtype, {127, 0.5, 1.5, -2.5, -254, 1, 3, -5, 0, -0.0, 0, 0}};
    const Int8Block codec{.block = 4};
    const auto bytes = checks::bytes_of(checks::encoded(codec, values));
    CHECK(std::vector<int>(bytes.end() - 12, bytes.end()) ==
          std::vector<int>{127, 0, 2, 256 - 2, 256 - 127, 0, 2, 256 - 2, 0, 0, 0, 0});
    const checks::Values result = checks::decoded(codec, checks::encoded(codec, values), dtype, 12);
    CHECK(result.all() == std::vector<double>{127, 0, 2, -2, -254, 0, 4, -4, 0, 0, 0, 0});
  }
  checks::Values values{DType::f32, {127, 1}};
  CHECK(checks::bytes_of(checks::encoded(Int8Block{}, values)) == std::vector<int>{0, 0, 0xFE, 0x42, 127, 1});
  checks::Values halves{DType::bf16, {-127, 1}};
  CHECK(checks::bytes_of(checks::encoded(Int8Block{}, halves)) == std::vector<int>{0xFE, 0x42, 256 - 127, 1});
}

TEST_CASE("int8-block: a contraction by block / 254^2 at most, which one value among equals almost reaches") {
  // All others half a step away from a code: the largest error that there can be.
  checks::Values values{DType::f64, std::vector<double>(256, 0.5)};
  values.set(17, 127);
  const Int8Block codec;
  const double square =
      checks::relative_square(values, checks::decoded(codec, checks::encoded(codec, values), DType::f64, 256));
  CHECK(square == doctest::Approx(255 * 0.25 / (127 * 127 + 255 * 0.25)));
  CHECK(square < 256 / (254.0 * 254));
  CHECK(square > 0.99 * 255 / (254.0 * 254));
}

TEST_CASE("int8-block: impossible bytes are refused") {
  for (const DType dtype : checks::dtypes) {
    CAPTURE(kith::to_string(dtype));
    const std::size_t count = 600;  // 3 blocks
    const std::size_t width = kith::size_of(dtype);
    checks::Values values{dtype, std::vector<double>(count, 1)};
    const Int8Block codec;
    const checks::Wire good = checks::encoded(codec, values);
    for (const std::size_t at : {3 * width, 3 * width + 100, good.size() - 1}) {
      checks::Wire wire = good;
      wire[at] = std::byte{0x80};  // -128
      checks::check_refused(codec, wire, dtype, count);
    }
    for (std::size_t b = 0; b < 3; ++b) {
      for (const double bad : {-1.0, -0.0, std::nan(""), HUGE_VAL}) {
        checks::Values magnitude{dtype, {bad}};
        checks::Wire wire = good;
        std::memcpy(wire.data() + b * width, magnitude.view().data, width);
        checks::check_refused(codec, wire, dtype, count);
      }
    }
  }
}

}  // namespace codec_int8_block_test
