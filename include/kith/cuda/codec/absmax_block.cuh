// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include <kith/cuda/codec/parts.cuh>

// Int8Block and Int4Block: a block's values stay in the registers of a group of threads, which exchange the largest
// magnitude among themselves. So values are read once, and written once as codes.

namespace kith::cuda::detail {

/// See kith::detail::block_scale.
template <class Real>
struct CodeScale {
  Real prescale = 1;
  Real inverse = 0;
  Real step = 0;
  Real restore = 1;

  __host__ __device__ CodeScale(Real largest, Real limit) {
    constexpr Real factor = sizeof(Real) == 4 ? static_cast<Real>(0x1p64) : static_cast<Real>(0x1p512);
    if (largest == 0) return;
    if (largest < 1 / factor) {
      prescale = factor;
      restore = 1 / factor;
    } else if (largest > factor) {
      prescale = 1 / factor;
      restore = factor;
    }
    largest = multiply(largest, prescale);
    inverse = divide(limit, largest);
    step = divide(largest, limit);
    if (multiply(limit, step) > largest) step = bits_as<Real>(bits_as<RealBits<Real>>(step) - 1);
  }
};

/// Where the parts of a wire are. A block is a multiple of eight elements.
struct BlockLayout {
  Divisor block;
  std::uint64_t codes = 0;  // offset
  DType wire_dtype = DType::f32;
  bool nibbles = false;

  BlockLayout() = default;
  BlockLayout(std::uint64_t size, std::uint64_t count, DType dtype, bool half)
      : block(size), codes((count + size - 1) / size * width_of(dtype)), wire_dtype(dtype), nibbles(half) {}

  [[nodiscard]] __host__ __device__ int limit() const { return nibbles ? 7 : 127; }
  [[nodiscard]] __host__ __device__ std::uint64_t code_at(std::uint64_t i) const {
    return codes + (nibbles ? i / 2 : i);
  }
  [[nodiscard]] __host__ __device__ unsigned code_bytes(unsigned n) const { return nibbles ? (n + 1) / 2 : n; }
  [[nodiscard]] std::uint64_t bytes(std::uint64_t count) const { return codes + (nibbles ? (count + 1) / 2 : count); }
};

template <class Real>
struct EncodeBlocks {
  Input<Real> input;
  std::byte* wire;
  BlockLayout layout;
  /// Threads that share a block.
  unsigned lanes;

  static unsigned lanes_for(std::uint64_t block, std::uint64_t count) {
    const std::uint64_t most = (std::min(block, count) + lane_elements - 1) / lane_elements;
    return static_cast<unsigned>(std::bit_ceil(std::min<std::uint64_t>(most, warp_threads)));
  }
  [[nodiscard]] unsigned tiles() const {
    const std::uint64_t blocks = layout.codes / width_of(layout.wire_dtype);
    const unsigned groups = block_threads / lanes;
    return static_cast<unsigned>((blocks + groups - 1) / groups);
  }
  template <class V>
  void memory(V& v) {
    input.memory(v);
    v.writes(wire, layout.bytes(input.count));
  }

  struct Lane {
    Real x[lane_elements];
  };

  __host__ __device__ void run(unsigned tile) const {
    PerThread<Lane> kept;
    PerThread<RealBits<Real>> largest;
    for_threads([&](unsigned thread) {
      const Place place = place_of(tile, thread);
      input.load(place.first, lane_count(place.first, place.end), kept[thread].x);
      RealBits<Real> most = largest_in(kept[thread].x);
      KITH_CUDA_NO_UNROLL
      for (std::uint64_t i = place.first + stride(); i < place.end; i += stride()) {
        Real x[lane_elements];
        input.load(i, lane_count(i, place.end), x);
        most = larger(most, largest_in(x));
      }
      largest[thread] = most;
    });
    group_max(largest, lanes);
    for_threads([&](unsigned thread) {
      const Place place = place_of(tile, thread);
      if (place.begin >= place.end) return;
      const Real most = bits_as<Real>(largest[thread]);
      if (thread % lanes == 0) store_number(layout.wire_dtype, wire, place.block, most);
      const CodeScale<Real> scale{most, static_cast<Real>(layout.limit())};
      write(place.first, place.end, kept[thread].x, scale, most);
      KITH_CUDA_NO_UNROLL
      for (std::uint64_t i = place.first + stride(); i < place.end; i += stride()) {
        Real x[lane_elements];
        input.load(i, lane_count(i, place.end), x);
        write(i, place.end, x, scale, most);
      }
    });
  }

private:
  /// A thread's block, and the first of its elements there.
  struct Place {
    std::uint64_t block, begin, first, end;
  };

  [[nodiscard]] __host__ __device__ std::uint64_t stride() const { return std::uint64_t{lanes} * lane_elements; }
  [[nodiscard]] __host__ __device__ Place place_of(unsigned tile, unsigned thread) const {
    Place place{};
    place.block = std::uint64_t{tile} * (block_threads / lanes) + thread / lanes;
    place.begin = smaller(place.block * layout.block.by, input.count);
    place.end = input.count - place.begin < layout.block.by ? input.count : place.begin + layout.block.by;
    place.first = place.begin + thread % lanes * lane_elements;
    return place;
  }
  static __host__ __device__ RealBits<Real> largest_in(const Real (&x)[lane_elements]) {
    RealBits<Real> most = 0;
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < lane_elements; ++j) most = larger(most, magnitude_of(x[j]));
    return most;
  }
  __host__ __device__ void write(std::uint64_t i, std::uint64_t end, const Real (&x)[lane_elements],
                                 const CodeScale<Real>& scale, Real most) const {
    const unsigned n = lane_count(i, end);
    if (n == 0) return;
    if (!is_finite(most)) return input.check(i, x);
    std::uint64_t codes = 0;
    const unsigned width = layout.nibbles ? 4 : 8;
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < lane_elements; ++j) {
      const std::int64_t code = nearest(multiply(multiply(x[j], scale.prescale), scale.inverse));
      codes |= (static_cast<std::uint64_t>(code) & (layout.nibbles ? 0xFU : 0xFFU)) << width * j;
    }
    store_bytes(wire + layout.code_at(i), codes, layout.code_bytes(n));
  }
};

/// Eight values of a wire.
template <class Real>
struct BlockDecoder {
  BlockLayout layout;

  [[nodiscard]] std::uint64_t wire_bytes(std::uint64_t count) const { return layout.bytes(count); }

  __host__ __device__ void decode(const std::byte* wire, std::uint64_t i, unsigned n,
                                  Real (&out)[lane_elements]) const {
    const std::uint64_t codes = load_bytes(wire + layout.code_at(i), layout.code_bytes(n));
    const CodeScale<Real> scale{load_number<Real>(layout.wire_dtype, wire, layout.block(i)),
                                static_cast<Real>(layout.limit())};
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < lane_elements; ++j) {
      const auto code = layout.nibbles ? static_cast<int>(static_cast<std::int8_t>(codes >> 4 * j << 4)) / 16
                                       : static_cast<int>(static_cast<std::int8_t>(codes >> 8 * j));
      out[j] = multiply(multiply(static_cast<Real>(code), scale.step), scale.restore);
    }
  }
};

}  // namespace kith::cuda::detail
