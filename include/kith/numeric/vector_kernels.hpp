// SPDX-License-Identifier: Apache-2.0
// No #pragma once: kith/numeric/kernels.hpp includes this file once per instruction set, after defining
//   KITH_SIMD_NAME    the namespace,
//   KITH_SIMD_BYTES   the width of a register,
//   KITH_SIMD_TARGET  the attribute that lets a function use the instructions: each function carries it, since g++
//                     takes vector arithmetic apart before it looks at what a function was inlined into.
// Included without them it is empty.
#if defined(KITH_SIMD_NAME)

namespace kith::detail::KITH_SIMD_NAME {

#define KITH_SIMD_INLINE KITH_SIMD_TARGET __attribute__((always_inline)) inline

using F32 __attribute__((vector_size(KITH_SIMD_BYTES))) = float;
using F64 __attribute__((vector_size(KITH_SIMD_BYTES))) = double;
using HalfF32 __attribute__((vector_size(KITH_SIMD_BYTES / 2))) = float;
using HalfU16 __attribute__((vector_size(KITH_SIMD_BYTES / 2))) = std::uint16_t;
using I16 __attribute__((vector_size(KITH_SIMD_BYTES))) = std::int16_t;
using I32 __attribute__((vector_size(KITH_SIMD_BYTES))) = std::int32_t;
using U16 __attribute__((vector_size(KITH_SIMD_BYTES))) = std::uint16_t;
using U32 __attribute__((vector_size(KITH_SIMD_BYTES))) = std::uint32_t;
using U64 __attribute__((vector_size(KITH_SIMD_BYTES))) = std::uint64_t;

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = F32;
};
template <>
struct VectorOf<double> {
  using type = F64;
};
template <>
struct VectorOf<std::uint16_t> {
  using type = U16;
};
template <>
struct VectorOf<std::uint32_t> {
  using type = U32;
};
template <>
struct VectorOf<std::uint64_t> {
  using type = U64;
};

/// Elements in a register of 32-bit elements.
inline constexpr std::size_t lanes = KITH_SIMD_BYTES / 4;

