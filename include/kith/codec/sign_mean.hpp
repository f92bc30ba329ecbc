// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>

#include <kith/codec.hpp>
#include <kith/codec/detail/ordered_sum.hpp>
#include <kith/codec/detail/tiles.hpp>
#include <kith/numeric/codec_kernels.hpp>
#include <kith/numeric/scalar_kernels.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

/// @brief One bit per element: the sign of each value, times the mean magnitude of the buffer.
///
/// Zeros take the sign that they have. ||x - Q(x)||^2 = ||x||^2 - ||x||_1^2 / count, a contraction with 1 - delta =
/// 1 - ||x||_1^2 / (count ||x||_2^2): 0.363 for normally distributed values. Biased: for differences against a replica,
/// or with error feedback.
///
/// Wire (nothing for an empty buffer): the mean magnitude, an f32 (f64 for f64 buffers); then the signs,
/// [ceil(count / 8)] bytes, the first element in the lowest bit, 1 for negative, what is left over zero.
///
/// @par Source Bernstein et al., signSGD, ICML 2018; as a contraction, Karimireddy et al., Error Feedback Fixes
/// SignSGD,
///             ICML 2019.
struct SignMean {
  static constexpr std::string_view name = "sign-mean";

  /// ceil(count / 8) + 4 (8 for f64).
  [[nodiscard]] static constexpr std::size_t wire_bytes(std::size_t count, DType dtype) noexcept {
    return count == 0 ? 0 : header_bytes(dtype) + sign_bytes(count);
  }

  static void encode(BufferView values, std::span<std::byte> wire, CodecContext context = {}) {
    detail::require_wire(name, values, wire_bytes(values.count, values.dtype), wire.size());
    if (values.count == 0) return;
    detail::with_compute_type(values.dtype, [&]<class T>() {
      detail::scalar::store(wire.data(), 0, static_cast<T>(mean<T>(values, context)));
      std::byte* const signs = wire.data() + sizeof(T);
      std::memset(signs, 0, sign_bytes(values.count));
      detail::for_each_tile<T>(values, 0, values.count, [&](const T* from, std::size_t first, std::size_t count) {
        for (std::size_t i = 0; i < count; ++i) {
          const unsigned negative = std::signbit(detail::scalar::load<T>(from, i)) ? 1U : 0U;
          signs[(first + i) / 8] |= static_cast<std::byte>(negative << (first + i) % 8);
        }
      });
    });
  }
  /// Throws WireError where decode() would; see kith::Codec.
  static void check(std::span<const std::byte> wire, std::size_t count, DType dtype) {
    detail::check_wire(name, count, dtype, wire_bytes(count, dtype), wire.size());
    if (count == 0) return;
    detail::with_compute_type(dtype, [&]<class T>() {
      const T mean = detail::scalar::load<T>(wire.data(), 0);
      if (!detail::is_magnitude(mean) || mean > static_cast<T>(detail::largest_of(dtype)))
        detail::refuse_wire(name, "the mean magnitude");
    });
    if (count % 8 != 0 && (wire.back() >> count % 8) != std::byte{0})
      detail::refuse_wire(name, "the padding is not zero");
  }
  static void decode(std::span<const std::byte> wire, BufferView values, CodecContext context = {}) {
    decode_with(detail::Overwrite{}, wire, values, context);
  }
  static void decode_add(double weight, std::span<const std::byte> wire, BufferView accumulator,
                         CodecContext context = {}) {
    decode_with(detail::Add{weight}, wire, accumulator, context);
  }

  friend bool operator==(SignMean, SignMean) = default;

private:
  static constexpr std::size_t header_bytes(DType dtype) noexcept { return dtype == DType::f64 ? 8 : 4; }
  static constexpr std::size_t sign_bytes(std::size_t count) noexcept { return count / 8 + (count % 8 != 0); }

  // Sums of doubles may overflow, those of floats cannot.
  template <class T>
  static double mean(const BufferView& values, const CodecContext& context) {
    const auto count = static_cast<double>(values.count);
    const double sum = detail::ordered_sum<T>(values, [](double x) { return x; });
    if (std::isfinite(sum)) return sum / count;
    detail::require_finite(name, values, 0, values.count, context);
    return detail::ordered_sum<T>(values, [](double x) { return x * 0x1p-64; }) / count * 0x1p64;
  }

  template <class Write>
  static void decode_with(const Write& write, std::span<const std::byte> wire, const BufferView& target,
                          const CodecContext& context) {
    if (!context.checked) check(wire, target.count, target.dtype);
    if (target.count == 0) return;
    detail::with_compute_type(target.dtype, [&]<class T>() {
      const T mean = detail::scalar::load<T>(wire.data(), 0);
      const std::byte* const signs = wire.data() + sizeof(T);
      write.template tiles<T>(target, [&](T* to, std::size_t first, std::size_t count) {
        // Signs are as good as random: a branch on them would cost more than all the rest.
        for (std::size_t i = 0; i < count; ++i) {
          const auto byte = std::to_integer<detail::BitsOf<T>>(signs[(first + i) / 8]);
          const detail::BitsOf<T> sign = (byte >> (first + i) % 8) << (8 * sizeof(T) - 1);
          detail::scalar::store(to, i, std::bit_cast<T>(std::bit_cast<detail::BitsOf<T>>(mean) | sign));
        }
      });
    });
  }
};

static_assert(Codec<SignMean>);

}  // namespace kith
