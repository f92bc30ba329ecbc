// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <kith/cuda/codec/parts.cuh>

// MinMaxUInt8. A chunk is often the whole buffer: its extremes are found by a kernel of their own, in the wire's
// header, and a second pass over the values writes codes.

namespace kith::cuda::detail {

template <class Real>
using Key = std::make_signed_t<RealBits<Real>>;

/// A signed integer that is ordered like the numbers, -0 before +0; see kith::detail::Extremes.
template <class Real>
__host__ __device__ inline Key<Real> key_of(Real value) {
  const auto bits = bits_as<Key<Real>>(value);
  return bits ^ ((bits >> (8 * sizeof(Real) - 1)) & static_cast<Key<Real>>(magnitude_bits<Real>));
}
template <class Real>
__host__ __device__ inline Real number_of(Key<Real> key) {
  return bits_as<Real>(key_of(bits_as<Real>(key)));
}

/// The extremes of a chunk while they are looked for: ~(key of the least) and the key of the greatest, so that both
/// only grow.
template <class Real>
struct Bounds {
  Key<Real> not_least;
  Key<Real> greatest;

  static __host__ __device__ Bounds nothing() {
    constexpr Key<Real> lowest = static_cast<Key<Real>>(~magnitude_bits<Real>);
    return {lowest, lowest};
  }
  [[nodiscard]] __host__ __device__ Real least_number() const {
    return number_of<Real>(static_cast<Key<Real>>(~not_least));
  }
  [[nodiscard]] __host__ __device__ Real greatest_number() const { return number_of<Real>(greatest); }
};

/// The chunks of a buffer and their places in a wire. A chunk is a multiple of eight elements, or the whole buffer.
struct Chunks {
  static constexpr std::uint64_t align = 32;  // of the extremes, and of the codes

  Divisor size;
  std::uint64_t count = 0;

  Chunks() = default;
  Chunks(std::uint64_t chunk, std::uint64_t elements)
      : size(chunk == 0 ? elements : std::min(chunk, elements)), count(elements) {}

  [[nodiscard]] __host__ __device__ static std::uint64_t bytes(std::uint64_t elements) {
    return align + (elements + align - 1) / align * align;
  }
  [[nodiscard]] __host__ __device__ std::uint64_t number() const { return (count + size.by - 1) / size.by; }
  [[nodiscard]] __host__ __device__ std::uint64_t header(std::uint64_t chunk) const { return chunk * bytes(size.by); }
  [[nodiscard]] __host__ __device__ std::uint64_t length(std::uint64_t chunk) const {
    return smaller(size.by, count - chunk * size.by);
  }
  [[nodiscard]] std::uint64_t wire_bytes() const { return header(number() - 1) + bytes(length(number() - 1)); }
};

/// Where bounds are kept: one for each chunk, `stride` bytes apart.
template <class Real>
struct BoundsAt {
  std::byte* base;
  std::uint64_t stride;

  [[nodiscard]] __host__ __device__ Bounds<Real>& operator[](std::uint64_t chunk) const {
    return *reinterpret_cast<Bounds<Real>*>(base + chunk * stride);
  }
};

/// Before and after FindBounds, a thread for each chunk. `finish`: writes the header of the wire.
template <class Real>
struct ChunkHeaders {
  BoundsAt<Real> bounds;
  std::byte* wire;
  Chunks chunks;
  DType wire_dtype;
  bool finish;

