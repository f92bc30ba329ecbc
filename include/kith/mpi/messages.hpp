// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <mpi.h>

#include <kith/communicator.hpp>
#include <kith/mpi/native.hpp>
#include <kith/mpi/peers.hpp>
#include <kith/types.hpp>

namespace kith::mpi::detail {

// A message travels as one small MPI message with a header, which holds all of it if it is short, and otherwise as
// further ones, the chunks, which carry nothing but data. MPI never sees memory that is not Kith's own, so that a
// request which never completes can be left behind. Requests are made anew each time: persistent ones were measured
// (Open MPI, 132 bytes to 60 KiB) and are slower for short messages and no faster for long ones.

/// How a message is cut.
struct Cut {
  /// Up to here a second message costs more than to copy what it would carry: measured over TCP and shared memory.
  static constexpr std::size_t envelope_bytes = std::size_t{1} << 14;
  static constexpr std::size_t inline_bytes = envelope_bytes - sizeof(Header);

  std::size_t bytes = 0;
  std::size_t chunk_bytes = 1;

  [[nodiscard]] bool is_short() const noexcept { return bytes <= inline_bytes; }
  /// Number of chunks. A short message has none.
  [[nodiscard]] std::size_t chunks() const noexcept { return is_short() ? 0 : (bytes + chunk_bytes - 1) / chunk_bytes; }
  /// Number of steps in which it arrives.
  [[nodiscard]] std::size_t pieces() const noexcept { return is_short() ? 1 : chunks(); }
  [[nodiscard]] std::size_t length(std::size_t piece) const noexcept {
    return is_short() ? bytes : std::min(chunk_bytes, bytes - piece * chunk_bytes);
  }
};

struct alignas(64) Envelope {
  Header header;
  std::array<std::byte, Cut::inline_bytes> data;
};

/// Memory for MPI, which outlives its owner where requests on it are still pending.
class Slots {
public:
  Slots() = default;
  explicit Slots(std::size_t bytes)
      : bytes_(bytes), memory_(new (std::align_val_t{alignment}) std::byte[bytes], Free{}) {}
  [[nodiscard]] std::byte* data() const noexcept { return memory_.get(); }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] std::shared_ptr<void> share() const noexcept { return memory_; }

private:
  static constexpr std::size_t alignment = 64;
  struct Free {
    void operator()(std::byte* memory) const noexcept { ::operator delete[](memory, std::align_val_t{alignment}); }
  };
  std::size_t bytes_ = 0;
  std::shared_ptr<std::byte[]> memory_;
};

[[nodiscard]] inline bool all_null(std::span<const MPI_Request> requests) noexcept {
  return std::all_of(requests.begin(), requests.end(),
                     [](const MPI_Request& request) { return request == MPI_REQUEST_NULL; });
}

/// The sending end of messages to one rank after another.
class Outlet {
public:
  /// At most `depth` chunks are under way at a time. `slot_bytes`: room for a copy of each, or 0 where the caller keeps
  /// what it sends.
  Outlet(Peers& peers, std::size_t depth, std::size_t slot_bytes)
      : peers_(peers),
        envelope_(std::make_shared<Envelope>()),
        slots_(depth * slot_bytes),
        slot_bytes_(slot_bytes),
        requests_(depth, MPI_REQUEST_NULL) {}
  Outlet(Outlet&&) = default;
  Outlet(const Outlet&) = delete;
  Outlet& operator=(const Outlet&) = delete;
  Outlet& operator=(Outlet&&) = delete;
  ~Outlet() {
    if (!envelope_ || (head_ == MPI_REQUEST_NULL && all_null(requests_))) return;
    peers_.keep(envelope_);
    peers_.keep(slots_.share());
  }

  [[nodiscard]] Rank to() const noexcept { return to_; }
  [[nodiscard]] std::size_t staging_bytes() const noexcept { return sizeof(Envelope) + slots_.bytes(); }

  /// Begins a message. The one before has been sent.
  void open(Rank to, const Meeting& meeting, std::size_t bytes) {
    to_ = to;
    envelope_->header = {meeting.stamp, meeting.call.bytes, bytes};
  }

  /// Sends all of a short message.
  void send_short(const void* data) {
    const auto bytes = static_cast<std::size_t>(envelope_->header.message_bytes);
    if (bytes > 0) std::memcpy(envelope_->data.data(), data, bytes);
    send(envelope_.get(), sizeof(Header) + bytes, Tag::message, head_);
  }
  /// Announces a long one.
  void send_header() { send(envelope_.get(), sizeof(Header), Tag::message, head_); }

