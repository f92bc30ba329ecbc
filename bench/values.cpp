// SPDX-License-Identifier: Apache-2.0
#include "values.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

namespace bench {
namespace {

using kith::DType;

// 64 random bits of an element: the finaliser of MurmurHash3 over an odd multiple of its place.
std::uint64_t random_bits(std::uint64_t stream, std::size_t index) noexcept {
  std::uint64_t word = (stream + index) * 0x9E3779B97F4A7C15;
  word = (word ^ (word >> 33)) * 0xFF51AFD7ED558CCD;
  word = (word ^ (word >> 33)) * 0xC4CEB9FE1A85EC53;
  return word ^ (word >> 33);
}

// Streams of different ranks lie 2^40 elements apart.
std::uint64_t stream_of(std::uint64_t seed, kith::Rank rank) noexcept {
  return (seed << 56) + (static_cast<std::uint64_t>(rank) << 40);
}

// 2^exponent for the exponents of normal floats.
float power_of_two(int exponent) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(exponent + 127) << 23);
}

int exponent_of(float value) noexcept {
  return static_cast<int>((std::bit_cast<std::uint32_t>(value) >> 23) & 0xffU) - 127;
}

// Rounds to `bits` bits after the leading one (ties to even), by pushing the rest out of a float's mantissa.
float rounded_to(float value, int bits, int exponent) noexcept {
  const float push = 1.5F * power_of_two(exponent + 23 - bits);
  const volatile float pushed = value + push;
  return pushed - push;
}

// Of finite positive values that stay in the range of the format; all that occurs here.
std::uint16_t to_half(float value) noexcept {
  const int exponent = std::max(exponent_of(value), -14);
  const float units = rounded_to(value, 10, exponent) / power_of_two(exponent - 10);
  return static_cast<std::uint16_t>(static_cast<std::uint32_t>(units) +
                                    (static_cast<std::uint32_t>(exponent + 14) << 10));
}

float from_half(std::uint16_t bits) noexcept {
  const int exponent = std::max(bits >> 10, 1) - 15;
  const int units = (bits & 0x3ff) + (bits >= 0x400 ? 0x400 : 0);
  return static_cast<float>(units) * power_of_two(exponent - 10);
}

// A format: how it is stored, what it is computed in, and its values in [1, 2).
struct F32 {
  using Stored = float;
  using Computed = float;
  static Stored random(std::uint64_t bits) noexcept {
    return std::bit_cast<float>(0x3f800000U | static_cast<std::uint32_t>(bits >> 41));
  }
  static Computed widen(Stored value) noexcept { return value; }
  static Stored narrow(Computed value) noexcept { return value; }
};
struct F64 {
  using Stored = double;
  using Computed = double;
  static Stored random(std::uint64_t bits) noexcept {
    return std::bit_cast<double>(0x3ff0000000000000U | (bits >> 12));
  }
  static Computed widen(Stored value) noexcept { return value; }
  static Stored narrow(Computed value) noexcept { return value; }
};
struct F16 {
  using Stored = std::uint16_t;
  using Computed = float;
  static Stored random(std::uint64_t bits) noexcept { return static_cast<Stored>(0x3c00U | (bits >> 54)); }
  static Computed widen(Stored value) noexcept { return from_half(value); }
  static Stored narrow(Computed value) noexcept { return to_half(value); }
};
struct BF16 {
  using Stored = std::uint16_t;
  using Computed = float;
  static Stored random(std::uint64_t bits) noexcept { return static_cast<Stored>(0x3f80U | (bits >> 57)); }
  static Computed widen(Stored value) noexcept { return std::bit_cast<float>(std::uint32_t{value} << 16); }
  static Stored narrow(Computed value) noexcept {
    return static_cast<Stored>(std::bit_cast<std::uint32_t>(rounded_to(value, 7, exponent_of(value))) >> 16);
  }
};

template <class F>
auto with_format(DType dtype, const F& f) noexcept {
  switch (dtype) {
    case DType::f64:
      return f(F64{});
    case DType::f16:
      return f(F16{});
    case DType::bf16:
      return f(BF16{});
    case DType::f32:
      break;
  }
  return f(F32{});
}

// self + sum w_j (values(j) - self). Through a volatile, or the compiler may fuse the product into the sum.
template <class T, class Values>
T averaged(T self, const std::vector<kith::Neighborhood::Source>& sources, const Values& values) noexcept {
  T sum = 0;
  for (std::size_t k = 0; k < sources.size(); ++k) {
    const volatile T product = static_cast<T>(sources[k].weight) * (values(k) - self);
    sum = k == 0 ? T{product} : sum + product;
  }
  return self + sum;
}

template <class Format>
bool differs(typename Format::Stored got, typename Format::Stored want, double tolerance) noexcept {
  using T = typename Format::Stored;
  if (tolerance > 0) {
    const double expected = static_cast<double>(Format::widen(want));
    return !(std::abs(static_cast<double>(Format::widen(got)) - expected) <= tolerance * std::abs(expected));
  }
  if constexpr (std::is_floating_point_v<T>) {
    using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    return std::bit_cast<Bits>(got) != std::bit_cast<Bits>(want);
  } else {
    return got != want;  // bits already
  }
}

}  // namespace

void fill(const kith::BufferView& model, std::uint64_t seed, kith::Rank rank) noexcept {
  const std::uint64_t stream = stream_of(seed, rank);
  with_format(model.dtype, [&](auto format) {
    using Format = decltype(format);
    auto* const values = static_cast<typename Format::Stored*>(model.data);
    for (std::size_t i = 0; i < model.count; ++i) values[i] = Format::random(random_bits(stream, i));
  });
}

Expectation global_mean(std::uint64_t seed, kith::Rank size) {
  Expectation expected{seed, 0, {}};
  for (kith::Rank r = 1; r < size; ++r) expected.sources.push_back({r, 1.0 / static_cast<double>(size)});
  return expected;
}

std::size_t count_wrong(const kith::BufferView& model, const Expectation& expected, double tolerance) noexcept {
  std::vector<std::uint64_t> streams;
  for (const auto& source : expected.sources) streams.push_back(stream_of(expected.seed, source.rank));
  const std::uint64_t own = stream_of(expected.seed, expected.self);
  std::size_t wrong = 0;
  with_format(model.dtype, [&](auto format) {
    using Format = decltype(format);
    const auto* const values = static_cast<const typename Format::Stored*>(model.data);
    for (std::size_t i = 0; i < model.count; ++i) {
      const auto value = [&](std::uint64_t stream) { return Format::widen(Format::random(random_bits(stream, i))); };
      const auto mean = averaged(value(own), expected.sources, [&](std::size_t k) { return value(streams[k]); });
      wrong += differs<Format>(values[i], Format::narrow(mean), tolerance) ? 1 : 0;
    }
  });
  return wrong;
}

double average_of(double self, const std::vector<kith::Neighborhood::Source>& sources,
                  const std::vector<const double*>& models, std::size_t index) noexcept {
  return averaged(self, sources,
                  [&](std::size_t k) { return models[static_cast<std::size_t>(sources[k].rank)][index]; });
}

}  // namespace bench
