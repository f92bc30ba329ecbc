// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include <kith/numeric/compute_type.hpp>
#include <kith/numeric/kernels.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// Scratch memory of one rank for averaging a stretch of elements: rows short enough to stay in the first-level cache,
/// in the type that is computed in (f32 for f32, f16 and bf16; f64 for f64).
class Rows {
public:
  /// The length of every row is a multiple of this many elements.
  static constexpr std::size_t granule = 64;

  /// `rows` rows, and room for the sources of a neighborhood of `max_degree`. The more rows, the shorter.
  Rows(std::size_t rows, std::size_t max_degree)
      : length_(std::clamp(cache_bytes / (sizeof(float) * rows) / granule * granule, granule, longest)),
        stride_bytes_(longest_bytes(length_)),
        memory_(std::make_unique_for_overwrite<std::byte[]>(rows * stride_bytes_)),
        rows_(rows),
        f32_(max_degree),
        f64_(max_degree) {}

  /// Elements of a row: the most that a call below takes.
  [[nodiscard]] std::size_t length() const noexcept { return length_; }

  [[nodiscard]] std::size_t bytes() const noexcept {
    return rows_ * stride_bytes_ + f32_.size() * sizeof(Weighted<float>) + f64_.size() * sizeof(Weighted<double>);
  }

  /// Row `index` as memory for elements of T.
  template <class T>
  [[nodiscard]] T* row(std::size_t index) noexcept {
    return reinterpret_cast<T*>(memory_.get() + index * stride_bytes_);
  }

  /// Copies `count` elements of a buffer into row `index`, widened to T.
  template <class T>
  const T* load(DType dtype, const void* values, std::size_t index, std::size_t count) noexcept {
    T* target = row<T>(index);
    if constexpr (std::is_same_v<T, float>) {
      if (dtype != DType::f32) {
        widen(dtype, values, target, count);
        return target;
      }
    }
    std::memcpy(target, values, count * sizeof(T));
    return target;
  }

  /// The same without the copy where none is needed. For values that nobody writes meanwhile.
  template <class T>
  const T* borrow(DType dtype, const void* values, std::size_t index, std::size_t count) noexcept {
    if (dtype == DType::f32 || dtype == DType::f64) return static_cast<const T*>(values);
    return load<T>(dtype, values, index, count);
  }

  /// Room for the sources of one rank.
  template <class T>
  [[nodiscard]] std::span<Weighted<T>> sources() noexcept {
    if constexpr (std::is_same_v<T, float>)
      return f32_;
    else
      return f64_;
  }

  /// target = self + mixing * sum of weight * (source - self), rounded to the buffer's type once.
  template <class T>
  void average(DType dtype, void* target, const T* self, std::span<const Weighted<T>> sources, double mixing,
               std::size_t count) noexcept {
    if constexpr (std::is_same_v<T, float>) {
      if (dtype != DType::f32) {
        combine_narrow(dtype, target, self, sources, static_cast<float>(mixing), count);
        return;
      }
    }
    combine(static_cast<T*>(target), self, sources, static_cast<T>(mixing), count);
  }

private:
  static constexpr std::size_t cache_bytes = 24576;
  static constexpr std::size_t longest = 128;  // measured: longer rows keep the processor from fetching ahead

  // Rows of 4 KiB multiples would fall on the same cache sets: one cache line more keeps them apart.
  static constexpr std::size_t longest_bytes(std::size_t length) noexcept { return length * sizeof(double) + 64; }

  std::size_t length_;
  std::size_t stride_bytes_;
  std::unique_ptr<std::byte[]> memory_;
  std::size_t rows_;
  std::vector<Weighted<float>> f32_;
  std::vector<Weighted<double>> f64_;
};

}  // namespace kith::detail
