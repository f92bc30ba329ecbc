// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <span>
#include <string_view>

#include <kith/communicator.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

/// @brief What travels in a gossip round: full values, encoded values, compressed differences.
///
/// - `E::name`: the family in kebab case: "full-precision".
/// - `wire_bytes(count, dtype)`: bytes that a buffer of `count` elements takes in a message.
/// - `E::Session<Communicator>`: the exchange at work on one rank's model, with all its memory allocated at
///   construction; see FullPrecision for its members.
template <class E>
concept Exchange = std::copyable<E> && requires(const E& exchange, std::size_t count, DType dtype) {
  { E::name } -> std::convertible_to<std::string_view>;
  { exchange.wire_bytes(count, dtype) } -> std::same_as<std::size_t>;
};

namespace detail {

/// What an exchange's session needs to know of one gossip round.
struct GossipRound {
  const Call& call;
  std::span<const BufferView> buffers;
  const Neighborhood& plan;
  double mixing;
  /// False on a rank that takes part but must not change its parameters.
  bool commit;
};

/// What shapes the memory and the pace of a session.
struct SessionOptions {
  std::size_t max_degree = 0;
  std::size_t bucket_bytes = 0;
  /// Where the parameters are at first.
  std::span<const BufferView> buffers{};
  /// For the construction.
  Seconds deadline = Call{}.deadline;
};

}  // namespace detail
}  // namespace kith
