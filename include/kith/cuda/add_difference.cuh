// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include <kith/cuda/device.cuh>

namespace kith::cuda::detail {

/// What a hidden round has changed in a copy of the values is added to the values themselves.
struct Change {
  Work work;
  const void* after;
  const void* before;
  const std::uint32_t* go;
};

/// One thread's part of it.
template <DType D>
__host__ __device__ inline void add_change(const Change& a, unsigned block, unsigned thread) {
  using Stored = typename Number<D>::Stored;
  using Real = typename Number<D>::Real;
  constexpr unsigned width = sizeof(Stored);
  const Tile tile = tile_of(a.work, block);
  Stored* values = static_cast<Stored*>(tile.values);
  const Stored* after = offset(static_cast<const Stored*>(a.after), tile.offset_bytes);
  const Stored* before = offset(static_cast<const Stored*>(a.before), tile.offset_bytes);
  assume_global(values);
  const bool write = may_write(a.go);
  const bool alike = misalignment(after) == misalignment(values) && misalignment(before) == misalignment(values);
  const auto move = [&]<unsigned Batch, unsigned Size>(Constant<Batch>, Constant<Size>, unsigned i) {
    constexpr unsigned stride = block_threads * Size;
    Pack<Stored, Size> x[Batch];
    Pack<Stored, Size> y[Batch];
    Pack<Stored, Size> s[Batch];
    KITH_CUDA_UNROLL
    for (unsigned b = 0; b < Batch; ++b) {
      x[b] = load<Size>(values + i + b * stride);
      y[b] = load_once<Size>(after + i + b * stride);
      s[b] = load_once<Size>(before + i + b * stride);
    }
    KITH_CUDA_UNROLL
    for (unsigned b = 0; b < Batch; ++b) {
      KITH_CUDA_UNROLL
      for (unsigned j = 0; j < Size; ++j) {
        const Real change = subtract(Number<D>::widen(y[b].values[j]), Number<D>::widen(s[b].values[j]));
        x[b].values[j] = Number<D>::narrow(add(Number<D>::widen(x[b].values[j]), change));
      }
      if (write) store(values + i + b * stride, x[b]);
    }
  };
  for_each<2, 16 / width>(split(tile.count, width, tile.values, alike), thread, move);
}

template <DType D>
__global__ void __launch_bounds__(block_threads) change_kernel(const __grid_constant__ Change a) {
  add_change<D>(a, blockIdx.x, threadIdx.x);
}

inline cudaError_t enqueue_change(DType dtype, const Change& a, unsigned tiles, cudaStream_t stream) {
  switch (dtype) {
    case DType::f32:
      return enqueue(change_kernel<DType::f32>, a, tiles, stream);
    case DType::f64:
      return enqueue(change_kernel<DType::f64>, a, tiles, stream);
    case DType::f16:
      return enqueue(change_kernel<DType::f16>, a, tiles, stream);
    case DType::bf16:
      return enqueue(change_kernel<DType::bf16>, a, tiles, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace kith::cuda::detail

namespace kith::cuda {

[[gnu::weak]] cudaError_t add_difference(DType dtype, void* values, const void* after, const void* before,
                                         std::size_t count, const std::uint32_t* go, cudaStream_t stream) {
  if (!detail::usable(dtype, values, count) || !detail::usable(dtype, after, count) ||
      !detail::usable(dtype, before, count))
    return cudaErrorInvalidValue;
  const detail::Work work = detail::work_on(values, count, size_of(dtype));
  return detail::enqueue_change(dtype, {work, after, before, go}, detail::tiles_in(work), stream);
}

[[gnu::weak]] cudaError_t add_difference(const Table& table, const void* after, const void* before,
                                         const std::uint32_t* go, cudaStream_t stream) {
  for (std::size_t d = 0; d + 1 < table.begins.size(); ++d) {
    const unsigned tiles = table.begins[d + 1] - table.begins[d];
    const cudaError_t error =
        detail::enqueue_change(static_cast<DType>(d), {detail::work_on(table, d), after, before, go}, tiles, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace kith::cuda
