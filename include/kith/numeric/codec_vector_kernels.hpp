// SPDX-License-Identifier: Apache-2.0
// No #pragma once: kith/numeric/codec_kernels.hpp includes this file once per instruction set, with the macros of
// kith/numeric/vector_kernels.hpp, whose namespaces it continues. Included without them it is empty.
#if defined(KITH_SIMD_NAME)

namespace kith::detail::KITH_SIMD_NAME {

#define KITH_SIMD_INLINE KITH_SIMD_TARGET __attribute__((always_inline)) inline

using I8 __attribute__((vector_size(KITH_SIMD_BYTES))) = std::int8_t;

/// Registers of a loop's turn: as many as become one register of bytes.
inline constexpr std::size_t code_vectors = 4;
inline constexpr std::size_t code_step = code_vectors * lanes;

/// The nearest integers, ties to even (the rounding mode that every program starts with).
KITH_SIMD_INLINE I32 nearest(F32 value) noexcept {
  I32 integer;
#if KITH_X86 && KITH_SIMD_BYTES == 16
  asm("cvtps2dq %1, %0" : "=x"(integer) : "x"(value));
#elif KITH_X86
  asm("vcvtps2dq %1, %0" : "=x"(integer) : "x"(value));
#else
  asm("fcvtns %0.4s, %1.4s" : "=w"(integer) : "w"(value));
#endif
  return integer;
}

/// Stores the low bytes of 32-bit elements, in order. They fit into a signed byte, or with Unsigned into -2^15..255
/// and what is negative becomes zero.
template <bool Unsigned>
KITH_SIMD_INLINE void store_bytes(std::byte* to, const I32 (&v)[code_vectors]) noexcept {
#if KITH_X86 && KITH_SIMD_BYTES < 64
  I32 low = v[0];
  I32 high = v[2];
#if KITH_SIMD_BYTES == 16
  asm("packssdw %1, %0" : "+x"(low) : "x"(v[1]));
  asm("packssdw %1, %0" : "+x"(high) : "x"(v[3]));
  if constexpr (Unsigned)
    asm("packuswb %1, %0" : "+x"(low) : "x"(high));
  else
    asm("packsswb %1, %0" : "+x"(low) : "x"(high));
  store(to, low);
#else
  asm("vpackssdw %1, %0, %0" : "+x"(low) : "x"(v[1]));
  asm("vpackssdw %1, %0, %0" : "+x"(high) : "x"(v[3]));
  if constexpr (Unsigned)
    asm("vpackuswb %1, %0, %0" : "+x"(low) : "x"(high));
  else
    asm("vpacksswb %1, %0, %0" : "+x"(low) : "x"(high));
  store(to, __builtin_shufflevector(low, low, 0, 4, 1, 5, 2, 6, 3, 7));  // each half was packed by itself
#endif
#else
  KITH_UNROLL
  for (std::size_t u = 0; u < code_vectors; ++u) {
    const I32 kept = Unsigned ? v[u] & (v[u] > 0) : v[u];
#if KITH_X86
    using Bytes __attribute__((vector_size(lanes))) = std::int8_t;
    Bytes bytes;
    asm("vpmovdb %1, %0" : "=x"(bytes) : "x"(kept));
    store(to + u * lanes, bytes);
#else
    for (std::size_t i = 0; i < lanes; ++i) to[u * lanes + i] = static_cast<std::byte>(kept[i]);
#endif
  }
#endif
}

/// The reverse: bytes as floats, in order.
template <bool Unsigned>
KITH_SIMD_INLINE void load_bytes(const std::byte* from, F32 (&v)[code_vectors]) noexcept {
  I32 wide[code_vectors];
#if KITH_SIMD_BYTES == 16
  const I8 bytes = load<I8>(from);
  const I16 low =
      reinterpret_cast<I16>(__builtin_shufflevector(bytes, bytes, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7));
  const I16 high = reinterpret_cast<I16>(
      __builtin_shufflevector(bytes, bytes, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15));
  wide[0] = reinterpret_cast<I32>(__builtin_shufflevector(low, low, 0, 0, 1, 1, 2, 2, 3, 3));
  wide[1] = reinterpret_cast<I32>(__builtin_shufflevector(low, low, 4, 4, 5, 5, 6, 6, 7, 7));
  wide[2] = reinterpret_cast<I32>(__builtin_shufflevector(high, high, 0, 0, 1, 1, 2, 2, 3, 3));
  wide[3] = reinterpret_cast<I32>(__builtin_shufflevector(high, high, 4, 4, 5, 5, 6, 6, 7, 7));
  KITH_UNROLL
  for (I32& w : wide) w = Unsigned ? reinterpret_cast<I32>(reinterpret_cast<U32>(w) >> 24) : w >> 24;
#else
  using Bytes = std::byte[lanes];
  KITH_UNROLL
  for (std::size_t u = 0; u < code_vectors; ++u) {
    if constexpr (Unsigned)
      asm("vpmovzxbd %1, %0" : "=x"(wide[u]) : "m"(*reinterpret_cast<const Bytes*>(from + u * lanes)));
    else
      asm("vpmovsxbd %1, %0" : "=x"(wide[u]) : "m"(*reinterpret_cast<const Bytes*>(from + u * lanes)));
  }
#endif
  KITH_UNROLL
  for (std::size_t u = 0; u < code_vectors; ++u) v[u] = __builtin_convertvector(wide[u], F32);
}

KITH_SIMD_TARGET inline std::uint32_t max_magnitude(const float* values, std::size_t count) noexcept {
  I32 greatest[code_vectors] = {};
  std::size_t i = 0;
  for (; i + code_step <= count; i += code_step) {
    KITH_UNROLL
    for (std::size_t u = 0; u < code_vectors; ++u) {
      const I32 bits = load<I32>(values + i + u * lanes) & 0x7fffffff;
      greatest[u] = bits > greatest[u] ? bits : greatest[u];
    }
  }
  greatest[0] = greatest[1] > greatest[0] ? greatest[1] : greatest[0];
  greatest[2] = greatest[3] > greatest[2] ? greatest[3] : greatest[2];
  greatest[0] = greatest[2] > greatest[0] ? greatest[2] : greatest[0];
  // By parts of 16 bytes: blocks are short, and element by element this would take longer than they.
  using Part __attribute__((vector_size(16))) = std::int32_t;
  Part parts[KITH_SIMD_BYTES / 16];
  __builtin_memcpy(parts, greatest, sizeof parts);
  KITH_UNROLL
  for (const Part& part : parts) parts[0] = part > parts[0] ? part : parts[0];
  std::uint32_t result = scalar::max_magnitude(values + i, count - i);
  for (std::size_t k = 0; k < 4; ++k) {
    const auto bits = static_cast<std::uint32_t>(parts[0][k]);
    result = bits > result ? bits : result;
  }
  return result;
}

KITH_SIMD_TARGET inline Extremes<float> extremes(const float* values, std::size_t count) noexcept {
  Extremes<float> result;
  I32 least[code_vectors];
  I32 greatest[code_vectors];
  KITH_UNROLL
  for (std::size_t u = 0; u < code_vectors; ++u) {
    least[u] = I32{} + result.least;
    greatest[u] = I32{} + result.greatest;
  }
  std::size_t i = 0;
  for (; i + code_step <= count; i += code_step) {
    KITH_UNROLL
    for (std::size_t u = 0; u < code_vectors; ++u) {
      const I32 bits = load<I32>(values + i + u * lanes);
      const I32 key = bits ^ ((bits >> 31) & 0x7fffffff);
      least[u] = key < least[u] ? key : least[u];
      greatest[u] = key > greatest[u] ? key : greatest[u];
    }
  }
  result = scalar::extremes(values + i, count - i);
  KITH_UNROLL
  for (std::size_t u = 0; u < code_vectors; ++u)
    for (std::size_t k = 0; k < lanes; ++k) result.include({least[u][k], greatest[u][k]});
  return result;
}

KITH_SIMD_TARGET inline void quantize(const float* values, const BlockScale<float>& scale, std::byte* codes,
                                      std::size_t count) noexcept {
  const BlockScale<float> s = scale;
  std::size_t i = 0;
  for (; i + code_step <= count; i += code_step) {
    I32 integers[code_vectors];
    KITH_UNROLL
    for (std::size_t u = 0; u < code_vectors; ++u) {
      const F32 x = rounded(load<F32>(values + i + u * lanes) * s.prescale);
      integers[u] = nearest(rounded(x * s.inverse));
    }
    store_bytes<false>(codes + i, integers);
  }
  scalar::quantize(values + i, s, codes + i, count - i);
}

KITH_SIMD_TARGET inline void dequantize(const std::byte* codes, const BlockScale<float>& scale, float* values,
                                        std::size_t count) noexcept {
  const BlockScale<float> s = scale;
  std::size_t i = 0;
  for (; i + code_step <= count; i += code_step) {
    F32 x[code_vectors];
    load_bytes<false>(codes + i, x);
    KITH_UNROLL
    for (std::size_t u = 0; u < code_vectors; ++u) store(values + i + u * lanes, rounded(x[u] * s.step) * s.restore);
  }
  scalar::dequantize(codes + i, s, values + i, count - i);
}

KITH_SIMD_TARGET inline void quantize_level(const float* values, float scale, std::int32_t lower, std::byte* codes,
                                            std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + code_step <= count; i += code_step) {
    I32 integers[code_vectors];
    KITH_UNROLL
    for (std::size_t u = 0; u < code_vectors; ++u)
      integers[u] = nearest(rounded(load<F32>(values + i + u * lanes) * scale)) - lower;
    store_bytes<true>(codes + i, integers);
  }
  scalar::quantize_level(values + i, scale, lower, codes + i, count - i);
}

