// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include <kith/codec.hpp>
#include <kith/codec/detail/tiles.hpp>
#include <kith/error.hpp>
#include <kith/numeric/codec_kernels.hpp>
#include <kith/numeric/scalar_kernels.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// The scale that takes magnitudes up to `largest` to codes up to `limit` and back. Tiny and huge blocks are brought to
/// where neither quotient leaves the normal numbers. limit * step never exceeds `largest`, so that decoding makes no
/// value larger than all that were encoded, nor infinite.
template <class T>
[[nodiscard]] inline BlockScale<T> block_scale(T largest, T limit) noexcept {
  constexpr T factor = sizeof(T) == 4 ? static_cast<T>(0x1p64) : static_cast<T>(0x1p512);
  BlockScale<T> scale;
  if (largest == 0) return scale;
  if (largest < 1 / factor) {
    scale.prescale = factor;
    scale.restore = 1 / factor;
  } else if (largest > factor) {
    scale.prescale = 1 / factor;
    scale.restore = factor;
  }
  largest *= scale.prescale;
  scale.inverse = limit / largest;
  scale.step = largest / limit;
  if (rounded(limit * scale.step) > largest)
    scale.step = std::bit_cast<T>(static_cast<BitsOf<T>>(std::bit_cast<BitsOf<T>>(scale.step) - 1));
  return scale;
}

/// Eight codes of -7 to 7, a byte each, as eight nibbles in the same order.
[[nodiscard]] constexpr std::uint32_t pack_nibbles(std::uint64_t codes) noexcept {
  codes &= 0x0F0F0F0F0F0F0F0FU;
  codes = (codes | codes >> 4) & 0x00FF00FF00FF00FFU;
  codes = (codes | codes >> 8) & 0x0000FFFF0000FFFFU;
  return static_cast<std::uint32_t>(codes | codes >> 16);
}
/// The reverse, each with its sign.
[[nodiscard]] constexpr std::uint64_t unpack_nibbles(std::uint32_t nibbles) noexcept {
  std::uint64_t codes = nibbles;
  codes = (codes | codes << 16) & 0x0000FFFF0000FFFFU;
  codes = (codes | codes << 8) & 0x00FF00FF00FF00FFU;
  codes = (codes | codes << 4) & 0x0F0F0F0F0F0F0F0FU;
  return codes | (codes & 0x0808080808080808U) * 30;  // 8 * 30 = 0xF0
}

inline void pack_nibbles(const std::byte* codes, std::size_t count, std::byte* nibbles) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) scalar::store(nibbles, i / 8, pack_nibbles(scalar::load<std::uint64_t>(codes, i / 8)));
  if (i == count) return;
  std::uint64_t last = 0;
  std::memcpy(&last, codes + i, count - i);
  const std::uint32_t packed = pack_nibbles(last);
  std::memcpy(nibbles + i / 2, &packed, (count - i + 1) / 2);
}

inline void unpack_nibbles(const std::byte* nibbles, std::size_t count, std::byte* codes) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8)
    scalar::store(codes, i / 8, unpack_nibbles(scalar::load<std::uint32_t>(nibbles, i / 8)));
  if (i == count) return;
  std::uint32_t last = 0;
  std::memcpy(&last, nibbles + i / 2, (count - i + 1) / 2);
  const std::uint64_t unpacked = unpack_nibbles(last);
  std::memcpy(codes + i, &unpacked, count - i);
}

/// Whether a nibble is -8, which is no code.
[[nodiscard]] inline bool any_minus_eight(const std::byte* nibbles, std::size_t bytes) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= bytes; i += 8) {
    // Zero where the nibble is 8; then the usual way to find a zero among packed integers.
    const std::uint64_t word = scalar::load<std::uint64_t>(nibbles, i / 8) ^ 0x8888888888888888U;
    if (((word - 0x1111111111111111U) & ~word & 0x8888888888888888U) != 0) return true;
  }
  for (; i < bytes; ++i)
    if ((nibbles[i] & std::byte{0x0F}) == std::byte{0x08} || (nibbles[i] & std::byte{0xF0}) == std::byte{0x80})
      return true;
  return false;
}

/// What Int8Block and Int4Block share: all but the width of a code.
///
/// Wire: the largest magnitude of each block in the buffer's own type, then the codes.
struct AbsmaxBlock {
  std::string_view name;
  std::size_t block;
  bool nibbles;

