// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/cuda/resources.hpp>
#include <kith/cuda/round.hpp>
#include <kith/error.hpp>
#include <kith/nccl/engine.hpp>
#include <kith/types.hpp>

namespace kith::nccl::detail {

/// @brief Messages between hosts, by way of the devices: for what ranks agree on, not for models.
///
/// NCCL does not compare what two ranks say of a message, and to receive fewer bytes than are sent is undefined. So
/// every exchange begins with one of headers, and only if they are as they should be do the messages follow.
class Mail {
public:
  explicit Mail(Engine& engine) : engine_(engine) {}
  Mail(const Mail&) = delete;
  Mail& operator=(const Mail&) = delete;
  ~Mail() {
    if (engine_.quiesce()) return;
    pinned_.abandon();
    device_.abandon();
  }

  Seconds exchange(const Call& call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming) {
    engine_.watch().require_alive();
    plan(outgoing, incoming);
    if (peers_.empty()) return Seconds{0};
    const Clock::time_point begin = Clock::now();
    place_messages();
    exchange_headers(call);
    const Seconds waited = Clock::now() - begin;
    exchange_bodies(call);
    for (const Peer& peer : peers_)
      if (peer.receives > 0) std::memcpy(peer.into, pinned_.data() + peer.received_at, peer.receives);
    return waited;
  }

  /// The same from and to everybody by NCCL's own collective, which connects no pairs but does not say who is missing.
  Seconds all_gather(const Call& call, std::span<const std::byte> mine, std::span<std::byte> all) {
    engine_.watch().require_alive();
    const Clock::time_point begin = Clock::now();
    const auto size = static_cast<std::size_t>(engine_.size());
    const Header own = engine_.header(call, mine.size());
    make_room((size + 1) * std::max(sizeof own, mine.size()));
    gather(call, &own, sizeof own, size);
    for (std::size_t r = 0; r < size; ++r) {
      Peer peer;
      peer.rank = static_cast<Rank>(r);
      peer.receives = mine.size();
      compare(call, peer, headers(pinned_.data())[r + 1]);
    }
    if (!mine.empty()) {
      gather(call, mine.data(), mine.size(), size);
      std::memcpy(all.data(), pinned_.data() + mine.size(), all.size());
    }
    return Clock::now() - begin;
  }

private:
  using Header = cuda::RoundHeader;

  /// A rank that this one sends to or receives from.
  struct Peer {
    Rank rank = 0;
    const void* from = nullptr;
    void* into = nullptr;
    std::size_t sends = 0;
    std::size_t receives = 0;
    std::size_t sent_at = 0;
    std::size_t received_at = 0;
  };

  void plan(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming) {
    peers_.clear();
    for (const Outgoing& message : outgoing) {
      Peer peer;
      peer.rank = message.to;
      peer.from = message.data;
      peer.sends = message.bytes;
      peers_.push_back(peer);
    }
    for (const Incoming& message : incoming) {
      auto same = std::find_if(peers_.begin(), peers_.end(), [&](const Peer& p) { return p.rank == message.from; });
      if (same == peers_.end()) same = peers_.insert(same, Peer{.rank = message.from});
      same->into = message.data;
      same->receives = message.bytes;
    }
    std::sort(peers_.begin(), peers_.end(), [](const Peer& a, const Peer& b) { return a.rank < b.rank; });
  }

  // Headers sent, headers received, messages sent, messages received: the same places in pinned memory and the
  // device's.
  void place_messages() {
    std::size_t bytes = 2 * peers_.size() * sizeof(Header);
    const auto place = [&](std::size_t length) {
      const std::size_t at = bytes;
      bytes += (length + 15) / 16 * 16;
      return at;
    };
    for (Peer& peer : peers_) peer.sent_at = place(peer.sends);
    for (Peer& peer : peers_) peer.received_at = place(peer.receives);
    make_room(bytes);
  }

  void make_room(std::size_t bytes) {
    if (bytes <= pinned_.bytes()) return;
    const cuda::DeviceGuard guard{engine_.device()};
    pinned_ = cuda::PinnedMemory{bytes};
    device_ = cuda::DeviceMemory{bytes};
  }

  [[nodiscard]] Header* headers(const std::byte* memory) const noexcept {
    return reinterpret_cast<Header*>(const_cast<std::byte*>(memory));
  }

