// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kith/cuda/codec/min_max_uint8.cuh>
#include <kith/cuda/codec/parts.cuh>

// SignMean and QSGD: codecs that need a sum over the whole buffer, in the order of kith::detail::ordered_sum.

namespace kith::cuda::detail {

inline constexpr unsigned sum_tile = 1024;
__host__ __device__ inline std::uint64_t sum_tiles(std::uint64_t count) { return (count + sum_tile - 1) / sum_tile; }

__host__ __device__ inline double square_root(double value) {
#ifdef __CUDA_ARCH__
  return __dsqrt_rn(value);
#else
  return std::sqrt(value);
#endif
}

/// The integer part of a number that is not negative; anything for a NaN, which has been reported.
__host__ __device__ inline std::uint64_t whole(double value) {
#ifdef __CUDA_ARCH__
  return __double2ull_rz(value);
#else
  return value < 0x1p63 ? static_cast<std::uint64_t>(value) : 0;
#endif
}

/// What is added up of a magnitude: it itself; 2^-64 of it, for a sum that has overflowed; or the square of its ratio
/// to the largest.
enum class Term : std::uint8_t { magnitude, scaled, square };

template <class Real>
__host__ __device__ inline double divisor_of(const Bounds<Real>& bounds) {
  const Real largest = larger(-bounds.least_number(), bounds.greatest_number());
  return largest > 0 ? static_cast<double>(largest) : 1;
}

/// The sums of tiles of 1024 elements, eight threads for each.
template <class Real>
struct SumTiles {
  Input<Real> input;
  double* sums;
  /// square: of the whole buffer. scaled: null.
  const Bounds<Real>* bounds;
  /// scaled: the sum of before, which needs no other one if it is finite.
  const double* before;
  Term term;

  [[nodiscard]] unsigned tiles() const { return static_cast<unsigned>((sum_tiles(input.count) + 31) / 32); }
  template <class V>
  void memory(V& v) {
    input.memory(v);
    v.reads(bounds, sizeof *bounds);
    v.reads(before, sizeof *before);
    v.writes(sums, sum_tiles(input.count) * sizeof(double));
  }
  __host__ __device__ void run(unsigned block) const {
    constexpr unsigned lanes = 8;
    if (before != nullptr && is_finite(*before)) return;
    const double divisor = bounds != nullptr ? divisor_of(*bounds) : 1;
    PerThread<double> sum;
    for_threads([&](unsigned thread) {
      const std::uint64_t begin = (std::uint64_t{block} * (block_threads / lanes) + thread / lanes) * sum_tile;
      const std::uint64_t end = smaller<std::uint64_t>(begin + sum_tile, input.count);
      double mine = 0;
      KITH_CUDA_UNROLL_TWICE
      for (std::uint64_t i = begin + thread % lanes; i < end; i += lanes) {
        const Real value = input.load(i);
        if (!is_finite(value)) input.report(i);
        double x = fabs(static_cast<double>(value));
        if (term == Term::scaled) x = multiply(x, 0x1p-64);
        if (term == Term::square) x = multiply(divide(x, divisor), divide(x, divisor));
        mine = add(mine, x);
      }
      sum[thread] = mine;
    });
    group_fold(sum, lanes);
    for_threads([&](unsigned thread) {
      const std::uint64_t tile = std::uint64_t{block} * (block_threads / lanes) + thread / lanes;
      if (thread % lanes == 0 && tile < sum_tiles(input.count)) sums[tile] = sum[thread];
    });
  }
};

/// One block: the sum of the tiles' sums, and the wire's header from it.
template <class Real>
struct FinishSum {
  const double* sums;
  double* total;
  std::byte* wire;
  const Bounds<Real>* bounds;
  std::uint64_t count;
  DType wire_dtype;
  Term term;

  [[nodiscard]] static unsigned tiles() { return 1; }
  template <class V>
  void memory(V& v) {
    v.reads(sums, sum_tiles(count) * sizeof(double));
    v.reads(bounds, sizeof *bounds);
    v.reads(total, sizeof *total);
    v.writes(total, sizeof *total);
    v.writes(wire, term == Term::square ? sizeof(double) + width_of(wire_dtype) : sizeof(Real));
  }
  __host__ __device__ void run(unsigned /*block*/) const {
    if (term == Term::scaled && is_finite(*total)) return;
    PerThread<double> sum;
    for_threads([&](unsigned thread) {
      double mine = 0;
      const std::uint64_t tiles_of_all = sum_tiles(count);
      for (std::uint64_t t = thread; t < tiles_of_all; t += block_threads) mine = add(mine, sums[t]);
      sum[thread] = mine;
    });
    block_fold(sum);
    for_threads([&](unsigned thread) {
      if (thread == 0) write(sum[0]);
    });
  }

private:
  __host__ __device__ void write(double sum) const {
    if (term == Term::square) {
      *reinterpret_cast<double*>(wire) = square_root(sum);
      const Real largest = larger(-bounds->least_number(), bounds->greatest_number());
      // The magnitude: the larger one may be -0.
      store_number(wire_dtype, wire + sizeof(double), 0, largest > 0 ? largest : Real{0});
      return;
    }
    double mean = divide(sum, static_cast<double>(count));
    if (term == Term::scaled) mean = multiply(mean, 0x1p64);
    if (term == Term::magnitude) *total = sum;
    *reinterpret_cast<Real*>(wire) = static_cast<Real>(mean);
  }
};

template <class Real>
struct EncodeSigns {
  Input<Real> input;
  std::byte* wire;

