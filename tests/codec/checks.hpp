// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <kith/codec.hpp>
#include <kith/error.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

/// @file
/// What every codec promises, checked for any: kith::Codec says it in words.

namespace codec_checks {

using kith::DType;

inline constexpr DType dtypes[] = {DType::f32, DType::f64, DType::f16, DType::bf16};
inline constexpr kith::CodecContext context{.rank = 3, .round = 5, .buffer = 2};

/// The significant bits of a dtype, and the exponents of its smallest normal number and of its largest.
struct Range {
  int digits;
  int least;
  int greatest;
};
[[nodiscard]] inline Range range_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return {53, -1022, 1023};
    case DType::f32:
      return {24, -126, 127};
    case DType::bf16:
      return {8, -126, 127};
    case DType::f16:
      break;
  }
  return {11, -14, 15};
}
[[nodiscard]] inline double largest(DType dtype) {
  return std::ldexp(2 - std::ldexp(1, 1 - range_of(dtype).digits), range_of(dtype).greatest);
}
/// The distance between numbers of the dtype around `value`.
[[nodiscard]] inline double ulp(DType dtype, double value) {
  const Range range = range_of(dtype);
  const int exponent = value == 0 ? range.least : std::max(std::ilogb(value), range.least);
  return std::ldexp(1, exponent + 1 - range.digits);
}

/// Values of one dtype between guards, as reference::Model has them.
class Values {
public:
  Values(DType dtype, std::size_t count, std::size_t shift = 0) : model_({{dtype, count, shift}}) {}
  Values(DType dtype, const std::vector<double>& values, std::size_t shift = 0) : Values(dtype, values.size(), shift) {
    for (std::size_t i = 0; i < values.size(); ++i) set(i, values[i]);
  }
  Values(DType dtype, std::initializer_list<double> values) : Values(dtype, std::vector<double>(values)) {}

  [[nodiscard]] kith::BufferView view() { return model_.views()[0]; }
  [[nodiscard]] std::size_t count() const { return model_.shape(0).count; }
  [[nodiscard]] DType dtype() const { return model_.shape(0).dtype; }
  [[nodiscard]] double operator[](std::size_t i) const { return model_.get(0, i); }
  void set(std::size_t i, double value) { model_.set(0, i, value); }
  [[nodiscard]] std::vector<double> all() const {
    std::vector<double> values(count());
    for (std::size_t i = 0; i < count(); ++i) values[i] = (*this)[i];
    return values;
  }
  friend bool operator==(const Values&, const Values&) = default;

private:
  reference::Model model_;
};

using Wire = std::vector<std::byte>;

template <class C>
[[nodiscard]] Wire encoded(const C& codec, Values& values, kith::CodecContext where = context) {
  Wire wire(codec.wire_bytes(values.count(), values.dtype()), std::byte{0xA5});
  codec.encode(values.view(), wire, where);
  return wire;
}
template <class C>
[[nodiscard]] Values decoded(const C& codec, const Wire& wire, DType dtype, std::size_t count,
                             kith::CodecContext where = context) {
  Values values{dtype, count};
  for (std::size_t i = 0; i < count; ++i) values.set(i, 77);  // all must be overwritten
  codec.decode(wire, values.view(), where);
  return values;
}

/// A kind of input: the value at an index.
struct Input {
  std::string name;
  std::function<double(std::size_t, std::mt19937_64&)> value;
};
[[nodiscard]] inline std::vector<Input> inputs(DType dtype) {
  using R = std::mt19937_64;
  const auto normal = [](R& random) { return std::normal_distribution<double>{}(random); };
  const auto uniform = [](R& random) { return std::uniform_real_distribution<double>{}(random); };
  const double most = largest(dtype);
  const double smallest = ulp(dtype, 0);
  std::vector<Input> list = {
      {"normal", [=](std::size_t, R& r) { return normal(r); }},
      {"zero", [](std::size_t i, R&) { return i % 3 == 0 ? -0.0 : 0.0; }},
      {"constant", [](std::size_t, R&) { return 0.1; }},
      {"negative constant", [](std::size_t, R&) { return -3.3; }},
      {"all negative", [=](std::size_t, R& r) { return -1 - std::fabs(normal(r)); }},
      {"tiny range on an offset", [=](std::size_t, R& r) { return 1 + 1e-6 * uniform(r); }},
      {"tiny range on a large offset", [=](std::size_t, R& r) { return -5000 - 0.01 * uniform(r); }},
      {"1e-10", [=](std::size_t, R& r) { return 1e-10 * normal(r); }},
      {"1e30", [=](std::size_t, R& r) { return std::clamp(1e30 * normal(r), -most, most); }},
      {"constant 1e30", [=](std::size_t, R&) { return std::min(1e30, most); }},
      {"up to the largest",
       [=](std::size_t i, R& r) { return i % 5 == 0 ? (i % 2 ? most : -most) : most * normal(r) / 8; }},
      {"half of the largest", [=](std::size_t, R& r) { return most * (uniform(r) - 0.5); }},
      {"subnormal", [=](std::size_t, R& r) { return smallest * std::floor(100 * uniform(r) - 50); }},
      {"all magnitudes",
       [=](std::size_t, R& r) {
         return std::clamp(std::ldexp(normal(r), static_cast<int>((uniform(r) - 0.5) * 2 * range_of(dtype).greatest)),
                           -most, most);
       }},
      {"an outlier", [=](std::size_t i, R& r) { return i == 100 ? 6e4 : normal(r); }},
  };
  for (Input& input : list) {
    // A normal distribution has no bound; what overflows the dtype is not what these are for.
    input.value = [f = input.value, most](std::size_t i, R& r) { return std::clamp(f(i, r), -most, most); };
  }
  return list;
}
[[nodiscard]] inline Values make(const Input& input, DType dtype, std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random{seed};
  Values values{dtype, count, seed % 3};
  for (std::size_t i = 0; i < count; ++i) values.set(i, input.value(i, random));
  return values;
}

