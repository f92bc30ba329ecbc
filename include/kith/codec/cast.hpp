// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include <kith/codec.hpp>
#include <kith/codec/detail/tiles.hpp>
#include <kith/numeric/kernels.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {
namespace detail {

/// A double as a float that rounds to 16 bits as the double itself would: what does not fit is cut off and leaves its
/// trace in the last bit ("rounding to odd"), where no tie of the second rounding can be mistaken.
[[nodiscard]] inline float round_to_odd(double value) noexcept {
  constexpr auto limit = static_cast<double>(std::numeric_limits<float>::max());
  value = value > limit ? limit : (value < -limit ? -limit : value);
  const auto nearest = static_cast<float>(value);
  const auto back = static_cast<double>(nearest);
  if (back == value) return nearest;
  auto bits = std::bit_cast<std::uint32_t>(nearest);
  if ((value < 0 ? -back : back) > (value < 0 ? -value : value)) --bits;  // towards zero
  return std::bit_cast<float>(bits | 1U);
}

}  // namespace detail

/// @brief Rounds every value to a 16-bit type: `Cast<bfloat16>` or `Cast<float16>`.
///
/// To the nearest number of that type, ties to even, subnormals kept. What is larger than its largest number becomes
/// that number: 65504 for float16, about 3.39e38 for bfloat16. Values of the wire's own type travel unchanged.
///
/// |x - Q(x)| <= 2^-8 |x| for bfloat16 and 2^-11 |x| for float16 where the result is a normal number and nothing was
/// too large: a contraction with 1 - delta = 2^-16 and 2^-22.
///
/// Wire: the rounded values, [count] of 2 bytes.
template <class To>
struct Cast {
  static_assert(std::is_same_v<To, bfloat16> || std::is_same_v<To, float16>, "Cast takes bfloat16 or float16");

  static constexpr std::string_view name = std::is_same_v<To, bfloat16> ? "cast-bf16" : "cast-f16";

  /// 2 for each element.
  [[nodiscard]] static constexpr std::size_t wire_bytes(std::size_t count, DType /*dtype*/) noexcept {
    return count * sizeof(To);
  }

  /// See kith::Codec.
  [[nodiscard]] static constexpr std::size_t granule() noexcept { return 1; }

  static void encode(BufferView values, std::span<std::byte> wire, CodecContext context = {}) {
    detail::require_wire(name, values, wire_bytes(values.count, values.dtype), wire.size());
    detail::with_compute_type(values.dtype, [&]<class T>() {
      detail::for_each_tile<T>(values, 0, values.count, [&](const T* from, std::size_t first, std::size_t count) {
        detail::require_finite(name, values, first, first + count, context);
        float tile[detail::tile_elements];
        const float* floats = tile;
        if constexpr (std::is_same_v<T, float>) {
          floats = from;
        } else {
          for (std::size_t i = 0; i < count; ++i) tile[i] = detail::round_to_odd(detail::scalar::load<double>(from, i));
        }
        detail::codec_kernels().saturate(floats, limit(dtype_of<To>), tile, count);
        detail::narrow(dtype_of<To>, tile, wire.data() + first * sizeof(To), count);
      });
    });
  }

  /// Throws WireError where decode() would; see kith::Codec.
  static void check(std::span<const std::byte> wire, std::size_t count, DType dtype) {
    detail::check_wire(name, count, dtype, wire_bytes(count, dtype), wire.size());
    const std::size_t index = detail::first_non_finite(dtype_of<To>, wire.data(), count);
    if (index < count) detail::refuse_wire(name, "value " + std::to_string(index) + " is not finite");
  }
  static void decode(std::span<const std::byte> wire, BufferView values, CodecContext context = {}) {
    decode_with(detail::Overwrite{}, wire, values, context);
  }

  static void decode_add(double weight, std::span<const std::byte> wire, BufferView accumulator,
                         CodecContext context = {}) {
    decode_with(detail::Add{weight}, wire, accumulator, context);
  }

  friend bool operator==(Cast, Cast) = default;

private:
  static constexpr float limit(DType dtype) noexcept { return static_cast<float>(detail::largest_of(dtype)); }

  template <class Write>
  static void decode_with(const Write& write, std::span<const std::byte> wire, const BufferView& target,
                          const CodecContext& context) {
    if (!context.checked) check(wire, target.count, target.dtype);
    const bool smaller_range = target.dtype == DType::f16 && dtype_of<To> != DType::f16;
    detail::with_compute_type(target.dtype, [&]<class T>() {
      write.template tiles<T>(target, [&](T* to, std::size_t first, std::size_t count) {
        const std::byte* from = wire.data() + first * sizeof(To);
        if constexpr (std::is_same_v<T, float>) {
          detail::widen(dtype_of<To>, from, to, count);
          if (smaller_range) detail::codec_kernels().saturate(to, limit(target.dtype), to, count);
        } else {
          for (std::size_t i = 0; i < count; ++i)
            detail::scalar::store(to, i, static_cast<double>(to_float(detail::scalar::load<To>(from, i))));
        }
      });
    });
  }
};

static_assert(Codec<Cast<bfloat16>> && Codec<Cast<float16>>);

}  // namespace kith