  [[nodiscard]] unsigned tiles() const { return dense_tiles(input.count); }
  template <class V>
  void memory(V& v) {
    input.memory(v);
    v.writes(wire, sizeof(Real) + (input.count + 7) / 8);
  }
  __host__ __device__ void run(unsigned tile) const {
    for_threads([&](unsigned thread) {
      const std::uint64_t i = (std::uint64_t{tile} * block_threads + thread) * lane_elements;
      const unsigned n = lane_count(i, input.count);
      if (n == 0) return;
      Real x[lane_elements];
      input.load(i, n, x);
      unsigned signs = 0;
      KITH_CUDA_UNROLL
      for (unsigned j = 0; j < lane_elements; ++j)
        if (j < n) signs |= static_cast<unsigned>(bits_as<RealBits<Real>>(x[j]) >> (8 * sizeof(Real) - 1)) << j;
      wire[sizeof(Real) + i / 8] = static_cast<std::byte>(signs);
    });
  }
};

template <class Real>
struct SignDecoder {
  [[nodiscard]] static std::uint64_t wire_bytes(std::uint64_t count) { return sizeof(Real) + (count + 7) / 8; }
  __host__ __device__ void decode(const std::byte* wire, std::uint64_t i, unsigned /*n*/,
                                  Real (&out)[lane_elements]) const {
    const auto mean = bits_as<RealBits<Real>>(*reinterpret_cast<const Real*>(wire));
    const auto signs = static_cast<RealBits<Real>>(wire[sizeof(Real) + i / 8]);
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < lane_elements; ++j)
      out[j] = bits_as<Real>(static_cast<RealBits<Real>>(mean | signs >> j << (8 * sizeof(Real) - 1)));
  }
};

template <class Real>
struct EncodeNoisy {
  Input<Real> input;
  std::byte* wire;
  const Bounds<Real>* bounds;
  std::uint64_t key;
  std::uint32_t levels;
  std::uint32_t header;

  [[nodiscard]] unsigned tiles() const { return dense_tiles(input.count); }
  template <class V>
  void memory(V& v) {
    input.memory(v);
    v.reads(bounds, sizeof *bounds);
    v.reads(wire, header);
    v.writes(wire, header + input.count);
  }
  __host__ __device__ void run(unsigned tile) const {
    for_threads([&](unsigned thread) {
      const std::uint64_t i = (std::uint64_t{tile} * block_threads + thread) * lane_elements;
      const unsigned n = lane_count(i, input.count);
      if (n == 0) return;
      Real x[lane_elements];
      input.load(i, n, x);
      const double ratio = *reinterpret_cast<const double*>(wire);
      const double divisor = divisor_of(*bounds);
      const double per_level = ratio > 0 ? divide(static_cast<double>(levels), ratio) : 0;
      std::uint64_t codes = 0;
      KITH_CUDA_UNROLL
      for (unsigned j = 0; j < lane_elements; ++j) {
        const double magnitude = fabs(static_cast<double>(x[j]));
        const auto level = whole(multiply(multiply(divide(magnitude, divisor), per_level), 0x1p32));
        const auto code = static_cast<std::int64_t>((level + (split_mix(key, i + j) >> 32)) >> 32);
        const bool negative = bits_as<RealBits<Real>>(x[j]) >> (8 * sizeof(Real) - 1) != 0;
        codes |= static_cast<std::uint64_t>((negative ? -code : code) & 0xFF) << 8 * j;
      }
      store_bytes(wire + header + i, codes, n);
    });
  }
};

template <class Real>
struct NoisyDecoder {
  std::uint32_t levels;
  std::uint32_t header;
  DType wire_dtype;
  /// Of the type that the values are stored in.
  double limit;

  [[nodiscard]] std::uint64_t wire_bytes(std::uint64_t count) const { return header + count; }
  __host__ __device__ void decode(const std::byte* wire, std::uint64_t i, unsigned n,
                                  Real (&out)[lane_elements]) const {
    const double step = divide(*reinterpret_cast<const double*>(wire), static_cast<double>(levels));
    const auto largest = static_cast<double>(load_number<Real>(wire_dtype, wire + sizeof(double), 0));
    const std::uint64_t codes = load_bytes(wire + header + i, n);
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < lane_elements; ++j) {
      const double steps = multiply(static_cast<double>(static_cast<std::int8_t>(codes >> 8 * j)), step);
      out[j] = static_cast<Real>(limited(multiply(steps, largest), limit));
    }
  }
};

}  // namespace kith::cuda::detail
