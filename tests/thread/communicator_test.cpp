// SPDX-License-Identifier: Apache-2.0
#include <kith/thread/communicator.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <kith/testing/conformance.hpp>
#include <kith/thread/run.hpp>

#include <doctest/doctest.h>

namespace thread_communicator_test {

using kith::PeerError;
using kith::Rank;
using kith::thread::Communicator;

namespace {

kith::Call meeting(std::uint64_t sequence, double deadline_s = 20) {
  kith::Call call;
  call.what = "meeting";
  call.sequence = sequence;
  call.deadline = kith::Seconds{deadline_s};
  return call;
}

// Runs `calls` on every rank, which each must throw PeerError; returns the errors by rank.
template <class Calls>
std::vector<PeerError> errors_of(Rank size, const Calls& calls) {
  std::vector<std::optional<PeerError>> errors(static_cast<std::size_t>(size));
  kith::thread::run(size, [&](Communicator& communicator) {
    try {
      calls(communicator);
    } catch (const PeerError& error) {
      errors[static_cast<std::size_t>(communicator.rank())] = error;
    }
  });
  std::vector<PeerError> all;
  for (const auto& error : errors) {
    REQUIRE(error.has_value());
    all.push_back(*error);
  }
  return all;
}

}  // namespace

TEST_CASE("thread communicator: conforms") {
  for (const Rank size : {1, 2, 3, 5, 8}) {
    CAPTURE(size);
    CHECK_NOTHROW(kith::thread::run(size, [](Communicator& c) { kith::testing::check_communicator(c); }));
  }
  const std::vector<std::pair<Rank, Rank>> cases = {{2, 0}, {2, 1}, {4, 0}, {4, 2}, {4, 3}};
  for (const auto& of : cases) {
    const Rank size = of.first;
    const Rank rank = of.second;
    CAPTURE(size);
    CAPTURE(rank);
    CHECK_NOTHROW(kith::thread::run(size, [&](Communicator& c) { kith::testing::check_deadline(c, rank); }));
    CHECK_NOTHROW(kith::thread::run(size, [&](Communicator& c) { kith::testing::check_protocol(c, rank); }));
  }
}

TEST_CASE("thread communicator: every part of a call has to be the same on all ranks") {
  for (int part = 0; part < 4; ++part) {
    CAPTURE(part);
    const std::vector<PeerError> errors = errors_of(3, [&](Communicator& communicator) {
      kith::Call call = meeting(0);
      if (communicator.rank() == 2) {
        if (part == 0) call.what = "another call";
        if (part == 1) call.channel = 1;
        if (part == 2) call.sequence = 1;
        if (part == 3) call.agreement = 1;
      }
      communicator.exchange(call, {}, {});
    });
    for (const PeerError& error : errors) CHECK(error.reason() == PeerError::protocol);
    CHECK(errors[0].peer() == 2);
    CHECK(errors[1].peer() == 2);
    CHECK(errors[2].peer() != 2);
  }
  // The text alone does not matter: bytes and deadline are for messages.
  CHECK_NOTHROW(kith::thread::run(2, [](Communicator& communicator) {
    kith::Call call = meeting(0, 10 + communicator.rank());
    call.bytes = static_cast<std::size_t>(communicator.rank());
    communicator.exchange(call, {}, {});
  }));
}

TEST_CASE("thread communicator: the wait for a late rank is measured on those that waited") {
  std::atomic<int> waiting{0};
  kith::thread::run(3, [&](Communicator& communicator) {
    if (communicator.rank() == 1) {
      while (waiting < 2) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds{100});
    }
    ++waiting;
    const kith::Seconds waited = communicator.exchange(meeting(1), {}, {});
    if (communicator.rank() == 1)
      CHECK(waited.count() < 0.09);
    else
      CHECK(waited.count() > 0.01);
  });
}

TEST_CASE("thread communicator: an endless deadline is one") {
  kith::thread::run(2, [](Communicator& communicator) {
    if (communicator.rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds{20});
    CHECK_NOTHROW(communicator.exchange(meeting(0, std::numeric_limits<double>::infinity()), {}, {}));
    CHECK_NOTHROW(communicator.exchange(meeting(1, 1e300), {}, {}));
  });
}

