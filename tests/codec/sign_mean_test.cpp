// SPDX-License-Identifier: Apache-2.0
#include <kith/codec/sign_mean.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "checks.hpp"

namespace codec_sign_mean_test {

using kith::DType;
using kith::SignMean;
namespace checks = codec_checks;

TEST_CASE("sign-mean: every value becomes the mean magnitude with its sign") {
  checks::check_codec(SignMean{}, checks::usual_counts, [](const auto& values, const auto& result) {
    long double sum = 0;
    for (std::size_t i = 0; i < values.count(); ++i) sum += std::fabs(static_cast<long double>(values[i]));
    const auto mean = static_cast<double>(sum / static_cast<long double>(values.count()));
    // Adding a few thousand doubles loses some of their last digits.
    const double tolerance = 1.01 * checks::ulp(values.dtype(), mean) + 1e-13 * mean;
    bool right = true;
    for (std::size_t i = 0; i < values.count(); ++i) {
      right = right && std::signbit(result[i]) == std::signbit(values[i]) &&
              std::fabs(std::fabs(result[i]) - mean) <= tolerance;
    }
    CHECK(right);
  });
}

TEST_CASE("sign-mean: the wire has the mean and a bit per element") {
  CHECK(SignMean::wire_bytes(0, DType::f32) == 0);
  CHECK(SignMean::wire_bytes(1, DType::f32) == 5);
  CHECK(SignMean::wire_bytes(8, DType::f16) == 5);
  CHECK(SignMean::wire_bytes(9, DType::f64) == 10);
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    checks::Values values{dtype, {1, -1, 2, -4, 1, 1, 1, 1, 3, -5}};  // 20 / 10, 0x40000000
    CHECK(checks::bytes_of(checks::encoded(SignMean{}, values)) == std::vector<int>{0, 0, 0, 0x40, 0x0A, 0x02});
  }
  checks::Values values{DType::f64, {-8, 0, -0.0}};
  CHECK(checks::decoded(SignMean{}, checks::encoded(SignMean{}, values), DType::f64, 3).all() ==
        std::vector<double>{-8.0 / 3, 8.0 / 3, -8.0 / 3});
}

TEST_CASE("sign-mean: the error is ||x||^2 - ||x||_1^2 / count, 1 - 2 / pi of it for normally distributed values") {
  const auto square = [](checks::Values& x) {
    return checks::relative_square(x,
                                   checks::decoded(SignMean{}, checks::encoded(SignMean{}, x), x.dtype(), x.count()));
  };
  checks::Values few{DType::f64, {1, -2, 3, 0, 4}};  // ||x||_1 = 10, ||x||^2 = 30
  CHECK(square(few) == doctest::Approx(1 - 100.0 / (5 * 30)));
  constexpr std::uint64_t seed = 5;
  INFO("seed ", seed);
  std::mt19937_64 random{seed};
  checks::Values normal{DType::f32, 30000};
  for (std::size_t i = 0; i < normal.count(); ++i) normal.set(i, std::normal_distribution<>{}(random));
  CHECK(square(normal) == doctest::Approx(1 - 2 / std::acos(-1.0)).epsilon(0.02));
}

TEST_CASE("sign-mean: the sum is added in the order that is documented") {
  // 1 and 2^-53 in one lane lose the small ones; those in other lanes and tiles are added to each other first.
  constexpr std::size_t count = 300 * 1024;
  checks::Values values{DType::f64, count};
  for (std::size_t i = 0; i < count; ++i) values.set(i, i == 0 ? 1 : 0x1p-53);
  double lanes[8] = {
      1, 128 * 0x1p-53, 128 * 0x1p-53, 128 * 0x1p-53, 128 * 0x1p-53, 128 * 0x1p-53, 128 * 0x1p-53, 128 * 0x1p-53};
  const double first =
      ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  // Tiles 256 to 299 go to the lanes of tiles 0 to 43; all others sum up exactly.
  const double sum = (first + 1024 * 0x1p-53) + (255 + 43) * 1024 * 0x1p-53;
  const checks::Values result = checks::decoded(SignMean{}, checks::encoded(SignMean{}, values), DType::f64, count);
  CHECK(result[0] == sum / static_cast<double>(count));
  CHECK(sum > 1);
}

TEST_CASE("sign-mean: impossible bytes are refused") {
  for (const DType dtype : checks::dtypes) {
    CAPTURE(kith::to_string(dtype));
    checks::Values values{dtype, std::vector<double>(13, -2)};
    const checks::Wire good = checks::encoded(SignMean{}, values);
    const DType header = dtype == DType::f64 ? DType::f64 : DType::f32;
    for (const double bad : {-1.0, -0.0, std::nan(""), HUGE_VAL}) {
      checks::Values mean{header, {bad}};
      checks::Wire wire = good;
      std::memcpy(wire.data(), mean.view().data, kith::size_of(header));
      checks::check_refused(SignMean{}, wire, dtype, 13);
    }
    for (const unsigned bit : {5U, 6U, 7U}) {
      checks::Wire wire = good;
      wire.back() |= std::byte{1} << bit;
      checks::check_refused(SignMean{}, wire, dtype, 13);
    }
  }
  checks::Values values{DType::f16, std::vector<double>(8, 1)};
  checks::Wire wire = checks::encoded(SignMean{}, values);
  const float large = 65536;
  std::memcpy(wire.data(), &large, 4);
  checks::check_refused(SignMean{}, wire, DType::f16, 8);
}

}  // namespace codec_sign_mean_test