template <class V>
KITH_SIMD_INLINE V load(const void* from) noexcept {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
KITH_SIMD_INLINE void store(void* to, V v) noexcept {
  __builtin_memcpy(to, &v, sizeof v);
}

/// As detail::rounded, for a register.
template <class V>
KITH_SIMD_INLINE V rounded(V v) noexcept {
#if KITH_X86
  asm("" : "+x"(v));
#else
  asm("" : "+w"(v));
#endif
  return v;
}

/// Picks bits of `yes` where the mask is set, else of `no`.
KITH_SIMD_INLINE U32 select(I32 mask, U32 yes, U32 no) noexcept {
  return (reinterpret_cast<U32>(mask) & yes) | (~reinterpret_cast<U32>(mask) & no);
}

/// 2 * lanes 16-bit elements as 32-bit ones, in order.
KITH_SIMD_INLINE void unpack(const std::byte* from, U32& low, U32& high) noexcept {
#if KITH_SIMD_BYTES == 16
  const U16 v = load<U16>(from);
  low = reinterpret_cast<U32>(__builtin_shufflevector(v, U16{}, 0, 8, 1, 9, 2, 10, 3, 11));
  high = reinterpret_cast<U32>(__builtin_shufflevector(v, U16{}, 4, 12, 5, 13, 6, 14, 7, 15));
#else
  asm("vpmovzxwd %1, %0" : "=x"(low) : "x"(load<HalfU16>(from)));
  asm("vpmovzxwd %1, %0" : "=x"(high) : "x"(load<HalfU16>(from + sizeof(HalfU16))));
#endif
}

/// The upper halves of 32-bit elements, in order.
KITH_SIMD_INLINE U16 pack_upper(U32 low, U32 high) noexcept {
#if KITH_SIMD_BYTES == 64
  return __builtin_shufflevector(reinterpret_cast<U16>(low), reinterpret_cast<U16>(high), 1, 3, 5, 7, 9, 11, 13, 15, 17,
                                 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61,
                                 63);
#elif KITH_X86
  I32 packed = reinterpret_cast<I32>(low) >> 16;  // signed, so that packing with saturation changes nothing
  const I32 second = reinterpret_cast<I32>(high) >> 16;
#if KITH_SIMD_BYTES == 16
  asm("packssdw %1, %0" : "+x"(packed) : "x"(second));
#else
  asm("vpackssdw %1, %0, %0\n\tvpermq $0xd8, %0, %0" : "+x"(packed) : "x"(second));
#endif
  return reinterpret_cast<U16>(packed);
#else
  return __builtin_shufflevector(reinterpret_cast<U16>(low), reinterpret_cast<U16>(high), 1, 3, 5, 7, 9, 11, 13, 15);
#endif
}

/// Whether a NaN may be a signalling one; what an addition gives never is, which saves the work to make it quiet.
enum class Nan : bool { any, quiet };

/// As to_bfloat16, the result in the upper half of each element (the lower half is rubbish).
template <Nan Kind>
KITH_SIMD_INLINE U32 round_to_bf16(F32 value) noexcept {
  const U32 bits = reinterpret_cast<U32>(value);
  const U32 increment = ((bits >> 16) & 1U) + 0x7fffU;
  if constexpr (Kind == Nan::quiet) return bits + (increment & reinterpret_cast<U32>(value == value));
  return select(value != value, bits | 0x400000U, bits + increment);
}

#if KITH_X86 && KITH_SIMD_BYTES == 16
/// As to_float(float16), without a subnormal operand: a thread that treats those as zero gets the same bits.
KITH_SIMD_INLINE F32 expand_f16(U32 half) noexcept {
  constexpr std::uint32_t rebias = 112U << 23;
  const U32 magnitude = half & 0x7fffU;
  const I32 order = reinterpret_cast<I32>(magnitude);
  const U32 shifted = magnitude << 13;
  const F32 smallest = reinterpret_cast<F32>(U32{} + (113U << 23));
  const F32 subnormal = reinterpret_cast<F32>(shifted + (113U << 23)) - smallest;
  U32 bits = shifted + rebias + (reinterpret_cast<U32>(order > 0x7bff) & rebias);
  bits |= reinterpret_cast<U32>(order > 0x7c00) & 0x400000U;
  bits = select(order < 0x0400, reinterpret_cast<U32>(subnormal), bits);
  return reinterpret_cast<F32>(bits | ((half & 0x8000U) << 16));
}

/// As to_float16, the result in the upper half of each element.
KITH_SIMD_INLINE U32 round_to_f16(F32 value) noexcept {
  const U32 bits = reinterpret_cast<U32>(value);
  const U32 magnitude = bits & 0x7fffffffU;
  const I32 order = reinterpret_cast<I32>(magnitude);
  const U32 normal = (magnitude - (112U << 23) + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
  const U32 subnormal = reinterpret_cast<U32>(reinterpret_cast<F32>(magnitude) + 0.5F) - 0x3f000000U;  // adds in 2^-24
  const U32 nan = 0x7e00U | ((magnitude >> 13) & 0x1ffU);
  U32 half = select(order < static_cast<std::int32_t>(113U << 23), subnormal, normal);
  half = select(order > static_cast<std::int32_t>((143U << 23) - 1U), U32{} + 0x7c00U, half);
  half = select(order > 0x7f800000, nan, half);
  return (half << 16) | (bits & 0x80000000U);
}
#endif

/// 2 * lanes 16-bit elements at `from` as float.
template <DType From>
KITH_SIMD_INLINE void widen_block(const std::byte* from, F32& low, F32& high) noexcept {
#if KITH_X86 && KITH_SIMD_BYTES > 16
  if constexpr (From == DType::f16) {
    asm("vcvtph2ps %1, %0" : "=x"(low) : "x"(load<HalfU16>(from)));
    asm("vcvtph2ps %1, %0" : "=x"(high) : "x"(load<HalfU16>(from + sizeof(HalfU16))));
    return;
  }
#elif !KITH_X86
  if constexpr (From == DType::f16) {
    const U16 v = load<U16>(from);
    asm("fcvtl %0.4s, %1.4h" : "=w"(low) : "w"(v));
    asm("fcvtl2 %0.4s, %1.8h" : "=w"(high) : "w"(v));
    return;
  }
#endif
  U32 a;
  U32 b;
  unpack(from, a, b);
  if constexpr (From == DType::bf16) {
    low = reinterpret_cast<F32>(a << 16);
    high = reinterpret_cast<F32>(b << 16);
  } else {
#if KITH_X86 && KITH_SIMD_BYTES == 16
    low = expand_f16(a);
    high = expand_f16(b);
#endif
  }
}

/// 2 * lanes elements, rounded to 16 bits.
template <DType To, Nan Kind>
KITH_SIMD_INLINE void narrow_block(std::byte* to, F32 low, F32 high) noexcept {
  if constexpr (To == DType::bf16) {
    store(to, pack_upper(round_to_bf16<Kind>(low), round_to_bf16<Kind>(high)));
  } else {
#if KITH_X86 && KITH_SIMD_BYTES == 16
    store(to, pack_upper(round_to_f16(low), round_to_f16(high)));
#elif KITH_X86
    HalfU16 first;
    HalfU16 second;
    asm("vcvtps2ph $0, %1, %0" : "=x"(first) : "x"(low));
    asm("vcvtps2ph $0, %1, %0" : "=x"(second) : "x"(high));
    store(to, first);
    store(to + sizeof(HalfU16), second);
#else
    U16 packed;
    asm("fcvtn %0.4h, %1.4s" : "=w"(packed) : "w"(low));
    asm("fcvtn2 %0.8h, %1.4s" : "+w"(packed) : "w"(high));
    store(to, packed);
#endif
  }
}

template <DType From>
KITH_SIMD_TARGET inline void widen_all(const void* source, float* target, std::size_t count) noexcept {
  const auto* from = static_cast<const std::byte*>(source);
  std::size_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    F32 low;
    F32 high;
    widen_block<From>(from + 2 * i, low, high);
    store(target + i, low);
    store(target + i + lanes, high);
  }
  if (i < count) scalar::widen(From, source, target, count, i);
}

KITH_SIMD_TARGET inline void widen(DType from, const void* source, float* target, std::size_t count) noexcept {
  if (from == DType::bf16) return widen_all<DType::bf16>(source, target, count);
  widen_all<DType::f16>(source, target, count);
}

template <DType To>
KITH_SIMD_TARGET inline void narrow_all(const float* source, void* target, std::size_t count) noexcept {
  auto* to = static_cast<std::byte*>(target);
  std::size_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    narrow_block<To, Nan::any>(to + 2 * i, load<F32>(source + i), load<F32>(source + i + lanes));
  }
  if (i < count) scalar::narrow(To, source, target, count, i);
}

