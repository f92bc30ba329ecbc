// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include <kith/numeric/isa.hpp>
#include <kith/numeric/kernels.hpp>
#include <kith/numeric/scalar_kernels.hpp>

namespace kith::detail {

// The codecs' loops over elements. As with the kernels of kith/numeric/kernels.hpp, none allocates or throws, pointers
// may have any alignment, and every variant gives the same bits.

/// A floating-point number as an integer: magnitudes in their order, with infinities and NaNs above all others.
template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

/// The bits of an infinity: those of finite magnitudes are less.
template <class T>
inline constexpr BitsOf<T> infinite_bits = std::bit_cast<BitsOf<T>>(std::numeric_limits<T>::infinity());

/// The extremes of some values as signed integers that are ordered like the numbers, -0 before +0.
template <class T>
struct Extremes {
  using Key = std::make_signed_t<BitsOf<T>>;
  Key least = std::numeric_limits<Key>::max();
  Key greatest = std::numeric_limits<Key>::min();

  /// The integer of a number, and the reverse: the map is its own inverse.
  [[nodiscard]] static constexpr Key swap(Key bits) noexcept {
    return bits ^ ((bits >> (8 * sizeof(Key) - 1)) & std::numeric_limits<Key>::max());
  }
  [[nodiscard]] static constexpr T number(Key key) noexcept { return std::bit_cast<T>(swap(key)); }

  [[nodiscard]] constexpr bool finite() const noexcept {
    constexpr Key limit = std::bit_cast<Key>(infinite_bits<T>);
    return greatest < limit && least > ~limit;
  }
  constexpr void include(const Extremes& other) noexcept {
    least = other.least < least ? other.least : least;
    greatest = other.greatest > greatest ? other.greatest : greatest;
  }
};

/// How a block of values becomes small integers and these become values again: rint(x * prescale * inverse), and
/// code * step * restore. The outer factors are powers of two; they are 1 unless the values are tiny or huge.
template <class T>
struct BlockScale {
  T prescale = 1;
  T inverse = 0;
  T step = 0;
  T restore = 1;
};

/// The kernels for f32. Those for f64 are plain loops.
struct CodecKernels {
  std::uint32_t (*max_magnitude)(const float* values, std::size_t count) noexcept;
  Extremes<float> (*extremes)(const float* values, std::size_t count) noexcept;
  void (*quantize)(const float* values, const BlockScale<float>& scale, std::byte* codes, std::size_t count) noexcept;
  void (*dequantize)(const std::byte* codes, const BlockScale<float>& scale, float* values, std::size_t count) noexcept;
  void (*quantize_level)(const float* values, float scale, std::int32_t lower, std::byte* codes,
                         std::size_t count) noexcept;
  void (*dequantize_level)(const std::byte* codes, float scale, float lower, float* values, std::size_t count) noexcept;
  void (*accumulate)(float* sums, const float* values, float weight, std::size_t count) noexcept;
  double (*subtract)(const float* a, const float* b, float* target, std::size_t count) noexcept;
  void (*add_averaged)(float* target, const float* self, std::span<const Weighted<float>> sources, float mixing,
                       std::size_t count) noexcept;
  void (*saturate)(const float* values, float limit, float* target, std::size_t count) noexcept;
  bool (*any_below)(const std::byte* codes, std::int8_t least, std::size_t count) noexcept;
};

namespace scalar {

template <class T>
[[nodiscard]] inline BitsOf<T> max_magnitude(const T* values, std::size_t count) noexcept {
  constexpr BitsOf<T> magnitude = std::numeric_limits<BitsOf<T>>::max() >> 1;
  BitsOf<T> greatest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const BitsOf<T> bits = load<BitsOf<T>>(values, i) & magnitude;
    greatest = bits > greatest ? bits : greatest;
  }
  return greatest;
}

template <class T>
[[nodiscard]] inline Extremes<T> extremes(const T* values, std::size_t count) noexcept {
  using Key = typename Extremes<T>::Key;
  Extremes<T> result;
  for (std::size_t i = 0; i < count; ++i) {
    const Key key = Extremes<T>::swap(load<Key>(values, i));
    result.include({key, key});
  }
  return result;
}

/// The nearest integer, ties to even, of |value| < 2^31 (2^63 for double): adding 2^23 leaves no room for a fraction.
template <class T>
[[nodiscard]] inline std::make_signed_t<BitsOf<T>> nearest(T value) noexcept {
  constexpr T whole = static_cast<T>(std::uint64_t{1} << (std::numeric_limits<T>::digits - 1));
  const T shift = std::copysign(whole, value);
  const T integer = std::fabs(value) < whole ? rounded(value + shift) - shift : value;
  return static_cast<std::make_signed_t<BitsOf<T>>>(integer);
}

template <class T>
inline void quantize(const T* values, const BlockScale<T>& scale, std::byte* codes, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    const T scaled = rounded(rounded(load<T>(values, i) * scale.prescale) * scale.inverse);
    codes[i] = static_cast<std::byte>(nearest(scaled));
  }
}

