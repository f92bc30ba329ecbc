// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <kith/codec/detail/tiles.hpp>
#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/exchange/encoded_part.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/period.hpp>
#include <kith/exchange/wire_layout.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// A message that cannot be used: whose, and why.
struct WireFault {
  Rank peer;
  std::string text;
};

/// @brief One rank's rounds of encoded buffers, without the way of the messages: what sessions of all engines share.
template <class Rule>
class EncodedRound {
public:
  EncodedRound(const typename Rule::Exchange& exchange, const SessionOptions& options, Rank rank)
      : rank_(rank),
        period_(options.period.rounds),
        layout_(exchange, options.buffers, options.encode_from_bytes),
        rule_(exchange, layout_, options, rank),
        workspace_(Rule::workspace(layout_, options.max_degree)) {
    sent_.reserve(rule_.most_messages());
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return rule_.staging_bytes() + workspace_.bytes(); }
  [[nodiscard]] const WireLayout& layout() const noexcept { return layout_; }
  [[nodiscard]] Rule& rule() noexcept { return rule_; }
  [[nodiscard]] const Rule& rule() const noexcept { return rule_; }
  [[nodiscard]] Workspace& workspace() noexcept { return workspace_; }

  /// Begins a round: the number of its messages.
  std::size_t begin(const GossipRound& round) {
    sent_.clear();
    fault_.reset();
    return rule_.begin(round.plan);
  }
  /// Where the next message of the round is, or will be.
  void send(const std::byte* message) { sent_.push_back(message); }

  /// Throws NonFiniteError for a value that must not be sent.
  void require_finite(const GossipRound& round) const {
    for (std::size_t b = 0; b < round.buffers.size(); ++b)
      detail::require_finite(Rule::Exchange::name, round.buffers[b], 0, round.buffers[b].count, {rank_, 0, b});
  }

  /// Writes a segment of message `m` to its place in `message`, and looks whether it can be decoded while it is in the
  /// cache. May throw NonFiniteError.
  void encode(const GossipRound& round, std::size_t m, std::size_t segment, std::byte* message) {
    const EncodedPart here = part(round, segment);
    const std::span<std::byte> wire{message + here.segment.offset, here.segment.bytes};
    if (here.segment.encoded) {
      rule_.encode(here, m, wire, workspace_);
      return check(here, wire, rank_);
    }
    const BufferView values = here.values();
    const std::size_t index = first_non_finite(values.dtype, values.data, values.count);
    if (index < values.count) throw_non_finite(Rule::Exchange::name, here.context(rank_), here.segment.first + index);
    std::memcpy(wire.data(), values.data, wire.size());
  }
  void encode_all(const GossipRound& round, std::size_t m, std::byte* message) {
    for (std::size_t s = 0; s < layout_.segments(); ++s) encode(round, m, s, message);
  }

  /// Looks at a segment of the message of rank `sender`.
  void check(const GossipRound& round, std::size_t segment, const std::byte* message, Rank sender) {
    const EncodedPart here = part(round, segment);
    if (here.segment.encoded) check(here, here.part(message), sender);
  }

  /// What was found first.
  [[nodiscard]] const std::optional<WireFault>& fault() const noexcept { return fault_; }

  /// Takes segments in, where the workspace has the messages received. Cannot fail. Several threads may do so at once,
  /// with different segments and workspaces.
  void apply(const GossipRound& round, std::size_t begin, std::size_t end, Workspace& workspace) {
    for (std::size_t s = begin; s < end; ++s) {
      EncodedPart here = part(round, s);
      here.received = workspace.received;
      if (here.segment.encoded) {
        rule_.apply(here, workspace);
      } else if (!here.received.empty()) {
        const BufferView values = here.values();
        auto* const data = static_cast<std::byte*>(values.data);
        average_values(workspace.average, round, values.dtype, values.count, data, data,
                       [&](std::size_t k) { return here.source(k).data(); });
      }
    }
  }

  /// This round's message to a rank; null if there is none.
  [[nodiscard]] const std::byte* message_to(const GossipRound& round, Rank rank) const noexcept {
    const auto targets = round.plan.targets();
    const std::size_t k = PeriodPlan::place(targets, rank);
    if (k == targets.size() || targets[k] != rank) return nullptr;
    return sent_[sent_.size() == 1 ? 0 : k];
  }

private:
  [[nodiscard]] EncodedPart part(const GossipRound& round, std::size_t segment) const noexcept {
    return {round, codec_round(round.call.sequence), layout_.segment(segment), sent_, {}};
  }

  // The round as codecs are told it: all rounds of one phase of the topology's period are consecutive numbers. If a
  // mask of a period of its own went by the plain round, an edge might send the same elements for ever.
  [[nodiscard]] Round codec_round(Round t) const noexcept {
    return period_ <= 1 ? t : t / period_ + (t % period_ << 32U);
  }

  void check(const EncodedPart& here, std::span<const std::byte> wire, Rank sender) {
    if (fault_) return;
    try {
      rule_.check(here, wire, sender, workspace_);
    } catch (const WireError& error) {
      fault_ = {sender, std::string{error.message()}};
    }
  }

  Rank rank_;
  Round period_;
  WireLayout layout_;
  Rule rule_;
  Workspace workspace_;
  std::vector<const std::byte*> sent_;
  std::optional<WireFault> fault_;
};

/// Throws PeerError. This rank has not taken part, the others have: it is out of step with them for good.
template <Communicator C>
[[noreturn]] void refuse_round(C& communicator, const Call& call, Rank peer, const std::string& text) {
  if constexpr (requires { communicator.refuse(call, peer, text); }) communicator.refuse(call, peer, text);
  throw PeerError("rank " + std::to_string(communicator.rank()) + "/" + std::to_string(communicator.size()) + ": " +
                      describe(call) + ": " + text,
                  peer, PeerError::Reason::protocol);
}
template <Communicator C>
[[noreturn]] void refuse_round(C& communicator, const Call& call, const WireFault& fault) {
  refuse_round(communicator, call, fault.peer,
               "the message of rank " + std::to_string(fault.peer) + " cannot be used: " + fault.text);
}

}  // namespace kith::detail