KITH_SIMD_TARGET inline void narrow(DType to, const float* source, void* target, std::size_t count) noexcept {
  if (to == DType::bf16) return narrow_all<DType::bf16>(source, target, count);
  narrow_all<DType::f16>(source, target, count);
}

/// The registers of a block of combine(): enough of them to hide the latency of the chain of additions.
inline constexpr std::size_t block_vectors = 4;

/// Where the values of a source begin: a Weighted says so itself, any other names one of the blocks of `size` elements
/// that lie one behind the other at `blocks`.
template <class T, class Source>
KITH_SIMD_INLINE const T* values_of(const Source& source, std::size_t at, const T* blocks, std::size_t size) noexcept {
  if constexpr (std::is_same_v<Source, Weighted<T>>) {
    return source.values + at;
  } else {
    return blocks + static_cast<std::size_t>(source.rank) * size;
  }
}

/// combine() of one block at element `at`. Requires a source.
template <class T, class V, class Source>
KITH_SIMD_INLINE void combine_block(V (&result)[block_vectors], const T* self, std::span<const Source> sources,
                                    T mixing, std::size_t at, const T* blocks = nullptr) noexcept {
  constexpr std::size_t step = sizeof(V) / sizeof(T);
  V x[block_vectors];
  V sum[block_vectors];
  const T* values = values_of<T>(sources[0], at, blocks, block_vectors * step);
  T weight = static_cast<T>(sources[0].weight);
  KITH_UNROLL
  for (std::size_t u = 0; u < block_vectors; ++u) {
    x[u] = load<V>(self + at + u * step);
    sum[u] = rounded(weight * (load<V>(values + u * step) - x[u]));
  }
  for (std::size_t k = 1; k < sources.size(); ++k) {
    values = values_of<T>(sources[k], at, blocks, block_vectors * step);
    weight = static_cast<T>(sources[k].weight);
    KITH_UNROLL
    for (std::size_t u = 0; u < block_vectors; ++u) {
      sum[u] += rounded(weight * (load<V>(values + u * step) - x[u]));
    }
  }
  if (mixing == 1) {  // the product would change nothing
    KITH_UNROLL
    for (std::size_t u = 0; u < block_vectors; ++u) result[u] = x[u] + sum[u];
    return;
  }
  KITH_UNROLL
  for (std::size_t u = 0; u < block_vectors; ++u) result[u] = x[u] + rounded(mixing * sum[u]);
}

