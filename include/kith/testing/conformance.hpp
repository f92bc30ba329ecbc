// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/testing/failure.hpp>
#include <kith/types.hpp>

/// @file
/// What a model of kith::Communicator must do besides compiling: for the author of an engine, and for whoever brings a
/// new cluster up. Every function is called by all ranks of a communicator and throws kith::testing::Failure on the
/// rank that sees something wrong.

namespace kith::testing {

namespace detail {

// A call of the suite's own: every sequence number is used once.
[[nodiscard]] inline Call test_call(std::string_view what, std::uint64_t sequence, Seconds deadline = Seconds{30}) {
  Call call;
  call.what = what;
  call.sequence = sequence;
  call.deadline = deadline;
  return call;
}

// What `from` sends to `to` in `round`: every message differs from every other.
[[nodiscard]] inline std::vector<std::byte> test_message(Rank from, Rank to, std::uint64_t round, std::size_t bytes) {
  std::vector<std::byte> message(bytes);
  std::uint64_t mixed = (static_cast<std::uint64_t>(from) * 131 + static_cast<std::uint64_t>(to)) * 1031 + round * 17;
  for (std::byte& byte : message) {
    mixed = mixed * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX generator
    byte = static_cast<std::byte>(mixed >> 56);
  }
  return message;
}

// One exchange in which rank r sends `bytes` to r + d for every d in `distances`, checked to the last byte.
template <Communicator C>
void check_exchange(C& communicator, std::uint64_t round, std::span<const Rank> distances, std::size_t bytes) {
  const Rank rank = communicator.rank();
  const Rank size = communicator.size();
  constexpr std::byte untouched{0xA5};
  std::vector<std::vector<std::byte>> sent;
  std::vector<std::vector<std::byte>> received;
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
  for (const Rank distance : distances) {
    const Rank to = (rank + distance) % size;
    const Rank from = (rank + size - distance % size) % size;
    outgoing.push_back({to, sent.emplace_back(test_message(rank, to, round, bytes)).data(), bytes});
    auto& room = received.emplace_back(bytes + 16, untouched);  // 16 more, which must stay as they are
    incoming.push_back({from, room.data(), bytes});
  }
  const Seconds waited = communicator.exchange(test_call("exchange", round), outgoing, incoming);
  expect(waited >= Seconds{0}, "the time spent waiting is not negative");
  for (std::size_t k = 0; k < incoming.size(); ++k) {
    const std::vector<std::byte> expected = test_message(incoming[k].from, rank, round, bytes);
    expect(std::equal(expected.begin(), expected.end(), received[k].begin()),
           "the message from rank " + std::to_string(incoming[k].from) + " arrives as it was sent");
    expect(std::all_of(received[k].end() - 16, received[k].end(), [](std::byte b) { return b == untouched; }),
           "nothing is written behind the room for a message");
    expect(sent[k] == test_message(rank, outgoing[k].to, round, bytes), "a sent message is not changed");
  }
}

template <Communicator C>
void check_all_gather(C& communicator, std::uint64_t round, std::size_t bytes) {
  const Rank size = communicator.size();
  const std::vector<std::byte> mine = test_message(communicator.rank(), 0, round, bytes);
  constexpr std::byte untouched{0xA5};
  std::vector<std::byte> all(bytes * static_cast<std::size_t>(size) + 16, untouched);
  const Seconds waited =
      communicator.all_gather(test_call("all_gather", round), mine, std::span{all}.first(all.size() - 16));
  expect(waited >= Seconds{0}, "the time spent waiting is not negative");
  expect(std::all_of(all.end() - 16, all.end(), [](std::byte b) { return b == untouched; }),
         "nothing is written behind the room for what is gathered");
  for (Rank r = 0; r < size; ++r) {
    const std::vector<std::byte> expected = test_message(r, 0, round, bytes);
    expect(std::equal(expected.begin(), expected.end(), all.begin() + r * static_cast<std::ptrdiff_t>(bytes)),
           "all_gather brings what rank " + std::to_string(r) + " gave, in rank order");
  }
}

// A call in which every rank waits for every other.
template <Communicator C>
void meet(C& communicator, const Call& call) {
  const Rank mine = communicator.rank();
  std::vector<Rank> all(static_cast<std::size_t>(communicator.size()));
  communicator.all_gather(call, std::as_bytes(std::span{&mine, 1}), std::as_writable_bytes(std::span{all}));
}

// Every claim is done once, the epilogue once and last, and all see what all have published.
template <SharedAddressSpace C>
void check_collaborate(C& communicator, std::uint64_t round, std::size_t claims) {
  struct Publication {
    Rank rank;
    std::vector<std::atomic<int>> done;
    std::atomic<int> epilogues{0};
    std::atomic<int> late{0};
  };
  Publication mine{communicator.rank(), std::vector<std::atomic<int>>(claims), {}, {}};
  communicator.collaborate(
      test_call("collaborate", round), mine, claims,
      [](Published<Publication> ranks, std::size_t claim) noexcept {
        for (Rank r = 0; r < ranks.size(); ++r) {
          ++ranks[r].done[claim];
          if (ranks[r].epilogues > 0) ++ranks[r].late;
        }
      },
      [](Published<Publication> ranks) noexcept {
        for (Rank r = 0; r < ranks.size(); ++r)
          if (ranks[r].rank == r) ++ranks[r].epilogues;
      });
  for (const std::atomic<int>& times : mine.done) expect(times == 1, "every claim is worked on exactly once");
  expect(mine.epilogues == 1, "the epilogue runs exactly once, and sees each rank's publication in its place");
  expect(mine.late == 0, "no claim is worked on after the epilogue");
}

// Calls f, which must throw PeerError; returns it.
template <class F>
[[nodiscard]] PeerError expect_peer_error(const F& f, const std::string& when) {
  try {
    f();
  } catch (const PeerError& error) {
    return error;
  }
  throw Failure("expected a PeerError " + when);
}

// After a failure every call throws, and does not wait for anybody first.
template <Communicator C>
void check_failed(C& communicator) {
  constexpr Seconds deadline{30};
  for (std::uint64_t sequence = 1000; sequence < 1003; ++sequence) {
    const auto start = std::chrono::steady_clock::now();
    (void)expect_peer_error([&] { communicator.exchange(test_call("after failure", sequence, deadline), {}, {}); },
                            "from every call after a failure");
    expect(std::chrono::steady_clock::now() - start < deadline / 2, "a call after a failure throws at once");
  }
}

}  // namespace detail

/// @brief Everything that leaves the communicator usable: ranks, channels, exchanges and gathers of many shapes.
template <Communicator C>
void check_communicator(C& communicator) {
  const Rank size = communicator.size();
  expect(size >= 1 && communicator.rank() >= 0 && communicator.rank() < size, "0 <= rank < size");
  std::uint64_t round = 0;

  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{8}, std::size_t{600}})
    detail::check_all_gather(communicator, ++round, bytes);

  const std::uint32_t channel = communicator.open_channel();
  expect(communicator.open_channel() == channel + 1, "channels are numbered in the order in which they are opened");
  std::vector<std::uint32_t> channels(static_cast<std::size_t>(size));
  communicator.all_gather(detail::test_call("channels", ++round), std::as_bytes(std::span{&channel, 1}),
                          std::as_writable_bytes(std::span{channels}));
  for (const std::uint32_t other : channels) expect(other == channel, "channels have the same numbers on all ranks");

  detail::check_exchange(communicator, ++round, {}, 0);  // nobody sends, everybody comes
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{4093}, std::size_t{1} << 20})
    for (const Rank distance : {Rank{1}, Rank{2}, Rank{size - 1}})
      if (distance > 0 && distance < size)
        detail::check_exchange(communicator, ++round, std::span{&distance, 1}, bytes);
  std::vector<Rank> everybody;
  for (Rank d = 1; d < size; ++d) everybody.push_back(d);
  for (const std::size_t bytes : {std::size_t{3}, std::size_t{70001}})
    detail::check_exchange(communicator, ++round, everybody, bytes);

  for (int i = 0; i < 200; ++i) {  // in quick succession, and with one rank late now and then
    if (i % 50 == communicator.rank()) std::this_thread::sleep_for(std::chrono::milliseconds{2});
    detail::check_exchange(communicator, ++round,
                           std::span{everybody}.first(std::min<std::size_t>(1, everybody.size())), 33);
  }
  if constexpr (SharedAddressSpace<C>) {
    const Rank workers = communicator.workers();
    expect(workers >= 1 && workers <= size, "at least one rank can work at once, and no more than there are");
    std::vector<Rank> all_workers(static_cast<std::size_t>(size));
    communicator.all_gather(detail::test_call("workers", ++round), std::as_bytes(std::span{&workers, 1}),
                            std::as_writable_bytes(std::span{all_workers}));
    for (const Rank other : all_workers) expect(other == workers, "the number of workers is the same on all ranks");
    for (const std::size_t claims : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{1000}})
      detail::check_collaborate(communicator, ++round, claims);
  }
}

