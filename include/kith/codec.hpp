// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <charconv>
#include <concepts>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

/// Where encoded values come from. What a codec draws at random, or says in an error, is a function of it.
struct CodecContext {
  /// The rank that encodes, also when another one decodes.
  Rank rank = 0;
  Round round = 0;
  /// The buffer within the rank's model. Pieces of one buffer that are encoded apart have one number; see granule().
  std::size_t buffer = 0;
  /// For decode() and decode_add(): these very bytes have passed check() for as many elements of the same dtype, and
  /// need not be looked at again. Where that is not so, a decoder may read and write anywhere.
  bool checked = false;
};

/// @brief A way to write a buffer's values in fewer bytes.
///
/// A codec is a value: its parameters and nothing else. It does not know who sends to whom.
///
/// - `C::name`: the family in kebab case: "int8-block".
/// - `wire_bytes(count, dtype)`: what `count` elements take encoded, exactly. Throws UsageError for parameters that
///   cannot be.
/// - `encode(values, wire, context)`: writes all of `wire`, which has wire_bytes() bytes (else UsageError). The bytes
///   are a function of the codec, the values and the context: the same on every processor and device. Throws
///   NonFiniteError where a NaN or an infinity would have to be encoded; `wire` then holds anything.
/// - `decode(wire, values, context)`: overwrites the values with what was encoded with the same count, dtype and
///   context, and gives finite values only. Throws WireError for bytes that encode() cannot have written; nothing is
///   written then.
/// - `decode_add(weight, wire, accumulator, context)`: adds weight times the decoded values in the same pass, in f32
///   (f64 for f64 buffers), product and sum rounded on their own; f16 and bf16 are widened before and rounded once
///   after, so the decoded value itself is not rounded to 16 bits. Throws as decode().
///
/// A codec may also have
/// - `parameters()`: a std::string of what stands after the colon in its full name: "256" of "int8-block:256". Two
///   values that encode differently have different parameters: ranks compare them;
/// - `check(wire, count, dtype)`: throws what decode() of that many elements would throw, and decodes nothing. Without
///   it a message is decoded twice;
/// - `granule()`: a buffer may be encoded in pieces, each with a wire of its own, that begin at multiples of so many
///   elements: the same values come out, and the wires together are as long as the one of the whole buffer. 0, or no
///   such member: the buffer is encoded as a whole. Exchanges cut long buffers where they may, to work on them in the
///   processor's cache and to send a piece while they encode the next.
///
/// No member but parameters() allocates memory; all may be called by several threads at once. No argument overlaps
/// another, and memory may have any alignment. Numbers on the wire are little endian.
template <class C>
concept Codec = std::copyable<C> &&
    requires(const C& codec, std::size_t count, DType dtype, BufferView values, std::span<std::byte> wire,
             std::span<const std::byte> received, double weight, CodecContext context) {
  { C::name } -> std::convertible_to<std::string_view>;
  { codec.wire_bytes(count, dtype) } -> std::same_as<std::size_t>;
  codec.encode(values, wire, context);
  codec.decode(received, values, context);
  codec.decode_add(weight, received, values, context);
};

/// The full name of a codec, "int8-block:256": its family, and its parameters where it has any.
template <Codec C>
[[nodiscard]] std::string codec_name(const C& codec) {
  std::string name{std::string_view{C::name}};
  if constexpr (requires {
                  { codec.parameters() } -> std::convertible_to<std::string>;
                }) {
    if (const std::string parameters = codec.parameters(); !parameters.empty()) name += ':' + parameters;
  }
  return name;
}

namespace detail {

/// The granule() of a codec; 0 where it has none.
template <Codec C>
[[nodiscard]] constexpr std::size_t granule_of([[maybe_unused]] const C& codec) noexcept {
  if constexpr (requires { codec.granule(); })
    return codec.granule();
  else
    return 0;
}

/// The shortest text that stands for this very number: "0.05".
[[nodiscard]] inline std::string number_to_text(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

}  // namespace detail

}  // namespace kith
