// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include <kith/codec.hpp>
#include <kith/codec/detail/tiles.hpp>
#include <kith/numeric/codec_kernels.hpp>
#include <kith/numeric/scalar_kernels.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {
namespace detail {

/// The 256 levels of a chunk, from its extremes: what encoder and decoder compute alike.
template <class T>
class MinMaxLevels {
public:
  MinMaxLevels(T least, T greatest) noexcept : least_(least), greatest_(greatest) {
    constexpr T whole = static_cast<T>(std::uint64_t{1} << std::numeric_limits<T>::digits);
    scale_ = 255 / rounded(rounded(greatest - least) + static_cast<T>(1e-7));
    const T upper = rounded(greatest * scale_);
    if (scale_ > 0 && std::fabs(upper) <= whole) {
      lower_ = scalar::nearest(upper) - 255;
      if (std::fabs(static_cast<T>(lower_)) <= whole) return;
    }
    relative_ = true;
    half_range_ = rounded(greatest / 2) - rounded(least / 2);
  }

  /// Bagua's codes, and 0 for what they would put below 0; or codes that count from the least value, where Bagua's
  /// levels are no longer consecutive integers.
  void encode(const CodecKernels& kernels, const T* values, std::byte* codes, std::size_t count) const noexcept {
    if (!relative_) return quantize_level(kernels, values, scale_, lower_, codes, count);
    const T inverse = half_range_ > 0 ? 255 / half_range_ : 0;
    for (std::size_t i = 0; i < count; ++i) {
      const T above = rounded(scalar::load<T>(values, i) / 2) - rounded(least_ / 2);
      codes[i] = static_cast<std::byte>(std::min<Key>(scalar::nearest(rounded(above * inverse)), 255));
    }
  }

  void decode(const CodecKernels& kernels, const std::byte* codes, T* values, std::size_t count) const noexcept {
    if (!relative_) return dequantize_level(kernels, codes, scale_, static_cast<T>(lower_), values, count);
    const T step = half_range_ / 255;
    for (std::size_t i = 0; i < count; ++i) {
      const T above = rounded(static_cast<T>(std::to_integer<unsigned>(codes[i])) * step);
      const T half = std::min(rounded(least_ / 2) + above, greatest_ / 2);
      scalar::store(values, i, half * 2);
    }
  }

private:
  using Key = std::make_signed_t<BitsOf<T>>;

  T least_;
  T greatest_;
  T scale_ = 0;
  Key lower_ = 0;
  bool relative_ = false;
  T half_range_ = 0;  // halves, so that it is finite
};

}  // namespace detail

/// @brief One byte per element: 256 levels between the smallest and the largest value of each chunk, with the wire
/// layout and the bytes of Bagua.
///
/// With scale = 255 / (max - min + 1e-7), upper = rint(max scale), lower = upper - 255: code = rint(x scale) - lower,
/// decoded to (code + lower) / scale. Each operation is rounded in f32 (f64 for f64 buffers), ties go to even.
///
/// Two deviations, where Bagua's codes leave 0..255 and wrap around. What would be -1 (the smallest value, when upper
/// was a tie) is 0. Where |upper| or |lower| is above 2^24 (2^53), so that levels are not consecutive integers any more
/// (a range below about 1.5e-5 of the values), or the range overflows, levels count from the smallest value:
/// code = rint(255 (x - min) / (max - min)), decoded to min + code (max - min) / 255.
///
/// |x - Q(x)| <= step / 2 with step = (max - min + 1e-7) / 255, plus the rounding of the decoded value: up to 2^-23 |x|
/// (2^-52), and that to a 16-bit type. The step is absolute. Chunks much smaller than 1e-7 are lost: with magnitudes of
/// 1e-10 the step is 4e-10 and nearly all values decode to 0. One outlier widens the step of its whole chunk. Not
/// unbiased; no contraction unless max - min is of the values' own magnitude.
///
/// Wire, for each chunk: min and max in the buffer's type, zeros up to byte 32, a code for each element, zeros up to a
/// multiple of 32.
///
/// @par Source Bagua (Gan et al., VLDB 2021), MinMaxUInt8, whose chunks are equal parts of a buffer, f32 or f16. A last
///             shorter chunk, f64 and bf16 are additions.
struct MinMaxUInt8 {
  static constexpr std::string_view name = "min-max-uint8";

  /// Elements that share their extremes; the last chunk may be shorter. 0: the whole buffer. On a GPU a
  /// multiple of 8.
  std::size_t chunk = 0;

  /// For each chunk, 32 and its elements rounded up to a multiple of 32.
  [[nodiscard]] constexpr std::size_t wire_bytes(std::size_t count, DType /*dtype*/) const noexcept {
    if (count == 0) return 0;
    const std::size_t size = chunk_of(count);
    const std::size_t rest = count % size;
    return count / size * chunk_bytes(size) + (rest > 0 ? chunk_bytes(rest) : 0);
  }

  void encode(BufferView values, std::span<std::byte> wire, CodecContext context = {}) const {
    detail::require_wire(name, values, wire_bytes(values.count, values.dtype), wire.size());
    detail::with_compute_type(values.dtype, [&]<class T>() { encode_as<T>(values, wire.data(), context); });
  }
  /// A chunk; see kith::Codec.
  [[nodiscard]] std::size_t granule() const noexcept { return chunk; }
  [[nodiscard]] std::string parameters() const { return std::to_string(chunk); }

