// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include <kith/cuda/codec/parts.cuh>

namespace kith::cuda::detail {

/// A double as a float that rounds to 16 bits as the double itself would; see kith::detail::round_to_odd.
__host__ __device__ inline float odd_float(double value) {
  value = limited(value, largest_number<double>(DType::f32));
#ifdef __CUDA_ARCH__
  const float near = __double2float_rn(value);
#else
  const auto near = static_cast<float>(value);
#endif
  const auto back = static_cast<double>(near);
  if (back == value) return near;
  auto bits = bits_as<std::uint32_t>(near);
  if ((value < 0 ? -back : back) > (value < 0 ? -value : value)) --bits;  // towards zero
  return bits_as<float>(bits | 1U);
}
__host__ __device__ inline float odd_float(float value) { return value; }

template <class Real>
struct EncodeCast {
  Input<Real> input;
  std::uint16_t* wire;
  DType to;

  [[nodiscard]] unsigned tiles() const { return dense_tiles(input.count); }
  template <class V>
  void memory(V& v) {
    input.memory(v);
    v.writes(wire, input.count * 2);
  }
  __host__ __device__ void run(unsigned tile) const {
    for_threads([&](unsigned thread) {
      const std::uint64_t i = (std::uint64_t{tile} * block_threads + thread) * lane_elements;
      const unsigned n = lane_count(i, input.count);
      if (n == 0) return;
      Real x[lane_elements];
      input.load(i, n, x);
      input.check(i, x);
      float narrow[lane_elements];
      KITH_CUDA_UNROLL
      for (unsigned j = 0; j < lane_elements; ++j) narrow[j] = limited(odd_float(x[j]), largest_number<float>(to));
      store_lane(to, wire, i, n, narrow);
    });
  }
};

template <class Real>
struct CastDecoder {
  DType to;
  /// Of the type that the values are stored in, where the wire's type goes beyond it.
  Real limit;

  [[nodiscard]] static std::uint64_t wire_bytes(std::uint64_t count) { return count * 2; }
  __host__ __device__ void decode(const std::byte* wire, std::uint64_t i, unsigned n,
                                  Real (&out)[lane_elements]) const {
    float wide[lane_elements];
    load_lane(to, wire, i, n, wide);
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < lane_elements; ++j) out[j] = limited(static_cast<Real>(wide[j]), limit);
  }
};

}  // namespace kith::cuda::detail
