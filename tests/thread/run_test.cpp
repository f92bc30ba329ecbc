// SPDX-License-Identifier: Apache-2.0
#include <kith/thread/run.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

namespace thread_run_test {

using kith::PeerError;
using kith::Rank;
using kith::thread::Communicator;

namespace {

kith::Call meeting(std::uint64_t sequence, double deadline_s = 30) {
  kith::Call call;
  call.what = "meeting";
  call.sequence = sequence;
  call.deadline = kith::Seconds{deadline_s};
  return call;
}

}  // namespace

TEST_CASE("run: the body runs once on each rank, in threads of their own") {
  constexpr Rank size = 6;
  std::vector<int> times(size);
  std::vector<std::thread::id> ids(size);
  kith::thread::run(size, [&](Communicator& communicator) {
    CHECK(communicator.size() == size);
    ++times[static_cast<std::size_t>(communicator.rank())];
    ids[static_cast<std::size_t>(communicator.rank())] = std::this_thread::get_id();
    communicator.exchange(meeting(0), {}, {});  // all of them are alive at once
  });
  CHECK(std::all_of(times.begin(), times.end(), [](int t) { return t == 1; }));
  CHECK(std::set<std::thread::id>(ids.begin(), ids.end()).size() == size);
}

TEST_CASE("run: at least one rank") {
  const auto never = [](Communicator&) { FAIL("no rank, no body"); };
  CHECK_THROWS_AS(kith::thread::run(0, never), kith::UsageError);
  CHECK_THROWS_AS(kith::thread::run(-1, never), kith::UsageError);
}

TEST_CASE("run: rethrows what was thrown first, and releases those that wait") {
  constexpr Rank size = 4;
  std::vector<std::optional<PeerError>> errors(size);
  const auto body = [&](Communicator& communicator) {
    communicator.exchange(meeting(0), {}, {});
    if (communicator.rank() == 1) throw std::domain_error("out of luck");
    try {
      communicator.exchange(meeting(1), {}, {});
    } catch (const PeerError& error) {
      errors[static_cast<std::size_t>(communicator.rank())] = error;
      throw;
    }
  };
  const auto start = std::chrono::steady_clock::now();
  CHECK_THROWS_WITH_AS(kith::thread::run(size, body), "out of luck", std::domain_error);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds{15});
  for (const std::size_t r : {0U, 2U, 3U}) {
    REQUIRE(errors[r]);
    CHECK(errors[r]->peer() == 1);
    CHECK(errors[r]->reason() == PeerError::lost);
    CHECK(std::string{errors[r]->what()}.find("out of luck") != std::string::npos);
  }
}

TEST_CASE("run: anything that is thrown comes out, whatever its type") {
  CHECK_THROWS_AS(kith::thread::run(3,
                                    [](Communicator& communicator) {
                                      if (communicator.rank() == 2) throw 42;
                                      communicator.exchange(meeting(0), {}, {});
                                    }),
                  int);
}

TEST_CASE("run: a rank that returns early is lost to those that go on") {
  std::atomic<int> lost{0};
  kith::thread::run(3, [&](Communicator& communicator) {
    communicator.exchange(meeting(0), {}, {});
    if (communicator.rank() == 0) return;
    try {
      communicator.exchange(meeting(1), {}, {});
    } catch (const PeerError& error) {
      if (error.peer() == 0 && error.reason() == PeerError::lost) ++lost;
    }
  });
  CHECK(lost == 2);
}

TEST_CASE("run: inside a rank of another run") {
  std::atomic<int> inner_ranks{0};
  kith::thread::run(2, [&](Communicator& outer) {
    outer.exchange(meeting(0), {}, {});
    kith::thread::run(3, [&](Communicator& inner) {
      inner.exchange(meeting(0), {}, {});
      ++inner_ranks;
    });
    CHECK_THROWS_AS(kith::thread::run(2, [](Communicator&) { throw std::runtime_error("inner"); }), std::runtime_error);
    outer.exchange(meeting(1), {}, {});  // an inner failure is none of the outer group
  });
  CHECK(inner_ranks == 6);
}

// Whoever fails, wherever and whenever: everybody ends, nobody is blamed but ranks that failed, and the first failure
// comes out.
TEST_CASE("run: failures at random points") {
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937_64 random{seed};
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<std::uint64_t>(n)); };
  struct Planned : std::runtime_error {
    using std::runtime_error::runtime_error;
  };
  for (int repeat = 0; repeat < 150; ++repeat) {
    const Rank size = 2 + below(6);
    const Rank failing = below(size);
    const auto at = static_cast<std::uint64_t>(below(8));
    const int manner = below(3);  // throws, returns, or comes too late
    std::atomic<int> wrong{0};
    const auto body = [&](Communicator& communicator) {
      for (std::uint64_t i = 0; i < 8; ++i) {
        if (communicator.rank() == failing && i == at) {
          if (manner == 0) throw Planned("planned");
          if (manner == 1) return;
          std::this_thread::sleep_for(std::chrono::milliseconds{12});
        }
        try {
          communicator.exchange(meeting(i, manner == 2 && i == at ? 0.004 : 20), {}, {});
        } catch (const PeerError& error) {
          const bool reason = error.reason() == (manner == 2 ? PeerError::timeout : PeerError::lost);
          const bool blamed = communicator.rank() == failing ? error.peer() != failing : error.peer() == failing;
          if (i != at || !reason || (!blamed && manner != 2)) ++wrong;  // on a busy machine others are late too
          return;
        }
        if (i >= at && manner != 2) ++wrong;
      }
    };
    CAPTURE(repeat);
    if (manner == 0)
      CHECK_THROWS_AS(kith::thread::run(size, body), Planned);
    else
      CHECK_NOTHROW(kith::thread::run(size, body));
    REQUIRE(wrong == 0);
  }
}

}  // namespace thread_run_test