  [[nodiscard]] unsigned tiles() const {
    return static_cast<unsigned>((chunks.number() + block_threads - 1) / block_threads);
  }
  template <class V>
  void memory(V& v) {
    const std::uint64_t end = (chunks.number() - 1) * bounds.stride + sizeof(Bounds<Real>);
    v.reads(bounds.base, finish ? end : 0);
    v.writes(bounds.base, end);
    if (finish) v.writes(wire, chunks.wire_bytes());
  }
  __host__ __device__ void run(unsigned tile) const {
    for_threads([&](unsigned thread) {
      const std::uint64_t chunk = std::uint64_t{tile} * block_threads + thread;
      if (chunk >= chunks.number()) return;
      if (!finish) {
        bounds[chunk] = Bounds<Real>::nothing();
        return;
      }
      const Bounds<Real> found = bounds[chunk];
      auto* const header = wire + chunks.header(chunk);
      for (unsigned at = 0; at < Chunks::align; at += 8) *reinterpret_cast<std::uint64_t*>(header + at) = 0;
      store_number(wire_dtype, header, 0, found.least_number());
      store_number(wire_dtype, header, 1, found.greatest_number());
    });
  }
};

template <class Real>
struct FindBounds {
  Input<Real> input;
  BoundsAt<Real> bounds;
  Chunks chunks;

  /// How often a thread block goes on, before its threads compare what they have found.
  static constexpr unsigned steps = 4;

  [[nodiscard]] unsigned tiles() const {
    return static_cast<unsigned>((input.count + steps * dense_tile - 1) / (steps * dense_tile));
  }
  template <class V>
  void memory(V& v) {
    input.memory(v);
    v.writes(bounds.base, (chunks.number() - 1) * bounds.stride + sizeof(Bounds<Real>));
  }

  __host__ __device__ void run(unsigned tile) const {
    const std::uint64_t begin = std::uint64_t{tile} * steps * dense_tile;
    const std::uint64_t end = smaller<std::uint64_t>(begin + steps * dense_tile, input.count);
    const bool together = chunks.size(begin) == chunks.size(end - 1);
    PerThread<Key<Real>> not_least;
    PerThread<Key<Real>> greatest;
    for_threads([&](unsigned thread) {
      Bounds<Real> mine = Bounds<Real>::nothing();
      KITH_CUDA_NO_UNROLL
      for (std::uint64_t i = begin + thread * lane_elements; i < end; i += dense_tile) {
        const unsigned n = lane_count(i, end);
        Real x[lane_elements];
        input.load(i, n, x);
        input.check(i, x);
        KITH_CUDA_UNROLL
        for (unsigned j = 0; j < lane_elements; ++j) {
          if (j >= n) continue;
          mine.greatest = larger(mine.greatest, key_of(x[j]));
          mine.not_least = larger(mine.not_least, static_cast<Key<Real>>(~key_of(x[j])));
        }
        if (together) continue;
        merge(chunks.size(i), mine);
        mine = Bounds<Real>::nothing();
      }
      not_least[thread] = mine.not_least;
      greatest[thread] = mine.greatest;
    });
    if (!together) return;
    group_max(not_least, warp_threads);
    group_max(greatest, warp_threads);
    for_threads([&](unsigned thread) {
      if (thread % warp_threads == 0) merge(chunks.size(begin), {not_least[thread], greatest[thread]});
    });
  }

private:
  __host__ __device__ void merge(std::uint64_t chunk, const Bounds<Real>& found) const {
    Bounds<Real>& target = bounds[chunk];
    if (found.not_least > target.not_least) raise(&target.not_least, found.not_least);
    if (found.greatest > target.greatest) raise(&target.greatest, found.greatest);
  }
};

/// The levels of a chunk; see kith::detail::MinMaxLevels.
template <class Real>
struct Levels {
  Real least;
  Real greatest;
  Real scale;
  Real half_range = 0;
  std::int64_t lower = 0;
  bool relative = true;

  __host__ __device__ Levels(Real smallest, Real largest) : least(smallest), greatest(largest) {
    constexpr Real whole = sizeof(Real) == 4 ? static_cast<Real>(0x1p24) : static_cast<Real>(0x1p53);
    scale = divide(Real{255}, add(subtract(greatest, least), static_cast<Real>(1e-7)));
    const Real upper = multiply(greatest, scale);
    if (scale > 0 && upper <= whole && upper >= -whole) {
      lower = nearest(upper) - 255;
      const auto as_real = static_cast<Real>(lower);
      relative = !(as_real <= whole && as_real >= -whole);
    }
    if (relative) half_range = subtract(multiply(greatest, Real{0.5}), multiply(least, Real{0.5}));
  }
};

template <class Real>
struct EncodeLevels {
  Input<Real> input;
  std::byte* wire;
  Chunks chunks;
  DType wire_dtype;

