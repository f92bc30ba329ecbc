// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <kith/numeric/convert.hpp>
#include <kith/numeric/isa.hpp>
#include <kith/numeric/scalar_kernels.hpp>
#include <kith/types.hpp>

// The vector kernels, once per instruction set. Loops of a constant length over registers have to be unrolled, or the
// registers live in memory.
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
#include <kith/numeric/vector_kernels.hpp>
#if KITH_X86
#define KITH_SIMD_NAME avx2
#define KITH_SIMD_BYTES 32
#define KITH_SIMD_TARGET __attribute__((target("avx2,f16c")))
#include <kith/numeric/vector_kernels.hpp>
#define KITH_SIMD_NAME avx512
#define KITH_SIMD_BYTES 64
#define KITH_SIMD_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#include <kith/numeric/vector_kernels.hpp>
#endif
#undef KITH_UNROLL
#endif

namespace kith::detail {

#if !KITH_VECTORS
namespace baseline = scalar;
#endif
#if !KITH_X86
namespace avx2 = baseline;
namespace avx512 = baseline;
#endif

// The host kernels. None allocates or throws; a pointer may have any alignment, and be null where `count` is 0. Every
// variant (scalar, baseline, avx2, avx512) gives the same bits, whatever flags the caller is compiled with, short of
// -ffast-math; only which NaN comes out of an arithmetic operation on NaNs is left open.

/// Converts `count` elements of f16 or bf16 to f32, exactly; see to_float().
inline void widen(DType from, const void* source, float* target, std::size_t count) noexcept {
  switch (isa()) {
    case Isa::avx512:
      return avx512::widen(from, source, target, count);
    case Isa::avx2:
      return avx2::widen(from, source, target, count);
    case Isa::baseline:
      return baseline::widen(from, source, target, count);
  }
}

/// Rounds `count` elements of f32 to f16 or bf16; see to_float16() and to_bfloat16().
inline void narrow(DType to, const float* source, void* target, std::size_t count) noexcept {
  switch (isa()) {
    case Isa::avx512:
      return avx512::narrow(to, source, target, count);
    case Isa::avx2:
      return avx2::narrow(to, source, target, count);
    case Isa::baseline:
      return baseline::narrow(to, source, target, count);
  }
}

/// The local step of a round: target = self + mixing * sum_k weight_k * (source_k - self), the sum in the order given,
/// every subtraction, product and addition rounded on its own. `target` may be `self` or any source; apart from that
/// nothing overlaps. Without sources it copies.
///
/// For each element that is written, the one that lies `ahead` elements behind it in the target's memory is fetched
/// into the cache: the next row of a buffer that is worked on row by row. It may lie outside of the buffer.
template <class T>
inline void combine(T* target, const T* self, std::span<const Weighted<T>> sources, T mixing, std::size_t count,
                    std::size_t ahead = 0) noexcept {
  switch (isa()) {
    case Isa::avx512:
      return avx512::combine(target, self, sources, mixing, count, ahead);
    case Isa::avx2:
      return avx2::combine(target, self, sources, mixing, count, ahead);
    case Isa::baseline:
      return baseline::combine(target, self, sources, mixing, count, ahead);
  }
}

/// combine() of f32 rows and narrow() of its result, in one pass. `target` overlaps nothing.
inline void combine_narrow(DType to, void* target, const float* self, std::span<const Weighted<float>> sources,
                           float mixing, std::size_t count, std::size_t ahead = 0) noexcept {
  switch (isa()) {
    case Isa::avx512:
      return avx512::combine_narrow(to, target, self, sources, mixing, count, ahead);
    case Isa::avx2:
      return avx2::combine_narrow(to, target, self, sources, mixing, count, ahead);
    case Isa::baseline:
      return baseline::combine_narrow(to, target, self, sources, mixing, count, ahead);
  }
}

/// A round of several ranks in place, elements `begin` to `end` of all of them: what combine() gives for each rank,
/// from the values that all of them have at the start. Row r is rank r; a row without sources is left as it is. Memory
/// is read once and written once, whatever the number of sources. `scratch` has tile_scratch_bytes for each row and is
/// aligned for double; best for 64 bytes.
template <class Source>
inline void average_tile(DType dtype, std::span<const TileRow<Source>> rows, void* scratch, double mixing,
                         std::size_t begin, std::size_t end) noexcept {
  switch (isa()) {
    case Isa::avx512:
      return avx512::average_tile(dtype, rows, scratch, mixing, begin, end);
    case Isa::avx2:
      return avx2::average_tile(dtype, rows, scratch, mixing, begin, end);
    case Isa::baseline:
      return baseline::average_tile(dtype, rows, scratch, mixing, begin, end);
  }
}

/// The index of the first NaN or infinity, or `count`.
[[nodiscard]] inline std::size_t first_non_finite(DType dtype, const void* data, std::size_t count) noexcept {
  switch (isa()) {
    case Isa::avx512:
      return avx512::first_non_finite(dtype, data, count);
    case Isa::avx2:
      return avx2::first_non_finite(dtype, data, count);
    case Isa::baseline:
      return baseline::first_non_finite(dtype, data, count);
  }
  return count;
}

/// sum (a - b)^2, in double, added up in `distance_lanes` lanes.
template <class T>
[[nodiscard]] inline double squared_distance(const T* a, const T* b, std::size_t count) noexcept {
  switch (isa()) {
    case Isa::avx512:
      return avx512::squared_distance(a, b, count);
    case Isa::avx2:
      return avx2::squared_distance(a, b, count);
    case Isa::baseline:
      return baseline::squared_distance(a, b, count);
  }
  return 0;
}

}  // namespace kith::detail
