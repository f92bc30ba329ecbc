// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include <kith/codec.hpp>
#include <kith/codec/detail/sparse.hpp>
#include <kith/codec/detail/tiles.hpp>
#include <kith/numeric/scalar_kernels.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {
namespace detail {

/// Which elements are the k largest: all above `magnitude` (the bits of a number without its sign), and the first
/// `ties` that equal it.
template <class Bits>
struct Threshold {
  Bits magnitude;
  std::size_t ties;
};

template <class Bits>
inline constexpr Bits without_sign = static_cast<Bits>(std::numeric_limits<Bits>::max() >> 1);

/// Finds it digit by digit from the top, by counting: a few passes over the values and no memory. Requires
/// 1 <= k <= count and finite values.
template <class Bits>
[[nodiscard]] Threshold<Bits> threshold_of(const void* values, std::size_t count, std::size_t k) noexcept {
  constexpr int digit_bits = 11;
  Bits found = 0;
  Bits decided = 0;  // which bits of `found` are final
  for (int high = 8 * static_cast<int>(sizeof(Bits)) - 1; high > 0;) {
    const int low = std::max(high - digit_bits, 0);
    const auto digits = static_cast<Bits>((Bits{1} << (high - low)) - 1);
    std::size_t occurrences[std::size_t{1} << digit_bits] = {};
    for (std::size_t i = 0; i < count; ++i) {
      const auto magnitude = static_cast<Bits>(scalar::load<Bits>(values, i) & without_sign<Bits>);
      if (static_cast<Bits>(magnitude & decided) == found) ++occurrences[static_cast<Bits>(magnitude >> low) & digits];
    }
    std::size_t digit = digits;
    for (; occurrences[digit] < k; --digit) k -= occurrences[digit];
    found = static_cast<Bits>(found | static_cast<Bits>(static_cast<Bits>(digit) << low));
    decided = static_cast<Bits>(decided | static_cast<Bits>(digits << low));
    high = low;
  }
  return {found, k};
}

}  // namespace detail

/// @brief Keeps the values of the largest magnitudes, a `fraction` of all, and decodes the others to zero.
///
/// k = fraction * count rounded to the nearest integer, at least 1. Of equal magnitudes the earlier ones are kept.
///
/// ||x - Q(x)||^2 <= (1 - k / count) ||x||^2, a contraction; equality where all magnitudes are equal. Biased: for
/// differences against a replica, or with error feedback.
///
/// Wire: the indices of what is kept, ascending, [k] of 4 bytes (8 where count is above 2^32); then the values, [k] of
/// the buffer's type, bit for bit. For f32 and a fraction of 1 %, 2 % of the values' bytes.
struct TopK {
  static constexpr std::string_view name = "top-k";

  double fraction = 0.01;

  /// Elements that are kept of `count`. Throws UsageError unless 0 < fraction <= 1.
  [[nodiscard]] std::size_t kept(std::size_t count) const { return detail::kept_of(name, fraction, count); }

  /// kept(count) * (4 + size_of(dtype)).
  [[nodiscard]] std::size_t wire_bytes(std::size_t count, DType dtype) const {
    return kept(count) * (index_bytes(count) + size_of(dtype));
  }

  void encode(BufferView values, std::span<std::byte> wire, CodecContext context = {}) const {
    detail::require_wire(name, values, wire_bytes(values.count, values.dtype), wire.size());
    detail::require_finite(name, values, 0, values.count, context);
    if (values.count == 0) return;
    switch (size_of(values.dtype)) {
      case 8:
        return encode_as<std::uint64_t>(values, wire.data());
      case 4:
        return encode_as<std::uint32_t>(values, wire.data());
      default:
        return encode_as<std::uint16_t>(values, wire.data());
    }
  }
  [[nodiscard]] std::string parameters() const { return detail::number_to_text(fraction); }

  /// Throws WireError where decode() would; see kith::Codec.
  void check(std::span<const std::byte> wire, std::size_t count, DType dtype) const {
    detail::check_wire(name, count, dtype, wire_bytes(count, dtype), wire.size());
    const std::size_t k = kept(count);
    for (std::size_t j = 0; j < k; ++j) {
      const std::size_t index = load_index(wire.data(), count, j);
      if (index >= count || (j > 0 && index <= load_index(wire.data(), count, j - 1)))
        detail::refuse_wire(name, "index " + std::to_string(j) + " is out of range or order");
    }
    const std::size_t bad = detail::first_non_finite(dtype, wire.data() + k * index_bytes(count), k);
    if (bad < k) detail::refuse_wire(name, "value " + std::to_string(bad) + " is not finite");
  }
  void decode(std::span<const std::byte> wire, BufferView values, CodecContext context = {}) const {
    decode_with(detail::SparseOverwrite{}, wire, values, context);
  }
  void decode_add(double weight, std::span<const std::byte> wire, BufferView accumulator,
                  CodecContext context = {}) const {
    decode_with(detail::SparseAdd{weight}, wire, accumulator, context);
  }

  friend bool operator==(TopK, TopK) = default;

private:
  static constexpr std::size_t index_bytes(std::size_t count) noexcept {
    return count - 1 > std::numeric_limits<std::uint32_t>::max() && count > 0 ? 8 : 4;
  }
  static std::size_t load_index(const std::byte* wire, std::size_t count, std::size_t j) noexcept {
    if (index_bytes(count) == 8) return static_cast<std::size_t>(detail::scalar::load<std::uint64_t>(wire, j));
    return detail::scalar::load<std::uint32_t>(wire, j);
  }
  static void store_index(std::byte* wire, std::size_t count, std::size_t j, std::size_t index) noexcept {
    if (index_bytes(count) == 8) return detail::scalar::store(wire, j, std::uint64_t{index});
    detail::scalar::store(wire, j, static_cast<std::uint32_t>(index));
  }

  template <class Bits>
  void encode_as(const BufferView& values, std::byte* wire) const {
    const std::size_t k = kept(values.count);
    auto [threshold, ties] = detail::threshold_of<Bits>(values.data, values.count, k);
    std::byte* const kept_values = wire + k * index_bytes(values.count);
    std::size_t j = 0;
    for (std::size_t i = 0; j < k; ++i) {
      const Bits bits = detail::scalar::load<Bits>(values.data, i);
      const auto magnitude = static_cast<Bits>(bits & detail::without_sign<Bits>);
      if (magnitude < threshold || (magnitude == threshold && ties == 0)) continue;
      if (magnitude == threshold) --ties;
      store_index(wire, values.count, j, i);
      detail::scalar::store(kept_values, j, bits);
      ++j;
    }
  }

  template <class Write>
  void decode_with(const Write& write, std::span<const std::byte> wire, const BufferView& target,
                   const CodecContext& context) const {
    if (!context.checked) check(wire, target.count, target.dtype);
    const std::size_t k = kept(target.count);
    const std::size_t width = size_of(target.dtype);
    const std::byte* const values = wire.data() + k * index_bytes(target.count);
    write.clear(target);
    detail::with_compute_type(target.dtype, [&]<class T>() {
      for (std::size_t j = 0; j < k; ++j)
        write.template write<T>(target, load_index(wire.data(), target.count, j), values + j * width);
    });
  }
};

static_assert(Codec<TopK>);

}  // namespace kith
