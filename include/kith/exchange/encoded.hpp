// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <kith/codec.hpp>
#include <kith/codec/detail/tiles.hpp>
#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/layout.hpp>
#include <kith/exchange/rows.hpp>
#include <kith/numeric/compute_type.hpp>
#include <kith/numeric/kernels.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

// What all exchanges share that encode: the message, its way to the others, and the commit. What a buffer's part of a
// message says, and what becomes of the parts that have come, is the business of a rule; see EncodedSession.

namespace kith::detail {

/// Where each buffer of a model stands in a message: encoded, or as it is if it is small.
class WireLayout {
public:
  struct Part {
    std::size_t offset;
    std::size_t bytes;
    bool encoded;
  };

  template <class E>
  WireLayout(const E& exchange, std::span<const BufferView> buffers, std::size_t encode_from_bytes) {
    parts_.reserve(buffers.size());
    for (const BufferView& buffer : buffers) {
      const bool encoded = buffer.count > 0 && buffer.bytes() >= encode_from_bytes;
      parts_.push_back({bytes_, encoded ? exchange.wire_bytes(buffer.count, buffer.dtype) : buffer.bytes(), encoded});
      bytes_ += parts_.back().bytes;
      if (encoded) most_computed_ = std::max(most_computed_, buffer.count * size_of(compute_dtype(buffer.dtype)));
      if (encoded) most_encoded_ = std::max(most_encoded_, parts_.back().bytes);
    }
  }

  /// Length of a message.
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] std::size_t buffers() const noexcept { return parts_.size(); }
  [[nodiscard]] const Part& part(std::size_t buffer) const noexcept { return parts_[buffer]; }
  /// Of the encoded buffers: bytes of the longest in the type that it is computed in, and of the longest part.
  [[nodiscard]] std::size_t most_computed() const noexcept { return most_computed_; }
  [[nodiscard]] std::size_t most_encoded() const noexcept { return most_encoded_; }

private:
  std::vector<Part> parts_;
  std::size_t bytes_ = 0;
  std::size_t most_computed_ = 0;
  std::size_t most_encoded_ = 0;
};

/// One buffer in one round: the buffer, and its parts of the messages.
struct EncodedPart {
  const GossipRound& round;
  Round codec_round;
  std::size_t buffer;
  const WireLayout& layout;
  std::span<const std::byte* const> sent;      // whole messages: one for all, or one for each target
  std::span<const std::byte* const> received;  // one for each source

  [[nodiscard]] const BufferView& values() const noexcept { return round.buffers[buffer]; }
  [[nodiscard]] std::span<const std::byte> own(std::size_t message = 0) const noexcept { return part(sent[message]); }
  [[nodiscard]] std::span<const std::byte> source(std::size_t k) const noexcept { return part(received[k]); }
  /// Where a rank's part comes from, for its codec.
  [[nodiscard]] CodecContext context(Rank rank) const noexcept { return {rank, codec_round, buffer}; }

private:
  [[nodiscard]] std::span<const std::byte> part(const std::byte* message) const noexcept {
    return {message + layout.part(buffer).offset, layout.part(buffer).bytes};
  }
};

/// target = self + mixing * sum of weight * (source - self) in the arithmetic of FullPrecision, for `count` values of
/// `dtype`; the target may be self. `source(k)` is where those of source k are.
template <class Source>
void average_values(Rows& rows, const GossipRound& round, DType dtype, std::size_t count, std::byte* target,
                    const std::byte* self, const Source& source) noexcept {
  const std::size_t width = size_of(dtype);
  with_compute_type(dtype, [&]<class T>() {
    const std::span<const Neighborhood::Source> plan = round.plan.sources();
    const std::span<Weighted<T>> sources = rows.template sources<T>().first(plan.size());
    for (std::size_t i = 0; i < count; i += rows.length()) {
      const std::size_t n = std::min(rows.length(), count - i);
      for (std::size_t k = 0; k < plan.size(); ++k)
        sources[k] = {rows.template borrow<T>(dtype, source(k) + i * width, k + 1, n), static_cast<T>(plan[k].weight)};
      rows.template average<T>(dtype, target + i * width, rows.template borrow<T>(dtype, self + i * width, 0, n),
                               sources, round.mixing, n);
    }
  });
}

/// sums += weight * (values - self), each operation rounded on its own, of at most a tile.
template <class T>
void add_difference(T* sums, double weight, const T* values, const T* self, std::size_t count) noexcept {
  const CodecKernels& kernels = codec_kernels();
  T difference[tile_elements];
  std::memcpy(difference, values, count * sizeof(T));
  accumulate(kernels, difference, self, T{-1}, count);
  accumulate(kernels, sums, difference, static_cast<T>(weight), count);
}

/// Copies a buffer, in the type that it is computed in.
template <class T>
void load_values(const BufferView& values, T* target) noexcept {
  for_each_tile<T>(values, 0, values.count, [&](const T* from, std::size_t first, std::size_t count) {
    std::memcpy(target + first, from, count * sizeof(T));
  });
}

