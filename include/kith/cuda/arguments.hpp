// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <kith/types.hpp>

/// @file
/// What the functions of kith/cuda/kernels.hpp take and give.
namespace kith::cuda {

/// An in-neighbour's values and the weight that they get.
struct Source {
  const void* values;
  double weight;
};

/// How many sources a weighted_average() takes: what fits into the 4 KiB of arguments that every driver allows.
inline constexpr std::size_t max_sources = 240;

/// A 16-bit copy of f32 values, as trainers keep beside their master weights.
struct Shadow {
  void* values = nullptr;
  DType dtype = DType::bf16;
};

/// What find_non_finite() leaves if there is nothing to find, and what it has to find there before: all bytes 0xff.
inline constexpr std::uint64_t no_finding = ~std::uint64_t{0};

/// Bits of a finding that say which element; those above say which buffer.
inline constexpr int finding_index_bits = 40;

/// Doubles that squared_distance() adds to.
inline constexpr std::size_t distance_partials = 1024;

/// A piece of a buffer, and where it lies in a bucket.
struct Segment {
  /// Its first element.
  void* values;
  /// Its place: a multiple of the element's size, best equal to `values` modulo 16.
  std::uint64_t offset_bytes;
  /// Elements.
  std::uint64_t count;
  /// Index of its first element in the buffer, and number of the buffer: for what find_non_finite() reports.
  std::uint64_t first;
  std::uint32_t buffer;
  DType dtype;
};

/// The part of a segment that one thread block works on.
struct alignas(16) Tile {
  void* values;
  std::uint64_t offset_bytes;
  std::uint64_t first;
  std::uint32_t buffer;
  std::uint16_t count;
  DType dtype;
};

/// Bytes of a tile; a segment's first and last tile can be shorter.
inline constexpr std::size_t tile_bytes = 16384;

/// The tiles of a bucket, those of DType d from tiles[begins[d]] up to tiles[begins[d + 1]].
struct Table {
  /// On the device. Read when a kernel runs, so it can be overwritten in stream order.
  const Tile* tiles = nullptr;
  std::array<std::uint32_t, 5> begins{};
  /// How long the bucket is at least: up to the end of the last segment.
  std::uint64_t bucket_bytes = 0;
};

/// @brief Appends a bucket's tiles to `tiles`, 32 bytes per 16 KiB and per segment. Several buckets can share a vector.
/// In the table that comes back only the address is missing: where the caller has put tiles.front() on the device.
[[nodiscard]] inline Table add_table(std::span<const Segment> segments, std::vector<Tile>& tiles) {
  Table table;
  for (std::size_t d = 0; d + 1 < table.begins.size(); ++d) {
    table.begins[d] = static_cast<std::uint32_t>(tiles.size());
    for (const Segment& segment : segments) {
      if (segment.dtype != static_cast<DType>(d)) continue;
      const std::size_t width = size_of(segment.dtype);
      table.bucket_bytes = std::max(table.bucket_bytes, segment.offset_bytes + segment.count * width);
      // All but the first tile begin at a 16-byte boundary, and all but the first and the last are full.
      std::uint64_t room = (tile_bytes - reinterpret_cast<std::uintptr_t>(segment.values) % 16) / width;
      for (std::uint64_t at = 0; at < segment.count; room = tile_bytes / width) {
        const std::uint64_t count = std::min(room, segment.count - at);
        tiles.push_back({static_cast<std::byte*>(segment.values) + at * width, segment.offset_bytes + at * width,
                         segment.first + at, segment.buffer, static_cast<std::uint16_t>(count), segment.dtype});
        at += count;
      }
    }
  }
  table.begins.back() = static_cast<std::uint32_t>(tiles.size());
  return table;
}

}  // namespace kith::cuda