  /// Throws WireError where decode() would; see kith::Codec.
  void check(std::span<const std::byte> wire, std::size_t count, DType dtype) const {
    detail::check_wire(name, count, dtype, wire_bytes(count, dtype), wire.size());
    if (count > 0) detail::with_compute_type(dtype, [&]<class T>() { check_chunks<T>(wire.data(), count, dtype); });
  }
  void decode(std::span<const std::byte> wire, BufferView values, CodecContext context = {}) const {
    decode_with(detail::Overwrite{}, wire, values, context);
  }
  void decode_add(double weight, std::span<const std::byte> wire, BufferView accumulator,
                  CodecContext context = {}) const {
    decode_with(detail::Add{weight}, wire, accumulator, context);
  }

  friend bool operator==(MinMaxUInt8, MinMaxUInt8) = default;

private:
  static constexpr std::size_t align = 32;  // of the extremes, and of the codes

  [[nodiscard]] constexpr std::size_t chunk_of(std::size_t count) const noexcept {
    return chunk == 0 ? count : std::min(chunk, count);
  }
  static constexpr std::size_t chunk_bytes(std::size_t elements) noexcept {
    return align + (elements + align - 1) / align * align;
  }

  template <class T>
  void encode_as(const BufferView& values, std::byte* wire, const CodecContext& context) const {
    const detail::CodecKernels& kernels = detail::codec_kernels();
    for (std::size_t begin = 0; begin < values.count;) {
      const std::size_t end = begin + std::min(chunk_of(values.count), values.count - begin);
      detail::Extremes<T> found;
      detail::for_each_tile<T>(values, begin, end, [&](const T* from, std::size_t, std::size_t count) {
        found.include(detail::extremes(kernels, from, count));
      });
      if (!found.finite()) detail::require_finite(name, values, begin, end, context);
      const T least = found.number(found.least);
      const T greatest = found.number(found.greatest);
      std::byte* const codes = wire + align;
      std::byte* const next = wire + chunk_bytes(end - begin);
      std::memset(wire, 0, align);
      detail::store_element(values.dtype, wire, least, 0);
      detail::store_element(values.dtype, wire, greatest, 1);
      const detail::MinMaxLevels<T> levels{least, greatest};
      detail::for_each_tile<T>(values, begin, end, [&](const T* from, std::size_t first, std::size_t count) {
        levels.encode(kernels, from, codes + (first - begin), count);
      });
      std::fill(codes + (end - begin), next, std::byte{0});
      begin = end;
      wire = next;
    }
  }

  template <class Write>
  void decode_with(const Write& write, std::span<const std::byte> wire, const BufferView& target,
                   const CodecContext& context) const {
    if (!context.checked) check(wire, target.count, target.dtype);
    if (target.count == 0) return;
    detail::with_compute_type(target.dtype, [&]<class T>() { decode_as<T>(write, wire.data(), target); });
  }

  template <class T>
  void check_chunks(const std::byte* wire, std::size_t count, DType dtype) const {
    const std::size_t size = chunk_of(count);
    const auto not_zero = [](std::byte b) { return b != std::byte{0}; };
    for (std::size_t begin = 0; begin < count; begin += size) {
      const std::size_t elements = std::min(size, count - begin);
      const auto key = [&](std::size_t index) {
        const T value = detail::load_element<T>(dtype, wire, index);
        return detail::Extremes<T>::swap(std::bit_cast<typename detail::Extremes<T>::Key>(value));
      };
      const detail::Extremes<T> given{key(0), key(1)};
      if (!given.finite() || given.least > given.greatest)
        detail::refuse_wire(name, "the extremes of chunk " + std::to_string(begin / size));
      const std::byte* const next = wire + chunk_bytes(elements);
      if (std::any_of(wire + 2 * size_of(dtype), wire + align, not_zero) ||
          std::any_of(wire + align + elements, next, not_zero))
        detail::refuse_wire(name, "the padding of chunk " + std::to_string(begin / size) + " is not zero");
      wire = next;
    }
  }

  template <class T, class Write>
  void decode_as(const Write& write, const std::byte* wire, const BufferView& target) const {
    const detail::CodecKernels& kernels = detail::codec_kernels();
    const std::size_t size = chunk_of(target.count);
    const T limit = static_cast<T>(detail::largest_of(target.dtype));
    write.template tiles<T>(target, [&](T* to, std::size_t first, std::size_t count) {
      for (std::size_t done = 0; done < count;) {
        const std::size_t offset = (first + done) % size;
        const std::size_t part = std::min(count - done, size - offset);
        const std::byte* const from = wire + (first + done) / size * chunk_bytes(size);
        const T least = detail::load_element<T>(target.dtype, from, 0);
        const T greatest = detail::load_element<T>(target.dtype, from, 1);
        detail::MinMaxLevels<T>{least, greatest}.decode(kernels, from + align + offset, to + done, part);
        // The outer levels may lie half a step outside of the extremes.
        if (std::max(-least, greatest) > limit / 2) detail::saturate(kernels, to + done, limit, to + done, part);
        done += part;
      }
    });
  }
};

static_assert(Codec<MinMaxUInt8>);

}  // namespace kith
