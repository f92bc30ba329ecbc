// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/exchange/encoded_round.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/layout.hpp>
#include <kith/exchange/wire_layout.hpp>
#include <kith/stream.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>

namespace kith::detail {

/// @brief A round of encoded buffers between ranks that have memory of their own.
///
/// One message for all neighbours goes by the engine's stream: encoded where it is sent from, piece i + 1 while piece i
/// travels, and checked as it comes. Where it travels, nothing can be taken back once a piece is gone: so all values
/// are looked at before. What remains is a difference of finite values that overflows in the middle of a message: that
/// fails the round (PeerError), as a message does that cannot be decoded. A message for each neighbour goes by
/// exchange().
///
/// Nothing is changed before everything has come: then all is taken in, in one pass.
template <Communicator C, class Rule>
class StreamEncoded {
public:
  StreamEncoded(C& communicator, const typename Rule::Exchange& exchange, const Layout&, const SessionOptions& options)
      : communicator_(communicator), round_(exchange, options, communicator.rank()) {
    const std::size_t messages = round_.rule().most_messages();
    if (messages == 1)
      stream_.emplace(communicator, StreamShape{.bytes = message_bytes(),
                                                .max_degree = options.max_degree,
                                                .piece_bytes = options.bucket_bytes,
                                                .deadline = options.deadline});
    else if constexpr (requires { communicator.reserve(0, 0, 0); })
      communicator.reserve(options.max_degree, options.max_degree, message_bytes());
    const bool kept = stream_ && stream_->keeps_messages();
    // A message that is to be complete before the stream is opened, or one for each target.
    outbox_bytes_ = !stream_ || (!kept && !Rule::every_value) ? messages * message_bytes() : 0;
    inbox_bytes_ = kept ? 0 : options.max_degree * message_bytes();
    outbox_ = std::make_unique_for_overwrite<std::byte[]>(outbox_bytes_);
    inbox_ = std::make_unique_for_overwrite<std::byte[]>(inbox_bytes_);
    outgoing_.reserve(stream_ ? 0 : options.max_degree);
    incoming_.reserve(stream_ ? 0 : options.max_degree);
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept {
    return round_.staging_bytes() + outbox_bytes_ + inbox_bytes_ + (stream_ ? stream_->staging_bytes() : 0);
  }
  /// Bytes of every message.
  [[nodiscard]] std::size_t message_bytes() const noexcept { return round_.layout().bytes(); }
  [[nodiscard]] Rule& rule() noexcept { return round_.rule(); }
  [[nodiscard]] const Rule& rule() const noexcept { return round_.rule(); }

  Seconds round(const GossipRound& round) {
    if (fault_) refuse_round(communicator_, round.call, *fault_);
    return stream_ ? stream(round) : exchange(round);
  }

private:
  Seconds exchange(const GossipRound& round) {
    const std::size_t messages = round_.begin(round);
    for (std::size_t m = 0; m < messages; ++m) {
      std::byte* const message = outbox_.get() + m * message_bytes();
      round_.send(message);
      round_.encode_all(round, m, message);
    }
    outgoing_.clear();
    incoming_.clear();
    for (const Rank to : round.plan.targets()) outgoing_.push_back({to, round_.message_to(round, to), message_bytes()});
    for (const auto& source : round.plan.sources())
      incoming_.push_back({source.rank, inbox(incoming_.size()), message_bytes()});
    const Seconds waited = communicator_.exchange(round.call, outgoing_, incoming_);
    round_.workspace().received.clear();
    for (std::size_t k = 0; k < incoming_.size(); ++k) {
      round_.workspace().received.push_back(inbox(k));
      for (std::size_t s = 0; s < round_.layout().segments(); ++s) round_.check(round, s, inbox(k), incoming_[k].from);
    }
    take_in(round);
    return waited;
  }

  Seconds stream(const GossipRound& round) {
    messages_ = round_.begin(round);
    drafted_ = false;
    const bool travels = stream_->travels(round.plan);
    if (travels) prepare(round);
    stream_->open(round.call, round.plan, {});
    if (messages_ > 0) round_.send(stream_->copy());
    if (!travels) encode_before_anything_is_sent(round);
    const std::size_t pieces = stream_->pieces();
    for (std::size_t step = 0; step < pieces + stream_->lead(); ++step) {
      if (step < pieces) publish(round, step);
      if (step >= stream_->lead()) await(round, step - stream_->lead());
    }
    take_in(round);
    stream_->consumed(pieces - 1);
    return stream_->close();
  }

  // Whatever NonFiniteError is about is found here, while the round has not begun.
  void prepare(const GossipRound& round) {
    encoded_ = checked_ = 0;
    if (Rule::every_value) return round_.require_finite(round);
    round_.encode_all(round, 0, outbox_.get());
    drafted_ = true;
  }
  void encode_before_anything_is_sent(const GossipRound& round) {
    checked_ = 0;
    encoded_ = round_.layout().segments();
    if (messages_ == 0) return;
    try {
      round_.encode_all(round, 0, stream_->copy());
    } catch (const NonFiniteError&) {
      stream_->abandon();
      throw;
    }
  }

  [[nodiscard]] std::size_t begin_of(std::size_t piece) const noexcept { return piece * stream_->piece_bytes(); }
  [[nodiscard]] std::size_t end_of(std::size_t piece) const noexcept {
    return std::min(begin_of(piece + 1), message_bytes());
  }
  [[nodiscard]] std::byte* inbox(std::size_t k) const noexcept { return inbox_.get() + k * message_bytes(); }

  void publish(const GossipRound& round, std::size_t piece) {
    std::byte* const room = stream_->room(piece);
    if (drafted_)
      std::memcpy(room, outbox_.get() + begin_of(piece), end_of(piece) - begin_of(piece));
    else if (messages_ > 0)
      encode_until(round, end_of(piece));
    stream_->publish(piece);
  }

  // Encodes all segments that begin before byte `end` of the message.
  void encode_until(const GossipRound& round, std::size_t end) {
    try {
      for (; encoded_ < round_.layout().segments() && round_.layout().segment(encoded_).offset < end; ++encoded_)
        round_.encode(round, 0, encoded_, stream_->copy());
    } catch (const NonFiniteError& error) {
      const Rank rank = communicator_.rank();
      fault_ = {rank, "it cannot be encoded: " + std::string{error.message()}};
      refuse_round(communicator_, round.call, *fault_);
    }
  }

  // A message of an in-neighbour, as far as it has come.
  [[nodiscard]] const std::byte* message(std::size_t k) const noexcept {
    const std::byte* const kept = stream_->message(k);
    return kept != nullptr ? kept : inbox(k);
  }

  void await(const GossipRound& round, std::size_t piece) {
    const auto sources = round.plan.sources();
    const bool last = piece + 1 == stream_->pieces();
    stream_->await(piece);
    if (last) stream_->settle();
    for (std::size_t k = 0; k < sources.size(); ++k)
      if (stream_->message(k) == nullptr)
        std::memcpy(inbox(k) + begin_of(piece), stream_->source(k, 0, 0, begin_of(piece)),
                    end_of(piece) - begin_of(piece));
    if (!last) stream_->consumed(piece);  // after the last one, messages are not kept any more
    for (; checked_ < round_.layout().segments(); ++checked_) {
      const Segment segment = round_.layout().segment(checked_);
      if (segment.offset + segment.bytes > end_of(piece)) break;
      for (std::size_t k = 0; k < sources.size(); ++k) round_.check(round, checked_, message(k), sources[k].rank);
    }
    if (!last) return;
    round_.workspace().received.clear();
    for (std::size_t k = 0; k < sources.size(); ++k) round_.workspace().received.push_back(message(k));
  }

  void take_in(const GossipRound& round) {
    if (round_.fault()) {
      fault_ = round_.fault();
      refuse_round(communicator_, round.call, *fault_);
    }
    round_.apply(round, 0, round_.layout().segments(), round_.workspace());
  }

  C& communicator_;
  EncodedRound<Rule> round_;
  std::optional<Stream<C>> stream_;
  std::size_t outbox_bytes_ = 0;
  std::size_t inbox_bytes_ = 0;
  std::unique_ptr<std::byte[]> outbox_;
  std::unique_ptr<std::byte[]> inbox_;
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
  std::optional<WireFault> fault_;  // that has put this rank out of step

  // Of a round by the stream.
  bool drafted_ = false;  // the message is complete, in the outbox
  std::size_t messages_ = 0;
  std::size_t encoded_ = 0;  // segments
  std::size_t checked_ = 0;
};

}  // namespace kith::detail