/// accumulator + weight * value as decode_add() has to compute it, from an exactly known decoded value.
[[nodiscard]] inline double added(DType dtype, double accumulator, double weight, double value) {
  if (dtype == DType::f64) {
    volatile double product = weight * value;
    return accumulator + product;
  }
  volatile float product = static_cast<float>(weight) * static_cast<float>(value);
  volatile float sum = static_cast<float>(accumulator) + product;
  return static_cast<double>(sum);
}

/// One input: the wire is filled to the last byte and not beyond, the input is left alone, the same bytes come out
/// wherever memory lies, the result is finite, and decode_add() adds it. Returns what was decoded.
template <class C>
Values check_round_trip(const C& codec, Values& values) {
  const DType dtype = values.dtype();
  const std::size_t count = values.count();
  const Values before = values;
  const Wire wire = encoded(codec, values);
  const bool untouched = values == before;
  CHECK(untouched);

  Wire shifted(wire.size() + 16, std::byte{0x5A});
  Values elsewhere{dtype, values.all(), 1};
  codec.encode(elsewhere.view(), std::span{shifted}.subspan(3, wire.size()), context);
  bool same = std::equal(wire.begin(), wire.end(), shifted.begin() + 3);
  CHECK(same);
  const auto pattern = [](std::byte b) { return b == std::byte{0x5A}; };
  same = std::all_of(shifted.begin(), shifted.begin() + 3, pattern) &&
         std::all_of(shifted.end() - 13, shifted.end(), pattern);
  CHECK(same);

  Values result = decoded(codec, wire, dtype, count);
  Values again{dtype, count, 1};
  codec.decode(std::span{shifted}.subspan(3, wire.size()), again.view(), context);
  bool finite = true;
  same = true;
  for (std::size_t i = 0; i < count; ++i) {
    finite = finite && std::isfinite(result[i]);
    same = same && (result[i] == again[i] || (std::isnan(result[i]) && std::isnan(again[i])));
  }
  CHECK(finite);
  CHECK(same);

  // From zero and with weight 1 it is decode(); with another weight it is its product, rounded on its own. (The
  // decoded value of 16-bit types is not rounded before: near is all that can be said from outside.)
  Values sum{dtype, count};
  codec.decode_add(1, wire, sum.view(), context);
  bool equal = true;
  for (std::size_t i = 0; i < count; ++i) equal = equal && sum[i] == result[i];
  CHECK(equal);
  if (kith::size_of(dtype) >= 4) {
    Values expected{dtype, count};
    for (std::size_t i = 0; i < count; ++i) {
      sum.set(i, 0.7 * static_cast<double>(i % 7));
      expected.set(i, added(dtype, sum[i], -0.3, result[i]));
    }
    codec.decode_add(-0.3, wire, sum.view(), context);
    equal = sum == expected;
    CHECK(equal);
  }
  return result;
}

