// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <mpi.h>

#include <kith/communicator.hpp>
#include <kith/mpi/arena.hpp>
#include <kith/mpi/messages.hpp>
#include <kith/mpi/peers.hpp>
#include <kith/types.hpp>

namespace kith::mpi::detail {

/// What a communicator and everything made from it have in common.
class Engine {
public:
  Engine(MPI_Comm parent, bool shared_memory, std::size_t in_place_from_bytes, Seconds deadline)
      : in_place_from_bytes_(in_place_from_bytes),
        deadline_(deadline),
        peers_(parent),
        mail_(peers_),
        arena_(peers_, shared_memory, gather("start of the communicator", deadline)) {
    peers_.set_crowded(Peers::crowded(arena_.ranks_here()));
  }

  [[nodiscard]] Peers& peers() noexcept { return peers_; }
  [[nodiscard]] Mail& mail() noexcept { return mail_; }
  [[nodiscard]] const Arena& arena() const noexcept { return arena_; }
  [[nodiscard]] std::size_t in_place_from_bytes() const noexcept { return in_place_from_bytes_; }

  /// Waits until hidden rounds are over: before anything that is used by them, too.
  void settle() { peers_.background().settle(); }

  Seconds exchange(const Call& call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming) {
    settle();
    peers_.require_alive(call);
    Meeting meeting{call};
    mail_.exchange(meeting, outgoing, incoming);
    return meeting.waited;
  }

  [[noreturn]] void refuse(const Call& call, Rank peer, const std::string& text) {
    settle();
    peers_.require_alive(call);
    peers_.fail_protocol(Meeting{call}, peer, text);
  }

  /// Every rank sends to every other: so each knows whom it waits for.
  Seconds all_gather(const Call& call, std::span<const std::byte> mine, std::span<std::byte> all) {
    settle();
    outgoing_.clear();
    incoming_.clear();
    for (Rank r = 0; r < peers_.size(); ++r) {
      std::byte* const room = all.data() + static_cast<std::size_t>(r) * mine.size();
      if (r != peers_.rank()) {
        outgoing_.push_back({r, mine.data(), mine.size()});
        incoming_.push_back({r, room, mine.size()});
      } else if (!mine.empty()) {
        std::memcpy(room, mine.data(), mine.size());
      }
    }
    return exchange(call, outgoing_, incoming_);
  }

  /// Collective: see Arena::take.
  [[nodiscard]] Arena::Lease take(std::size_t bytes, Seconds deadline) {
    settle();
    return arena_.take(bytes, gather("allocation of shared memory", deadline));
  }
  [[nodiscard]] Arena::Lease take(std::size_t bytes) { return take(bytes, deadline_); }

  /// Collective: whether it holds on every rank.
  [[nodiscard]] bool all(bool own, Seconds deadline) {
    std::vector<std::byte> answers(static_cast<std::size_t>(peers_.size()));
    const std::byte answer{own ? std::uint8_t{1} : std::uint8_t{0}};
    gather("start of an averager", deadline)(std::span{&answer, 1}, answers);
    return std::find(answers.begin(), answers.end(), std::byte{0}) == answers.end();
  }

  /// To be called once, at the end: gives MPI back what can be given back.
  void leave(bool unwinding) noexcept {
    settle();
    if (peers_.leave(unwinding, deadline_)) arena_.free();
  }

private:
  [[nodiscard]] Arena::AllGather gather(std::string_view what, Seconds deadline) {
    return [this, what, deadline](std::span<const std::byte> mine, std::span<std::byte> all) {
      Call call;
      call.what = what;
      call.sequence = ++gathers_;
      call.deadline = deadline;
      all_gather(call, mine, all);
    };
  }

  std::size_t in_place_from_bytes_;
  Seconds deadline_;
  Peers peers_;
  Mail mail_;
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
  std::uint64_t gathers_ = 0;
  Arena arena_;
};

}  // namespace kith::mpi::detail