TEST_CASE("thread communicator: messages of two sizes, or that nobody expects, are an error") {
  const auto send = [](Communicator& communicator, std::size_t bytes_sent, std::size_t bytes_expected) {
    std::vector<std::byte> memory(16);
    const kith::Outgoing out{1, memory.data(), bytes_sent};
    const kith::Incoming in{0, memory.data(), bytes_expected};
    if (communicator.rank() == 0)
      communicator.exchange(meeting(0), {&out, bytes_sent > 0 ? 1U : 0U}, {});
    else
      communicator.exchange(meeting(0), {}, {&in, bytes_expected > 0 ? 1U : 0U});
    communicator.exchange(meeting(1), {}, {});  // the one that saw nothing wrong learns of it here
  };
  const std::vector<std::pair<std::size_t, std::size_t>> cases = {{8, 4}, {4, 8}, {8, 0}, {0, 8}};
  for (const auto& bytes : cases) {
    const std::size_t bytes_sent = bytes.first;
    const std::size_t bytes_expected = bytes.second;
    CAPTURE(bytes_sent);
    CAPTURE(bytes_expected);
    const auto errors = errors_of(2, [&](Communicator& c) { send(c, bytes_sent, bytes_expected); });
    CHECK(errors[0].peer() == 1);
    CHECK(errors[1].peer() == 0);
  }
}

TEST_CASE("thread communicator: gathers of two sizes are an error") {
  const auto errors = errors_of(2, [](Communicator& communicator) {
    std::vector<std::byte> mine(communicator.rank() == 0 ? 8 : 4);
    std::vector<std::byte> all(2 * mine.size());
    communicator.all_gather(meeting(0), mine, all);
  });
  for (const PeerError& error : errors) CHECK(error.reason() == PeerError::protocol);
}

TEST_CASE("thread communicator: a rank that was missing learns what it has done") {
  std::atomic<int> gave_up{0};
  const auto errors = errors_of(3, [&](Communicator& communicator) {
    communicator.exchange(meeting(0), {}, {});
    if (communicator.rank() == 2)
      while (gave_up < 2) std::this_thread::yield();
    try {
      communicator.exchange(meeting(1, 0.125), {}, {});
    } catch (const PeerError&) {
      ++gave_up;
      throw;
    }
  });
  CHECK(errors[0].peer() == 2);
  CHECK(errors[1].peer() == 2);
  CHECK(errors[2].peer() != 2);
  for (const PeerError& error : errors) {
    CHECK(error.reason() == PeerError::timeout);
    CHECK(std::string{error.what()}.find("0.125 s") != std::string::npos);
  }
}

TEST_CASE("thread communicator: shared work is done once, by ranks that see each other's publications") {
  struct Sum {
    std::uint64_t values[3];
    std::atomic<std::uint64_t> total{0};
  };
  for (const Rank size : {1, 2, 7}) {
    std::atomic<int> epilogues{0};
    kith::thread::run(size, [&](Communicator& communicator) {
      for (std::uint64_t round = 0; round < 50; ++round) {
        const auto rank = static_cast<std::uint64_t>(communicator.rank());
        Sum mine{{rank + round, 10 * rank, 1}, {}};
        communicator.collaborate(
            meeting(round), mine, 3,
            [](kith::Published<Sum> ranks, std::size_t claim) noexcept {
              std::uint64_t sum = 0;
              for (Rank r = 0; r < ranks.size(); ++r) sum += ranks[r].values[claim];
              for (Rank r = 0; r < ranks.size(); ++r) ranks[r].total += sum;
            },
            [&](kith::Published<Sum>) noexcept { ++epilogues; });
        const auto n = static_cast<std::uint64_t>(size);
        const std::uint64_t ranks = n * (n - 1) / 2;
        if (mine.total != ranks + n * round + 10 * ranks + n) FAIL("a claim was lost, or done twice");
      }
    });
    CHECK(epilogues == 50);
  }
}

}  // namespace thread_communicator_test
