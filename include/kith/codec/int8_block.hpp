// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include <kith/codec.hpp>
#include <kith/codec/detail/absmax_block.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

/// @brief One byte per element: in blocks of `block` elements, the nearest multiple of the block's largest magnitude
/// over 127.
///
/// With m = max |x| of a block: code = rint(127 x / m), ties to even; decoded to code * m / 127. The step is relative:
/// blocks of any magnitude are coded alike, subnormals too.
///
/// |x - Q(x)| <= m / 254, plus the rounding of the decoded value to the buffer's type. So ||x - Q(x)||^2 <=
/// block / 254^2 ||x||^2 for each block: a contraction with 1 - delta = 0.00397 for blocks of 256 (in f32). A decoded
/// value is never larger than m. Not unbiased.
///
/// Wire: m of each block in the buffer's type, [ceil(count / block)]; then the codes, [count] of one signed byte.
/// For f32 and blocks of 256 that is 25.4 % of the values' bytes.
struct Int8Block {
  static constexpr std::string_view name = "int8-block";

  /// On a GPU a multiple of 8.
  std::size_t block = 256;

  /// count + ceil(count / block) * size_of(dtype). Throws UsageError for blocks of 0 elements.
  [[nodiscard]] std::size_t wire_bytes(std::size_t count, DType dtype) const { return all().wire_bytes(count, dtype); }

  void encode(BufferView values, std::span<std::byte> wire, CodecContext context = {}) const {
    all().encode(values, wire, context);
  }
  /// A block; see kith::Codec.
  [[nodiscard]] std::size_t granule() const noexcept { return block; }
  [[nodiscard]] std::string parameters() const { return std::to_string(block); }

  /// Throws WireError where decode() would; see kith::Codec.
  void check(std::span<const std::byte> wire, std::size_t count, DType dtype) const { all().check(wire, count, dtype); }
  void decode(std::span<const std::byte> wire, BufferView values, CodecContext context = {}) const {
    all().decode(detail::Overwrite{}, wire, values, context);
  }
  void decode_add(double weight, std::span<const std::byte> wire, BufferView accumulator,
                  CodecContext context = {}) const {
    all().decode(detail::Add{weight}, wire, accumulator, context);
  }

  friend bool operator==(Int8Block, Int8Block) = default;

private:
  [[nodiscard]] detail::AbsmaxBlock all() const noexcept { return {name, block, false}; }
};

static_assert(Codec<Int8Block>);

}  // namespace kith
