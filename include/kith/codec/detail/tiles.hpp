// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include <kith/codec.hpp>
#include <kith/error.hpp>
#include <kith/numeric/codec_kernels.hpp>
#include <kith/numeric/compute_type.hpp>
#include <kith/numeric/convert.hpp>
#include <kith/numeric/kernels.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

// What all codecs share: values of any dtype by pieces that stay in the first-level cache, as the type T that they are
// computed in (float, or double for f64), and the checks of what a caller or a peer gave.

namespace kith::detail {

/// Elements of a tile, the pieces that values are worked on in.
inline constexpr std::size_t tile_elements = 1024;

/// One element of a buffer or of a wire.
template <class T>
[[nodiscard]] inline T load_element(DType dtype, const void* from, std::size_t index = 0) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    if (dtype == DType::f16) return to_float(scalar::load<float16>(from, index));
    if (dtype == DType::bf16) return to_float(scalar::load<bfloat16>(from, index));
  }
  return scalar::load<T>(from, index);
}
template <class T>
inline void store_element(DType dtype, void* to, T value, std::size_t index = 0) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    if (dtype == DType::f16) return scalar::store(to, index, to_float16(value));
    if (dtype == DType::bf16) return scalar::store(to, index, to_bfloat16(value));
  }
  scalar::store(to, index, value);
}

/// The largest finite number of a dtype.
[[nodiscard]] constexpr double largest_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::f64:
      return std::numeric_limits<double>::max();
    case DType::f32:
      return static_cast<double>(std::numeric_limits<float>::max());
    case DType::bf16:
      return 0x1.FEp127;
    case DType::f16:
      break;
  }
  return 65504;
}

/// Calls f(pointer to T, index of the first, count) for the elements [begin, end) of a buffer, tile by tile.
template <class T, class F>
void for_each_tile(const BufferView& values, std::size_t begin, std::size_t end, const F& f) {
  const auto* data = static_cast<const std::byte*>(values.data);
  const bool narrow_type = size_of(values.dtype) < sizeof(T);
  T tile[tile_elements];
  for (std::size_t first = begin; first < end; first += tile_elements) {
    const std::size_t count = std::min(tile_elements, end - first);
    const std::byte* from = data + first * size_of(values.dtype);
    if constexpr (std::is_same_v<T, float>) {
      if (narrow_type) {
        widen(values.dtype, from, tile, count);
        f(static_cast<const T*>(tile), first, count);
        continue;
      }
    }
    f(reinterpret_cast<const T*>(from), first, count);
  }
}

/// Replaces the values of a buffer by what decode(pointer to T, index of the first, count) writes.
struct Overwrite {
  template <class T, class Decode>
  void tiles(const BufferView& target, const Decode& decode) const {
    auto* data = static_cast<std::byte*>(target.data);
    const bool narrow_type = size_of(target.dtype) < sizeof(T);
    T tile[tile_elements];
    for (std::size_t first = 0; first < target.count; first += tile_elements) {
      const std::size_t count = std::min(tile_elements, target.count - first);
      std::byte* to = data + first * size_of(target.dtype);
      if constexpr (std::is_same_v<T, float>) {
        if (narrow_type) {
          decode(tile, first, count);
          narrow(target.dtype, tile, to, count);
          continue;
        }
      }
      decode(reinterpret_cast<T*>(to), first, count);
    }
  }
};

/// Adds `weight` times that.
struct Add {
  double weight;

  template <class T, class Decode>
  void tiles(const BufferView& target, const Decode& decode) const {
    auto* data = static_cast<std::byte*>(target.data);
    const bool narrow_type = size_of(target.dtype) < sizeof(T);
    const CodecKernels& kernels = codec_kernels();
    T tile[tile_elements];
    for (std::size_t first = 0; first < target.count; first += tile_elements) {
      const std::size_t count = std::min(tile_elements, target.count - first);
      std::byte* to = data + first * size_of(target.dtype);
      decode(tile, first, count);
      if constexpr (std::is_same_v<T, float>) {
        if (narrow_type) {
          T sums[tile_elements];
          widen(target.dtype, to, sums, count);
          accumulate(kernels, sums, tile, static_cast<T>(weight), count);
          narrow(target.dtype, sums, to, count);
          continue;
        }
      }
      accumulate(kernels, reinterpret_cast<T*>(to), tile, static_cast<T>(weight), count);
    }
  }
};

[[nodiscard]] inline std::string describe_sizes(std::string_view codec, std::size_t count, DType dtype,
                                                std::size_t expected, std::size_t given) {
  std::string text{codec};
  text += ": " + std::to_string(count) + " elements of ";
  text += to_string(dtype);
  return text + " take " + std::to_string(expected) + " bytes on the wire, not " + std::to_string(given);
}

/// The caller's fault: memory of the wrong size to encode into.
inline void require_wire(std::string_view codec, const BufferView& values, std::size_t expected, std::size_t given) {
  if (given != expected) throw UsageError(describe_sizes(codec, values.count, values.dtype, expected, given));
}

/// The sender's fault: too short or too long.
inline void check_wire(std::string_view codec, std::size_t count, DType dtype, std::size_t expected,
                       std::size_t given) {
  if (given != expected) throw WireError(describe_sizes(codec, count, dtype, expected, given));
}

/// Any other fault of the sender.
[[noreturn]] inline void refuse_wire(std::string_view codec, const std::string& what) {
  throw WireError(std::string{codec} + ": impossible encoded bytes: " + what);
}

[[noreturn]] inline void throw_non_finite(std::string_view codec, const CodecContext& context, std::size_t index) {
  throw NonFiniteError(std::string{codec} + ": rank " + std::to_string(context.rank) +
                           " holds a NaN or infinity in buffer " + std::to_string(context.buffer) + " at index " +
                           std::to_string(index) + "; it cannot be encoded",
                       context.rank, context.buffer, index);
}

/// Names the first value of [begin, end) that is not finite, if there is one.
inline void require_finite(std::string_view codec, const BufferView& values, std::size_t begin, std::size_t end,
                           const CodecContext& context) {
  const auto* from = static_cast<const std::byte*>(values.data) + begin * size_of(values.dtype);
  const std::size_t index = begin + first_non_finite(values.dtype, from, end - begin);
  if (index < end) throw_non_finite(codec, context, index);
}

/// Whether a number of a wire is one that encoders write: neither NaN nor infinite, and without a sign.
template <class T>
[[nodiscard]] inline bool is_magnitude(T value) noexcept {
  return std::bit_cast<BitsOf<T>>(value) < infinite_bits<T>;
}

}  // namespace kith::detail