  /// Sends a chunk of it. The one that lies `depth` before has been sent, and `data` stays as it is until this has.
  void send_chunk(std::size_t chunk, const std::byte* data, std::size_t bytes) {
    send(data, bytes, Tag::chunk, requests_[chunk % requests_.size()]);
  }
  /// The same by way of a slot: `data` is free afterwards.
  void copy_chunk(std::size_t chunk, const std::byte* data, std::size_t bytes) {
    std::byte* const slot = slots_.data() + chunk % requests_.size() * slot_bytes_;
    std::memcpy(slot, data, bytes);
    send_chunk(chunk, slot, bytes);
  }

  /// Whether the chunk that lies `depth` before this one has been sent, or there is none.
  [[nodiscard]] bool sent(std::size_t chunk) { return peers_.done(requests_[chunk % requests_.size()]); }

  /// Whether everything has been sent.
  [[nodiscard]] bool all_sent() {
    return peers_.done(head_) &&
           std::all_of(requests_.begin(), requests_.end(), [&](MPI_Request& request) { return peers_.done(request); });
  }

private:
  void send(const void* data, std::size_t bytes, Tag tag, MPI_Request& request) {
    peers_.require_success(
        MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, to_, static_cast<int>(tag), peers_.comm(), &request),
        "MPI_Isend");
  }

  Peers& peers_;
  Rank to_ = 0;
  std::shared_ptr<Envelope> envelope_;
  Slots slots_;
  std::size_t slot_bytes_;
  MPI_Request head_ = MPI_REQUEST_NULL;
  std::vector<MPI_Request> requests_;
};

/// The receiving end: a ring of slots that chunks come in to, one after another.
class Inlet {
public:
  /// `slot_bytes` holds any chunk; `depth` of them can come in before the first is released.
  Inlet(Peers& peers, std::size_t depth, std::size_t slot_bytes)
      : peers_(peers),
        envelope_(std::make_shared<Envelope>()),
        slots_(depth * slot_bytes),
        slot_bytes_(slot_bytes),
        requests_(depth, MPI_REQUEST_NULL) {}
  Inlet(Inlet&&) = default;
  Inlet(const Inlet&) = delete;
  Inlet& operator=(const Inlet&) = delete;
  Inlet& operator=(Inlet&&) = delete;
  ~Inlet() {
    if (!envelope_ || (head_ == MPI_REQUEST_NULL && all_null(requests_))) return;
    peers_.keep(envelope_);
    peers_.keep(slots_.share());
  }

  [[nodiscard]] Rank from() const noexcept { return from_; }
  [[nodiscard]] std::size_t staging_bytes() const noexcept { return sizeof(Envelope) + slots_.bytes(); }

  /// Begins to receive a message.
  void open(Rank from, const Cut& cut) {
    from_ = from;
    cut_ = cut;
    opened_ = false;
    receive(envelope_.get(), sizeof(Envelope), Tag::message, head_);
    for (std::size_t c = 0; c < std::min(cut_.chunks(), requests_.size()); ++c) receive_chunk(c);
  }

  /// Whether a piece has come; those before it have. A short message is one piece, a long one as many as it has chunks.
  /// @throws PeerError if what comes is not what this rank expects.
  [[nodiscard]] bool ready(const Meeting& meeting, std::size_t piece) {
    if (!opened_) {
      if (!peers_.done(head_)) return false;
      check(meeting);
      opened_ = true;
    }
    return cut_.is_short() || peers_.done(requests_[piece % requests_.size()]);
  }
  [[nodiscard]] const std::byte* data(std::size_t piece) const noexcept {
    return cut_.is_short() ? envelope_->data.data() : slot(piece);
  }
  /// The memory of this piece may be used for another.
  void release(std::size_t piece) {
    if (piece + requests_.size() < cut_.chunks()) receive_chunk(piece + requests_.size());
  }

private:
  [[nodiscard]] std::byte* slot(std::size_t chunk) const noexcept {
    return slots_.data() + chunk % requests_.size() * slot_bytes_;
  }
  void receive_chunk(std::size_t chunk) {
    receive(slot(chunk), cut_.length(chunk), Tag::chunk, requests_[chunk % requests_.size()]);
  }
  void receive(void* data, std::size_t bytes, Tag tag, MPI_Request& request) {
    peers_.require_success(
        MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, from_, static_cast<int>(tag), peers_.comm(), &request),
        "MPI_Irecv");
  }

  void check(const Meeting& meeting) {
    const Header& header = envelope_->header;
    std::string text = difference(peers_.rank(), meeting.stamp, from_, header.stamp);
    if (text.empty() && header.message_bytes != cut_.bytes)
      text = "rank " + std::to_string(from_) + " sent " + std::to_string(header.message_bytes) + " bytes where rank " +
             std::to_string(peers_.rank()) + " expected " + std::to_string(cut_.bytes);
    if (!text.empty()) peers_.fail_protocol(meeting, from_, text);
  }

  Peers& peers_;
  Rank from_ = 0;
  Cut cut_;
  bool opened_ = false;
  std::shared_ptr<Envelope> envelope_;
  Slots slots_;
  std::size_t slot_bytes_;
  MPI_Request head_ = MPI_REQUEST_NULL;
  std::vector<MPI_Request> requests_;
};

