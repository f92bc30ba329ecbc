// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

#include <kith/codec.hpp>
#include <kith/codec/detail/ordered_sum.hpp>
#include <kith/codec/detail/tiles.hpp>
#include <kith/error.hpp>
#include <kith/numeric/codec_kernels.hpp>
#include <kith/numeric/counter_rng.hpp>
#include <kith/numeric/scalar_kernels.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

/// @brief One byte per element, unbiased: each magnitude rounded at random to a multiple of the buffer's norm over
/// `levels`.
///
/// With u = ||x||_2 / levels: code = floor(|x| / u + noise), noise uniform in [0, 1), with the sign of x; decoded to
/// code * u. The noise is a function of seed, rank, round, buffer and index: the same in a repeated run, and
/// independent between ranks.
///
/// E Q(x) = x (to 2^-32 u, and unless a decoded value exceeds the dtype's range, to which it is then limited), and
/// E ||x - Q(x)||^2 <= min(count / levels^2, sqrt(count) / levels) ||x||^2. No contraction unless that is below 1.
///
/// Wire (nothing for an empty buffer): ||x||_2 / max |x| as an f64, max |x| in the buffer's type, then the codes,
/// [count] of one signed byte. The norm itself may be larger than any float.
///
/// @par Source Alistarh et al., QSGD, NeurIPS 2017: section 3.1 and lemma 3.1.
struct QSGD {
  static constexpr std::string_view name = "qsgd";

  /// 1 to 127.
  std::uint32_t levels = 127;
  std::uint64_t seed = 0;

  /// count + 8 + size_of(dtype). Throws UsageError for other numbers of levels.
  [[nodiscard]] std::size_t wire_bytes(std::size_t count, DType dtype) const {
    if (levels < 1 || levels > 127)
      throw UsageError(std::string{name} + ": " + std::to_string(levels) + " levels: it takes 1 to 127");
    return count == 0 ? 0 : header_bytes(dtype) + count;
  }

  void encode(BufferView values, std::span<std::byte> wire, CodecContext context = {}) const {
    detail::require_wire(name, values, wire_bytes(values.count, values.dtype), wire.size());
    if (values.count == 0) return;
    detail::with_compute_type(values.dtype, [&]<class T>() { encode_as<T>(values, wire.data(), context); });
  }
  [[nodiscard]] std::string parameters() const { return std::to_string(levels) + ',' + std::to_string(seed); }

  /// Throws WireError where decode() would; see kith::Codec.
  void check(std::span<const std::byte> wire, std::size_t count, DType dtype) const {
    detail::check_wire(name, count, dtype, wire_bytes(count, dtype), wire.size());
    if (count == 0) return;
    const auto ratio = detail::scalar::load<double>(wire.data(), 0);
    detail::with_compute_type(dtype, [&]<class T>() {
      const T largest = detail::load_element<T>(dtype, wire.data() + sizeof(double));
      // The ratio is 1 for a single value that is not zero and sqrt(count) for equal ones.
      const bool possible = largest > 0 ? ratio >= 1 && ratio * ratio <= 1.001 * static_cast<double>(count)
                                        : detail::is_magnitude(ratio) && ratio == 0;
      if (!detail::is_magnitude(largest) || !possible) refuse("the norm");
    });
    const auto most = static_cast<int>(levels);
    const auto beyond = [&](std::byte code) {
      return std::abs(static_cast<int>(static_cast<std::int8_t>(code))) > most;
    };
    const auto codes = wire.subspan(header_bytes(dtype));
    if (std::any_of(codes.begin(), codes.end(), beyond)) refuse("a code beyond the levels");
  }
  void decode(std::span<const std::byte> wire, BufferView values, CodecContext context = {}) const {
    decode_with(detail::Overwrite{}, wire, values, context);
  }
  void decode_add(double weight, std::span<const std::byte> wire, BufferView accumulator,
                  CodecContext context = {}) const {
    decode_with(detail::Add{weight}, wire, accumulator, context);
  }

  friend bool operator==(QSGD, QSGD) = default;

private:
  static constexpr std::size_t header_bytes(DType dtype) noexcept { return sizeof(double) + size_of(dtype); }

  template <class T>
  void encode_as(const BufferView& values, std::byte* wire, const CodecContext& context) const {
    const detail::CodecKernels& kernels = detail::codec_kernels();
    detail::BitsOf<T> bits = 0;
    detail::for_each_tile<T>(values, 0, values.count, [&](const T* from, std::size_t, std::size_t count) {
      bits = std::max(bits, detail::max_magnitude(kernels, from, count));
    });
    if (bits >= detail::infinite_bits<T>) detail::require_finite(name, values, 0, values.count, context);
    // Everything relative to the largest: squares neither overflow nor vanish.
    const T largest = std::bit_cast<T>(bits);
    const double divisor = largest > 0 ? static_cast<double>(largest) : 1;
    const double ratio =
        std::sqrt(detail::ordered_sum<T>(values, [&](double x) { return (x / divisor) * (x / divisor); }));
    detail::scalar::store(wire, 0, ratio);
    detail::store_element(values.dtype, wire + sizeof(double), largest);

    std::byte* const codes = wire + header_bytes(values.dtype);
    const double per_level = ratio > 0 ? levels / ratio : 0;
    const std::uint64_t key =
        splitmix64(CounterRng{seed}.bits(context.round, context.buffer), static_cast<std::uint64_t>(context.rank));
    detail::for_each_tile<T>(values, 0, values.count, [&](const T* from, std::size_t first, std::size_t count) {
      for (std::size_t i = 0; i < count; ++i) {
        const auto x = static_cast<double>(detail::scalar::load<T>(from, i));
        // In units of 2^-32 levels, so that the noise is added exactly.
        const auto level = static_cast<std::uint64_t>(detail::rounded(std::fabs(x) / divisor * per_level) * 0x1p32);
        const auto code = static_cast<int>((level + (splitmix64(key, first + i) >> 32)) >> 32);
        codes[first + i] = static_cast<std::byte>(std::signbit(x) ? -code : code);
      }
    });
  }

  template <class Write>
  void decode_with(const Write& write, std::span<const std::byte> wire, const BufferView& target,
                   const CodecContext& context) const {
    if (!context.checked) check(wire, target.count, target.dtype);
    if (target.count == 0) return;
    const auto ratio = detail::scalar::load<double>(wire.data(), 0);
    const std::byte* const codes = wire.data() + header_bytes(target.dtype);
    detail::with_compute_type(target.dtype, [&]<class T>() {
      const T largest = detail::load_element<T>(target.dtype, wire.data() + sizeof(double));
      // The largest comes last: the product is rounded among subnormals once, and an overflow is cut off.
      const double step = ratio / levels;
      const double limit = detail::largest_of(target.dtype);
      write.template tiles<T>(target, [&](T* to, std::size_t first, std::size_t count) {
        for (std::size_t i = 0; i < count; ++i) {
          const double steps = detail::rounded(static_cast<double>(static_cast<std::int8_t>(codes[first + i])) * step);
          const double value = detail::rounded(steps * static_cast<double>(largest));
          detail::scalar::store(to, i, static_cast<T>(std::clamp(value, -limit, limit)));
        }
      });
    });
  }

  [[noreturn]] static void refuse(const std::string& what) { detail::refuse_wire(name, what); }
};

static_assert(Codec<QSGD>);

}  // namespace kith
