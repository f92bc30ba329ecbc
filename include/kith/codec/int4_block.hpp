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

/// @brief Half a byte per element: in blocks of `block` elements, the nearest multiple of the block's largest magnitude
/// over 7.
///
/// With m = max |x| of a block: code = rint(7 x / m), ties to even; decoded to code * m / 7. The step is relative:
/// blocks of any magnitude are coded alike, subnormals too.
///
/// |x - Q(x)| <= m / 14, plus the rounding of the decoded value to the buffer's type. So ||x - Q(x)||^2 <=
/// block / 14^2 ||x||^2 for each block: a contraction with 1 - delta = 0.33 for blocks of 64 (in f32; about 0.01 for
/// normally distributed values). A decoded value is never larger than m. Not unbiased.
///
/// Wire: m of each block in the buffer's type, [ceil(count / block)]; then the codes, [ceil(count / 2)] bytes with the
/// earlier element in the lower half, the half that may be left over zero. For f32 and blocks of 64 that is 14.1 % of
/// the values' bytes.
struct Int4Block {
  static constexpr std::string_view name = "int4-block";

  /// Even; on a GPU a multiple of 8.
  std::size_t block = 64;

  /// ceil(count / 2) + ceil(count / block) * size_of(dtype). Throws UsageError for blocks of 0 elements or an odd
  /// number.
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

  friend bool operator==(Int4Block, Int4Block) = default;

private:
  [[nodiscard]] detail::AbsmaxBlock all() const noexcept { return {name, block, true}; }
};

static_assert(Codec<Int4Block>);

}  // namespace kith
