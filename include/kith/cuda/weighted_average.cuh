// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <kith/cuda/device.cuh>

namespace kith::cuda::detail {

template <DType D, unsigned Capacity>
struct Average {
  using Real = typename Number<D>::Real;
  Work work;
  const std::uint32_t* go;
  Shadow shadow;
  Real mixing;
  std::uint32_t sources;
  Real weights[Capacity];
  const void* values[Capacity];
};
static_assert(sizeof(Average<DType::f64, max_sources>) <= 4096);

/// Where one thread reads and writes: the tile, as elements.
template <DType D>
struct Place {
  typename Number<D>::Stored* values;
  std::uint64_t offset_bytes;
  std::uint16_t* shadow;
  bool write;
};

template <unsigned Size>
__host__ __device__ inline void store_shadow(DType dtype, std::uint16_t* to, const float (&values)[Size]) {
  Pack<std::uint16_t, Size> narrow;
  KITH_CUDA_UNROLL
  for (unsigned j = 0; j < Size; ++j)
    narrow.values[j] =
        dtype == DType::bf16 ? Number<DType::bf16>::narrow(values[j]) : Number<DType::f16>::narrow(values[j]);
  store(to, narrow);
}

/// `Batch` packs of `Size` elements, the first at element i, the others `block_threads` packs apart. All loads come
/// before the first store. K = 0: as many sources as a.sources says.
template <unsigned K, bool Shadowed, unsigned Batch, unsigned Size, DType D, unsigned Capacity>
__host__ __device__ inline void average_packs(const Average<D, Capacity>& a, const Place<D>& place, unsigned i) {
  using Stored = typename Number<D>::Stored;
  using Real = typename Number<D>::Real;
  constexpr unsigned stride = block_threads * Size;
  Pack<Stored, Size> x[Batch];
  Real sum[Batch][Size];
  KITH_CUDA_UNROLL
  for (unsigned b = 0; b < Batch; ++b) x[b] = load<Size>(place.values + i + b * stride);
  const auto add_source = [&]<bool First>(std::bool_constant<First>, unsigned k) {
    const Stored* from = offset(static_cast<const Stored*>(a.values[k]), place.offset_bytes);
    Pack<Stored, Size> values[Batch];
    KITH_CUDA_UNROLL
    for (unsigned b = 0; b < Batch; ++b) values[b] = load_once<Size>(from + i + b * stride);
    KITH_CUDA_UNROLL
    for (unsigned b = 0; b < Batch; ++b) {
      KITH_CUDA_UNROLL
      for (unsigned j = 0; j < Size; ++j) {
        const Real difference = subtract(Number<D>::widen(values[b].values[j]), Number<D>::widen(x[b].values[j]));
        const Real product = multiply(a.weights[k], difference);
        sum[b][j] = First ? product : add(sum[b][j], product);
      }
    }
  };
  add_source(std::true_type{}, 0);
  if constexpr (K != 0) {
    KITH_CUDA_UNROLL
    for (unsigned k = 1; k < K; ++k) add_source(std::false_type{}, k);
  } else {
    KITH_CUDA_UNROLL_TWICE
    for (unsigned k = 1; k < a.sources; ++k) add_source(std::false_type{}, k);
  }
  KITH_CUDA_UNROLL
  for (unsigned b = 0; b < Batch; ++b) {
    Real result[Size];
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < Size; ++j) {
      result[j] = add(Number<D>::widen(x[b].values[j]), multiply(a.mixing, sum[b][j]));
      x[b].values[j] = Number<D>::narrow(result[j]);
    }
    if (!place.write) continue;
    store(place.values + i + b * stride, x[b]);
    if constexpr (Shadowed) store_shadow(a.shadow.dtype, place.shadow + i + b * stride, result);
  }
}

/// One thread's part of a weighted average.
template <unsigned K, bool Shadowed, DType D, unsigned Capacity>
__host__ __device__ inline void average_tile(const Average<D, Capacity>& a, unsigned block, unsigned thread) {
  using Stored = typename Number<D>::Stored;
  constexpr unsigned width = sizeof(Stored);
  const Tile tile = tile_of(a.work, block);
  Place<D> place{static_cast<Stored*>(tile.values), tile.offset_bytes, nullptr, may_write(a.go)};
  assume_global(place.values);
  bool alike = true;
  const unsigned sources = K != 0 ? K : a.sources;
  for (unsigned k = 0; k < sources; ++k)
    alike = alike &&
            misalignment(offset(static_cast<const char*>(a.values[k]), tile.offset_bytes)) == misalignment(tile.values);
  if constexpr (Shadowed) {
    place.shadow = static_cast<std::uint16_t*>(a.shadow.values) + tile.offset_bytes / width;
    alike = alike && misalignment(place.shadow) * 2 % 16 == misalignment(tile.values);
  }
  for_each<K == 1 && !Shadowed ? 4 : 2, 16 / width>(
      split(tile.count, width, tile.values, alike), thread,
      [&]<unsigned Batch, unsigned Size>(Constant<Batch>, Constant<Size>, unsigned i) {
        average_packs<K, Shadowed, Batch, Size>(a, place, i);
      });
}

