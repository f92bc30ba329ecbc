// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <kith/thread/communicator.hpp>
#include <kith/thread/world.hpp>

namespace kith::thread {

/// @brief Runs `body(communicator)` on `size` ranks, each a thread of its own, and joins them.
///
/// A rank that leaves by an exception releases the ranks that wait for it, now or later: they throw PeerError (lost).
/// A rank that returns while others still wait for it does the same. The exception that came first is rethrown here.
///
/// @throws UsageError for a size below 1; otherwise whatever a rank threw first.
/// @par Thread safety `body` is called by `size` threads at once.
template <class Body>
void run(Rank size, Body&& body) {
  World world{size};
  std::mutex mutex;
  std::exception_ptr first;
  const auto leave_with = [&](Rank rank, const std::string& why) {
    {
      const std::lock_guard lock{mutex};
      if (!first) first = std::current_exception();  // before the others hear of it and throw in their turn
    }
    world.leave(rank, why);
  };
  const auto rank_main = [&](Rank rank) {
    Communicator communicator{world, rank};
    try {
      body(communicator);
    } catch (const std::exception& error) {
      leave_with(rank, std::string{"it threw: "} + error.what());
    } catch (...) {
      leave_with(rank, "it threw an exception that is no std::exception");
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(size));
  try {
    for (Rank rank = 0; rank < size; ++rank) threads.emplace_back(rank_main, rank);
  } catch (...) {
    leave_with(static_cast<Rank>(threads.size()), "its thread could not be started");
  }
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace kith::thread
