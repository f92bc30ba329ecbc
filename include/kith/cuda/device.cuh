// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <cuda_runtime.h>

#include <kith/cuda/arguments.hpp>
#include <kith/numeric/convert.hpp>
#include <kith/numeric/isa.hpp>
#include <kith/types.hpp>

/// What all kernels are made of. The part of each that is one thread's own is a function of its arguments, the block
/// and the thread, for the host too: so a test without a GPU runs the same indices, heads and tails.

// Loops over registers are unrolled, or the registers live in memory. The host's compiler has no such pragma.
#ifdef __CUDA_ARCH__
#define KITH_CUDA_UNROLL _Pragma("unroll")
#define KITH_CUDA_UNROLL_TWICE _Pragma("unroll 2")
#define KITH_CUDA_NO_UNROLL _Pragma("unroll 1")
#else
#define KITH_CUDA_UNROLL
#define KITH_CUDA_UNROLL_TWICE
#define KITH_CUDA_NO_UNROLL
#endif

namespace kith::cuda::detail {

inline constexpr unsigned block_threads = 256;

/// The arithmetic of kith/numeric/scalar_kernels.hpp: each operation rounded on its own.
__host__ __device__ inline float add(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
__host__ __device__ inline double add(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}
__host__ __device__ inline float subtract(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fsub_rn(a, b);
#else
  return a - b;
#endif
}
__host__ __device__ inline double subtract(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dsub_rn(a, b);
#else
  return a - b;
#endif
}
__host__ __device__ inline float multiply(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return kith::detail::rounded(a * b);
#endif
}
__host__ __device__ inline double multiply(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return kith::detail::rounded(a * b);
#endif
}

/// Bits, which is what 16-bit types are to a register.
template <unsigned Width>
using Bits = std::conditional_t<
    Width == 8, std::uint64_t,
    std::conditional_t<Width == 4, std::uint32_t, std::conditional_t<Width == 2, std::uint16_t, std::uint8_t>>>;

/// How a DType is stored and what it is computed in. The conversions are those of kith/numeric/convert.hpp, but for
/// NaN: the hardware has one for all, the host keeps the sign and what it can of the payload. They are instructions
/// here, because the toolkit's headers for these types are long, and not free of warnings under every host compiler.
template <DType D>
struct Number {
  using Stored = std::conditional_t<D == DType::f64, double, std::conditional_t<D == DType::f32, float, std::uint16_t>>;
  using Real = std::conditional_t<D == DType::f64, double, float>;

  __host__ __device__ static Real widen(Stored value) {
    if constexpr (std::is_same_v<Stored, Real>) {
      return value;
    } else if constexpr (D == DType::bf16) {
#ifdef __CUDA_ARCH__
      return __uint_as_float(static_cast<unsigned>(value) << 16);
#else
      return to_float(bfloat16{value});
#endif
    } else {
#ifdef __CUDA_ARCH__
      float wide;
      asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
      return wide;
#else
      return to_float(float16{value});
#endif
    }
  }

  __host__ __device__ static Stored narrow(Real value) {
    if constexpr (std::is_same_v<Stored, Real>) {
      return value;
    } else if constexpr (D == DType::bf16) {
#if !defined(__CUDA_ARCH__)
      return to_bfloat16(value).bits;
#elif __CUDA_ARCH__ >= 800
      Stored nearest;
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(nearest) : "f"(value));
      return nearest;
#else
      const std::uint32_t bits = __float_as_uint(value);
      if ((bits & 0x7fffffffU) > 0x7f800000U) return 0x7fffU;
      return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
#endif
    } else {
#ifdef __CUDA_ARCH__
      Stored nearest;
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(nearest) : "f"(value));
      return nearest;
#else
      return to_float16(value).bits;
#endif
    }
  }
};

/// Elements that one access moves.
template <class T, unsigned Size>
struct alignas(sizeof(T) * Size) Pack {
  T values[Size];
};

template <unsigned Size, class T>
__host__ __device__ inline Pack<T, Size> load(const T* from) {
  return *reinterpret_cast<const Pack<T, Size>*>(from);
}

/// Of memory that nobody reads again soon: it need not stay in the cache.
template <unsigned Size, class T>
__host__ __device__ inline Pack<T, Size> load_once(const T* from) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(Pack<T, Size>) == 16) {
    const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(from));
    Pack<T, Size> pack;
    memcpy(&pack, &bits, sizeof pack);
    return pack;
  }
#endif
  return load<Size>(from);
}

template <unsigned Size, class T>
__host__ __device__ inline void store(T* to, const Pack<T, Size>& pack) {
  *reinterpret_cast<Pack<T, Size>*>(to) = pack;
}

__host__ __device__ inline unsigned misalignment(const void* address) {
  return static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(address) % 16);
}

template <class T>
__host__ __device__ inline T* offset(T* base, std::uint64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(base) + bytes);
}