template <class T>
inline void dequantize(const std::byte* codes, const BlockScale<T>& scale, T* values, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    const T code = static_cast<T>(static_cast<std::int8_t>(codes[i]));
    store(values, i, rounded(rounded(code * scale.step) * scale.restore));
  }
}

/// Codes of 0 to 255: the nearest integer of x * scale, counted from `lower`, and 0 below it. For results up to 255.
template <class T>
inline void quantize_level(const T* values, T scale, std::make_signed_t<BitsOf<T>> lower, std::byte* codes,
                           std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    const auto code = nearest(rounded(load<T>(values, i) * scale)) - lower;
    codes[i] = static_cast<std::byte>(code < 0 ? 0 : code);
  }
}

/// The reverse: (code + lower) / scale.
template <class T>
inline void dequantize_level(const std::byte* codes, T scale, T lower, T* values, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i)
    store(values, i, rounded(rounded(static_cast<T>(std::to_integer<unsigned>(codes[i])) + lower) / scale));
}

/// sums += weight * values, product and sum rounded on their own.
template <class T>
inline void accumulate(T* sums, const T* values, T weight, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) store(sums, i, load<T>(sums, i) + rounded(weight * load<T>(values, i)));
}

/// The rest of subtract(), from element `begin` on.
template <class T>
inline double finish_subtraction(double (&lanes)[distance_lanes], const T* a, const T* b, T* target, std::size_t count,
                                 std::size_t begin) noexcept {
  for (std::size_t i = begin; i < count; ++i) {
    const T difference = load<T>(a, i) - load<T>(b, i);
    store(target, i, difference);
    lanes[i % distance_lanes] += rounded(static_cast<double>(difference) * static_cast<double>(difference));
  }
  return fold_distance(lanes);
}

/// target = a - b. Returns the sum of their squares, added up as squared_distance() does.
template <class T>
inline double subtract(const T* a, const T* b, T* target, std::size_t count) noexcept {
  double lanes[distance_lanes] = {};
  return finish_subtraction(lanes, a, b, target, count, 0);
}

/// The rest of add_averaged(), from element `begin` on.
template <class T>
inline void finish_averaging(T* target, const T* self, std::span<const Weighted<T>> sources, T mixing,
                             std::size_t count, std::size_t begin) noexcept {
  for (std::size_t i = begin; i < count; ++i) {
    const T x = load<T>(self, i);
    T sum = 0;
    for (const Weighted<T>& source : sources) sum += rounded(source.weight * (load<T>(source.values, i) - x));
    store(target, i, load<T>(target, i) + rounded(mixing * sum));
  }
}

/// target += mixing * sum_k weight_k * (source_k - self), the sum from zero in the order given, each operation rounded
/// on its own.
template <class T>
inline void add_averaged(T* target, const T* self, std::span<const Weighted<T>> sources, T mixing,
                         std::size_t count) noexcept {
  finish_averaging(target, self, sources, mixing, count, 0);
}

/// What is larger than `limit` becomes `limit`, with the value's sign. The target may be the values.
template <class T>
inline void saturate(const T* values, T limit, T* target, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    const T value = load<T>(values, i);
    const T least = value > limit ? limit : value;
    store(target, i, least < -limit ? -limit : least);
  }
}

/// Whether a code, as a signed number, is less than `least`.
[[nodiscard]] inline bool any_below(const std::byte* codes, std::int8_t least, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i)
    if (static_cast<std::int8_t>(codes[i]) < least) return true;
  return false;
}

inline constexpr CodecKernels codec_kernels{
    max_magnitude<float>,  extremes<float>,         quantize<float>,   dequantize<float>,
    quantize_level<float>, dequantize_level<float>, accumulate<float>, subtract<float>,
    add_averaged<float>,   saturate<float>,         any_below};

}  // namespace scalar
}  // namespace kith::detail

