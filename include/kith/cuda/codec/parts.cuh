// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <cuda_runtime.h>

#include <kith/cuda/device.cuh>
#include <kith/types.hpp>

// What the kernels of all codecs are made of. A kernel is a struct: its members are the arguments, run(block) is what
// one thread block does, on the host too, thread after thread; memory(visitor) names what it reads and writes. Values
// are worked on in Real, float or double, whatever they are stored as: that is looked up at run time, once for eight
// elements, so that there are two variants of each kernel and not eight.

namespace kith::cuda::detail {

/// Elements that one thread works on at a time: 32 bytes of f32, and of codes of a byte as much as one store takes.
inline constexpr unsigned lane_elements = 8;
inline constexpr unsigned warp_threads = 32;
/// Elements of a thread block that goes over its values once.
inline constexpr unsigned dense_tile = block_threads * lane_elements;

inline unsigned dense_tiles(std::uint64_t count) {
  return static_cast<unsigned>((count + dense_tile - 1) / dense_tile);
}

template <class Real>
using RealBits = Bits<sizeof(Real)>;
template <class Real>
inline constexpr RealBits<Real> infinite_bits = sizeof(Real) == 4 ? 0x7f800000U : 0x7ff0000000000000U;
template <class Real>
inline constexpr RealBits<Real> magnitude_bits = static_cast<RealBits<Real>>(~RealBits<Real>{0}) >> 1;

template <class To, class From>
__host__ __device__ inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}
template <class Real>
__host__ __device__ inline RealBits<Real> magnitude_of(Real value) {
  return bits_as<RealBits<Real>>(value) & magnitude_bits<Real>;
}
template <class Real>
__host__ __device__ inline bool is_finite(Real value) {
  return magnitude_of(value) < infinite_bits<Real>;
}
template <class T>
__host__ __device__ inline T larger(T a, T b) {
  return a > b ? a : b;
}
template <class T>
__host__ __device__ inline T smaller(T a, T b) {
  return a < b ? a : b;
}
__host__ __device__ inline float divide(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}
__host__ __device__ inline double divide(double a, double b) {
#ifdef __CUDA_ARCH__
  return __ddiv_rn(a, b);
#else
  return a / b;
#endif
}
/// The nearest integer, ties to even; anything for a NaN, which has been reported.
__host__ __device__ inline std::int64_t nearest(float value) {
#ifdef __CUDA_ARCH__
  return __float2int_rn(value);  // of magnitudes up to 2^24
#else
  return std::fabs(value) < 0x1p62 ? static_cast<std::int64_t>(std::nearbyint(value)) : 0;
#endif
}
__host__ __device__ inline std::int64_t nearest(double value) {
#ifdef __CUDA_ARCH__
  return __double2ll_rn(value);
#else
  return std::fabs(value) < 0x1p62 ? static_cast<std::int64_t>(std::nearbyint(value)) : 0;
#endif
}
template <class Real>
__host__ __device__ inline Real limited(Real value, Real limit) {
  return value > limit ? limit : value < -limit ? -limit : value;
}
/// The largest finite number of a dtype, as far as Real has it.
template <class Real>
__host__ __device__ inline Real largest_number(DType dtype) {
  if (dtype == DType::f16) return static_cast<Real>(65504);
  if (dtype == DType::bf16) return static_cast<Real>(0x1.FEp127);
  if (dtype == DType::f32) return static_cast<Real>(0x1.FFFFFEp127);
  return bits_as<Real>(static_cast<RealBits<Real>>(infinite_bits<Real> - 1));
}
__host__ __device__ inline unsigned width_of(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

/// Of eight elements from `i` on, those that there are.
__host__ __device__ inline unsigned lane_count(std::uint64_t i, std::uint64_t end) {
  return i >= end ? 0 : static_cast<unsigned>(smaller<std::uint64_t>(end - i, lane_elements));
}

template <class Real>
__host__ __device__ inline Real load_number(DType dtype, const void* base, std::uint64_t i) {
  if constexpr (sizeof(Real) == 4) {
    if (dtype == DType::f16) return Number<DType::f16>::widen(static_cast<const std::uint16_t*>(base)[i]);
    if (dtype == DType::bf16) return Number<DType::bf16>::widen(static_cast<const std::uint16_t*>(base)[i]);
  }
  return static_cast<const Real*>(base)[i];
}
template <class Real>
__host__ __device__ inline void store_number(DType dtype, void* base, std::uint64_t i, Real value) {
  if constexpr (sizeof(Real) == 4) {
    if (dtype == DType::f16) {
      static_cast<std::uint16_t*>(base)[i] = Number<DType::f16>::narrow(value);
      return;
    }
    if (dtype == DType::bf16) {
      static_cast<std::uint16_t*>(base)[i] = Number<DType::bf16>::narrow(value);
      return;
    }
  }
  static_cast<Real*>(base)[i] = value;
}

template <DType D, class Real>
__host__ __device__ inline void load_packs(const void* from, Real (&out)[lane_elements]) {
  using Stored = typename Number<D>::Stored;
  constexpr unsigned size = 16 / sizeof(Stored);
  KITH_CUDA_UNROLL
  for (unsigned p = 0; p < lane_elements / size; ++p) {
    const auto pack = load<size>(static_cast<const Stored*>(from) + p * size);
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < size; ++j) out[p * size + j] = Number<D>::widen(pack.values[j]);
  }
}
template <DType D, class Real>
__host__ __device__ inline void store_packs(void* to, const Real (&values)[lane_elements]) {
  using Stored = typename Number<D>::Stored;
  constexpr unsigned size = 16 / sizeof(Stored);
  KITH_CUDA_UNROLL
  for (unsigned p = 0; p < lane_elements / size; ++p) {
    Pack<Stored, size> pack;
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < size; ++j) pack.values[j] = Number<D>::narrow(values[p * size + j]);
    store(static_cast<Stored*>(to) + p * size, pack);
  }
}

