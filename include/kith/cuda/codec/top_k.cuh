// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <kith/cuda/codec/parts.cuh>
#include <kith/cuda/codec_kernels.hpp>

// TopK. The smallest magnitude that is kept is found digit by digit from the top, by counting, as on the host; then
// tiles are counted, so that each knows where in the wire its first value goes.

namespace kith::cuda::detail {

inline constexpr unsigned top_k_bins = 2048;
inline constexpr int top_k_digit_bits = 11;

inline std::uint8_t top_k_index_bytes(std::uint64_t count) {
  return count > std::uint64_t{std::numeric_limits<std::uint32_t>::max()} + 1 ? 8 : 4;
}

/// How far the search is: kept is what is above `found` in the `decided` bits, and of what equals it there `rest`.
template <class Real>
struct TopKSearch {
  RealBits<Real> found;
  RealBits<Real> decided;
  std::uint64_t rest;
};

/// Values of a tile that are above the threshold, and that equal it; then, those of all tiles before.
struct TileCount {
  std::uint64_t above;
  std::uint64_t equal;
};

/// The parts of the scratch memory.
template <class Real>
struct TopKScratch {
  TopKSearch<Real>* search;
  std::uint64_t* bins;
  TileCount* tiles;

  explicit TopKScratch(void* memory)
      : search(static_cast<TopKSearch<Real>*>(memory)),
        bins(reinterpret_cast<std::uint64_t*>(static_cast<std::byte*>(memory) + 32)),
        tiles(reinterpret_cast<TileCount*>(bins + top_k_bins)) {}
};
inline std::size_t top_k_scratch_bytes(std::uint64_t count, DType /*dtype*/) {
  return 32 + top_k_bins * sizeof(std::uint64_t) + dense_tiles(count) * sizeof(TileCount);
}

/// Chooses a digit by the counts, and clears them. `low`: of the digit that was counted; below 0 before the first.
template <class Real>
struct ChooseDigit {
  TopKSearch<Real>* search;
  std::uint64_t* bins;
  std::uint64_t kept;
  int high;
  int low;

  [[nodiscard]] static unsigned tiles() { return 1; }
  template <class V>
  void memory(V& v) {
    v.reads(search, low < 0 ? 0 : sizeof *search);
    v.reads(bins, low < 0 ? 0 : top_k_bins * sizeof *bins);
    v.writes(search, sizeof *search);
    v.writes(bins, top_k_bins * sizeof *bins);
  }
  __host__ __device__ void run(unsigned /*block*/) const {
    constexpr unsigned share = top_k_bins / block_threads;
    KITH_CUDA_SHARED std::uint64_t sums[block_threads];
    for_threads([&](unsigned thread) {
      std::uint64_t sum = 0;
      if (low >= 0)
        for (unsigned b = 0; b < share; ++b) sum += bins[thread * share + b];
      sums[thread] = sum;
    });
    block_wait();
    for_threads([&](unsigned thread) {
      if (thread != 0) return;
      if (low < 0) {
        *search = {0, 0, kept};
        return;
      }
      TopKSearch<Real> now = *search;
      unsigned t = block_threads - 1;
      for (; t > 0 && sums[t] < now.rest; --t) now.rest -= sums[t];
      unsigned digit = t * share + share - 1;
      for (; digit > 0 && bins[digit] < now.rest; --digit) now.rest -= bins[digit];
      now.found |= static_cast<RealBits<Real>>(digit) << low;
      now.decided |= ((RealBits<Real>{1} << (high - low)) - 1) << low;
      *search = now;
    });
    block_wait();
    for_threads([&](unsigned thread) {
      for (unsigned b = 0; b < share; ++b) bins[thread * share + b] = 0;
    });
  }
};

/// Counts the digit in the bits from `low` up to `high` of what is still in the search.
template <class Real>
struct CountDigits {
  Input<Real> input;
  const TopKSearch<Real>* search;
  std::uint64_t* bins;
  int high;
  int low;

  static constexpr unsigned steps = 16;