/// Tells the compiler what it cannot see of a pointer that comes from a table. Accesses are cheaper then.
__host__ __device__ inline void assume_global([[maybe_unused]] const void* address) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isGlobal(address));
#endif
}

/// What a launch works on: a table's tiles, or one buffer that is cut into tiles in the same way.
struct Work {
  const Tile* tiles = nullptr;
  void* values = nullptr;
  std::uint64_t count = 0;
  std::uint32_t buffer = 0;
  std::uint16_t width = 0;
  DType dtype = DType::f32;
  /// Length of the bucket, or of each other buffer. No kernel needs it; who watches over accesses does.
  std::uint64_t bucket_bytes = 0;
};

__host__ __device__ inline Tile tile_of(const Work& work, unsigned block) {
  if (work.tiles != nullptr) return work.tiles[block];
  const unsigned full = static_cast<unsigned>(tile_bytes) / work.width;
  const unsigned lead = misalignment(work.values) / work.width;
  const std::uint64_t begin = block == 0 ? 0 : std::uint64_t{block} * full - lead;
  const std::uint64_t end = std::uint64_t{block} * full + full - lead;
  Tile tile{};
  tile.values = offset(work.values, begin * work.width);
  tile.offset_bytes = begin * work.width;
  tile.first = begin;
  tile.buffer = work.buffer;
  tile.count = static_cast<std::uint16_t>((end < work.count ? end : work.count) - begin);
  tile.dtype = work.dtype;
  return tile;
}

inline unsigned tiles_in(const Work& work) {
  const std::size_t full = tile_bytes / work.width;
  return static_cast<unsigned>((work.count + misalignment(work.values) / work.width + full - 1) / full);
}

inline Work work_on(void* values, std::size_t count, std::size_t width) {
  Work work;
  work.values = values;
  work.count = count;
  work.width = static_cast<std::uint16_t>(width);
  work.bucket_bytes = count * width;
  return work;
}

inline Work work_on(const Table& table, std::size_t first_dtype) {
  Work work;
  work.tiles = table.tiles + table.begins[first_dtype];
  work.bucket_bytes = table.bucket_bytes;
  return work;
}

/// Whether a kernel can work on a buffer: null only if it is empty, elements at multiples of their size.
inline bool usable(DType dtype, const void* values, std::size_t count) {
  const std::size_t width = size_of(dtype);
  return width != 0 && (count == 0 || values != nullptr) && reinterpret_cast<std::uintptr_t>(values) % width == 0;
}

/// Which elements of a tile are moved 16 bytes at a time: in `packs` packs, behind the first `head`.
struct Split {
  unsigned count;
  unsigned head;
  unsigned packs;
};

/// `alike`: whether all addresses are equal modulo 16.
__host__ __device__ inline Split split(unsigned count, unsigned width, const void* address, bool alike) {
  Split result{count, count, 0};
  const unsigned head = (16 - misalignment(address)) % 16 / width;
  if (alike && head <= count) {
    result.head = head;
    result.packs = (count - head) / (16 / width);
  }
  return result;
}

template <unsigned N>
using Constant = std::integral_constant<unsigned, N>;

/// One thread's part of a tile: work(batch, size, i) stands for `batch` packs of `size` elements, the first at element
/// i and each block_threads packs behind the one before. Several at once, because it takes several loads in flight to
/// keep the memory busy.
template <unsigned Batch, unsigned Size, class F>
__host__ __device__ inline void for_each(const Split& split, unsigned thread, const F& work) {
  const unsigned singles = split.count - split.packs * Size;
  KITH_CUDA_NO_UNROLL
  for (unsigned i = thread; i < singles; i += block_threads)
    work(Constant<1>{}, Constant<1>{}, i < split.head ? i : i + split.packs * Size);
  unsigned p = thread;
  KITH_CUDA_NO_UNROLL
  for (; p + (Batch - 1) * block_threads < split.packs; p += Batch * block_threads)
    work(Constant<Batch>{}, Constant<Size>{}, split.head + p * Size);
  KITH_CUDA_NO_UNROLL
  for (; p < split.packs; p += block_threads) work(Constant<1>{}, Constant<Size>{}, split.head + p * Size);
}

/// Whether the round is still on.
__host__ __device__ inline bool may_write(const std::uint32_t* go) { return go == nullptr || *go != 0; }

/// Lowers `*least` to `value`.
__host__ __device__ inline void lower(std::uint64_t* least, std::uint64_t value) {
#ifdef __CUDA_ARCH__
  atomicMin(reinterpret_cast<unsigned long long*>(least), value);
#else
  if (value < *least) *least = value;
#endif
}

/// Enqueues. The launch's own error comes back, and no earlier one is taken away from the caller.
template <class Arguments>
inline cudaError_t enqueue(void (*kernel)(Arguments), Arguments arguments, unsigned blocks, cudaStream_t stream) {
  if (blocks == 0) return cudaSuccess;
  void* pointers[] = {&arguments};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(block_threads), pointers, 0,
                          stream);
}

}  // namespace kith::cuda::detail