/// Asks for the cache lines of `Bytes` bytes from `ahead` bytes behind `at` on. Goes by number, since it may
/// be no place that a pointer may point to.
template <std::size_t Bytes>
KITH_SIMD_INLINE void prefetch(const void* at, std::size_t ahead) noexcept {
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(at) + ahead;
  KITH_UNROLL
  for (std::size_t line = 0; line < Bytes; line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(first + line));  // NOLINT(performance-no-int-to-ptr)
}

template <class T>
KITH_SIMD_TARGET inline void combine(T* target, const T* self, std::span<const Weighted<T>> sources, T mixing,
                                     std::size_t count, std::size_t ahead) noexcept {
  using V = typename VectorOf<T>::type;
  constexpr std::size_t step = sizeof(V) / sizeof(T);
  std::size_t i = 0;
  if (!sources.empty()) {
    for (; i + block_vectors * step <= count; i += block_vectors * step) {
      V result[block_vectors];
      prefetch<block_vectors * sizeof(V)>(target + i, ahead * sizeof(T));
      combine_block(result, self, sources, mixing, i);
      KITH_UNROLL
      for (std::size_t u = 0; u < block_vectors; ++u) store(target + i + u * step, result[u]);
    }
  }
  if (i < count) scalar::combine(target, self, sources, mixing, count, 0, i);
}

template <DType To>
KITH_SIMD_TARGET inline void combine_narrow_all(void* target, const float* self,
                                                std::span<const Weighted<float>> sources, float mixing,
                                                std::size_t count, std::size_t ahead) noexcept {
  auto* to = static_cast<std::byte*>(target);
  std::size_t i = 0;
  for (; i + block_vectors * lanes <= count; i += block_vectors * lanes) {
    F32 result[block_vectors];
    prefetch<block_vectors * sizeof(F32) / 2>(to + 2 * i, 2 * ahead);
    combine_block(result, self, sources, mixing, i);
    KITH_UNROLL
    for (std::size_t u = 0; u < block_vectors; u += 2) {
      narrow_block<To, Nan::quiet>(to + 2 * (i + u * lanes), result[u], result[u + 1]);
    }
  }
  if (i < count) scalar::combine_narrow(To, target, self, sources, mixing, count, 0, i);
}

KITH_SIMD_TARGET inline void combine_narrow(DType to, void* target, const float* self,
                                            std::span<const Weighted<float>> sources, float mixing, std::size_t count,
                                            std::size_t ahead) noexcept {
  if (sources.empty()) return narrow(to, self, target, count);
  if (to == DType::bf16) return combine_narrow_all<DType::bf16>(target, self, sources, mixing, count, ahead);
  combine_narrow_all<DType::f16>(target, self, sources, mixing, count, ahead);
}

