// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>

#include <kith/communicator.hpp>
#include <kith/exchange/encoded_part.hpp>
#include <kith/exchange/encoded_round.hpp>
#include <kith/exchange/encoded_stream.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/layout.hpp>
#include <kith/exchange/wire_layout.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

// What all exchanges share that encode: the message, its way to the others, and the commit. What a segment of a message
// says, and what becomes of those that have come, is the business of a rule; see EncodedSession.

namespace kith::detail {

/// @brief A round of encoded buffers between ranks that share an address space: the others' messages are read where
/// they are.
///
/// Each rank encodes, then all meet, and whoever is free takes segments in, of any rank. What a rank has encoded it has
/// checked itself, and the others read those very bytes: they need not look again, but ask for what it found.
template <SharedAddressSpace C, class Rule>
class SharedEncoded {
public:
  SharedEncoded(C& communicator, const typename Rule::Exchange& exchange, const Layout&, const SessionOptions& options)
      : communicator_(communicator),
        round_(exchange, options, communicator.rank()),
        parts_(parts_of(options, round_.layout())),
        outbox_bytes_(round_.rule().most_messages() * round_.layout().bytes()),
        outbox_(std::make_unique_for_overwrite<std::byte[]>(outbox_bytes_)) {}

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return round_.staging_bytes() + outbox_bytes_; }
  /// Bytes of every message.
  [[nodiscard]] std::size_t message_bytes() const noexcept { return round_.layout().bytes(); }
  [[nodiscard]] Rule& rule() noexcept { return round_.rule(); }
  [[nodiscard]] const Rule& rule() const noexcept { return round_.rule(); }

  Seconds round(const GossipRound& round) {
    if (fault_) refuse_round(communicator_, round.call, *fault_);
    const std::size_t messages = round_.begin(round);
    for (std::size_t m = 0; m < messages; ++m) {
      std::byte* const message = outbox_.get() + m * message_bytes();
      round_.send(message);
      round_.encode_all(round, m, message);
    }
    Publication mine{this, &round};
    const auto work = [this](Published<Publication> ranks, std::size_t claim) noexcept {
      const Publication& receiver = ranks[static_cast<Rank>(claim / parts_)];
      receiver.session->take(ranks, *receiver.round, claim % parts_, round_.workspace());
    };
    const std::size_t claims = static_cast<std::size_t>(communicator_.size()) * parts_;
    const Seconds waited = communicator_.collaborate(round.call, mine, claims, work, [](auto) noexcept {});
    if (fault_) refuse_round(communicator_, round.call, *fault_);
    return waited;
  }

private:
  struct Publication {
    SharedEncoded* session;
    const GossipRound* round;
  };

  // Into how many claims a rank's work is cut: the ranks need not have equally much, and not all of them a core.
  static std::size_t parts_of(const SessionOptions& options, const WireLayout& layout) noexcept {
    constexpr std::size_t least_bytes = std::size_t{1} << 19;
    constexpr std::size_t most = 16;
    std::size_t bytes = 0;
    for (const BufferView& buffer : options.buffers) bytes += buffer.bytes();
    return std::clamp(std::min(bytes / least_bytes, layout.segments()), std::size_t{1}, most);
  }

  // A part of what this rank takes in, by any thread, whose workspace that is.
  void take(Published<Publication> ranks, const GossipRound& round, std::size_t part, Workspace& workspace) noexcept {
    const std::optional<WireFault>* found = &round_.fault();
    Rank silent = -1;
    workspace.received.clear();
    for (const auto& source : round.plan.sources()) {
      const Publication& sender = ranks[source.rank];
      const std::byte* const message = sender.session->round_.message_to(*sender.round, communicator_.rank());
      if (message == nullptr && silent < 0) silent = source.rank;
      if (!*found) found = &sender.session->round_.fault();
      workspace.received.push_back(message);
    }
    if (!*found && silent < 0) {
      const std::size_t segments = round_.layout().segments();
      round_.apply(round, segments * part / parts_, segments * (part + 1) / parts_, workspace);
    } else if (part == 0) {  // all parts find the same, one of them says so
      fault_ = *found ? **found : WireFault{silent, "it does not send to this rank"};
    }
  }

  C& communicator_;
  EncodedRound<Rule> round_;
  std::size_t parts_;
  std::size_t outbox_bytes_;
  std::unique_ptr<std::byte[]> outbox_;
  std::optional<WireFault> fault_;  // that has put this rank out of step
};

/// The session of a rule; for devices kith/exchange/device/encoded.hpp has one.
template <Communicator C, class Rule>
struct EncodedSessionFor {
  static_assert(!StreamOrdered<C>,
                "for exchanges on a GPU include kith/exchange/device/encoded.hpp: kith/nccl.hpp does");
  using type = StreamEncoded<C, Rule>;
};
template <SharedAddressSpace C, class Rule>
struct EncodedSessionFor<C, Rule> {
  using type = SharedEncoded<C, Rule>;
};

/// @brief A gossip round of encoded buffers, for the engine C.
///
/// Buffers are cut into segments of about 8192 elements where the codec has a granule: encoded, checked and taken in
/// one by one, so that what is done to a value is done while it is in the processor's cache. Where it has none the
/// buffer is one segment.
///
/// The own messages are encoded first: where a value is not finite that throws, and the round has not begun. Every byte
/// that has come is checked, once and by the process that decodes it, before anything is changed, so that a rank takes
/// part in the whole round or not at all; then it is decoded without looking again.
///
/// A Rule has, with `part` an EncodedPart:
/// - `Exchange`; a constructor from (exchange, WireLayout, SessionOptions, rank); `staging_bytes()`;
/// - `every_value`: whether all values have to be finite;
/// - `workspace(layout, max_degree)`: what a thread needs for the calls below that are given one;
/// - `begin(plan)`: begins a round, and says how many different messages it sends: 1, or one for each target;
///   `most_messages()`: the most that it ever says, the same on all ranks;
/// - `encode(part, message, wire, workspace)`: writes a segment of a message and changes nothing else. May throw
///   NonFiniteError;
/// - `check(part, wire, rank, workspace)`: throws WireError if a segment of that rank's message is none;
/// - `apply(part, workspace)`: changes the parameters, and what else the rule keeps. Cannot fail; several threads call
///   it at once, each for other segments.
/// A rule that keeps replicas also has `replicas()` and `replica_distance()`.
template <Communicator C, class Rule>
using EncodedSession = typename EncodedSessionFor<C, Rule>::type;

}  // namespace kith::detail