/// `n` elements from `i` on, up to eight; zeros for the others.
template <class Real>
__host__ __device__ inline void load_lane(DType dtype, const void* base, std::uint64_t i, unsigned n,
                                          Real (&out)[lane_elements]) {
  const char* from = static_cast<const char*>(base) + i * width_of(dtype);
  assume_global(from);
  if (n == lane_elements && misalignment(from) == 0) {
    if constexpr (sizeof(Real) == 8) {
      load_packs<DType::f64>(from, out);
    } else if (dtype == DType::f32) {
      load_packs<DType::f32>(from, out);
    } else if (dtype == DType::f16) {
      load_packs<DType::f16>(from, out);
    } else {
      load_packs<DType::bf16>(from, out);
    }
    return;
  }
  KITH_CUDA_UNROLL
  for (unsigned j = 0; j < lane_elements; ++j) out[j] = j < n ? load_number<Real>(dtype, from, j) : Real{0};
}
template <class Real>
__host__ __device__ inline void store_lane(DType dtype, void* base, std::uint64_t i, unsigned n,
                                           const Real (&values)[lane_elements]) {
  char* to = static_cast<char*>(base) + i * width_of(dtype);
  assume_global(to);
  if (n == lane_elements && misalignment(to) == 0) {
    if constexpr (sizeof(Real) == 8) {
      store_packs<DType::f64>(to, values);
    } else if (dtype == DType::f32) {
      store_packs<DType::f32>(to, values);
    } else if (dtype == DType::f16) {
      store_packs<DType::f16>(to, values);
    } else {
      store_packs<DType::bf16>(to, values);
    }
    return;
  }
  KITH_CUDA_UNROLL
  for (unsigned j = 0; j < lane_elements; ++j)
    if (j < n) store_number(dtype, to, j, values[j]);
}