  [[nodiscard]] unsigned tiles() const {
    return static_cast<unsigned>((input.count + steps * dense_tile - 1) / (steps * dense_tile));
  }
  template <class V>
  void memory(V& v) {
    input.memory(v);
    v.reads(search, sizeof *search);
    v.writes(bins, top_k_bins * sizeof *bins);
  }
  __host__ __device__ void run(unsigned tile) const {
    KITH_CUDA_SHARED unsigned mine[top_k_bins];
    for_threads([&](unsigned thread) {
      for (unsigned b = thread; b < top_k_bins; b += block_threads) mine[b] = 0;
    });
    block_wait();
    const std::uint64_t begin = std::uint64_t{tile} * steps * dense_tile;
    const std::uint64_t end = smaller<std::uint64_t>(begin + steps * dense_tile, input.count);
    const TopKSearch<Real> now = *search;
    const RealBits<Real> digits = (RealBits<Real>{1} << (high - low)) - 1;
    for_threads([&](unsigned thread) {
      KITH_CUDA_NO_UNROLL
      for (std::uint64_t i = begin + thread * lane_elements; i < end; i += dense_tile) {
        const unsigned n = lane_count(i, end);
        Real x[lane_elements];
        input.load(i, n, x);
        input.check(i, x);
        KITH_CUDA_UNROLL
        for (unsigned j = 0; j < lane_elements; ++j)
          if (j < n && (magnitude_of(x[j]) & now.decided) == now.found)
            count(&mine[static_cast<unsigned>(magnitude_of(x[j]) >> low & digits)], 1U);
      }
    });
    block_wait();
    for_threads([&](unsigned thread) {
      for (unsigned b = thread; b < top_k_bins; b += block_threads)
        if (mine[b] > 0) count(&bins[b], std::uint64_t{mine[b]});
    });
  }

private:
  template <class T>
  static __host__ __device__ void count(T* bin, T more) {
#ifdef __CUDA_ARCH__
    if constexpr (sizeof(T) == 8)
      atomicAdd(reinterpret_cast<unsigned long long*>(bin), static_cast<unsigned long long>(more));
    else
      atomicAdd(bin, more);
#else
    *bin += more;
#endif
  }
};

/// How many of eight values are above the threshold, in the upper half of the word, and how many equal it.
template <class Real>
__host__ __device__ inline std::uint64_t count_lane(const Real (&x)[lane_elements], unsigned n,
                                                    RealBits<Real> threshold) {
  std::uint64_t counts = 0;
  KITH_CUDA_UNROLL
  for (unsigned j = 0; j < lane_elements; ++j) {
    if (j >= n) continue;
    const RealBits<Real> magnitude = magnitude_of(x[j]);
    counts += magnitude > threshold ? std::uint64_t{1} << 32 : magnitude == threshold ? 1 : 0;
  }
  return counts;
}

/// Counts tiles; and `write`, once ScanTiles has added the counts up, writes what they keep.
template <class Real>
struct KeepLargest {
  Input<Real> input;
  const TopKSearch<Real>* search;
  TileCount* counts;
  std::byte* wire;
  std::uint64_t kept;
  DType wire_dtype;
  std::uint8_t index_bytes;
  bool write;

