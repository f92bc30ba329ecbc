// SPDX-License-Identifier: Apache-2.0
#include <kith/thread/world.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <kith/thread/communicator.hpp>

#include <doctest/doctest.h>

namespace thread_world_test {

using kith::PeerError;
using kith::thread::Communicator;
using kith::thread::World;

namespace {

kith::Call meeting(std::uint64_t sequence, double deadline_s = 20) {
  kith::Call call;
  call.what = "meeting";
  call.sequence = sequence;
  call.deadline = kith::Seconds{deadline_s};
  return call;
}

// What a rank has to say about a call.
std::optional<PeerError> meet(Communicator& communicator, const kith::Call& call) {
  try {
    communicator.exchange(call, {}, {});
    return std::nullopt;
  } catch (const PeerError& error) {
    return error;
  }
}

struct Threads {  // joins even where a test stops half way
  std::vector<std::thread> all;
  ~Threads() {
    for (std::thread& thread : all)
      if (thread.joinable()) thread.join();
  }
};

}  // namespace

TEST_CASE("world: at least one rank, and each rank once") {
  CHECK_THROWS_AS(World{0}, kith::UsageError);
  CHECK_THROWS_AS(World{-3}, kith::UsageError);
  World world{2};
  CHECK(world.size() == 2);
  CHECK_THROWS_AS((Communicator{world, -1}), kith::UsageError);
  CHECK_THROWS_AS((Communicator{world, 2}), kith::UsageError);
  {
    const Communicator first{world, 0};
    CHECK(first.rank() == 0);
    CHECK_THROWS_WITH_AS((Communicator{world, 0}), "kith: rank 0 already has its communicator", kith::UsageError);
  }
  CHECK_THROWS_AS((Communicator{world, 0}), kith::UsageError);  // it has left: nobody takes its place
}

TEST_CASE("world: serves a trainer's own threads") {
  constexpr kith::Rank size = 5;
  World world{size};
  std::atomic<int> sum{0};
  {
    Threads threads;
    for (kith::Rank rank = size - 1; rank >= 0; --rank)
      threads.all.emplace_back([&world, &sum, rank] {
        Communicator communicator{world, rank};
        for (std::uint64_t i = 0; i < 100; ++i)
          if (!meet(communicator, meeting(i))) ++sum;
      });
  }
  CHECK(sum == 500);
}

TEST_CASE("world: two of them do not disturb each other") {
  World first{2};
  World second{2};
  Threads threads;
  std::atomic<int> failures{0};
  for (World* world : {&first, &second})
    for (kith::Rank rank = 0; rank < 2; ++rank)
      threads.all.emplace_back([world, rank, &failures, &first] {
        Communicator communicator{*world, rank};
        if (world == &first && rank == 1) return;  // the first world fails, the second goes on
        for (std::uint64_t i = 0; i < 50; ++i)
          if (meet(communicator, meeting(i))) ++failures;
      });
  for (std::thread& thread : threads.all) thread.join();
  CHECK(failures == 50);
}

TEST_CASE("world: a rank that has left is lost to whoever waits for it, now and later") {
  constexpr kith::Rank size = 4;
  World world{size};
  std::vector<std::optional<PeerError>> errors(size);
  std::vector<std::optional<PeerError>> later(size);
  const auto start = std::chrono::steady_clock::now();
  {
    Threads threads;
    for (kith::Rank rank = 0; rank < size; ++rank)
      threads.all.emplace_back([&, rank] {
        Communicator communicator{world, rank};
        (void)meet(communicator, meeting(0));
        const auto r = static_cast<std::size_t>(rank);
        if (rank == 2) return;
        if (rank == 3) std::this_thread::sleep_for(std::chrono::milliseconds{50});  // comes when it is all over
        errors[r] = meet(communicator, meeting(1, 60));
        later[r] = meet(communicator, meeting(2, 60));
      });
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds{20});  // nobody waited for a deadline
  for (const std::size_t r : {0U, 1U, 3U}) {
    CAPTURE(r);
    REQUIRE(errors[r]);
    CHECK(errors[r]->peer() == 2);
    CHECK(errors[r]->reason() == PeerError::lost);
    CHECK(std::string{errors[r]->what()}.find("rank 2 has left") != std::string::npos);
    REQUIRE(later[r]);
    CHECK(later[r]->reason() == PeerError::lost);
  }
}

TEST_CASE("world: a rank that had left before anybody came is lost all the same") {
  World world{3};
  { const Communicator first_to_leave{world, 1}; }
  std::vector<std::optional<PeerError>> errors(3);
  const auto start = std::chrono::steady_clock::now();
  {
    Threads threads;
    for (const kith::Rank rank : {0, 2})
      threads.all.emplace_back([&world, &errors, rank] {
        Communicator communicator{world, rank};
        errors[static_cast<std::size_t>(rank)] = meet(communicator, meeting(0, 60));
      });
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds{20});
  for (const std::size_t r : {0U, 2U}) {
    REQUIRE(errors[r]);
    CHECK(errors[r]->peer() == 1);
    CHECK(errors[r]->reason() == PeerError::lost);
  }
}

TEST_CASE("world: leaving when all is done harms nobody") {
  for (int repeat = 0; repeat < 200; ++repeat) {
    World world{3};
    std::atomic<int> failures{0};
    Threads threads;
    for (kith::Rank rank = 0; rank < 3; ++rank)
      threads.all.emplace_back([&, rank] {
        Communicator communicator{world, rank};
        for (std::uint64_t i = 0; i < 3; ++i)
          if (meet(communicator, meeting(i))) ++failures;
      });
    for (std::thread& thread : threads.all) thread.join();
    REQUIRE(failures == 0);
  }
}

TEST_CASE("world: a failed meeting has failed for every rank, however narrowly the last one came") {
  // The deadline falls about when the last rank comes: either all ranks meet, or none does.
  for (int repeat = 0; repeat < 60; ++repeat) {
    World world{3};
    std::atomic<int> met{0};
    Threads threads;
    for (kith::Rank rank = 0; rank < 3; ++rank)
      threads.all.emplace_back([&, rank] {
        Communicator communicator{world, rank};
        (void)meet(communicator, meeting(0));
        if (rank == 1) std::this_thread::sleep_for(std::chrono::microseconds{900 + 10 * repeat});
        if (!meet(communicator, meeting(1, 0.001))) ++met;
      });
    for (std::thread& thread : threads.all) thread.join();
    const bool all_or_none = met == 0 || met == 3;
    REQUIRE(all_or_none);
  }
}

}  // namespace thread_world_test