/// The lowest `n` bytes, up to eight, at any address.
__host__ __device__ inline void store_bytes(std::byte* to, std::uint64_t bytes, unsigned n) {
  assume_global(to);
  if (n == 8 && misalignment(to) % 8 == 0) {
    *reinterpret_cast<std::uint64_t*>(to) = bytes;
  } else if (n % 4 == 0 && misalignment(to) % 4 == 0) {
    if (n > 0) *reinterpret_cast<std::uint32_t*>(to) = static_cast<std::uint32_t>(bytes);
    if (n > 4) *reinterpret_cast<std::uint32_t*>(to + 4) = static_cast<std::uint32_t>(bytes >> 32);
  } else {
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < 8; ++j)
      if (j < n) to[j] = static_cast<std::byte>(bytes >> 8 * j);
  }
}
__host__ __device__ inline std::uint64_t load_bytes(const std::byte* from, unsigned n) {
  assume_global(from);
  if (n == 8 && misalignment(from) % 8 == 0) return *reinterpret_cast<const std::uint64_t*>(from);
  std::uint64_t bytes = 0;
  if (n % 4 == 0 && misalignment(from) % 4 == 0) {
    if (n > 0) bytes = *reinterpret_cast<const std::uint32_t*>(from);
    if (n > 4) bytes |= std::uint64_t{*reinterpret_cast<const std::uint32_t*>(from + 4)} << 32;
    return bytes;
  }
  KITH_CUDA_UNROLL
  for (unsigned j = 0; j < 8; ++j)
    if (j < n) bytes |= std::uint64_t{static_cast<unsigned char>(from[j])} << 8 * j;
  return bytes;
}

/// What is encoded: values, less `minus` if that is not null.
template <class Real>
struct Input {
  const void* values;
  const Real* minus;
  std::uint64_t count;
  std::uint64_t* finding;
  std::uint32_t buffer;
  DType dtype;

  __host__ __device__ void load(std::uint64_t i, unsigned n, Real (&out)[lane_elements]) const {
    load_lane(dtype, values, i, n, out);
    if (minus == nullptr) return;
    Real less[lane_elements];
    load_lane(sizeof(Real) == 8 ? DType::f64 : DType::f32, minus, i, n, less);
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < lane_elements; ++j) out[j] = subtract(out[j], less[j]);
  }
  __host__ __device__ Real load(std::uint64_t i) const {
    const Real value = load_number<Real>(dtype, values, i);
    return minus == nullptr ? value : subtract(value, minus[i]);
  }
  __host__ __device__ void report(std::uint64_t i) const {
    lower(finding, (std::uint64_t{buffer} << finding_index_bits) | i);
  }
  __host__ __device__ void check(std::uint64_t i, const Real (&values_of_lane)[lane_elements]) const {
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < lane_elements; ++j)
      if (!is_finite(values_of_lane[j])) report(i + j);
  }
  template <class V>
  void memory(V& v) {
    v.reads(values, count * width_of(dtype));
    v.reads(minus, count * sizeof(Real));
    v.writes(finding, sizeof *finding);
  }
};

/// Division by a number that is a power of two more often than not.
struct Divisor {
  std::uint64_t by = 1;
  int shift = 0;

  Divisor() = default;
  explicit Divisor(std::uint64_t divisor)
      : by(divisor), shift(std::has_single_bit(divisor) ? std::countr_zero(divisor) : -1) {}
  __host__ __device__ std::uint64_t operator()(std::uint64_t value) const {
    return value < by ? 0 : shift >= 0 ? value >> shift : value / by;
  }
};

/// Calls f(thread) for all threads of the block.
template <class F>
__host__ __device__ inline void for_threads(const F& f) {
#ifdef __CUDA_ARCH__
  f(threadIdx.x);
#else
  for (unsigned thread = 0; thread < block_threads; ++thread) f(thread);
#endif
}

// What all threads of a block see, and the point where each sees what the others have written there.
#ifdef __CUDA_ARCH__
#define KITH_CUDA_SHARED __shared__
#else
#define KITH_CUDA_SHARED
#endif
__host__ __device__ inline void block_wait() {
#ifdef __CUDA_ARCH__
  __syncthreads();
#endif
}

/// What a thread remembers from one step of the block to the next: registers.
template <class T>
struct PerThread {
#ifdef __CUDA_ARCH__
  T value;
  __device__ T& operator[](unsigned) { return value; }
#else
  std::array<T, block_threads> values;
  T& operator[](unsigned thread) { return values[thread]; }
#endif
};

