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

/// @brief Keeps a random `fraction` of the values, the same elements on every rank, and decodes the others to zero.
///
/// k = fraction * count rounded to the nearest integer, at least 1. Which elements is drawn anew each round from (seed,
/// round), and not sent. One is drawn from each of k stretches of (nearly) equal length, all of them moved around the
/// buffer by a random distance: not every set of k elements is possible, but each element is in with the probability
/// k / count.
///
/// E ||x - Q(x)||^2 = (1 - k / count) ||x||^2 over the seeds, a contraction; count / k times Q(x) would be unbiased,
/// and must not be used for differences against a replica.
///
/// Wire: the values that are kept, [k] of the buffer's type, bit for bit. Encoder and decoder need the same round.
struct RandomK {
  static constexpr std::string_view name = "random-k";

  double fraction = 0.01;
  std::uint64_t seed = 0;

  /// Elements that are kept of `count`. Throws UsageError unless 0 < fraction <= 1.
  [[nodiscard]] std::size_t kept(std::size_t count) const { return detail::kept_of(name, fraction, count); }

  /// Calls f(index) for the kept(count) elements of a round, all different, in the order of the wire.
  template <class F>
  void for_each_index(std::size_t count, Round round, const F& f) const {
    if (count == 0) return;
    const detail::Strata strata{count, kept(count)};
    const std::uint64_t key = CounterRng{seed}.bits(round);
    const std::size_t shift = CounterRng{seed}.bits(round, 1) % count;
    for (std::size_t j = 0; j < strata.kept; ++j) {
      const std::size_t place = strata.begin(j) + splitmix64(key, j) % strata.size(j);
      f(place < count - shift ? place + shift : place - (count - shift));
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

  friend bool operator==(RandomK, RandomK) = default;
};

static_assert(Codec<RandomK>);

}  // namespace kith
