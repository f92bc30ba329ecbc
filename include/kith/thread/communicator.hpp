// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <span>
#include <string>

#include <kith/background.hpp>
#include <kith/communicator.hpp>
#include <kith/thread/world.hpp>

namespace kith::thread {

/// @brief One rank of a group of threads: a model of kith::Communicator and kith::SharedAddressSpace.
///
/// kith::thread::run hands one to each rank. A trainer with threads of its own makes them from a World; each stays in
/// its thread. When it is destroyed the rank has left, and whoever waits for it throws PeerError (lost).
///
/// No bytes are sent anywhere: ranks read each other's memory.
///
/// @par Thread safety One thread at a time uses a Communicator, besides Kith's own for hidden rounds; the Communicators
/// of a World work concurrently.
class Communicator {
public:
  /// @throws UsageError if `rank` is not a rank of the world or is already taken.
  Communicator(World& world, Rank rank) : world_(world), rank_(rank) {
    if (rank < 0 || rank >= world.size())
      throw UsageError("there is no rank " + std::to_string(rank) + " in a group of " + std::to_string(world.size()));
    if (world.seat(rank).taken.exchange(true))
      throw UsageError("rank " + std::to_string(rank) + " already has its communicator");
  }

  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  ~Communicator() {
    background_.settle();
    world_.leave(rank_, std::uncaught_exceptions() > uncaught_ ? "it was unwound by an exception"
                                                               : "its communicator was destroyed");
  }

  [[nodiscard]] Rank rank() const noexcept { return rank_; }
  [[nodiscard]] Rank size() const noexcept { return world_.size(); }

  /// See kith::SharedAddressSpace.
  [[nodiscard]] Rank workers() const noexcept { return world_.workers(); }

  /// See kith::Communicator.
  [[nodiscard]] std::uint32_t open_channel() noexcept { return channels_++; }

  /// See kith::SharedAddressSpace. No allocation; one atomic operation on a shared line per claim.
  template <class P, class Work, class Epilogue>
  Seconds collaborate(const Call& call, P& publication, std::size_t claims, const Work& work,
                      const Epilogue& epilogue) {
    background_.settle();
    return world_.meet(rank_, call, publication, claims, work, epilogue);
  }

  /// See kith::Communicator. Each message is one copy from the sender's memory into the receiver's.
  Seconds exchange(const Call& call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming) {
    Mail mail{outgoing, incoming, -1};
    const auto deliver = [](Published<Mail> published, std::size_t claim) noexcept {
      const auto receiver = static_cast<Rank>(claim);
      Mail& mine = published[receiver];
      for (const Incoming& in : mine.incoming) {
        const Outgoing* out = find(published[in.from].outgoing, receiver);
        if (out == nullptr || out->bytes != in.bytes)
          mine.mismatch = in.from;
        else if (in.bytes > 0)
          std::memcpy(in.data, out->data, in.bytes);
      }
      for (const Outgoing& out : mine.outgoing)
        if (!expects(published[out.to].incoming, receiver)) mine.mismatch = out.to;
    };
    const Seconds waited = collaborate(call, mail, static_cast<std::size_t>(size()), deliver, [](auto) noexcept {});
    if (mail.mismatch >= 0)
      refuse(call, mail.mismatch,
             "rank " + std::to_string(rank_) + " and rank " + std::to_string(mail.mismatch) +
                 " disagree on a message between them, or on its size");
    return waited;
  }

  /// See kith::Communicator.
  [[noreturn]] void refuse(const Call& call, Rank peer, const std::string& text) {
    world_.leave(rank_, text);
    throw PeerError("rank " + std::to_string(rank_) + "/" + std::to_string(size()) + ": " +
                        kith::detail::describe(call) + ": " + text,
                    peer, PeerError::Reason::protocol);
  }

  /// See kith::Communicator.
  Seconds all_gather(const Call& call, std::span<const std::byte> mine, std::span<std::byte> all) {
    Call checked = call;
    checked.agreement ^= mine.size() << 32;  // a difference in size is a difference in the call
    Gather gather{mine, all};
    const auto collect = [](Published<Gather> published, std::size_t claim) noexcept {
      const Gather& reader = published[static_cast<Rank>(claim)];
      for (Rank r = 0; r < published.size(); ++r) {
        const std::span<const std::byte> part = published[r].mine;
        if (!part.empty())
          std::memcpy(reader.all.data() + static_cast<std::size_t>(r) * part.size(), part.data(), part.size());
      }
    };
    return collaborate(checked, gather, static_cast<std::size_t>(size()), collect, [](auto) noexcept {});
  }

  /// See kith::Communicator.
  [[nodiscard]] kith::detail::Background& background() noexcept { return background_; }

private:
  struct Mail {
    std::span<const Outgoing> outgoing;
    std::span<const Incoming> incoming;
    Rank mismatch;
  };
  struct Gather {
    std::span<const std::byte> mine;
    std::span<std::byte> all;
  };

  static const Outgoing* find(std::span<const Outgoing> messages, Rank to) noexcept {
    for (const Outgoing& message : messages)
      if (message.to == to) return &message;
    return nullptr;
  }
  static bool expects(std::span<const Incoming> messages, Rank from) noexcept {
    for (const Incoming& message : messages)
      if (message.from == from) return true;
    return false;
  }

  World& world_;
  const Rank rank_;
  std::uint32_t channels_ = 0;
  kith::detail::Background background_;
  const int uncaught_ = std::uncaught_exceptions();
};

static_assert(kith::Communicator<Communicator> && SharedAddressSpace<Communicator>);

}  // namespace kith::thread
