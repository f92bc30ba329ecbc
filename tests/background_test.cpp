// SPDX-License-Identifier: Apache-2.0
#include <kith/background.hpp>

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace background_test {

using kith::detail::Background;

TEST_CASE("background: one after another, in the order given, in one other thread, which may settle") {
  std::vector<int> order;
  std::vector<std::thread::id> threads;
  std::atomic<bool> go{false};
  Background::Task first;
  Background::Task second;
  Background* used = nullptr;
  const auto step = [&](int number) {
    while (!go) std::this_thread::yield();
    used->settle();  // as an engine does at the start of every call: here there is nothing to wait for
    order.push_back(number);
    threads.push_back(std::this_thread::get_id());
  };
  {
    Background background;
    used = &background;
    background.start(first, [&] { step(1); });
    background.start(second, [&] { step(2); });
    CHECK(!background.is_here());
    go = true;
    background.wait(second);
    CHECK(order == std::vector{1, 2});
    background.start(second, [&] { step(3); });
    background.settle();
    CHECK(order == std::vector{1, 2, 3});
    background.start(first, [&] { step(4); });
  }  // waits
  CHECK(order == std::vector{1, 2, 3, 4});
  for (const auto& thread : threads) {
    CHECK(thread != std::this_thread::get_id());
    CHECK(thread == threads[0]);
  }
}

TEST_CASE("background: without a thread, start() does it") {
  Background background{false};
  Background::Task task;
  std::thread::id here;
  background.start(task, [&] { here = std::this_thread::get_id(); });
  CHECK(here == std::this_thread::get_id());
  background.wait(task);
  background.settle();
}

TEST_CASE("background: what is moved or destroyed waits first") {
  struct Engine {
    Background background_;
    Background& background() { return background_; }
  };
  Engine engine;
  Background::Task task;
  std::atomic<bool> go{false};
  std::atomic<bool> done{false};
  const auto begin = [&] {
    go = false;
    done = false;
    engine.background().start(task, [&] {
      while (!go) std::this_thread::yield();
      done = true;
    });
    go = true;
  };
  kith::detail::Settled first{engine};
  begin();
  {
    const kith::detail::Settled second{std::move(first)};
    CHECK(done);
    begin();
  }
  CHECK(done);
}

}  // namespace background_test