KITH_SIMD_TARGET inline void dequantize_level(const std::byte* codes, float scale, float lower, float* values,
                                              std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + code_step <= count; i += code_step) {
    F32 x[code_vectors];
    load_bytes<true>(codes + i, x);
    KITH_UNROLL
    for (std::size_t u = 0; u < code_vectors; ++u) store(values + i + u * lanes, rounded(x[u] + lower) / scale);
  }
  scalar::dequantize_level(codes + i, scale, lower, values + i, count - i);
}

KITH_SIMD_TARGET inline void accumulate(float* sums, const float* values, float weight, std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + code_step <= count; i += code_step) {
    KITH_UNROLL
    for (std::size_t u = 0; u < code_vectors; ++u) {
      const std::size_t at = i + u * lanes;
      store(sums + at, load<F32>(sums + at) + rounded(weight * load<F32>(values + at)));
    }
  }
  scalar::accumulate(sums + i, values + i, weight, count - i);
}

KITH_SIMD_TARGET inline double subtract(const float* a, const float* b, float* target, std::size_t count) noexcept {
  constexpr std::size_t step = KITH_SIMD_BYTES / sizeof(double);
  constexpr std::size_t vectors = distance_lanes / step;
  constexpr std::size_t turn = distance_lanes < lanes ? lanes : distance_lanes;
  F64 sums[vectors] = {};
  std::size_t i = 0;
  for (; i + turn <= count; i += turn) {
    KITH_UNROLL
    for (std::size_t u = 0; u < turn / lanes; ++u)
      store(target + i + u * lanes, load<F32>(a + i + u * lanes) - load<F32>(b + i + u * lanes));
    KITH_UNROLL
    for (std::size_t u = 0; u < turn / step; ++u) {
      const F64 difference = load_double(target + i + u * step);
      sums[u % vectors] += rounded(difference * difference);
    }
  }
  double lane_sums[distance_lanes];
  __builtin_memcpy(lane_sums, sums, sizeof sums);
  return scalar::finish_subtraction(lane_sums, a, b, target, count, i);
}