  [[nodiscard]] unsigned tiles() const { return dense_tiles(input.count); }
  template <class V>
  void memory(V& v) {
    input.memory(v);
    v.reads(wire, chunks.wire_bytes());
    v.writes(wire, chunks.wire_bytes());
  }
  __host__ __device__ void run(unsigned tile) const {
    for_threads([&](unsigned thread) {
      const std::uint64_t i = (std::uint64_t{tile} * block_threads + thread) * lane_elements;
      const unsigned n = lane_count(i, input.count);
      if (n == 0) return;
      Real x[lane_elements];
      input.load(i, n, x);
      const std::uint64_t chunk = chunks.size(i);
      const std::uint64_t length = chunks.length(chunk);
      const std::uint64_t at = i - chunk * chunks.size.by;
      std::byte* const header = wire + chunks.header(chunk);
      std::byte* const codes = header + Chunks::align;
      const Levels<Real> levels{load_number<Real>(wire_dtype, header, 0), load_number<Real>(wire_dtype, header, 1)};
      store_bytes(codes + at, encode(levels, x), n);
      if (at + n < length) return;
      for (std::uint64_t pad = length; pad < Chunks::bytes(length) - Chunks::align; ++pad) codes[pad] = std::byte{0};
    });
  }

private:
  static __host__ __device__ std::uint64_t encode(const Levels<Real>& levels, const Real (&x)[lane_elements]) {
    const Real inverse = levels.half_range > 0 ? divide(Real{255}, levels.half_range) : Real{0};
    const Real half_least = multiply(levels.least, Real{0.5});
    std::uint64_t codes = 0;
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < lane_elements; ++j) {
      std::int64_t code = 0;
      if (!levels.relative) {
        code = larger<std::int64_t>(nearest(multiply(x[j], levels.scale)) - levels.lower, 0);
      } else {
        const Real above = subtract(multiply(x[j], Real{0.5}), half_least);
        code = smaller<std::int64_t>(nearest(multiply(above, inverse)), 255);
      }
      codes |= static_cast<std::uint64_t>(code & 0xFF) << 8 * j;
    }
    return codes;
  }
};

template <class Real>
struct LevelsDecoder {
  Chunks chunks;
  DType wire_dtype;
  /// Of the type that the values are stored in.
  Real limit;

  [[nodiscard]] std::uint64_t wire_bytes(std::uint64_t /*count*/) const { return chunks.wire_bytes(); }

  __host__ __device__ void decode(const std::byte* wire, std::uint64_t i, unsigned n,
                                  Real (&out)[lane_elements]) const {
    const std::uint64_t chunk = chunks.size(i);
    const std::byte* const header = wire + chunks.header(chunk);
    const Levels<Real> levels{load_number<Real>(wire_dtype, header, 0), load_number<Real>(wire_dtype, header, 1)};
    const std::uint64_t codes = load_bytes(header + Chunks::align + (i - chunk * chunks.size.by), n);
    const Real step = divide(levels.half_range, Real{255});
    const auto lower = static_cast<Real>(levels.lower);
    // The outer levels may lie half a step outside of the extremes.
    const bool near_limit = larger(-levels.least, levels.greatest) > multiply(limit, Real{0.5});
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < lane_elements; ++j) {
      const auto code = static_cast<Real>(static_cast<unsigned>(codes >> 8 * j & 0xFF));
      if (!levels.relative) {
        out[j] = divide(add(code, lower), levels.scale);
      } else {
        const Real half =
            smaller(add(multiply(levels.least, Real{0.5}), multiply(code, step)), multiply(levels.greatest, Real{0.5}));
        out[j] = multiply(half, Real{2});
      }
      if (near_limit) out[j] = limited(out[j], limit);
    }
  }
};

}  // namespace kith::cuda::detail