/// @brief Messages of any length between any ranks, in one call: what kith::Communicator::exchange asks for.
///
/// What is sent is copied out of the caller's memory and what comes in is copied into it, chunk by chunk.
class Mail {
public:
  explicit Mail(Peers& peers)
      : peers_(peers),
        chunk_bytes_(std::clamp((std::size_t{1} << 26) / static_cast<std::size_t>(peers.size()), std::size_t{1} << 14,
                                std::size_t{1} << 18)) {}

  /// Makes room for a call with so many messages to send and so many to receive, none longer than `bytes`.
  void reserve(std::size_t outgoing, std::size_t incoming, std::size_t bytes) {
    const std::size_t slot_bytes = Cut{bytes}.is_short() ? 0 : std::min(bytes, chunk_bytes_);
    const bool longer = slot_bytes > slot_bytes_;
    if (longer) slot_bytes_ = slot_bytes;
    reserve(sending_, outgoing, longer);
    reserve(receiving_, incoming, longer);
  }

  void exchange(Meeting& meeting, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming) {
    std::size_t longest = 0;
    for (const Outgoing& message : outgoing) longest = std::max(longest, message.bytes);
    for (const Incoming& message : incoming) longest = std::max(longest, message.bytes);
    reserve(outgoing.size(), incoming.size(), longest);
    for (std::size_t k = 0; k < incoming.size(); ++k) receiving_[k].open(incoming[k], chunk_bytes_);
    for (std::size_t k = 0; k < outgoing.size(); ++k) sending_[k].open(outgoing[k], meeting, chunk_bytes_);
    Rank awaited = 0;
    peers_.wait(meeting, awaited, [&] {
      // Every one makes what progress it can; the first that has not ended is the one that is waited for.
      bool all = true;
      for (std::size_t k = 0; k < incoming.size(); ++k)
        if (!receiving_[k].advance(meeting) && all) all = false, awaited = incoming[k].from;
      for (std::size_t k = 0; k < outgoing.size(); ++k)
        if (!sending_[k].advance() && all) all = false, awaited = outgoing[k].to;
      return all;
    });
  }

private:
  static constexpr std::size_t depth = 2;

  struct Sending {
    Sending(Peers& peers, std::size_t slot_bytes) : outlet(peers, depth, slot_bytes) {}
    void open(const Outgoing& of, const Meeting& meeting, std::size_t chunk_bytes) {
      message = of;
      cut = {of.bytes, chunk_bytes};
      next = 0;
      outlet.open(of.to, meeting, of.bytes);
      if (cut.is_short())
        outlet.send_short(of.data);
      else
        outlet.send_header();
    }
    bool advance() {
      for (; next < cut.chunks() && outlet.sent(next); ++next)
        outlet.copy_chunk(next, static_cast<const std::byte*>(message.data) + next * cut.chunk_bytes, cut.length(next));
      return next == cut.chunks() && outlet.all_sent();
    }
    Outlet outlet;
    Outgoing message{};
    Cut cut;
    std::size_t next = 0;
  };

  struct Receiving {
    Receiving(Peers& peers, std::size_t slot_bytes) : inlet(peers, depth, slot_bytes) {}
    void open(const Incoming& of, std::size_t chunk_bytes) {
      message = of;
      cut = {of.bytes, chunk_bytes};
      next = 0;
      inlet.open(of.from, cut);
    }
    bool advance(const Meeting& meeting) {
      for (; next < cut.pieces() && inlet.ready(meeting, next); ++next) {
        if (message.bytes > 0)
          std::memcpy(static_cast<std::byte*>(message.data) + next * cut.chunk_bytes, inlet.data(next),
                      cut.length(next));
        inlet.release(next);
      }
      return next == cut.pieces();
    }
    Inlet inlet;
    Incoming message{};
    Cut cut;
    std::size_t next = 0;
  };

  template <class Lane>
  void reserve(std::vector<Lane>& lanes, std::size_t count, bool longer) {
    if (lanes.size() >= count && !longer) return;
    const std::size_t total = std::max(count, lanes.size());
    lanes.clear();
    lanes.reserve(total);
    while (lanes.size() < total) lanes.emplace_back(peers_, slot_bytes_);
  }

  Peers& peers_;
  std::size_t chunk_bytes_;  // the same on all ranks
  std::size_t slot_bytes_ = 0;
  std::vector<Sending> sending_;
  std::vector<Receiving> receiving_;
};

}  // namespace kith::mpi::detail
