// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include <kith/version.hpp>

namespace kith {

/// A worker of the group: 0 <= rank < size.
using Rank = std::int32_t;

/// A gossip round, counted from 0. A topology's schedule is a function of it.
using Round = std::uint64_t;

/// A span of time in seconds. Every std::chrono duration converts to it.
using Seconds = std::chrono::duration<double>;

/// bfloat16: the upper half of an IEEE binary32. A storage type: it holds bits and does no arithmetic.
struct bfloat16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(bfloat16, bfloat16) = default;
};

/// IEEE binary16. A storage type: it holds bits and does no arithmetic.
struct float16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(float16, float16) = default;
};

/// The element type of a buffer.
enum class DType : std::uint8_t { f32, f64, f16, bf16 };

/// Bytes of one element.
[[nodiscard]] constexpr std::size_t size_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::f64:
      return 8;
    case DType::f32:
      return 4;
    case DType::f16:
    case DType::bf16:
      return 2;
  }
  return 0;
}

/// "f32", "f64", "f16" or "bf16".
[[nodiscard]] constexpr std::string_view to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::f64:
      return "f64";
    case DType::f16:
      return "f16";
    case DType::bf16:
      return "bf16";
  }
  return "unknown dtype";
}

/// Says which DType a C++ type is. Specialise it for a framework's own 16-bit types, as in
/// `template <> struct kith::ElementTraits<__half> { static constexpr kith::DType dtype = kith::DType::f16; };`
template <class T>
struct ElementTraits {};
template <>
struct ElementTraits<float> {
  static constexpr DType dtype = DType::f32;
};
template <>
struct ElementTraits<double> {
  static constexpr DType dtype = DType::f64;
};
template <>
struct ElementTraits<float16> {
  static constexpr DType dtype = DType::f16;
};
template <>
struct ElementTraits<bfloat16> {
  static constexpr DType dtype = DType::bf16;
};

/// A type that a buffer can hold: one with an ElementTraits.
template <class T>
concept Element = requires {
  { ElementTraits<T>::dtype } -> std::convertible_to<DType>;
}
&&sizeof(T) == size_of(ElementTraits<T>::dtype);

/// The DType of a C++ type.
template <Element T>
inline constexpr DType dtype_of = ElementTraits<T>::dtype;

}  // namespace kith
