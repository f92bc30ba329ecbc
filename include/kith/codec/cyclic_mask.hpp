// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <kith/codec.hpp>
#include <kith/codec/detail/sparse.hpp>
#include <kith/numeric/counter_rng.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

/// @brief Keeps a `fraction` of the values, the same elements on every rank and others in each round until all have had
/// their turn; decodes the others to zero.
///
/// k = fraction * count rounded to the nearest integer, at least 1. The buffer is cut into k stretches of floor or
/// ceil(count / k) elements; each round keeps the next element of every stretch, from one that depends on the seed and
/// the stretch. So any ceil(count / k) rounds in a row keep every element, and none twice where k divides count. The
/// indices follow from (seed, round) and are not sent.
///
/// E ||x - Q(x)||^2 <= (1 - 1 / ceil(count / k)) ||x||^2 over the seeds, a contraction; equality where k divides count.
/// Over a full cycle nothing is lost, whatever the seed.
///
/// Wire: the values that are kept, [k] of the buffer's type, bit for bit. Encoder and decoder need the same round.
struct CyclicMask {
  static constexpr std::string_view name = "cyclic-mask";

  double fraction = 0.01;
  std::uint64_t seed = 0;

  /// Elements that are kept of `count`. Throws UsageError unless 0 < fraction <= 1.
  [[nodiscard]] std::size_t kept(std::size_t count) const { return detail::kept_of(name, fraction, count); }

  /// Calls f(index) for the kept(count) elements of a round, in ascending order, which is the order of the wire.
  template <class F>
  void for_each_index(std::size_t count, Round round, const F& f) const {
    if (count == 0) return;
    const detail::Strata strata{count, kept(count)};
    for (std::size_t j = 0; j < strata.kept; ++j) {
      const std::size_t size = strata.size(j);
      f(strata.begin(j) + (splitmix64(seed, j) % size + round % size) % size);
    }
  }

  /// kept(count) * size_of(dtype).
  [[nodiscard]] std::size_t wire_bytes(std::size_t count, DType dtype) const { return kept(count) * size_of(dtype); }

  /// Looks at the values that are kept only.
  void encode(BufferView values, std::span<std::byte> wire, CodecContext context = {}) const {
    detail::encode_masked(*this, values, wire, context);
  }
  [[nodiscard]] std::string parameters() const { return detail::number_to_text(fraction) + ',' + std::to_string(seed); }

  /// Throws WireError where decode() would; see kith::Codec.
  void check(std::span<const std::byte> wire, std::size_t count, DType dtype) const {
    detail::check_masked(*this, wire, count, dtype);
  }
  void decode(std::span<const std::byte> wire, BufferView values, CodecContext context = {}) const {
    detail::decode_masked(*this, detail::SparseOverwrite{}, wire, values, context);
  }
  void decode_add(double weight, std::span<const std::byte> wire, BufferView accumulator,
                  CodecContext context = {}) const {
    detail::decode_masked(*this, detail::SparseAdd{weight}, wire, accumulator, context);
  }

  friend bool operator==(CyclicMask, CyclicMask) = default;
};

static_assert(Codec<CyclicMask>);

}  // namespace kith
