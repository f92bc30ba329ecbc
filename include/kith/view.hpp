// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <ranges>
#include <type_traits>

#include <kith/types.hpp>

namespace kith {

/// @brief A borrowed buffer of parameters: `count` contiguous elements of `dtype` at `data`.
///
/// Kith never owns, moves or frees it. The memory stays valid and in place for as long as an averager holds the view
/// (or until DecentralizedAverager::rebind names another place). `data` may be null where `count` is 0.
struct BufferView {
  void* data = nullptr;
  std::size_t count = 0;
  DType dtype = DType::f32;

  [[nodiscard]] constexpr std::size_t bytes() const noexcept { return count * size_of(dtype); }
};

/// A view of `count` elements at `data`.
template <Element T>
requires(!std::is_const_v<T>) [[nodiscard]] constexpr BufferView view(T* data, std::size_t count) noexcept {
  return {data, count, dtype_of<T>};
}

/// A view of `count` elements of `dtype` at `data`, for frameworks that know the type at run time only.
[[nodiscard]] constexpr BufferView view(void* data, std::size_t count, DType dtype) noexcept {
  return {data, count, dtype};
}

/// A view of a vector, span, array or any other contiguous range of elements that can be written.
template <std::ranges::contiguous_range R>
requires std::ranges::sized_range<R> && Element<std::ranges::range_value_t<R>> &&
    (!std::is_const_v<std::remove_reference_t<std::ranges::range_reference_t<R>>>)&&(std::is_lvalue_reference_v<R> ||
                                                                                     std::ranges::borrowed_range<R>)
        [[nodiscard]] constexpr BufferView view(R&& range) noexcept {
  return {std::ranges::data(range), static_cast<std::size_t>(std::ranges::size(range)),
          dtype_of<std::ranges::range_value_t<R>>};
}

}  // namespace kith