#if KITH_VECTORS
#if defined(__CUDACC__)
#define KITH_UNROLL
#elif defined(__clang__)
#define KITH_UNROLL _Pragma("unroll")
#else
#define KITH_UNROLL _Pragma("GCC unroll 8")
#endif
#define KITH_SIMD_NAME baseline
#define KITH_SIMD_BYTES 16
#define KITH_SIMD_TARGET
#include <kith/numeric/codec_vector_kernels.hpp>
#if KITH_X86
#define KITH_SIMD_NAME avx2
#define KITH_SIMD_BYTES 32
#define KITH_SIMD_TARGET __attribute__((target("avx2,f16c")))
#include <kith/numeric/codec_vector_kernels.hpp>
#define KITH_SIMD_NAME avx512
#define KITH_SIMD_BYTES 64
#define KITH_SIMD_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#include <kith/numeric/codec_vector_kernels.hpp>
#endif
#undef KITH_UNROLL
#endif

namespace kith::detail {

/// The kernels for this processor. Whoever calls many for small blocks asks once.
[[nodiscard]] inline const CodecKernels& codec_kernels() noexcept {
  switch (isa()) {
    case Isa::avx512:
      return avx512::codec_kernels;
    case Isa::avx2:
      return avx2::codec_kernels;
    case Isa::baseline:
      break;
  }
  return baseline::codec_kernels;
}

// As members of CodecKernels, for either type.

template <class T>
[[nodiscard]] inline BitsOf<T> max_magnitude(const CodecKernels& kernels, const T* values, std::size_t count) noexcept {
  if constexpr (std::is_same_v<T, float>)
    return kernels.max_magnitude(values, count);
  else
    return scalar::max_magnitude(values, count);
}

template <class T>
[[nodiscard]] inline Extremes<T> extremes(const CodecKernels& kernels, const T* values, std::size_t count) noexcept {
  if constexpr (std::is_same_v<T, float>)
    return kernels.extremes(values, count);
  else
    return scalar::extremes(values, count);
}

template <class T>
inline void quantize(const CodecKernels& kernels, const T* values, const BlockScale<T>& scale, std::byte* codes,
                     std::size_t count) noexcept {
  if constexpr (std::is_same_v<T, float>)
    kernels.quantize(values, scale, codes, count);
  else
    scalar::quantize(values, scale, codes, count);
}

template <class T>
inline void dequantize(const CodecKernels& kernels, const std::byte* codes, const BlockScale<T>& scale, T* values,
                       std::size_t count) noexcept {
  if constexpr (std::is_same_v<T, float>)
    kernels.dequantize(codes, scale, values, count);
  else
    scalar::dequantize(codes, scale, values, count);
}

template <class T>
inline void quantize_level(const CodecKernels& kernels, const T* values, T scale, std::make_signed_t<BitsOf<T>> lower,
                           std::byte* codes, std::size_t count) noexcept {
  if constexpr (std::is_same_v<T, float>)
    kernels.quantize_level(values, scale, lower, codes, count);
  else
    scalar::quantize_level(values, scale, lower, codes, count);
}

template <class T>
inline void dequantize_level(const CodecKernels& kernels, const std::byte* codes, T scale, T lower, T* values,
                             std::size_t count) noexcept {
  if constexpr (std::is_same_v<T, float>)
    kernels.dequantize_level(codes, scale, lower, values, count);
  else
    scalar::dequantize_level(codes, scale, lower, values, count);
}

template <class T>
inline void accumulate(const CodecKernels& kernels, T* sums, const T* values, T weight, std::size_t count) noexcept {
  if constexpr (std::is_same_v<T, float>)
    kernels.accumulate(sums, values, weight, count);
  else
    scalar::accumulate(sums, values, weight, count);
}

template <class T>
inline double subtract(const CodecKernels& kernels, const T* a, const T* b, T* target, std::size_t count) noexcept {
  if constexpr (std::is_same_v<T, float>)
    return kernels.subtract(a, b, target, count);
  else
    return scalar::subtract(a, b, target, count);
}

template <class T>
inline void add_averaged(const CodecKernels& kernels, T* target, const T* self, std::span<const Weighted<T>> sources,
                         T mixing, std::size_t count) noexcept {
  if constexpr (std::is_same_v<T, float>)
    kernels.add_averaged(target, self, sources, mixing, count);
  else
    scalar::add_averaged(target, self, sources, mixing, count);
}

template <class T>
inline void saturate(const CodecKernels& kernels, const T* values, T limit, T* target, std::size_t count) noexcept {
  if constexpr (std::is_same_v<T, float>)
    kernels.saturate(values, limit, target, count);
  else
    scalar::saturate(values, limit, target, count);
}

}  // namespace kith::detail
