// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <kith/types.hpp>

namespace kith {

/// @brief What a rank is doing when it meets its peers: what must be equal on all of them, and what an error says.
struct Call {
  /// The operation: "gossip round". Points to memory that outlives the call, in practice a literal.
  std::string_view what;
  /// Which averager of the communicator, in the order of construction.
  std::uint32_t channel = 0;
  /// Position in the schedule: the gossip round, or a count of calls.
  std::uint64_t sequence = 0;
  /// Whatever else must be equal on all ranks, as a number.
  std::uint64_t agreement = 0;
  /// Bytes of this rank's model that the call is about; for messages only.
  std::size_t bytes = 0;
  /// How long to wait for a peer to arrive.
  Seconds deadline{60};
};

namespace detail {

/// "0.25 s", for error messages.
[[nodiscard]] inline std::string to_text(Seconds time) {
  std::string text = std::to_string(time.count());
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.' || text.back() == ',') text.pop_back();
  return text + " s";
}

/// "gossip round 12 of averager 0 (4096 bytes)", for error messages.
[[nodiscard]] inline std::string describe(const Call& call) {
  return std::string{call.what} + " " + std::to_string(call.sequence) + " of averager " + std::to_string(call.channel) +
         " (" + std::to_string(call.bytes) + " bytes)";
}

}  // namespace detail

/// A message to a peer: `bytes` bytes at `data`.
struct Outgoing {
  Rank to;
  const void* data;
  std::size_t bytes;
};

/// Room for the message of a peer: exactly `bytes` bytes at `data`.
struct Incoming {
  Rank from;
  void* data;
  std::size_t bytes;
};

/// @brief A group of ranks that can exchange messages: what every engine offers, and all that the averager needs.
///
/// - `rank()`, `size()`: 0 <= rank < size.
/// - `open_channel()`: a number for a new averager, equal on all ranks that open in the same order. Local.
/// - `exchange(call, outgoing, incoming)`: sends and receives all messages. At most one message for each ordered pair
///   of ranks; the byte counts of both ends agree. On return `outgoing` may be reused and `incoming` is filled.
///   All ranks make the call; one waits for those that it has messages with, and need not wait for others.
/// - `all_gather(call, mine, all)`: `all` = the `mine` of every rank in rank order; for small control data. Every rank
///   gives the same number of bytes.
///
/// Both return the time spent waiting for peers, and
/// - throw PeerError by the deadline where a peer that is waited for does not come, has left, or makes a call whose
///   `what`, `channel`, `sequence` or `agreement` differs; afterwards the communicator has failed, and every later call
///   throws at once. The others learn of it: whoever waits for a rank that has failed throws as well;
/// - make nothing of what they write visible outside `incoming` and `all`.
///
/// kith/testing/conformance.hpp checks all of this for any model of the concept.
///
/// An engine may offer more, which the averager then uses: `Stream` (kith/stream.hpp), a way of its own to bring a
/// message to all neighbours; `reserve(outgoing, incoming, bytes)`, which allocates what an exchange() with so many
/// messages of at most so many bytes needs; `refuse(call, peer, text)`, which throws PeerError because of a message of
/// the peer that cannot be used: this rank has failed then, and whoever waits for it learns of it;
/// `require_readable(buffers)`, which throws UsageError for memory that it cannot work with; `background()`, a
/// detail::Background (kith/background.hpp) on which hidden rounds go on: without it begin() performs them.
///
/// @par Thread safety One thread at a time uses a communicator.
template <class C>
concept Communicator = requires(C& communicator, const C& constant, const Call& call,
                                std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                                std::span<const std::byte> mine, std::span<std::byte> all) {
  { constant.rank() }
  noexcept->std::same_as<Rank>;
  { constant.size() }
  noexcept->std::same_as<Rank>;
  { communicator.open_channel() } -> std::same_as<std::uint32_t>;
  { communicator.exchange(call, outgoing, incoming) } -> std::same_as<Seconds>;
  { communicator.all_gather(call, mine, all) } -> std::same_as<Seconds>;
};

/// @brief A communicator of ranks whose models are in the memory of devices, and whose rounds are enqueued on streams.
///
/// `DeviceStream`: what a stream is called by its handle: cudaStream_t. The messages of Communicator itself are in host
/// memory; the exchanges for such engines, in kith/exchange/device/, bring the models.
template <class C>
concept StreamOrdered = Communicator<C> && requires {
  typename C::DeviceStream;
};

namespace detail {

/// Takes the place of a stream where calls are made and done.
struct NoStream {};

template <class C>
struct DeviceStreamFor {
  using type = NoStream;
};
template <StreamOrdered C>
struct DeviceStreamFor<C> {
  using type = typename C::DeviceStream;
};

/// What the calls of an averager are given to say in which order they stand: a stream, or nothing.
template <Communicator C>
using DeviceStream = typename DeviceStreamFor<C>::type;

}  // namespace detail

/// What every rank has published for a common piece of work: `published[r]` is rank r's own object.
template <class P>
class Published {
public:
  explicit Published(std::span<void* const> slots) noexcept : slots_(slots) {}

  [[nodiscard]] P& operator[](Rank rank) const noexcept {
    return *static_cast<P*>(slots_[static_cast<std::size_t>(rank)]);
  }
  [[nodiscard]] Rank size() const noexcept { return static_cast<Rank>(slots_.size()); }

private:
  std::span<void* const> slots_;
};

namespace detail {
// What SharedAddressSpace asks for is a template; the concept can only try it with one set of types.
struct SamplePublication {};
struct SampleWork {
  void operator()(Published<SamplePublication>, std::size_t) const noexcept {}
};
struct SampleEpilogue {
  void operator()(Published<SamplePublication>) const noexcept {}
};
}  // namespace detail

/// @brief A communicator whose ranks are threads of one process: they read each other's memory in place, and share
/// work.
///
/// `collaborate(call, publication, claims, work, epilogue)`: every rank publishes an object; once all have arrived (the
/// one wait, with the call's deadline) whichever rank is free calls `work(published, claim)` for the claims 0 to
/// claims - 1, each exactly once, and after the last one a single rank calls `epilogue(published)`. All return after
/// that. Nothing may throw inside, and every rank passes the same `claims` and equivalent callables: which rank runs
/// what is open. Until it returns, every publication and whatever it refers to is stable but for what `work` writes.
/// Returns the time spent waiting for peers; throws like the calls of Communicator, and then no work has been done.
///
/// `workers()`: how many ranks can work at once, the same on all of them; for choosing the number of claims.
template <class C>
concept SharedAddressSpace = Communicator<C> &&
    requires(C& communicator, const Call& call, detail::SamplePublication& publication, std::size_t claims) {
  { communicator.workers() } -> std::same_as<Rank>;
  {
    communicator.collaborate(call, publication, claims, detail::SampleWork{}, detail::SampleEpilogue{})
    } -> std::same_as<Seconds>;
};

}  // namespace kith
