// SPDX-License-Identifier: Apache-2.0
#include <kith/thread/parking.hpp>

#include <atomic>
#include <chrono>
#include <thread>

#include <doctest/doctest.h>

namespace thread_parking_test {

using kith::thread::detail::Parking;
using namespace std::chrono_literals;

TEST_CASE("parking: what is ready is not waited for") {
  Parking parking;
  const auto ready = [] { return true; };
  CHECK(parking.wait(0, Parking::Clock::time_point::min(), ready));
  CHECK(parking.wait(100, Parking::Clock::time_point::max(), ready));
  CHECK_FALSE(parking.wake());  // nobody sleeps
}

TEST_CASE("parking: a deadline ends the wait, and not sooner") {
  Parking parking;
  for (const int spins : {0, 50}) {
    const auto deadline = Parking::Clock::now() + 20ms;
    CHECK_FALSE(parking.wait(spins, deadline, [] { return false; }));
    CHECK(Parking::Clock::now() >= deadline);
  }
  CHECK_FALSE(parking.wait(0, Parking::Clock::now() - 1h, [] { return false; }));
}

TEST_CASE("parking: waking without the condition does not end the wait") {
  Parking parking;
  std::atomic<bool> ready{false};
  std::thread waker{[&] {
    for (int i = 0; i < 20; ++i) {
      parking.wake();
      std::this_thread::sleep_for(1ms);
    }
    ready = true;
    parking.wake();
  }};
  CHECK(parking.wait(0, Parking::Clock::time_point::max(), [&] { return ready.load(); }));
  CHECK(ready);
  waker.join();
}

// Two threads take turns. One wake-up that is lost and both sleep until the deadline.
TEST_CASE("parking: no wake-up is lost") {
  constexpr int turns = 3000;
  for (const int spins : {0, 1, 1000}) {
    Parking parking[2];
    std::atomic<int> turn{0};
    std::atomic<int> late{0};
    const auto player = [&](int me) {
      for (int i = me; i < turns; i += 2) {
        if (!parking[me].wait(spins, Parking::Clock::now() + 20s, [&] { return turn.load() == i; })) {
          ++late;
          return;
        }
        turn.store(i + 1);
        parking[1 - me].wake();
      }
    };
    std::thread other{player, 1};
    player(0);
    other.join();
    CHECK(late == 0);
    CHECK(turn == turns);
  }
}

}  // namespace thread_parking_test
