// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include <kith/cuda/device.cuh>

namespace kith::cuda::detail {

/// A copy between the tiles and a flat bucket. Without a bucket it only looks for what is not finite.
struct Copy {
  Work work;
  void* bucket;
  bool to_bucket;
  const std::uint32_t* go;
  std::uint64_t* first;
};

/// The exponent of a dtype: all ones in a NaN or an infinity.
__host__ __device__ inline std::uint64_t exponent_bits(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 0x7f800000U;
    case DType::f64:
      return 0x7ff0000000000000U;
    case DType::f16:
      return 0x7c00U;
    case DType::bf16:
      return 0x7f80U;
  }
  return 0;
}

/// One thread's part of a tile of elements of `Width` bytes.
template <bool Check, unsigned Width>
__host__ __device__ inline void copy_elements(const Copy& a, const Tile& tile, unsigned thread) {
  using T = Bits<Width>;
  T* inside = static_cast<T*>(tile.values);
  T* outside = a.bucket == nullptr ? nullptr : offset(static_cast<T*>(a.bucket), tile.offset_bytes);
  const T* from = a.to_bucket || outside == nullptr ? inside : outside;
  T* to = a.to_bucket ? outside : inside;
  assume_global(from);
  assume_global(to);
  const bool write = outside != nullptr && may_write(a.go);
  const bool alike = outside == nullptr || misalignment(outside) == misalignment(inside);
  const T exponent = static_cast<T>(exponent_bits(tile.dtype));
  std::uint64_t found = no_finding;
  const auto move = [&]<unsigned Batch, unsigned Size>(Constant<Batch>, Constant<Size>, unsigned i) {
    constexpr unsigned stride = block_threads * Size;
    Pack<T, Size> packs[Batch];
    KITH_CUDA_UNROLL
    for (unsigned b = 0; b < Batch; ++b) packs[b] = load<Size>(from + i + b * stride);
    KITH_CUDA_UNROLL
    for (unsigned b = 0; b < Batch; ++b) {
      if (write) store(to + i + b * stride, packs[b]);
      if constexpr (Check) {
        KITH_CUDA_UNROLL
        for (unsigned j = 0; j < Size; ++j) {
          const std::uint64_t index = tile.first + i + b * stride + j;
          if ((packs[b].values[j] & exponent) == exponent && index < found) found = index;
        }
      }
    }
  };
  for_each<4, 16 / Width>(split(tile.count, Width, inside, alike), thread, move);
  if constexpr (Check) {
    if (found != no_finding) lower(a.first, (std::uint64_t{tile.buffer} << finding_index_bits) | found);
  }
}

/// One thread's part of a copy.
template <bool Check>
__host__ __device__ inline void copy_tile(const Copy& a, unsigned block, unsigned thread) {
  const Tile tile = tile_of(a.work, block);
  unsigned width = a.work.width;
  if (a.work.tiles != nullptr) width = tile.dtype == DType::f64 ? 8 : tile.dtype == DType::f32 ? 4 : 2;
  switch (width) {
    case 8:
      return copy_elements<Check, 8>(a, tile, thread);
    case 4:
      return copy_elements<Check, 4>(a, tile, thread);
    case 2:
      return copy_elements<Check, 2>(a, tile, thread);
    default:
      return copy_elements<false, 1>(a, tile, thread);
  }
}

template <bool Check>
__global__ void __launch_bounds__(block_threads) copy_kernel(const __grid_constant__ Copy a) {
  copy_tile<Check>(a, blockIdx.x, threadIdx.x);
}

inline cudaError_t enqueue_copy(const Copy& a, unsigned tiles, cudaStream_t stream) {
  return enqueue(a.first != nullptr ? copy_kernel<true> : copy_kernel<false>, a, tiles, stream);
}

inline cudaError_t enqueue_copy(const Table& table, void* bucket, bool to_bucket, const std::uint32_t* go,
                                std::uint64_t* first, cudaStream_t stream) {
  return enqueue_copy({work_on(table, 0), bucket, to_bucket, go, first}, table.begins.back() - table.begins.front(),
                      stream);
}

}  // namespace kith::cuda::detail

namespace kith::cuda {

[[gnu::weak]] cudaError_t pack(const Table& table, void* bucket, std::uint64_t* first, cudaStream_t stream) {
  return detail::enqueue_copy(table, bucket, true, nullptr, first, stream);
}

[[gnu::weak]] cudaError_t unpack(const Table& table, const void* bucket, const std::uint32_t* go, cudaStream_t stream) {
  return detail::enqueue_copy(table, const_cast<void*>(bucket), false, go, nullptr, stream);
}

[[gnu::weak]] cudaError_t commit_copy(const void* from, void* to, std::size_t bytes, const std::uint32_t* go,
                                      cudaStream_t stream) {
  if (bytes != 0 && (from == nullptr || to == nullptr)) return cudaErrorInvalidValue;
  const auto bits = reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to) | bytes;
  const std::size_t width = std::size_t{1} << std::min(3, std::countr_zero(bits));
  const detail::Work work = detail::work_on(to, bytes / width, width);
  return detail::enqueue_copy({work, const_cast<void*>(from), false, go, nullptr}, detail::tiles_in(work), stream);
}

[[gnu::weak]] cudaError_t find_non_finite(DType dtype, const void* values, std::size_t count, std::uint32_t buffer,
                                          std::uint64_t* first, cudaStream_t stream) {
  if (!detail::usable(dtype, values, count) || first == nullptr) return cudaErrorInvalidValue;
  detail::Work work = detail::work_on(const_cast<void*>(values), count, size_of(dtype));
  work.buffer = buffer;
  work.dtype = dtype;
  return detail::enqueue_copy({work, nullptr, false, nullptr, first}, detail::tiles_in(work), stream);
}

}  // namespace kith::cuda