KITH_SIMD_TARGET inline void add_averaged(float* target, const float* self, std::span<const Weighted<float>> sources,
                                          float mixing, std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + code_step <= count; i += code_step) {
    F32 x[code_vectors];
    F32 sums[code_vectors] = {};
    KITH_UNROLL
    for (std::size_t u = 0; u < code_vectors; ++u) x[u] = load<F32>(self + i + u * lanes);
    for (const Weighted<float>& source : sources) {
      KITH_UNROLL
      for (std::size_t u = 0; u < code_vectors; ++u)
        sums[u] += rounded(source.weight * (load<F32>(source.values + i + u * lanes) - x[u]));
    }
    KITH_UNROLL
    for (std::size_t u = 0; u < code_vectors; ++u) {
      const std::size_t at = i + u * lanes;
      store(target + at, load<F32>(target + at) + rounded(mixing * sums[u]));
    }
  }
  scalar::finish_averaging(target, self, sources, mixing, count, i);
}

KITH_SIMD_TARGET inline void saturate(const float* values, float limit, float* target, std::size_t count) noexcept {
  const F32 most = F32{} + limit;
  std::size_t i = 0;
  for (; i + code_step <= count; i += code_step) {
    KITH_UNROLL
    for (std::size_t u = 0; u < code_vectors; ++u) {
      const F32 x = load<F32>(values + i + u * lanes);
      const F32 least = x > most ? most : x;
      store(target + i + u * lanes, least < -most ? -most : least);
    }
  }
  scalar::saturate(values + i, limit, target + i, count - i);
}

[[nodiscard]] KITH_SIMD_TARGET inline bool any_below(const std::byte* codes, std::int8_t least,
                                                     std::size_t count) noexcept {
  const I8 limit = I8{} + least;
  std::size_t i = 0;
  I8 found{};
  for (; i + code_vectors * sizeof(I8) <= count; i += code_vectors * sizeof(I8)) {
    KITH_UNROLL
    for (std::size_t u = 0; u < code_vectors; ++u) found |= load<I8>(codes + i + u * sizeof(I8)) < limit;
  }
  return any(found) || scalar::any_below(codes + i, least, count - i);
}

inline constexpr CodecKernels codec_kernels{max_magnitude,  extremes,         quantize,   dequantize,
                                            quantize_level, dequantize_level, accumulate, subtract,
                                            add_averaged,   saturate,         any_below};

#undef KITH_SIMD_INLINE

}  // namespace kith::detail::KITH_SIMD_NAME

#undef KITH_SIMD_NAME
#undef KITH_SIMD_BYTES
#undef KITH_SIMD_TARGET
#endif