/// Rounds bfloat16s at even and at odd places and puts them together. Works on the upper halves `h` and the lower
/// halves `l` of the bits: h grows by one where l is above the tie, or on it and h is odd. For what comes of bfloat16s
/// only: a NaN is then one of theirs or the processor's own, whose lower half is zero, so it is never rounded.
KITH_SIMD_INLINE U16 round_even_odd(F32 even, F32 odd) noexcept {
  const U32 e = reinterpret_cast<U32>(even);
  const U32 o = reinterpret_cast<U32>(odd);
  const U16 h = reinterpret_cast<U16>((e >> 16) | (o & 0xffff0000U));
  const U16 l = reinterpret_cast<U16>((e & 0xffffU) | (o << 16));
  const I16 above = reinterpret_cast<I16>((l | (h & 1)) ^ 0x8000) > 0;
  return h - reinterpret_cast<U16>(above);
}

/// One block of a buffer of type D, widened to T, in and out of registers. Their order in between is of no matter:
/// a bfloat16 at an even place is the lower half of 32 bits, one at an odd place the upper half.
template <DType D, class T, class V>
KITH_SIMD_INLINE void load_block(V (&block)[block_vectors], const std::byte* from) noexcept {
  KITH_UNROLL
  for (std::size_t u = 0; u < block_vectors; u += 2) {
    if constexpr (sizeof(T) == size_of(D)) {
      block[u] = load<V>(from + u * sizeof(V));
      block[u + 1] = load<V>(from + (u + 1) * sizeof(V));
    } else if constexpr (D == DType::bf16) {
      const U32 both = load<U32>(from + u * sizeof(V) / 2);
      block[u] = reinterpret_cast<F32>(both << 16);
      block[u + 1] = reinterpret_cast<F32>(both & 0xffff0000U);
    } else {
      widen_block<D>(from + u * sizeof(V) / 2, block[u], block[u + 1]);
    }
  }
}
template <DType D, class T, class V>
KITH_SIMD_INLINE void store_block(std::byte* to, const V (&block)[block_vectors]) noexcept {
  KITH_UNROLL
  for (std::size_t u = 0; u < block_vectors; u += 2) {
    if constexpr (sizeof(T) == size_of(D)) {
      store(to + u * sizeof(V), block[u]);
      store(to + (u + 1) * sizeof(V), block[u + 1]);
    } else if constexpr (D == DType::bf16) {
      store(to + u * sizeof(V) / 2, round_even_odd(block[u], block[u + 1]));
    } else {
      narrow_block<D, Nan::quiet>(to + u * sizeof(V) / 2, block[u], block[u + 1]);
    }
  }
}

/// average_tile() for buffers of type D. Blocks of a few cache lines, all ranks' blocks before the next ones: the
/// processor then loads the next blocks while it computes with these.
template <DType D, class T, class Source>
KITH_SIMD_TARGET inline void average_tile_of(std::span<const TileRow<Source>> rows, void* scratch, T mixing,
                                             std::size_t begin, std::size_t end) noexcept {
  using V = typename VectorOf<T>::type;
  constexpr std::size_t block = block_vectors * sizeof(V) / sizeof(T);
  constexpr std::size_t bytes = block * size_of(D);
  static_assert(block * sizeof(T) <= tile_scratch_bytes);
  T* const blocks = static_cast<T*>(scratch);
  std::size_t i = begin;
  for (; i + block <= end; i += block) {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const std::byte* from = static_cast<const std::byte*>(rows[r].data) + i * size_of(D);
      V values[block_vectors];
      prefetch<bytes>(from, tile_ahead_bytes);
      load_block<D, T>(values, from);
      KITH_UNROLL
      for (std::size_t u = 0; u < block_vectors; ++u)
        store(blocks + r * block + u * (block / block_vectors), values[u]);
    }
    for (std::size_t r = 0; r < rows.size(); ++r) {
      if (rows[r].sources.empty()) continue;
      V result[block_vectors];
      combine_block<T>(result, blocks + r * block, rows[r].sources, mixing, 0, blocks);
      store_block<D, T>(static_cast<std::byte*>(rows[r].data) + i * size_of(D), result);
    }
  }
  if (i < end) scalar::average_tile_of<D, T>(rows, scratch, mixing, i, end);
}