/// Each thread's becomes the largest of its group of `lanes` threads: a power of two, up to a warp.
template <class T>
__host__ __device__ inline void group_max(PerThread<T>& values, unsigned lanes) {
#ifdef __CUDA_ARCH__
  KITH_CUDA_NO_UNROLL
  for (unsigned half = lanes / 2; half > 0; half /= 2)
    values.value = larger(values.value, __shfl_xor_sync(0xffffffffU, values.value, half));
#else
  for (unsigned first = 0; first < block_threads; first += lanes) {
    T most = values[first];
    for (unsigned t = 1; t < lanes; ++t) most = larger(most, values[first + t]);
    for (unsigned t = 0; t < lanes; ++t) values[first + t] = most;
  }
#endif
}

/// Adds the second half of each group's threads to the first until one is left, the first thread's.
template <class T>
__host__ __device__ inline void group_fold(PerThread<T>& values, unsigned lanes) {
#ifdef __CUDA_ARCH__
  for (unsigned half = lanes / 2; half > 0; half /= 2)
    values.value = add(values.value, __shfl_down_sync(0xffffffffU, values.value, half, static_cast<int>(lanes)));
#else
  for (unsigned first = 0; first < block_threads; first += lanes)
    for (unsigned half = lanes / 2; half > 0; half /= 2)
      for (unsigned t = 0; t < half; ++t) values[first + t] = add(values[first + t], values[first + t + half]);
#endif
}

/// The same for the whole block.
__host__ __device__ inline void block_fold(PerThread<double>& values) {
#ifdef __CUDA_ARCH__
  __shared__ double sums[block_threads];
  sums[threadIdx.x] = values.value;
  for (unsigned half = block_threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] = add(sums[threadIdx.x], sums[threadIdx.x + half]);
  }
  if (threadIdx.x == 0) values.value = sums[0];
#else
  for (unsigned half = block_threads / 2; half > 0; half /= 2)
    for (unsigned t = 0; t < half; ++t) values[t] = add(values[t], values[t + half]);
#endif
}

/// Each thread's becomes the sum of those before it; the sum of all comes back.
__host__ __device__ inline std::uint64_t block_scan(PerThread<std::uint64_t>& values) {
#ifdef __CUDA_ARCH__
  __shared__ std::uint64_t sums[block_threads];
  const unsigned t = threadIdx.x;
  const std::uint64_t own = values.value;
  __syncthreads();  // a scan before may still be read
  sums[t] = own;
  for (unsigned distance = 1; distance < block_threads; distance *= 2) {
    __syncthreads();
    const std::uint64_t before = t >= distance ? sums[t - distance] : 0;
    __syncthreads();
    sums[t] += before;
  }
  __syncthreads();
  values.value = sums[t] - own;
  return sums[block_threads - 1];
#else
  std::uint64_t sum = 0;
  for (std::uint64_t& value : values.values) {
    const std::uint64_t own = value;
    value = sum;
    sum += own;
  }
  return sum;
#endif
}

/// Raises `*most` to `value`.
template <class T>
__host__ __device__ inline void raise(T* most, T value) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 8)
    atomicMax(reinterpret_cast<long long*>(most), static_cast<long long>(value));
  else
    atomicMax(most, value);
#else
  if (value > *most) *most = value;
#endif
}

/// Element `index` of the SplitMix64 sequence from `seed`; see kith/numeric/counter_rng.hpp.
__host__ __device__ inline std::uint64_t split_mix(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t word = seed + 0x9E3779B97F4A7C15U * (index + 1);
  word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9U;
  word = (word ^ (word >> 27)) * 0x94D049BB133111EBU;
  return word ^ (word >> 31);
}

template <class Kernel>
__global__ void __launch_bounds__(block_threads) codec_kernel(const __grid_constant__ Kernel kernel) {
  kernel.run(blockIdx.x);
}

}  // namespace kith::cuda::detail
