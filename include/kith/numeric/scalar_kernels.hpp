// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include <kith/numeric/convert.hpp>
#include <kith/numeric/isa.hpp>
#include <kith/types.hpp>

/// The host kernels as plain loops: the meaning of every other variant, what those use for the last few elements, and
/// all there is where the compiler has no vector types. What they compute is said in kith/numeric/kernels.hpp.
/// They begin at element `begin`.
namespace kith::detail::scalar {

/// Reads an element that need not be aligned.
template <class T>
[[nodiscard]] inline T load(const void* from, std::size_t index) noexcept {
  T value;
  std::memcpy(&value, static_cast<const std::byte*>(from) + index * sizeof(T), sizeof(T));
  return value;
}

/// Writes an element that need not be aligned.
template <class T>
inline void store(void* to, std::size_t index, T value) noexcept {
  std::memcpy(static_cast<std::byte*>(to) + index * sizeof(T), &value, sizeof(T));
}

inline void widen(DType from, const void* source, float* target, std::size_t count, std::size_t begin = 0) noexcept {
  if (from == DType::bf16) {
    for (std::size_t i = begin; i < count; ++i) store(target, i, to_float(load<bfloat16>(source, i)));
  } else {
    for (std::size_t i = begin; i < count; ++i) store(target, i, to_float(load<float16>(source, i)));
  }
}

inline void narrow(DType to, const float* source, void* target, std::size_t count, std::size_t begin = 0) noexcept {
  if (to == DType::bf16) {
    for (std::size_t i = begin; i < count; ++i) store(target, i, to_bfloat16(load<float>(source, i)));
  } else {
    for (std::size_t i = begin; i < count; ++i) store(target, i, to_float16(load<float>(source, i)));
  }
}

/// One element of combine(). Requires a source.
template <class T>
[[nodiscard]] inline T combined(const T* self, std::span<const Weighted<T>> sources, T mixing, std::size_t i) noexcept {
  const T x = load<T>(self, i);
  T sum = rounded(sources.front().weight * (load<T>(sources.front().values, i) - x));
  for (const Weighted<T>& source : sources.subspan(1)) sum += rounded(source.weight * (load<T>(source.values, i) - x));
  return x + rounded(mixing * sum);
}

template <class T>
inline void combine(T* target, const T* self, std::span<const Weighted<T>> sources, T mixing, std::size_t count,
                    std::size_t /*ahead*/ = 0, std::size_t begin = 0) noexcept {
  if (sources.empty()) {
    if (target != self && begin < count) std::memcpy(target + begin, self + begin, (count - begin) * sizeof(T));
    return;
  }
  for (std::size_t i = begin; i < count; ++i) store(target, i, combined(self, sources, mixing, i));
}

inline void combine_narrow(DType to, void* target, const float* self, std::span<const Weighted<float>> sources,
                           float mixing, std::size_t count, std::size_t /*ahead*/ = 0, std::size_t begin = 0) noexcept {
  if (sources.empty()) return narrow(to, self, target, count, begin);
  if (to == DType::bf16) {
    for (std::size_t i = begin; i < count; ++i) store(target, i, to_bfloat16(combined(self, sources, mixing, i)));
  } else {
    for (std::size_t i = begin; i < count; ++i) store(target, i, to_float16(combined(self, sources, mixing, i)));
  }
}

/// average_tile() for buffers of type D, computed in T, one element of every row at a time.
template <DType D, class T, class Source>
inline void average_tile_of(std::span<const TileRow<Source>> rows, void* scratch, T mixing, std::size_t begin,
                            std::size_t end) noexcept {
  using Stored = std::conditional_t<D == DType::f16, float16, std::conditional_t<D == DType::bf16, bfloat16, T>>;
  for (std::size_t i = begin; i < end; ++i) {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      if constexpr (std::is_same_v<Stored, T>)
        store(scratch, r, load<T>(rows[r].data, i));
      else
        store(scratch, r, to_float(load<Stored>(rows[r].data, i)));
    }
    for (std::size_t r = 0; r < rows.size(); ++r) {
      if (rows[r].sources.empty()) continue;
      const T x = load<T>(scratch, r);
      T sum{};
      for (const Source& source : rows[r].sources) {
        const T value = load<T>(scratch, static_cast<std::size_t>(source.rank));
        const T product = rounded(static_cast<T>(source.weight) * (value - x));
        sum = &source == rows[r].sources.data() ? product : sum + product;
      }
      const T result = x + rounded(mixing * sum);
      if constexpr (D == DType::f16)
        store(rows[r].data, i, to_float16(result));
      else if constexpr (D == DType::bf16)
        store(rows[r].data, i, to_bfloat16(result));
      else
        store(rows[r].data, i, result);
    }
  }
}

template <class Source>
inline void average_tile(DType dtype, std::span<const TileRow<Source>> rows, void* scratch, double mixing,
                         std::size_t begin, std::size_t end) noexcept {
  switch (dtype) {
    case DType::f32:
      return average_tile_of<DType::f32, float>(rows, scratch, static_cast<float>(mixing), begin, end);
    case DType::f64:
      return average_tile_of<DType::f64, double>(rows, scratch, mixing, begin, end);
    case DType::f16:
      return average_tile_of<DType::f16, float>(rows, scratch, static_cast<float>(mixing), begin, end);
    case DType::bf16:
      return average_tile_of<DType::bf16, float>(rows, scratch, static_cast<float>(mixing), begin, end);
  }
}

/// The first element whose exponent bits are all ones, or `count`.
template <class Bits>
[[nodiscard]] inline std::size_t first_with_exponent(Bits exponent, const void* data, std::size_t count,
                                                     std::size_t begin) noexcept {
  for (std::size_t i = begin; i < count; ++i) {
    if (static_cast<Bits>(load<Bits>(data, i) & exponent) == exponent) return i;
  }
  return count;
}

[[nodiscard]] inline std::size_t first_non_finite(DType dtype, const void* data, std::size_t count,
                                                  std::size_t begin = 0) noexcept {
  switch (dtype) {
    case DType::f32:
      return first_with_exponent<std::uint32_t>(0x7f800000U, data, count, begin);
    case DType::f64:
      return first_with_exponent<std::uint64_t>(0x7ff0000000000000U, data, count, begin);
    case DType::f16:
      return first_with_exponent<std::uint16_t>(0x7c00U, data, count, begin);
    case DType::bf16:
      return first_with_exponent<std::uint16_t>(0x7f80U, data, count, begin);
  }
  return count;
}

/// Adds the lanes to each other.
[[nodiscard]] inline double fold_distance(const double (&lanes)[distance_lanes]) noexcept {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

/// Adds the last elements to the lanes and the lanes to each other.
template <class T>
[[nodiscard]] inline double finish_distance(double (&lanes)[distance_lanes], const T* a, const T* b, std::size_t count,
                                            std::size_t begin) noexcept {
  for (std::size_t i = begin; i < count; ++i) {
    const double difference = static_cast<double>(load<T>(a, i)) - static_cast<double>(load<T>(b, i));
    lanes[i % distance_lanes] += rounded(difference * difference);
  }
  return fold_distance(lanes);
}

template <class T>
[[nodiscard]] inline double squared_distance(const T* a, const T* b, std::size_t count) noexcept {
  double lanes[distance_lanes] = {};
  return finish_distance(lanes, a, b, count, 0);
}

}  // namespace kith::detail::scalar
