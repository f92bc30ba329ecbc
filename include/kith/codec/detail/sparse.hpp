// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include <kith/codec.hpp>
#include <kith/codec/detail/tiles.hpp>
#include <kith/error.hpp>
#include <kith/numeric/codec_kernels.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

// What the codecs share that keep a few values, bit for bit, and decode all others to zero.

namespace kith::detail {

/// How many elements a fraction is: the nearest number, at least 1. Throws UsageError unless 0 < fraction <= 1.
[[nodiscard]] inline std::size_t kept_of(std::string_view codec, double fraction, std::size_t count) {
  if (!(fraction > 0 && fraction <= 1))
    throw UsageError(std::string{codec} + ": a fraction of " + std::to_string(fraction) +
                     ": it takes more than 0, at most 1");
  if (count == 0) return 0;
  const auto nearest = static_cast<std::size_t>(std::llround(fraction * static_cast<double>(count)));
  return std::clamp<std::size_t>(nearest, 1, count);
}

/// Writes element `index` of the target: the value at `from`, of the same dtype. What is left out becomes zero.
struct SparseOverwrite {
  static void clear(const BufferView& target) {
    if (target.count > 0) std::memset(target.data, 0, target.bytes());
  }
  template <class T>
  static void write(const BufferView& target, std::size_t index, const std::byte* from) noexcept {
    const std::size_t width = size_of(target.dtype);
    std::memcpy(static_cast<std::byte*>(target.data) + index * width, from, width);
  }
};

/// Adds it, times `weight`. What is left out stays as it is.
struct SparseAdd {
  double weight;

  static void clear(const BufferView& /*target*/) noexcept {}
  template <class T>
  void write(const BufferView& target, std::size_t index, const std::byte* from) const noexcept {
    const T product = rounded(static_cast<T>(weight) * load_element<T>(target.dtype, from));
    store_element(target.dtype, target.data, load_element<T>(target.dtype, target.data, index) + product, index);
  }
};

/// `kept` stretches of consecutive elements that together are all: the first count % kept have one element more.
struct Strata {
  std::size_t count;
  std::size_t kept;

  [[nodiscard]] constexpr std::size_t begin(std::size_t j) const noexcept {
    return j * (count / kept) + std::min(j, count % kept);
  }
  [[nodiscard]] constexpr std::size_t size(std::size_t j) const noexcept {
    return count / kept + (j < count % kept ? 1 : 0);
  }
};

/// encode() for a mask: a codec that says by for_each_index(count, round, f) which elements it keeps.
template <class Mask>
void encode_masked(const Mask& mask, const BufferView& values, std::span<std::byte> wire, const CodecContext& context) {
  require_wire(Mask::name, values, mask.wire_bytes(values.count, values.dtype), wire.size());
  const std::size_t width = size_of(values.dtype);
  const auto* data = static_cast<const std::byte*>(values.data);
  std::byte* to = wire.data();
  std::size_t bad = values.count;
  with_compute_type(values.dtype, [&]<class T>() {
    mask.for_each_index(values.count, context.round, [&](std::size_t index) {
      if (!std::isfinite(load_element<T>(values.dtype, data, index))) bad = std::min(bad, index);
      std::memcpy(to, data + index * width, width);
      to += width;
    });
  });
  if (bad < values.count) require_finite(Mask::name, values, bad, bad + 1, context);
}

template <class Mask>
void check_masked(const Mask& mask, std::span<const std::byte> wire, std::size_t count, DType dtype) {
  check_wire(Mask::name, count, dtype, mask.wire_bytes(count, dtype), wire.size());
  const std::size_t kept = wire.size() / size_of(dtype);
  const std::size_t bad = first_non_finite(dtype, wire.data(), kept);
  if (bad < kept) refuse_wire(Mask::name, "value " + std::to_string(bad) + " is not finite");
}

template <class Mask, class Write>
void decode_masked(const Mask& mask, const Write& write, std::span<const std::byte> wire, const BufferView& target,
                   const CodecContext& context) {
  if (!context.checked) check_masked(mask, wire, target.count, target.dtype);
  const std::size_t width = size_of(target.dtype);
  write.clear(target);
  with_compute_type(target.dtype, [&]<class T>() {
    const std::byte* from = wire.data();
    mask.for_each_index(target.count, context.round, [&](std::size_t index) {
      write.template write<T>(target, index, from);
      from += width;
    });
  });
}

}  // namespace kith::detail