  [[nodiscard]] std::size_t blocks(std::size_t count) const noexcept { return count / block + (count % block != 0); }
  [[nodiscard]] std::size_t header_bytes(std::size_t count, DType dtype) const noexcept {
    return blocks(count) * size_of(dtype);
  }
  [[nodiscard]] std::size_t code_bytes(std::size_t count) const noexcept {
    return nibbles ? count / 2 + count % 2 : count;
  }
  [[nodiscard]] std::size_t wire_bytes(std::size_t count, DType dtype) const {
    if (block == 0 || (nibbles && block % 2 != 0))
      throw UsageError(std::string{name} + ": a block of " + std::to_string(block) + " elements: it takes " +
                       (nibbles ? "an even number, at least 2" : "at least 1"));
    return header_bytes(count, dtype) + code_bytes(count);
  }

  void encode(const BufferView& values, std::span<std::byte> wire, const CodecContext& context) const {
    require_wire(name, values, wire_bytes(values.count, values.dtype), wire.size());
    with_compute_type(values.dtype, [&]<class T>() { encode_as<T>(values, wire.data(), context); });
  }

  void check(std::span<const std::byte> wire, std::size_t count, DType dtype) const {
    check_wire(name, count, dtype, wire_bytes(count, dtype), wire.size());
    with_compute_type(dtype, [&]<class T>() {
      for (std::size_t b = 0; b < blocks(count); ++b)
        if (!is_magnitude(load_element<T>(dtype, wire.data(), b)))
          refuse_wire(name, "the magnitude of block " + std::to_string(b));
    });
    const auto codes = wire.subspan(header_bytes(count, dtype));
    const bool bad_code = nibbles ? any_minus_eight(codes.data(), codes.size())
                                  : codec_kernels().any_below(codes.data(), -127, codes.size());
    if (bad_code) refuse_wire(name, "a code below -" + std::to_string(limit()));
    if (nibbles && count % 2 != 0 && (codes.back() & std::byte{0xF0}) != std::byte{0})
      refuse_wire(name, "the padding is not zero");
  }

  template <class Write>
  void decode(const Write& write, std::span<const std::byte> wire, const BufferView& target,
              const CodecContext& context) const {
    if (!context.checked) check(wire, target.count, target.dtype);
    with_compute_type(target.dtype, [&]<class T>() { decode_as<T>(write, wire.data(), target); });
  }

private:
  [[nodiscard]] int limit() const noexcept { return nibbles ? 7 : 127; }

  template <class T>
  void encode_as(const BufferView& values, std::byte* wire, const CodecContext& context) const {
    const CodecKernels& kernels = codec_kernels();
    std::byte* const codes = wire + header_bytes(values.count, values.dtype);
    for (std::size_t b = 0, begin = 0; begin < values.count; ++b) {
      const std::size_t end = begin + std::min(block, values.count - begin);
      BitsOf<T> largest = 0;
      for_each_tile<T>(values, begin, end, [&](const T* from, std::size_t, std::size_t count) {
        largest = std::max(largest, max_magnitude(kernels, from, count));
      });
      if (largest >= infinite_bits<T>) require_finite(name, values, begin, end, context);
      store_element(values.dtype, wire, std::bit_cast<T>(largest), b);
      const BlockScale<T> scale = block_scale(std::bit_cast<T>(largest), static_cast<T>(limit()));
      for_each_tile<T>(values, begin, end, [&](const T* from, std::size_t first, std::size_t count) {
        if (!nibbles) return quantize(kernels, from, scale, codes + first, count);
        std::byte tile[tile_elements];
        quantize(kernels, from, scale, tile, count);
        pack_nibbles(tile, count, codes + first / 2);
      });
      begin = end;
    }
  }

  template <class T, class Write>
  void decode_as(const Write& write, const std::byte* wire, const BufferView& target) const {
    const CodecKernels& kernels = codec_kernels();
    const std::byte* const codes = wire + header_bytes(target.count, target.dtype);
    write.template tiles<T>(target, [&](T* to, std::size_t first, std::size_t count) {
      std::byte unpacked[tile_elements];
      if (nibbles) unpack_nibbles(codes + first / 2, count, unpacked);
      const std::byte* from = nibbles ? unpacked : codes + first;
      for (std::size_t done = 0; done < count;) {
        const std::size_t b = (first + done) / block;
        const std::size_t part = std::min(count - done, block - (first + done) % block);
        const auto scale = block_scale(load_element<T>(target.dtype, wire, b), static_cast<T>(limit()));
        dequantize(kernels, from + done, scale, to + done, part);
        done += part;
      }
    });
  }
};

}  // namespace kith::detail