template <class Source>
KITH_SIMD_TARGET inline void average_tile(DType dtype, std::span<const TileRow<Source>> rows, void* scratch,
                                          double mixing, std::size_t begin, std::size_t end) noexcept {
  switch (dtype) {
    case DType::f32:
      return average_tile_of<DType::f32, float>(rows, scratch, static_cast<float>(mixing), begin, end);
    case DType::f64:
      return average_tile_of<DType::f64, double>(rows, scratch, mixing, begin, end);
    case DType::f16:
      return average_tile_of<DType::f16, float>(rows, scratch, static_cast<float>(mixing), begin, end);
    case DType::bf16:
      return average_tile_of<DType::bf16, float>(rows, scratch, static_cast<float>(mixing), begin, end);
  }
}

/// Whether any bit of a register is set.
template <class V>
KITH_SIMD_INLINE bool any(V v) noexcept {
  std::uint64_t parts[KITH_SIMD_BYTES / 8];
  __builtin_memcpy(parts, &v, sizeof v);
  std::uint64_t all = 0;
  KITH_UNROLL
  for (const std::uint64_t part : parts) all |= part;
  return all != 0;
}

/// As scalar::first_with_exponent, by blocks; the block that holds one is searched element by element.
template <class Bits>
KITH_SIMD_TARGET inline std::size_t first_with_exponent(Bits exponent, const void* data, std::size_t count) noexcept {
  using V = typename VectorOf<Bits>::type;
  constexpr std::size_t vectors = 8;
  constexpr std::size_t block = vectors * KITH_SIMD_BYTES / sizeof(Bits);
  const V mask = V{} + exponent;
  const auto* from = static_cast<const std::byte*>(data);
  std::size_t i = 0;
  for (; i + block <= count; i += block) {
    V found{};
    KITH_UNROLL
    for (std::size_t u = 0; u < vectors; ++u) {
      found |= reinterpret_cast<V>((load<V>(from + i * sizeof(Bits) + u * KITH_SIMD_BYTES) & mask) == mask);
    }
    if (any(found)) break;
  }
  return scalar::first_with_exponent(exponent, data, count, i);
}

KITH_SIMD_TARGET inline std::size_t first_non_finite(DType dtype, const void* data, std::size_t count) noexcept {
  switch (dtype) {
    case DType::f32:
      return first_with_exponent<std::uint32_t>(0x7f800000U, data, count);
    case DType::f64:
      return first_with_exponent<std::uint64_t>(0x7ff0000000000000U, data, count);
    case DType::f16:
      return first_with_exponent<std::uint16_t>(0x7c00U, data, count);
    case DType::bf16:
      return first_with_exponent<std::uint16_t>(0x7f80U, data, count);
  }
  return count;
}

/// Some elements as double; there are as many as a register of doubles has.
KITH_SIMD_INLINE F64 load_double(const double* from) noexcept { return load<F64>(from); }
KITH_SIMD_INLINE F64 load_double(const float* from) noexcept {
#if KITH_X86 && KITH_SIMD_BYTES > 16
  F64 wide;
  const HalfF32 half = load<HalfF32>(from);
  asm("vcvtps2pd %1, %0" : "=x"(wide) : "x"(half));
  return wide;
#else
  return __builtin_convertvector(load<HalfF32>(from), F64);
#endif
}

template <class T>
KITH_SIMD_TARGET inline double squared_distance(const T* a, const T* b, std::size_t count) noexcept {
  constexpr std::size_t step = KITH_SIMD_BYTES / sizeof(double);
  constexpr std::size_t vectors = distance_lanes / step;
  F64 sums[vectors] = {};
  std::size_t i = 0;
  for (; i + distance_lanes <= count; i += distance_lanes) {
    KITH_UNROLL
    for (std::size_t u = 0; u < vectors; ++u) {
      const F64 difference = load_double(a + i + u * step) - load_double(b + i + u * step);
      sums[u] += rounded(difference * difference);
    }
  }
  double lane_sums[distance_lanes];
  __builtin_memcpy(lane_sums, sums, sizeof sums);
  return scalar::finish_distance(lane_sums, a, b, count, i);
}

#undef KITH_SIMD_INLINE

}  // namespace kith::detail::KITH_SIMD_NAME

#undef KITH_SIMD_NAME
#undef KITH_SIMD_BYTES
#undef KITH_SIMD_TARGET
#endif
