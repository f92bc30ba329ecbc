// SPDX-License-Identifier: Apache-2.0
#include <kith/codec/cast.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "checks.hpp"

namespace codec_cast_test {

using kith::bfloat16;
using kith::DType;
using kith::float16;
namespace checks = codec_checks;

namespace {

template <class To>
double narrowed(double value) {
  const DType to = kith::dtype_of<To>;
  const reference::Format format = to == DType::f16 ? reference::half : reference::brain;
  const double limit = checks::largest(to);
  return std::clamp(reference::decode(format, reference::encode(format, std::clamp(value, -limit, limit))), -limit,
                    limit);
}

// The nearest number of the wire's type, and of that the nearest one that the buffer's type has.
template <class To>
void check_all() {
  checks::check_codec(kith::Cast<To>{}, checks::usual_counts, [](const auto& values, const auto& result) {
    const double limit = checks::largest(values.dtype());
    checks::Values expected{values.dtype(), values.count()};
    for (std::size_t i = 0; i < values.count(); ++i)
      expected.set(i, std::clamp(narrowed<To>(values[i]), -limit, limit));
    const bool equal = expected.all() == result.all();
    CHECK(equal);
  });
}

}  // namespace

TEST_CASE("cast: rounds any input to the nearest number of the wire's type") {
  check_all<bfloat16>();
  check_all<float16>();
}

TEST_CASE("cast: a double is rounded once") {
  // Just above and below a tie between 1 and 1 + 2^-7 (bf16), 1 and 1 + 2^-10 (f16): in a float all three are the tie.
  const double tiny = std::ldexp(1, -40);
  for (const double sign : {1.0, -1.0}) {
    const auto round = [&](auto codec, double x) {
      checks::Values values{DType::f64, {sign * x}};
      return sign * checks::decoded(codec, checks::encoded(codec, values), DType::f64, 1)[0];
    };
    const kith::Cast<bfloat16> brain;
    CHECK(round(brain, 1 + 0x1p-8 - tiny) == 1);
    CHECK(round(brain, 1 + 0x1p-8) == 1);
    CHECK(round(brain, 1 + 0x1p-8 + tiny) == 1 + 0x1p-7);
    CHECK(round(brain, 1 + 0x3p-8 - tiny) == 1 + 0x1p-7);
    CHECK(round(brain, 1 + 0x3p-8) == 1 + 0x1p-6);
    const kith::Cast<float16> half;
    CHECK(round(half, 1 + 0x1p-11 - tiny) == 1);
    CHECK(round(half, 1 + 0x1p-11) == 1);
    CHECK(round(half, 1 + 0x1p-11 + tiny) == 1 + 0x1p-10);
    CHECK(round(half, 1e300) == 65504);
    CHECK(round(brain, 1e300) == 0x1.FEp127);
    CHECK(round(half, 1e-300) == 0);
  }
}

TEST_CASE("cast: the wire is the rounded values") {
  checks::Values values{DType::f32, {1, -2, 0.1, 1e6}};
  CHECK(kith::Cast<bfloat16>::wire_bytes(4, DType::f64) == 8);
  CHECK(checks::bytes_of(checks::encoded(kith::Cast<bfloat16>{}, values)) ==
        std::vector<int>{0x80, 0x3F, 0x00, 0xC0, 0xCD, 0x3D, 0x74, 0x49});
  CHECK(checks::bytes_of(checks::encoded(kith::Cast<float16>{}, values)) ==
        std::vector<int>{0x00, 0x3C, 0x00, 0xC0, 0x66, 0x2E, 0xFF, 0x7B});
}

TEST_CASE("cast: the relative error stays within 2^-8 and 2^-11") {
  std::mt19937_64 random{4};
  INFO("seed 4");
  checks::Values values{DType::f32, 3000};
  for (std::size_t i = 0; i < values.count(); ++i)
    values.set(i, std::ldexp(std::normal_distribution<>{}(random) + 2, 3));
  const auto largest_error = [&](auto codec) {
    const checks::Values result = checks::decoded(codec, checks::encoded(codec, values), DType::f32, values.count());
    double most = 0;
    for (std::size_t i = 0; i < values.count(); ++i)
      if (std::fabs(values[i]) > 1e-3) most = std::max(most, std::fabs(result[i] - values[i]) / std::fabs(values[i]));
    return most;
  };
  const double brain = largest_error(kith::Cast<bfloat16>{});
  CHECK(brain <= 0x1p-8);  // half of the distance between 1 and the next number
  CHECK(brain > 0x1p-10);
  const double half = largest_error(kith::Cast<float16>{});
  CHECK(half <= 0x1p-11);
  CHECK(half > 0x1p-13);
}

TEST_CASE("cast: bytes that are not finite numbers are refused") {
  for (const DType dtype : checks::dtypes) {
    checks::Values values{dtype, std::vector<double>(40, 2)};
    for (const int high : {0x7F, 0xFF}) {
      checks::Wire wire = checks::encoded(kith::Cast<bfloat16>{}, values);
      wire[77] = static_cast<std::byte>(high);
      wire[76] = std::byte{0x80};  // an infinity
      checks::check_refused(kith::Cast<bfloat16>{}, wire, dtype, 40);
      wire[76] = std::byte{0x7F};
      CHECK_NOTHROW(kith::Cast<bfloat16>{}.decode(wire, values.view()));
      wire[77] = static_cast<std::byte>(high & 0xFC);
      wire[76] = std::byte{1};
      checks::check_refused(kith::Cast<float16>{}, wire, dtype, 40);
    }
  }
}

}  // namespace codec_cast_test