  [[nodiscard]] unsigned tiles() const { return dense_tiles(input.count); }
  template <class V>
  void memory(V& v) {
    input.memory(v);
    v.reads(search, sizeof *search);
    if (!write)
      v.writes(counts, tiles() * sizeof *counts);
    else
      v.reads(counts, tiles() * sizeof *counts);
    v.writes(wire, write ? kept * (index_bytes + width_of(wire_dtype)) : 0);
  }
  __host__ __device__ void run(unsigned tile) const {
    struct Lane {
      Real x[lane_elements];
    };
    const TopKSearch<Real> last = *search;
    PerThread<Lane> lanes;
    PerThread<std::uint64_t> before;
    const auto first_of = [&](unsigned thread) {
      return (std::uint64_t{tile} * block_threads + thread) * lane_elements;
    };
    for_threads([&](unsigned thread) {
      const std::uint64_t i = first_of(thread);
      const unsigned n = lane_count(i, input.count);
      input.load(i < input.count ? i : 0, n, lanes[thread].x);
      before[thread] = count_lane(lanes[thread].x, n, last.found);
    });
    const std::uint64_t all = block_scan(before);
    for_threads([&](unsigned thread) {
      if (!write) {
        if (thread == 0) counts[tile] = {all >> 32, all & 0xffffffffU};
        return;
      }
      const std::uint64_t i = first_of(thread);
      put(lanes[thread].x, i, lane_count(i, input.count),
          {counts[tile].above + (before[thread] >> 32), counts[tile].equal + (before[thread] & 0xffffffffU)}, last);
    });
  }

private:
  __host__ __device__ void put(const Real (&x)[lane_elements], std::uint64_t i, unsigned n, TileCount place,
                               const TopKSearch<Real>& last) const {
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < lane_elements; ++j) {
      if (j >= n) continue;
      const RealBits<Real> magnitude = magnitude_of(x[j]);
      if (magnitude < last.found) continue;
      const std::uint64_t at = place.above + smaller(place.equal, last.rest);
      const bool keep = magnitude > last.found || place.equal < last.rest;
      ++(magnitude > last.found ? place.above : place.equal);
      if (!keep || at >= kept) continue;
      store_bytes(wire + at * index_bytes, i + j, index_bytes);
      std::byte* const values = wire + kept * index_bytes;
      if constexpr (sizeof(Real) == 8)
        store_bytes(values + at * 8, bits_as<std::uint64_t>(x[j]), 8);
      else
        store_number(wire_dtype, values, at, x[j]);
    }
  }
};

/// One block: the counts of all tiles before, in place of each tile's own.
struct ScanTiles {
  TileCount* counts;
  std::uint32_t number;

  [[nodiscard]] static unsigned tiles() { return 1; }
  template <class V>
  void memory(V& v) {
    v.reads(counts, number * sizeof *counts);
    v.writes(counts, number * sizeof *counts);
  }
  __host__ __device__ void run(unsigned /*block*/) const {
    PerThread<std::uint64_t> above;
    PerThread<std::uint64_t> equal;
    const std::uint32_t share = (number + block_threads - 1) / block_threads;
    const auto for_share = [&](unsigned thread, const auto& f) {
      for (std::uint64_t t = std::uint64_t{thread} * share; t < number && t < (std::uint64_t{thread} + 1) * share; ++t)
        f(counts[t]);
    };
    for_threads([&](unsigned thread) {
      TileCount sum{0, 0};
      for_share(thread, [&](const TileCount& tile) { sum = {sum.above + tile.above, sum.equal + tile.equal}; });
      above[thread] = sum.above;
      equal[thread] = sum.equal;
    });
    (void)block_scan(above);
    (void)block_scan(equal);
    for_threads([&](unsigned thread) {
      TileCount sum{above[thread], equal[thread]};
      for_share(thread, [&](TileCount& tile) {
        const TileCount own = tile;
        tile = sum;
        sum = {sum.above + own.above, sum.equal + own.equal};
      });
    });
  }
};

/// Enqueues by launch(kernel).
template <class Real, class Launch>
inline cudaError_t encode_top_k(std::uint64_t kept, const Encoding& e, const Input<Real>& input, const Launch& launch) {
  const TopKScratch<Real> scratch{e.scratch};
  cudaError_t error = launch(ChooseDigit<Real>{scratch.search, scratch.bins, kept, 0, -1});
  for (int high = 8 * static_cast<int>(sizeof(Real)) - 1; high > 0 && error == cudaSuccess;) {
    const int low = std::max(high - top_k_digit_bits, 0);
    error = launch(CountDigits<Real>{input, scratch.search, scratch.bins, high, low});
    if (error == cudaSuccess) error = launch(ChooseDigit<Real>{scratch.search, scratch.bins, kept, high, low});
    high = low;
  }
  KeepLargest<Real> keep{input,
                         scratch.search,
                         scratch.tiles,
                         static_cast<std::byte*>(e.wire),
                         kept,
                         e.wire_dtype,
                         top_k_index_bytes(e.count),
                         false};
  if (error == cudaSuccess) error = launch(keep);
  if (error == cudaSuccess) error = launch(ScanTiles{scratch.tiles, keep.tiles()});
  keep.write = true;
  return error == cudaSuccess ? launch(keep) : error;
}

}  // namespace kith::cuda::detail
