// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include <kith/communicator.hpp>
#include <kith/exchange/period.hpp>
#include <kith/topology.hpp>
#include <kith/topology/machines.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

/// @brief What travels in a gossip round: full values, encoded values, compressed differences.
///
/// - `E::name`: the family in kebab case: "full-precision".
/// - `wire_bytes(count, dtype)`: bytes that a buffer of `count` elements takes in a message.
/// - `E::Session<Communicator>`: the exchange at work on one rank's model, with all its memory allocated at
///   construction; see FullPrecision for its members. One that encodes also has `message_bytes()` and `rule()`, see
///   detail::EncodedSession.
///
/// An exchange may also have
/// - `parameters()`: a std::string of what stands after the colon in its full name. Two values that work differently
///   have different parameters: ranks compare them;
/// - `require(period)`: throws UsageError for a schedule (detail::PeriodPlan) that it cannot serve, with the reason;
/// - `require_buffer(buffer)`: the same for a buffer that is to be encoded;
/// - `require_machines(machines, topology)`: the same for a topology, by its machines (a std::optional) and name; the
///   session then finds them in its options. Its session may count what a round sends itself:
///   `traffic(plan)`.
template <class E>
concept Exchange = std::copyable<E> && requires(const E& exchange, std::size_t count, DType dtype) {
  { E::name } -> std::convertible_to<std::string_view>;
  { exchange.wire_bytes(count, dtype) } -> std::same_as<std::size_t>;
};

/// The full name of an exchange, "direct:int8-block:256": its family, and its parameters where it has any.
template <Exchange E>
[[nodiscard]] std::string exchange_name(const E& exchange) {
  std::string name{std::string_view{E::name}};
  if constexpr (requires {
                  { exchange.parameters() } -> std::convertible_to<std::string>;
                })
    name += ':' + exchange.parameters();
  return name;
}

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
  /// See AveragerOptions.
  std::size_t encode_from_bytes = 0;
  PeriodPlan period{};
};

/// Throws UsageError for an exchange whose parameters are impossible, or that cannot serve such buffers.
template <Exchange E>
void require_exchange(const E& exchange, std::span<const BufferView> buffers, std::size_t encode_from_bytes) {
  (void)exchange.wire_bytes(1, DType::f32);
  for (const BufferView& buffer : buffers) {
    (void)exchange.wire_bytes(buffer.count, buffer.dtype);
    if constexpr (requires { exchange.require_buffer(buffer); })
      if (buffer.bytes() >= encode_from_bytes) exchange.require_buffer(buffer);
  }
}

/// What the session of an exchange knows of the schedule. Throws UsageError for one that the exchange cannot serve.
template <Exchange E, Topology T>
[[nodiscard]] PeriodPlan period_for(const E& exchange, const T& topology, Rank rank, Rank size) {
  if constexpr (requires(const PeriodPlan& period) { exchange.require(period); }) {
    PeriodPlan period = plan_period(topology, rank, size);
    exchange.require(period);
    return period;
  }
  PeriodPlan period;
  period.rounds = size > 1 ? topology.period(size) : 1;
  if constexpr (requires { exchange.require_machines(period.machines, period.topology); }) {
    period.machines = machines_of(topology, size);
    exchange.require_machines(period.machines, topology_name(topology));
  }
  return period;
}

}  // namespace detail
}  // namespace kith
