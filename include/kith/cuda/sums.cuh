// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <kith/cuda/device.cuh>

namespace kith::cuda::detail {

/// Threads of a launch that adds up, whatever the GPU; thread t has the packs t, t + sum_threads, ...
inline constexpr unsigned sum_threads = static_cast<unsigned>(distance_partials) * block_threads;

inline unsigned sum_blocks(std::uint64_t packs) {
  return static_cast<unsigned>(std::min<std::uint64_t>(distance_partials, (packs + block_threads - 1) / block_threads));
}

/// The sum of a block's threads, for its thread 0; always in the same order.
template <class T>
__device__ inline T block_sum(T value) {
  __shared__ T sums[block_threads];
  sums[threadIdx.x] = value;
  for (unsigned half = block_threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  return sums[0];
}

template <DType D>
struct Distance {
  using Stored = typename Number<D>::Stored;
  const Stored* a;
  const Stored* b;
  std::uint64_t count;
  double* partials;
};

template <DType D>
__host__ __device__ inline double distance_of_thread(const Distance<D>& d, unsigned block, unsigned thread) {
  constexpr unsigned size = 16 / sizeof(typename Number<D>::Stored);
  const bool aligned = misalignment(d.a) == 0 && misalignment(d.b) == 0;
  double sum = 0;
  const std::uint64_t packs = (d.count + size - 1) / size;
  for (std::uint64_t p = std::uint64_t{block} * block_threads + thread; p < packs; p += sum_threads) {
    const std::uint64_t i = p * size;
    const unsigned valid = d.count - i < size ? static_cast<unsigned>(d.count - i) : size;
    Pack<typename Number<D>::Stored, size> a{};
    Pack<typename Number<D>::Stored, size> b{};
    if (aligned && valid == size) {
      a = load_once<size>(d.a + i);
      b = load_once<size>(d.b + i);
    } else {
      KITH_CUDA_UNROLL
      for (unsigned j = 0; j < size; ++j) {
        if (j >= valid) break;
        a.values[j] = d.a[i + j];
        b.values[j] = d.b[i + j];
      }
    }
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < size; ++j) {
      const double difference = subtract(static_cast<double>(Number<D>::widen(a.values[j])),
                                         static_cast<double>(Number<D>::widen(b.values[j])));
      sum = add(sum, multiply(difference, difference));
    }
  }
  return sum;
}

template <DType D>
__global__ void __launch_bounds__(block_threads) distance_kernel(const __grid_constant__ Distance<D> d) {
  const double sum = block_sum(distance_of_thread(d, blockIdx.x, threadIdx.x));
  if (threadIdx.x == 0) d.partials[blockIdx.x] += sum;
}

template <DType D>
inline cudaError_t enqueue_distance(const void* a, const void* b, std::size_t count, double* partials,
                                    cudaStream_t stream) {
  using Stored = typename Number<D>::Stored;
  constexpr unsigned size = 16 / sizeof(Stored);
  return enqueue(distance_kernel<D>,
                 Distance<D>{static_cast<const Stored*>(a), static_cast<const Stored*>(b), count, partials},
                 sum_blocks((count + size - 1) / size), stream);
}

struct Digest {
  const std::uint16_t* values;
  std::uint64_t count;  // of 16-bit units
  std::uint64_t position;
  std::uint64_t* sum;
};

/// A word and where it is, mixed: the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
__host__ __device__ inline std::uint64_t mixed(std::uint64_t word, std::uint64_t position) {
  std::uint64_t z = word ^ ((position + 1) * 0x9E3779B97F4A7C15U);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

__host__ __device__ inline std::uint64_t digest_of_thread(const Digest& d, unsigned block, unsigned thread) {
  constexpr unsigned size = 8;
  const bool aligned = misalignment(d.values) == 0;
  std::uint64_t sum = 0;
  const std::uint64_t packs = (d.count + size - 1) / size;
  for (std::uint64_t p = std::uint64_t{block} * block_threads + thread; p < packs; p += sum_threads) {
    const std::uint64_t i = p * size;
    const unsigned valid = d.count - i < size ? static_cast<unsigned>(d.count - i) : size;
    Pack<std::uint16_t, size> pack{};
    if (aligned && valid == size) {
      pack = load_once<size>(d.values + i);
    } else {
      KITH_CUDA_UNROLL
      for (unsigned j = 0; j < size; ++j)
        if (j < valid) pack.values[j] = d.values[i + j];
    }
    std::uint64_t words[2];
    memcpy(words, &pack, sizeof words);
    sum += mixed(words[0], d.position + 2 * p);
    if (valid > size / 2) sum += mixed(words[1], d.position + 2 * p + 1);
  }
  return sum;
}

// A template like the other kernels, so that it may be defined in every translation unit.
template <class Arguments>
__global__ void __launch_bounds__(block_threads) digest_kernel(const __grid_constant__ Arguments d) {
  const std::uint64_t sum = block_sum(digest_of_thread(d, blockIdx.x, threadIdx.x));
  if (threadIdx.x == 0) atomicAdd(reinterpret_cast<unsigned long long*>(d.sum), sum);
}

}  // namespace kith::cuda::detail

namespace kith::cuda {

[[gnu::weak]] cudaError_t squared_distance(DType dtype, const void* a, const void* b, std::size_t count,
                                           double* partials, cudaStream_t stream) {
  if (!detail::usable(dtype, a, count) || !detail::usable(dtype, b, count) || partials == nullptr)
    return cudaErrorInvalidValue;
  switch (dtype) {
    case DType::f32:
      return detail::enqueue_distance<DType::f32>(a, b, count, partials, stream);
    case DType::f64:
      return detail::enqueue_distance<DType::f64>(a, b, count, partials, stream);
    case DType::f16:
      return detail::enqueue_distance<DType::f16>(a, b, count, partials, stream);
    case DType::bf16:
      return detail::enqueue_distance<DType::bf16>(a, b, count, partials, stream);
  }
  return cudaErrorInvalidValue;
}

[[gnu::weak]] cudaError_t digest(const void* values, std::size_t bytes, std::uint64_t position, std::uint64_t* sum,
                                 cudaStream_t stream) {
  if (bytes % 2 != 0 || !detail::usable(DType::f16, values, bytes / 2) || sum == nullptr) return cudaErrorInvalidValue;
  const std::uint64_t units = bytes / 2;
  return detail::enqueue(detail::digest_kernel<detail::Digest>,
                         detail::Digest{static_cast<const std::uint16_t*>(values), units, position, sum},
                         detail::sum_blocks((units + 7) / 8), stream);
}

}  // namespace kith::cuda
