// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <span>
#include <string_view>

#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

/// Where encoded values come from. What a codec draws at random, or says in an error, is a function of it.
struct CodecContext {
  /// The rank that encodes, also when another one decodes.
  Rank rank = 0;
  Round round = 0;
  /// The buffer within the rank's model. Pieces of one buffer that are encoded apart are buffers of their own here.
  std::size_t buffer = 0;
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
/// No member allocates memory; all may be called by several threads at once. No argument overlaps another, and memory
/// may have any alignment. Numbers on the wire are little endian.
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

}  // namespace kith
