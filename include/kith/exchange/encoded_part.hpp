// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include <kith/codec.hpp>
#include <kith/codec/detail/tiles.hpp>
#include <kith/error.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/rows.hpp>
#include <kith/exchange/wire_layout.hpp>
#include <kith/numeric/codec_kernels.hpp>
#include <kith/numeric/compute_type.hpp>
#include <kith/numeric/kernels.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

// What the rules of encoding exchanges are written with: see EncodedSession.

namespace kith::detail {

/// One segment in one round: its values, and its parts of the messages.
struct EncodedPart {
  const GossipRound& round;
  Round codec_round;
  Segment segment;
  std::span<const std::byte* const> sent;      // whole messages: one for all, or one for each target
  std::span<const std::byte* const> received;  // one for each source

  [[nodiscard]] BufferView values() const noexcept { return segment.of(round.buffers); }
  [[nodiscard]] std::span<const std::byte> own(std::size_t message = 0) const noexcept { return part(sent[message]); }
  [[nodiscard]] std::span<const std::byte> source(std::size_t k) const noexcept { return part(received[k]); }
  [[nodiscard]] std::span<const std::byte> part(const std::byte* message) const noexcept {
    return {message + segment.offset, segment.bytes};
  }
  /// Where a rank's part comes from, for its codec.
  [[nodiscard]] CodecContext context(Rank rank) const noexcept { return {rank, codec_round, segment.buffer}; }
  /// The same of a part that has been checked, as all have when a rule applies them.
  [[nodiscard]] CodecContext checked(Rank rank) const noexcept { return {rank, codec_round, segment.buffer, true}; }
};

/// What one thread needs beside the messages, to encode segments and to take them in: `rows` rows of the longest
/// encoded segment, and room for the sources of a neighborhood and as many targets.
class Workspace {
public:
  Workspace(std::size_t max_degree, std::size_t rows, std::size_t row_bytes)
      : average(max_degree + 1, 2 * max_degree),
        row_bytes_((row_bytes + alignment - 1) / alignment * alignment),
        bytes_(rows * row_bytes_),
        memory_(std::make_unique_for_overwrite<std::byte[]>(bytes_)) {
    received.reserve(max_degree);
  }

  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_ + average.bytes(); }

  template <class T>
  [[nodiscard]] T* row(std::size_t index) const noexcept {
    return reinterpret_cast<T*>(memory_.get() + index * row_bytes_);
  }
  /// A row as room for such values in the type that they are computed in.
  [[nodiscard]] BufferView view(std::size_t index, const BufferView& like) const noexcept {
    return {row<std::byte>(index), like.count, compute_dtype(like.dtype)};
  }

  Rows average;                            // for average_values(), and the sources of add_average()
  std::vector<const std::byte*> received;  // whole messages

private:
  static constexpr std::size_t alignment = 64;

  std::size_t row_bytes_;
  std::size_t bytes_;
  std::unique_ptr<std::byte[]> memory_;
};

/// target = self + mixing * sum of weight * (source - self) in the arithmetic of FullPrecision, for `count` values of
/// `dtype`; the target may be self. `source(k)` is where those of source k are.
template <class Source>
void average_values(Rows& rows, const GossipRound& round, DType dtype, std::size_t count, std::byte* target,
                    const std::byte* self, const Source& source) noexcept {
  const std::size_t width = size_of(dtype);
  with_compute_type(dtype, [&]<class T>() {
    const std::span<const Neighborhood::Source> plan = round.plan.sources();
    const std::span<Weighted<T>> sources = rows.template sources<T>().first(plan.size());
    for (std::size_t i = 0; i < count; i += rows.length()) {
      const std::size_t n = std::min(rows.length(), count - i);
      for (std::size_t k = 0; k < plan.size(); ++k)
        sources[k] = {rows.template borrow<T>(dtype, source(k) + i * width, k + 1, n), static_cast<T>(plan[k].weight)};
      rows.template average<T>(dtype, target + i * width, rows.template borrow<T>(dtype, self + i * width, 0, n),
                               sources, round.mixing, n);
    }
  });
}

/// values += mixing * sum of weight * (source - self), the sum from zero in the order given, every operation rounded on
/// its own; 16-bit values are widened first and rounded once. Without `self` zeros take its place. Moves the sources'
/// pointers behind what it has read.
template <class T>
void add_average(const BufferView& values, const T* self, std::span<Weighted<T>> sources, double mixing) noexcept {
  static constexpr T zeros[tile_elements] = {};
  const CodecKernels& kernels = codec_kernels();
  auto* const data = static_cast<std::byte*>(values.data);
  for (std::size_t first = 0; first < values.count; first += tile_elements) {
    const std::size_t count = std::min(tile_elements, values.count - first);
    const T* const from = self != nullptr ? self + first : zeros;
    std::byte* const to = data + first * size_of(values.dtype);
    const auto add = [&](T* target) {
      add_averaged(kernels, target, from, std::span<const Weighted<T>>{sources}, static_cast<T>(mixing), count);
      for (Weighted<T>& source : sources) source.values += count;
    };
    if constexpr (std::is_same_v<T, float>) {
      if (values.dtype != DType::f32) {
        float tile[tile_elements];
        widen(values.dtype, to, tile, count);
        add(tile);
        narrow(values.dtype, tile, to, count);
        continue;
      }
    }
    add(reinterpret_cast<T*>(to));
  }
}

/// Copies a buffer, in the type that it is computed in.
template <class T>
void load_values(const BufferView& values, T* target) noexcept {
  for_each_tile<T>(values, 0, values.count, [&](const T* from, std::size_t first, std::size_t count) {
    std::memcpy(target + first, from, count * sizeof(T));
  });
}

/// Encodes the values of a segment, or what was made of them. An error counts the elements of the buffer.
template <Codec Q>
void encode_part(const Q& codec, const BufferView& values, std::span<std::byte> wire, const CodecContext& context,
                 std::size_t first) {
  try {
    codec.encode(values, wire, context);
  } catch (const NonFiniteError& error) {
    if (first == 0) throw;
    throw_non_finite(Q::name, context, first + error.index());
  }
}

/// Throws WireError for bytes that `codec` cannot decode as `room`.
template <Codec Q>
void check_part(const Q& codec, std::span<const std::byte> wire, const BufferView& room, const CodecContext& context) {
  if constexpr (requires { codec.check(wire, room.count, room.dtype); })
    codec.check(wire, room.count, room.dtype);
  else
    codec.decode(wire, room, context);
}

}  // namespace kith::detail