  void exchange_headers(const Call& call) {
    const std::size_t n = peers_.size();
    for (std::size_t k = 0; k < n; ++k) {
      headers(pinned_.data())[k] = engine_.header(call, peers_[k].sends);
      headers(pinned_.data())[n + k].mark = 0;
    }
    engine_.enqueue(call, [&] {
      copy(device_.data(), pinned_.data(), 2 * n * sizeof(Header));
      engine_.group(call, [&] {
        for (std::size_t k = 0; k < n; ++k) {
          engine_.send(headers(device_.data()) + k, sizeof(Header), peers_[k].rank);
          engine_.receive(headers(device_.data()) + n + k, sizeof(Header), peers_[k].rank);
        }
      });
      copy(pinned_.data() + n * sizeof(Header), device_.data() + n * sizeof(Header), n * sizeof(Header));
    });
    if (!engine_.wait(call, call.deadline)) fail_for_absence(call);
    for (std::size_t k = 0; k < n; ++k) compare(call, peers_[k], headers(pinned_.data())[n + k]);
  }

  // Aborted, the stream goes on and shows which headers have come.
  [[noreturn]] void fail_for_absence(const Call& call) {
    const std::string text = "; the communicator has been aborted";
    engine_.watch().fail({engine_.name() + ": " + kith::detail::describe(call) + ": not all ranks came within " +
                          kith::detail::to_text(call.deadline) + text});
    const Clock::time_point end = Clock::now() + std::chrono::seconds{1};
    while (cudaStreamQuery(engine_.stream()) == cudaErrorNotReady && Clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
    const std::size_t n = peers_.size();
    if (cudaStreamQuery(engine_.stream()) == cudaSuccess)
      for (std::size_t k = 0; k < n; ++k)
        if (headers(pinned_.data())[n + k].mark != Header::here) {
          const Rank absent = peers_[k].rank;
          engine_.watch().explain({engine_.name() + ": " + kith::detail::describe(call) + ": rank " +
                                       std::to_string(absent) + " did not come within " +
                                       kith::detail::to_text(call.deadline) + text,
                                   0, absent, PeerError::timeout});
          break;
        }
    (void)cudaGetLastError();
    engine_.watch().raise();
  }

  void compare(const Call& call, const Peer& peer, const Header& theirs) {
    const Header mine = engine_.header(call, peer.receives);
    const auto differ = [&](std::string_view field, std::uint64_t left, std::uint64_t right) {
      if (left == right) return;
      engine_.watch().fail({engine_.name() + ": " + kith::detail::describe(call) + ": rank " +
                                std::to_string(peer.rank) + " made a different call: its " + std::string{field} +
                                " is " + std::to_string(right) + ", here it is " + std::to_string(left) +
                                ". All ranks make the same calls in the same order",
                            0, peer.rank, PeerError::protocol});
      engine_.watch().raise();
    };
    differ("averager", mine.channel, theirs.channel);
    differ("round", mine.sequence, theirs.sequence);
    differ("operation (a digest)", mine.what, theirs.what);
    differ("argument (a digest)", mine.agreement, theirs.agreement);
    differ("number of bytes", mine.bytes, theirs.bytes);
  }

  void exchange_bodies(const Call& call) {
    const std::size_t first = 2 * peers_.size() * sizeof(Header);
    const std::size_t received = peers_.front().received_at;
    const std::size_t last = peers_.back().received_at + peers_.back().receives;
    if (last == first) return;
    for (const Peer& peer : peers_)
      if (peer.sends > 0) std::memcpy(pinned_.data() + peer.sent_at, peer.from, peer.sends);
    engine_.enqueue(call, [&] {
      if (received > first) copy(device_.data() + first, pinned_.data() + first, received - first);
      engine_.group(call, [&] {
        for (const Peer& peer : peers_) {
          if (peer.sends > 0) engine_.send(device_.data() + peer.sent_at, peer.sends, peer.rank);
          if (peer.receives > 0) engine_.receive(device_.data() + peer.received_at, peer.receives, peer.rank);
        }
      });
      if (last > received) copy(pinned_.data() + received, device_.data() + received, last - received);
    });
    engine_.finish(call);
  }

  // Own part first, then those of all ranks.
  void gather(const Call& call, const void* mine, std::size_t bytes, std::size_t size) {
    std::memcpy(pinned_.data(), mine, bytes);
    engine_.enqueue(call, [&] {
      copy(device_.data(), pinned_.data(), bytes);
      engine_.group(call, [&] { engine_.all_gather(device_.data(), device_.data() + bytes, bytes); });
      copy(pinned_.data() + bytes, device_.data() + bytes, size * bytes);
    });
    engine_.finish(call);
  }

  void copy(std::byte* to, const std::byte* from, std::size_t bytes) {
    cuda::check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, engine_.stream()), "copy a message");
  }

  Engine& engine_;
  std::vector<Peer> peers_;
  cuda::PinnedMemory pinned_;
  cuda::DeviceMemory device_;
};

}  // namespace kith::nccl::detail
