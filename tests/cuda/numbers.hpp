// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

#include <kith/numeric/kernels.hpp>
#include <kith/types.hpp>

/// What the kernels compute, twice more: by loops of their own, and by the kernels of the host.
namespace numbers {

using kith::DType;

/// A binary floating-point format by its definition: value = sign * mantissa * 2^exponent.
struct Format {
  int mantissa_bits;  // stored
  int least_exponent;
  double greatest;
};
inline constexpr Format f16{10, -14, 65504.0};
inline constexpr Format bf16{7, -126, 0x1.fep127};

/// The nearest number of the format, the even one on a tie.
inline double rounded_to(const Format& format, double value) {
  if (!std::isfinite(value) || value == 0) return value;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(value), format.least_exponent) - format.mantissa_bits);
  const double result = std::nearbyint(value / unit) * unit;
  return std::abs(result) > format.greatest ? std::copysign(std::numeric_limits<double>::infinity(), value) : result;
}

/// The value of 16 bits in the format.
inline double value_of(const Format& format, std::uint16_t bits) {
  const int exponents = 15 - format.mantissa_bits;
  const int mantissa = bits & ((1 << format.mantissa_bits) - 1);
  const int exponent = (bits >> format.mantissa_bits) & ((1 << exponents) - 1);
  double value = 0;
  if (exponent == (1 << exponents) - 1) {
    value = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  } else {
    const int implicit = exponent == 0 ? 0 : 1 << format.mantissa_bits;
    value = std::ldexp(mantissa + implicit, std::max(exponent, 1) - 1 + format.least_exponent - format.mantissa_bits);
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

/// A dtype, as bits that can be compared and as a number that can be computed with.
template <DType D>
struct Number {
  using Stored = std::conditional_t<
      D == DType::f64, double,
      std::conditional_t<D == DType::f32, float, std::conditional_t<D == DType::f16, kith::float16, kith::bfloat16>>>;
  using Real = std::conditional_t<D == DType::f64, double, float>;
  static constexpr bool narrow = sizeof(Stored) == 2;
  static constexpr const Format& format = D == DType::f16 ? f16 : bf16;

  static Real real(Stored stored) {
    if constexpr (narrow)
      return static_cast<Real>(value_of(format, stored.bits));
    else
      return stored;
  }
  /// Whether this is what `value` is stored as; which NaN is left open.
  static bool is(Stored stored, Real value) {
    const double expected = narrow ? rounded_to(format, value) : value;
    const double found = real(stored);
    if (std::isnan(expected)) return std::isnan(found);
    return found == expected && std::signbit(found) == std::signbit(expected);
  }
};

/// Mostly ordinary numbers; with special ones mixed in, if asked for.
template <DType D>
std::vector<typename Number<D>::Stored> random(std::mt19937& generator, std::size_t count, bool special) {
  using Stored = typename Number<D>::Stored;
  std::normal_distribution<float> normal;
  std::vector<Stored> values(count);
  for (Stored& value : values) {
    const float ordinary = normal(generator);
    if constexpr (D == DType::f16)
      value = kith::to_float16(ordinary);
    else if constexpr (D == DType::bf16)
      value = kith::to_bfloat16(ordinary);
    else
      value = static_cast<Stored>(ordinary) + static_cast<Stored>(normal(generator)) / Stored{1 << 20};
    if (!special || generator() % 8 != 0) continue;
    if constexpr (sizeof(Stored) == 2) {
      value.bits = static_cast<std::uint16_t>(generator());  // every kind of number
    } else {
      using Limits = std::numeric_limits<Stored>;
      constexpr Stored kinds[] = {0,
                                  -Stored{0},
                                  Limits::infinity(),
                                  -Limits::infinity(),
                                  Limits::quiet_NaN(),
                                  Limits::max(),
                                  -Limits::max(),
                                  Limits::min(),
                                  Limits::denorm_min()};
      value = kinds[generator() % std::size(kinds)];
    }
  }
  return values;
}

/// x + mixing * sum_k weight_k * (r_k - x), every intermediate result forced into memory.
template <class Real>
Real average(Real x, std::span<const Real> sources, std::span<const double> weights, double mixing) {
  volatile Real sum = 0;
  for (std::size_t k = 0; k < sources.size(); ++k) {
    volatile Real difference = sources[k] - x;
    volatile Real product = static_cast<Real>(weights[k]) * difference;
    if (k == 0)
      sum = product;
    else
      sum = sum + product;
  }
  volatile Real step = static_cast<Real>(mixing) * sum;
  return x + step;
}

/// The same for whole rows by the kernels of the host.
template <DType D>
std::vector<typename Number<D>::Stored> host_average(std::vector<typename Number<D>::Stored> x,
                                                     const std::vector<std::vector<typename Number<D>::Stored>>& rows,
                                                     std::span<const double> weights, double mixing) {
  using Real = typename Number<D>::Real;
  const std::size_t count = x.size();
  std::vector<std::vector<Real>> wide(rows.size() + 1, std::vector<Real>(count));
  const auto widen = [&](const auto& row, std::vector<Real>& to) {
    if constexpr (Number<D>::narrow)
      kith::detail::widen(D, row.data(), to.data(), count);
    else
      to = row;
  };
  widen(x, wide.back());
  std::vector<kith::detail::Weighted<Real>> sources;
  for (std::size_t k = 0; k < rows.size(); ++k) {
    widen(rows[k], wide[k]);
    sources.push_back({wide[k].data(), static_cast<Real>(weights[k])});
  }
  const std::span<const kith::detail::Weighted<Real>> all{sources};
  if constexpr (Number<D>::narrow)
    kith::detail::combine_narrow(D, x.data(), wide.back().data(), all, static_cast<Real>(mixing), count);
  else
    kith::detail::combine(x.data(), wide.back().data(), all, static_cast<Real>(mixing), count);
  return x;
}

/// How many elements differ in a bit; two NaNs are equal.
template <DType D>
std::size_t differences(const std::vector<typename Number<D>::Stored>& a,
                        const std::vector<typename Number<D>::Stored>& b) {
  std::size_t different = a.size() == b.size() ? 0 : 1;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (std::isnan(Number<D>::real(a[i])) && std::isnan(Number<D>::real(b[i]))) continue;
    if (std::memcmp(&a[i], &b[i], sizeof a[i]) != 0) ++different;
  }
  return different;
}

}  // namespace numbers
