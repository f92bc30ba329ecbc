// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>

#include <kith/types.hpp>

namespace kith {

/// @brief The value of a bfloat16, exactly. A NaN keeps its sign and payload.
[[nodiscard]] constexpr float to_float(bfloat16 value) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

/// @brief The value of a binary16, exactly, subnormals included. A NaN keeps its sign and payload and becomes quiet.
[[nodiscard]] constexpr float to_float(float16 value) noexcept {
  constexpr std::uint32_t rebias = 112U << 23;  // from an exponent that counts from 15 to one that counts from 127
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000U) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffU;
  std::uint32_t bits = 0;
  if (magnitude >= 0x7c00U) {
    bits = (magnitude << 13) + 2 * rebias + (magnitude > 0x7c00U ? 0x400000U & ~(magnitude << 13) : 0U);
  } else if (magnitude >= 0x0400U) {
    bits = (magnitude << 13) + rebias;
  } else {
    bits = std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24F);
  }
  return std::bit_cast<float>(sign | bits);
}

/// @brief The nearest bfloat16, the even one of two that are equally near. Subnormals are kept, what is too large
/// becomes an infinity, and a NaN stays a quiet NaN with the upper part of its payload.
[[nodiscard]] constexpr bfloat16 to_bfloat16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return {static_cast<std::uint16_t>((bits >> 16) | 0x40U)};
  return {static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16)};
}

/// @brief The nearest binary16, the even one of two that are equally near. Subnormals are kept, what is too large
/// becomes an infinity, and a NaN stays a quiet NaN with the upper part of its payload.
[[nodiscard]] constexpr float16 to_float16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  std::uint32_t half = 0;
  if (magnitude > 0x7f800000U) {
    half = 0x7e00U | ((magnitude >> 13) & 0x1ffU);
  } else if (magnitude >= (143U << 23)) {  // 2^16 and above
    half = 0x7c00U;
  } else if (magnitude >= (113U << 23)) {  // normal: the carry of the rounding may run into the exponent, and should
    half = (magnitude - (112U << 23) + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
  } else if (magnitude > (102U << 23)) {  // subnormal, in units of 2^-24; up to half a unit rounds to zero
    const std::uint32_t mantissa = (magnitude & 0x7fffffU) | 0x800000U;
    const std::uint32_t shift = 126U - (magnitude >> 23);
    const std::uint32_t rest = mantissa & ((1U << shift) - 1U);
    const std::uint32_t tie = 1U << (shift - 1U);
    half = mantissa >> shift;
    if (rest > tie || (rest == tie && (half & 1U) != 0)) ++half;
  }
  return {static_cast<std::uint16_t>(sign | half)};
}

}  // namespace kith
