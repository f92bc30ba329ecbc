// SPDX-License-Identifier: Apache-2.0
#include <kith/codec/qsgd.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include <doctest/doctest.h>

#include "checks.hpp"

namespace codec_qsgd_test {

using kith::DType;
using kith::QSGD;
namespace checks = codec_checks;

namespace {

double norm(const checks::Values& values) {
  long double sum = 0;
  for (std::size_t i = 0; i < values.count(); ++i) sum += static_cast<long double>(values[i]) * values[i];
  return static_cast<double>(std::sqrt(sum));
}

checks::Values normal_values(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random{seed};
  checks::Values values{DType::f32, count};
  for (std::size_t i = 0; i < count; ++i) values.set(i, std::normal_distribution<>{}(random));
  return values;
}

}  // namespace

TEST_CASE("qsgd: any input is decoded to one of the two levels around it") {
  for (const std::uint32_t levels : {127U, 1U, 10U}) {
    CAPTURE(levels);
    const std::vector<std::size_t> counts = {0, 1, 2, 7, 64, 1025};
    checks::check_codec(QSGD{.levels = levels}, counts, [&](const auto& values, const auto& result) {
      const double limit = checks::largest(values.dtype());
      const double unit = std::min(norm(values) / levels, limit);
      checks::check_errors(values, result, [&](std::size_t i) {
        return 1.000001 * unit + checks::ulp(values.dtype(), std::max(std::fabs(values[i]), std::fabs(result[i])));
      });
    });
  }
}

TEST_CASE("qsgd: what lies on a level stays there, and the wire says so") {
  CHECK(QSGD{}.wire_bytes(0, DType::f32) == 0);
  CHECK(QSGD{}.wire_bytes(1, DType::f32) == 13);
  CHECK(QSGD{}.wire_bytes(100, DType::f64) == 116);
  CHECK(QSGD{}.wire_bytes(100, DType::bf16) == 110);
  for (const std::uint32_t levels : {0U, 128U})
    CHECK_THROWS_AS((void)QSGD{.levels = levels}.wire_bytes(1, DType::f32), kith::UsageError);

  // A norm of 5, a fifth of it is 1; the norm over the largest is 1.25, 0x3FF4000000000000.
  for (const DType dtype : checks::dtypes) {
    checks::Values values{dtype, {3, -4, 0}};
    for (std::uint64_t seed = 0; seed < 50; ++seed) {
      const QSGD codec{.levels = 5, .seed = seed};
      const checks::Wire wire = checks::encoded(codec, values);
      const std::vector<int> bytes = checks::bytes_of(wire);
      CHECK(std::vector<int>(bytes.begin(), bytes.begin() + 8) == std::vector<int>{0, 0, 0, 0, 0, 0, 0xF4, 0x3F});
      CHECK(std::vector<int>(bytes.end() - 3, bytes.end()) == std::vector<int>{3, 256 - 4, 0});
      CHECK(checks::decoded(codec, wire, dtype, 3).all() == std::vector<double>{3, -4, 0});
    }
  }
}

TEST_CASE("qsgd: unbiased, and the variance of each value is that of rounding at random") {
  checks::Values values = normal_values(40, 8);
  const QSGD codec{.levels = 4, .seed = 15};
  const double unit = norm(values) / 4;
  constexpr int rounds = 8000;
  std::vector<double> sum(values.count(), 0);
  std::vector<double> squares(values.count(), 0);
  for (kith::Round round = 0; round < rounds; ++round) {
    const auto result =
        checks::decoded(codec, checks::encoded(codec, values, {.rank = 1, .round = round}), DType::f32, 40);
    for (std::size_t i = 0; i < values.count(); ++i) {
      sum[i] += result[i];
      squares[i] += (result[i] - values[i]) * (result[i] - values[i]);
    }
  }
  for (std::size_t i = 0; i < values.count(); ++i) {
    const double part = std::fabs(values[i]) / unit - std::floor(std::fabs(values[i]) / unit);
    const double variance = unit * unit * part * (1 - part);
    CHECK(std::fabs(sum[i] / rounds - values[i]) < 4.5 * std::sqrt(variance / rounds) + 1e-6);
    // The squared error is unit^2 part^2 or unit^2 (1 - part)^2: its deviation is at most unit^2 / 2.
    CHECK(std::fabs(squares[i] / rounds - variance) < 4.5 * unit * unit / 2 / std::sqrt(rounds) + 1e-6);
  }
}

TEST_CASE("qsgd: the error is within the bound of lemma 3.1, and what a simulation gave") {
  for (const std::uint32_t levels : {2U, 16U, 127U}) {
    checks::Values values = normal_values(4096, 10);
    double sum = 0;
    for (kith::Round round = 0; round < 20; ++round) {
      const QSGD codec{.levels = levels};
      const auto wire = checks::encoded(codec, values, {.round = round});
      sum += checks::relative_square(values, checks::decoded(codec, wire, DType::f32, values.count())) / 20;
    }
    CHECK(sum <= std::min(4096.0 / (levels * levels), 64.0 / levels));
    if (levels == 127) CHECK(std::sqrt(sum) == doctest::Approx(0.205).epsilon(0.03));
  }
}

TEST_CASE("qsgd: the noise depends on seed, rank, round and buffer, each of them") {
  checks::Values values = normal_values(500, 3);
  std::set<checks::Wire> all;
  for (std::uint64_t seed = 0; seed < 3; ++seed)
    for (kith::Rank rank = 0; rank < 3; ++rank)
      for (kith::Round round = 0; round < 3; ++round)
        for (std::size_t buffer = 0; buffer < 3; ++buffer)
          all.insert(checks::encoded(QSGD{.seed = seed}, values, {rank, round, buffer}));
  CHECK(all.size() == 81);
  CHECK(checks::encoded(QSGD{}, values, {1, 2, 3}) == checks::encoded(QSGD{}, values, {1, 2, 3}));
}

TEST_CASE("qsgd: impossible bytes are refused") {
  for (const DType dtype : checks::dtypes) {
    CAPTURE(kith::to_string(dtype));
    const QSGD codec{.levels = 100};
    checks::Values values{dtype, std::vector<double>(30, 2)};
    const checks::Wire good = checks::encoded(codec, values);
    const auto with = [&](std::size_t offset, DType type, double value) {
      checks::Values number{type, {value}};
      checks::Wire wire = good;
      std::memcpy(wire.data() + offset, number.view().data, kith::size_of(type));
      return wire;
    };
    for (const double ratio : {0.0, -0.0, 0.99, 5.6, -2.0, std::nan(""), HUGE_VAL})  // sqrt(30) is 5.48
      checks::check_refused(codec, with(0, DType::f64, ratio), dtype, 30);
    for (const double largest : {0.0, -0.0, -2.0, std::nan(""), HUGE_VAL})
      checks::check_refused(codec, with(8, dtype, largest), dtype, 30);
    for (const int code : {101, 127, 128, 256 - 101}) {
      checks::Wire wire = good;
      wire[wire.size() - 7] = static_cast<std::byte>(code);
      checks::check_refused(codec, wire, dtype, 30);
    }
  }
}

}  // namespace codec_qsgd_test