/// @brief A rank that does not come makes all others throw by the deadline, and the communicator has failed after that.
///
/// Needs at least 2 ranks and spoils the communicator. `absent` stays away until the others have given up.
template <Communicator C>
void check_deadline(C& communicator, Rank absent, Seconds deadline = Seconds{0.1}) {
  using Clock = std::chrono::steady_clock;
  const bool stays_away = communicator.rank() == absent;
  const auto late = [&] {
    detail::check_all_gather(communicator, 1, 8);
    if (stays_away) std::this_thread::sleep_for(deadline * 4);
    detail::meet(communicator, detail::test_call("meeting", 2, deadline));
    // What the others had sent before they gave up may still have been there; but the next time nobody comes.
    if (stays_away) detail::meet(communicator, detail::test_call("meeting", 3, deadline));
  };
  const Clock::time_point start = Clock::now();
  const PeerError error = detail::expect_peer_error(late, "when a rank does not come");
  const Seconds took = Clock::now() - start;
  if (!stays_away) {
    expect(error.peer() == absent, "the error names the rank that did not come");
    expect(error.reason() == PeerError::Reason::timeout, "the reason is a timeout");
    expect(took >= deadline * 0.9, "a rank waits as long as the deadline says");
    expect(took < deadline + Seconds{10}, "and not much longer");
    expect(std::string{error.what()}.find("rank " + std::to_string(absent)) != std::string::npos,
           "the text names the rank too");
  }
  detail::check_failed(communicator);
}

/// The parts of a call that have to be equal on all ranks.
enum class CallPart : std::uint8_t { what, channel, sequence, agreement };

/// @brief Ranks that make different calls all throw. Needs at least 2 ranks and spoils the communicator; so try each
/// part of a call on a communicator of its own.
template <Communicator C>
void check_protocol(C& communicator, Rank odd_one_out, CallPart part = CallPart::sequence) {
  Call call = detail::test_call("meeting", 1, Seconds{5});
  if (communicator.rank() == odd_one_out) {
    if (part == CallPart::what) call.what = "another meeting";
    if (part == CallPart::channel) call.channel = 1;
    if (part == CallPart::sequence) call.sequence = 2;
    if (part == CallPart::agreement) call.agreement = 1;
  }
  const PeerError error =
      detail::expect_peer_error([&] { detail::meet(communicator, call); }, "when ranks make different calls");
  expect(error.reason() == PeerError::Reason::protocol, "the reason is a difference between calls");
  expect(error.peer() != communicator.rank(), "the error names another rank");
  detail::check_failed(communicator);
}

}  // namespace kith::testing