/// Bytes that are too few or too many, and memory of the wrong size.
template <class C>
void check_sizes(const C& codec, DType dtype, std::size_t count) {
  Values values{dtype, std::vector<double>(count, 1.5)};
  const Wire wire = encoded(codec, values);
  const Values before = values;
  Wire longer = wire;
  longer.push_back({});
  const std::span<const std::byte> cases[] = {longer, std::span{wire}.first(wire.empty() ? 0 : wire.size() - 1),
                                              std::span{wire}.first(0)};
  for (const auto bad : cases) {
    if (bad.size() == wire.size()) continue;
    CHECK_THROWS_AS(codec.check(bad, count, dtype), kith::WireError);
    CHECK_THROWS_AS(codec.decode(bad, values.view(), context), kith::WireError);
    CHECK_THROWS_AS(codec.decode_add(2, bad, values.view(), context), kith::WireError);
    const bool untouched = values == before;
    CHECK(untouched);
    Wire target(bad.size());
    CHECK_THROWS_AS(codec.encode(values.view(), target, context), kith::UsageError);
  }
}

/// Bytes that decode() must refuse without writing.
template <class C>
void check_refused(const C& codec, const Wire& wire, DType dtype, std::size_t count) {
  Values values{dtype, std::vector<double>(count, 1.5)};
  const Values before = values;
  CHECK_THROWS_AS(codec.check(wire, count, dtype), kith::WireError);
  CHECK_THROWS_AS(codec.decode(wire, values.view(), context), kith::WireError);
  CHECK_THROWS_AS(codec.decode_add(2, wire, values.view(), context), kith::WireError);
  const bool untouched = values == before;
  CHECK(untouched);
}

/// NaN and infinities are reported, with their place.
template <class C>
void check_non_finite(const C& codec, DType dtype, std::size_t count) {
  for (const double bad :
       {std::nan(""), std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()}) {
    for (const std::size_t index : {std::size_t{0}, count / 2, count - 1}) {
      Values values{dtype, std::vector<double>(count, -0.25)};
      values.set(index, bad);
      if (index + 1 < count) values.set(count - 1, bad);  // the first one is named
      Wire wire(codec.wire_bytes(count, dtype));
      try {
        codec.encode(values.view(), wire, context);
        FAIL_CHECK("encoded ", bad, " at ", index, " of ", count);
      } catch (const kith::NonFiniteError& error) {
        CHECK(error.rank() == context.rank);
        CHECK(error.buffer() == context.buffer);
        CHECK(error.index() == index);
      }
    }
  }
}

/// All of the above, for all dtypes, many counts and kinds of input. `check(values, decoded)` says how far a value may
/// be from where it was. `reads_all` is false for a codec that looks at some of the values only.
template <class C, class Check>
void check_codec(const C& codec, const std::vector<std::size_t>& counts, const Check& check, bool reads_all = true) {
  static_assert(kith::Codec<C>);
  constexpr std::uint64_t seed = 20;
  INFO("seed ", seed);
  for (const DType dtype : dtypes) {
    CAPTURE(kith::to_string(dtype));
    for (const std::size_t count : counts) {
      CAPTURE(count);
      for (const Input& input : inputs(dtype)) {
        CAPTURE(input.name);
        Values values = make(input, dtype, count, seed + count);
        check(values, check_round_trip(codec, values));
      }
      check_sizes(codec, dtype, count);
      if (count > 0 && reads_all) check_non_finite(codec, dtype, count);
    }
    Values nothing{dtype, 0};
    kith::BufferView null = nothing.view();
    null.data = nullptr;
    Wire wire(codec.wire_bytes(0, dtype));
    codec.encode(null, wire, context);
    codec.check(wire, 0, dtype);
    codec.decode(wire, null, context);
    codec.decode_add(1, wire, null, context);
  }
}

inline const std::vector<std::size_t> usual_counts = {0, 1, 2, 3, 7, 63, 64, 65, 255, 256, 257, 1023, 1025, 2500};

/// Every value within `bound(i)` of where it was.
template <class Bound>
void check_errors(const Values& values, const Values& result, const Bound& bound) {
  for (std::size_t i = 0; i < values.count(); ++i) {
    const double error = std::fabs(values[i] - result[i]);
    if (error <= bound(i)) continue;
    CAPTURE(i);
    CAPTURE(values[i]);
    CAPTURE(result[i]);
    CHECK(error <= bound(i));
    return;
  }
}

/// ||x - y||^2 / ||x||^2.
[[nodiscard]] inline double relative_square(const Values& x, const Values& y) {
  double error = 0;
  double norm = 0;
  for (std::size_t i = 0; i < x.count(); ++i) {
    error += (x[i] - y[i]) * (x[i] - y[i]);
    norm += x[i] * x[i];
  }
  return error / norm;
}

[[nodiscard]] inline std::vector<int> bytes_of(const Wire& wire) {
  std::vector<int> numbers;
  for (const std::byte b : wire) numbers.push_back(std::to_integer<int>(b));
  return numbers;
}

}  // namespace codec_checks