/// Memory for one buffer's values in the type that they are computed in.
class Scratch {
public:
  explicit Scratch(std::size_t bytes) : bytes_(bytes), memory_(std::make_unique_for_overwrite<std::byte[]>(bytes)) {}

  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  template <class T>
  [[nodiscard]] T* as() const noexcept {
    return reinterpret_cast<T*>(memory_.get());
  }
  /// Room for as many values as `like` has.
  [[nodiscard]] BufferView view(const BufferView& like) const noexcept {
    return {memory_.get(), like.count, compute_dtype(like.dtype)};
  }

private:
  std::size_t bytes_;
  std::unique_ptr<std::byte[]> memory_;
};

/// Throws WireError for bytes that `codec` cannot decode as `room`.
template <Codec Q>
void check_part(const Q& codec, std::span<const std::byte> wire, const BufferView& room, const CodecContext& context) {
  if constexpr (requires { codec.check(wire, room.count, room.dtype); })
    codec.check(wire, room.count, room.dtype);
  else
    codec.decode(wire, room, context);
}

/// @brief A gossip round of encoded buffers, between ranks that share an address space (the others' messages are read
/// where they are) or do not (they come by exchange()).
///
/// The own messages are encoded first: where a value is not finite that throws, and the round has not begun. Then all
/// meet. What has come is checked before anything is changed, so that a rank takes part in the whole round or not at
/// all.
///
/// A Rule has, with `part` an EncodedPart:
/// - `Exchange`; a constructor from (exchange, WireLayout, SessionOptions, rank); `staging_bytes()`;
/// - `begin(plan)`: begins a round, and says how many different messages it sends: 1, or one for each target;
///   `most_messages()`: the most that it ever says;
/// - `encode(part, message, wire)`: writes a part of a message and changes nothing else. May throw NonFiniteError;
/// - `check(part, wire, rank)`: throws WireError if a part of that rank's message is none;
/// - `apply(part)`: changes the parameters, and what else the rule keeps. Cannot fail.
/// A rule that keeps replicas also has `replicas()` and `replica_distance()`.
template <Communicator C, class Rule>
class EncodedSession {
  static_assert(!StreamOrdered<C>,
                "this exchange works on buffers of the host; on a GPU there is FullPrecision so far");

public:
  EncodedSession(C& communicator, const typename Rule::Exchange& exchange, const Layout&, const SessionOptions& options)
      : communicator_(communicator),
        period_(options.period.rounds),
        layout_(exchange, options.buffers, options.encode_from_bytes),
        rule_(exchange, layout_, options, communicator.rank()),
        rows_(options.max_degree + 1, options.max_degree),
        inbox_bytes_(SharedAddressSpace<C> ? 0 : options.max_degree * layout_.bytes()),
        outbox_bytes_(rule_.most_messages() * layout_.bytes()),
        outbox_(std::make_unique_for_overwrite<std::byte[]>(outbox_bytes_)),
        inbox_(std::make_unique_for_overwrite<std::byte[]>(inbox_bytes_)) {
    sent_.reserve(rule_.most_messages());
    received_.reserve(options.max_degree);
    outgoing_.reserve(options.max_degree);
    incoming_.reserve(options.max_degree);
    if constexpr (requires { communicator.reserve(0, 0, 0); })
      communicator.reserve(options.max_degree, options.max_degree, layout_.bytes());
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept {
    return rule_.staging_bytes() + rows_.bytes() + outbox_bytes_ + inbox_bytes_;
  }
  /// Bytes of every message.
  [[nodiscard]] std::size_t message_bytes() const noexcept { return layout_.bytes(); }
  [[nodiscard]] Rule& rule() noexcept { return rule_; }
  [[nodiscard]] const Rule& rule() const noexcept { return rule_; }

  Seconds round(const GossipRound& round) {
    if (fault_) refuse(round.call);
    encode(round);
    Seconds waited{0};
    if constexpr (SharedAddressSpace<C>)
      waited = read_in_place(round);
    else
      waited = exchange(round);
    if (fault_) refuse(round.call);
    return waited;
  }

private:
  struct Publication {
    EncodedSession* session;
    const GossipRound* round;
  };
  struct Fault {
    Rank peer;
    std::string text;
  };

  [[nodiscard]] EncodedPart part(const GossipRound& round, std::size_t b) const noexcept {
    return {round, codec_round(round.call.sequence), b, layout_, sent_, received_};
  }

  // The round as codecs are told it: all rounds of one phase of the topology's period are consecutive numbers. If a
  // mask of a period of its own went by the plain round, an edge might send the same elements for ever.
  [[nodiscard]] Round codec_round(Round t) const noexcept {
    return period_ <= 1 ? t : t / period_ + (t % period_ << 32U);
  }

  void encode(const GossipRound& round) {
    sent_.clear();
    const std::size_t messages = rule_.begin(round.plan);
    for (std::size_t m = 0; m < messages; ++m) {
      std::byte* const message = outbox_.get() + m * layout_.bytes();
      sent_.push_back(message);
      for (std::size_t b = 0; b < layout_.buffers(); ++b) {
        const WireLayout::Part& place = layout_.part(b);
        const BufferView& values = round.buffers[b];
        if (place.encoded) {
          rule_.encode(part(round, b), m, {message + place.offset, place.bytes});
        } else if (place.bytes > 0) {
          require_finite("gossip", values, 0, values.count, part(round, b).context(communicator_.rank()));
          std::memcpy(message + place.offset, values.data, place.bytes);
        }
      }
    }
  }

  // This round's message to a rank; null if there is none.
  [[nodiscard]] const std::byte* message_to(const GossipRound& round, Rank rank) const noexcept {
    const auto targets = round.plan.targets();
    const std::size_t k = PeriodPlan::place(targets, rank);
    if (k == targets.size() || targets[k] != rank) return nullptr;
    return sent_[sent_.size() == 1 ? 0 : k];
  }

  Seconds read_in_place(const GossipRound& round) {
    Publication mine{this, &round};
    // Every rank has as much to do as any other: a claim is all that one rank takes in, and whoever is free does it.
    const auto work = [](Published<Publication> ranks, std::size_t claim) noexcept {
      const auto receiver = static_cast<Rank>(claim);
      ranks[receiver].session->take(*ranks[receiver].round, [&](std::size_t, Rank source) {
        return ranks[source].session->message_to(*ranks[source].round, receiver);
      });
    };
    return communicator_.collaborate(round.call, mine, static_cast<std::size_t>(communicator_.size()), work,
                                     [](auto) noexcept {});
  }

  Seconds exchange(const GossipRound& round) {
    outgoing_.clear();
    incoming_.clear();
    const auto inbox = [&](std::size_t k) { return inbox_.get() + k * layout_.bytes(); };
    for (const Rank to : round.plan.targets()) outgoing_.push_back({to, message_to(round, to), layout_.bytes()});
    for (const auto& source : round.plan.sources())
      incoming_.push_back({source.rank, inbox(incoming_.size()), layout_.bytes()});
    const Seconds waited = communicator_.exchange(round.call, outgoing_, incoming_);
    take(round, [&](std::size_t k, Rank) -> const std::byte* { return inbox(k); });
    return waited;
  }

  // Where message_of(k, rank) is the message of source k.
  template <class MessageOf>
  void take(const GossipRound& round, const MessageOf& message_of) {
    received_.clear();
    for (const auto& source : round.plan.sources()) {
      received_.push_back(message_of(received_.size(), source.rank));
      if (received_.back() == nullptr) fault_ = {source.rank, "it does not send to this rank"};
    }
    if (!fault_) check(round);
    if (fault_) return;
    for (std::size_t b = 0; b < layout_.buffers(); ++b) {
      const EncodedPart here = part(round, b);
      if (layout_.part(b).encoded) {
        rule_.apply(here);
      } else if (!received_.empty()) {
        auto* const data = static_cast<std::byte*>(here.values().data);
        average_values(rows_, round, here.values().dtype, here.values().count, data, data,
                       [&](std::size_t k) { return here.source(k).data(); });
      }
    }
  }

  // The own messages too: a codec that cannot read what it wrote is found before anything has changed.
  void check(const GossipRound& round) {
    Rank sender = communicator_.rank();
    try {
      for (std::size_t b = 0; b < layout_.buffers(); ++b) {
        if (!layout_.part(b).encoded) continue;
        const EncodedPart here = part(round, b);
        sender = communicator_.rank();
        for (std::size_t m = 0; m < sent_.size(); ++m) rule_.check(here, here.own(m), sender);
        for (std::size_t k = 0; k < received_.size(); ++k) {
          sender = round.plan.sources()[k].rank;
          rule_.check(here, here.source(k), sender);
        }
      }
    } catch (const WireError& error) {
      fault_ = {sender, std::string{error.message()}};
    }
  }

  // This rank has not taken part, the others have: it is out of step with them for good.
  [[noreturn]] void refuse(const Call& call) {
    const std::string text = "the message of rank " + std::to_string(fault_->peer) + " cannot be used: " + fault_->text;
    if constexpr (requires { communicator_.refuse(call, fault_->peer, text); })
      communicator_.refuse(call, fault_->peer, text);
    throw PeerError("rank " + std::to_string(communicator_.rank()) + "/" + std::to_string(communicator_.size()) + ": " +
                        describe(call) + ": " + text,
                    fault_->peer, PeerError::Reason::protocol);
  }

  C& communicator_;
  Round period_;
  WireLayout layout_;
  Rule rule_;
  Rows rows_;
  std::size_t inbox_bytes_;
  std::size_t outbox_bytes_;
  std::unique_ptr<std::byte[]> outbox_;
  std::unique_ptr<std::byte[]> inbox_;
  std::vector<const std::byte*> sent_;
  std::vector<const std::byte*> received_;
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
  std::optional<Fault> fault_;
};

}  // namespace kith::detail