template <DType D, unsigned K, unsigned Capacity, bool Shadowed>
__global__ void __launch_bounds__(block_threads) average_kernel(const __grid_constant__ Average<D, Capacity> a) {
  average_tile<K, Shadowed>(a, blockIdx.x, threadIdx.x);
}

/// What all kernels of a launch have in common.
struct AverageCall {
  Work work;
  unsigned tiles;
  std::span<const Source> sources;
  double mixing;
  const std::uint32_t* go;
  Shadow shadow;
  cudaStream_t stream;
};

template <DType D, unsigned K, unsigned Capacity, bool Shadowed>
inline cudaError_t enqueue_average(const AverageCall& call) {
  using Real = typename Number<D>::Real;
  Average<D, Capacity> a{};
  a.work = call.work;
  a.go = call.go;
  a.shadow = call.shadow;
  a.mixing = static_cast<Real>(call.mixing);
  a.sources = static_cast<std::uint32_t>(call.sources.size());
  for (std::size_t k = 0; k < call.sources.size(); ++k) {
    a.weights[k] = static_cast<Real>(call.sources[k].weight);
    a.values[k] = call.sources[k].values;
  }
  return enqueue(average_kernel<D, K, Capacity, Shadowed>, a, call.tiles, call.stream);
}

template <DType D, bool Shadowed = false>
inline cudaError_t enqueue_average(const AverageCall& call) {
  if (call.tiles == 0) return cudaSuccess;
  switch (call.sources.size()) {
    case 0:
      return cudaSuccess;
    case 1:
      return enqueue_average<D, 1, 1, Shadowed>(call);
    case 2:
      return enqueue_average<D, 2, 2, Shadowed>(call);
    case 3:
      return enqueue_average<D, 3, 3, Shadowed>(call);
    default:
      break;
  }
  // Arguments are copied by every launch: those for many sources are kept for many.
  if (call.sources.size() <= 8) return enqueue_average<D, 0, 8, Shadowed>(call);
  if (call.sources.size() <= max_sources) return enqueue_average<D, 0, max_sources, Shadowed>(call);
  return cudaErrorInvalidValue;
}

inline cudaError_t enqueue_average(DType dtype, const AverageCall& call) {
  switch (dtype) {
    case DType::f32:
      return enqueue_average<DType::f32>(call);
    case DType::f64:
      return enqueue_average<DType::f64>(call);
    case DType::f16:
      return enqueue_average<DType::f16>(call);
    case DType::bf16:
      return enqueue_average<DType::bf16>(call);
  }
  return cudaErrorInvalidValue;
}

}  // namespace kith::cuda::detail

namespace kith::cuda {

[[gnu::weak]] cudaError_t weighted_average(DType dtype, void* values, std::span<const Source> sources, double mixing,
                                           std::size_t count, const std::uint32_t* go, cudaStream_t stream) {
  if (!detail::usable(dtype, values, count)) return cudaErrorInvalidValue;
  for (const Source& source : sources)
    if (!detail::usable(dtype, source.values, count)) return cudaErrorInvalidValue;
  const detail::Work work = detail::work_on(values, count, size_of(dtype));
  return detail::enqueue_average(dtype, {work, detail::tiles_in(work), sources, mixing, go, {}, stream});
}

[[gnu::weak]] cudaError_t weighted_average(float* values, std::span<const Source> sources, double mixing,
                                           std::size_t count, Shadow shadow, const std::uint32_t* go,
                                           cudaStream_t stream) {
  if (!detail::usable(DType::f32, values, count) || !detail::usable(shadow.dtype, shadow.values, count) ||
      size_of(shadow.dtype) != 2)
    return cudaErrorInvalidValue;
  for (const Source& source : sources)
    if (!detail::usable(DType::f32, source.values, count)) return cudaErrorInvalidValue;
  const detail::Work work = detail::work_on(values, count, sizeof(float));
  return detail::enqueue_average<DType::f32, true>({work, detail::tiles_in(work), sources, mixing, go, shadow, stream});
}

[[gnu::weak]] cudaError_t weighted_average(const Table& table, std::span<const Source> buckets, double mixing,
                                           const std::uint32_t* go, cudaStream_t stream) {
  for (std::size_t d = 0; d + 1 < table.begins.size(); ++d) {
    const unsigned tiles = table.begins[d + 1] - table.begins[d];
    const cudaError_t error = detail::enqueue_average(
        static_cast<DType>(d), {detail::work_on(table, d), tiles, buckets, mixing, go, {}, stream});
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace kith::cuda
