// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <kith/thread/run.hpp>
#include <kith/types.hpp>

#include "command_line.hpp"

namespace bench {

/// @brief Where the threads of a run wait for each other.
///
/// They spin while each has a core of its own, so that they leave within a fraction of a microsecond; otherwise they
/// sleep. A thread that fails breaks the barrier, and the others throw instead of waiting for it.
class Barrier {
public:
  explicit Barrier(std::size_t threads) : threads_(threads), spins_(threads <= std::thread::hardware_concurrency()) {}

  void arrive_and_wait() {
    const std::uint32_t turn = turn_.load();
    if (arrived_.fetch_add(1) + 1 == threads_) {
      arrived_.store(0);
      turn_.fetch_add(1);
      if (!spins_) turn_.notify_all();
    } else if (spins_) {
      for (std::uint32_t i = 1; turn_.load(std::memory_order_acquire) == turn; ++i) {
        if (i % 65536 == 0) std::this_thread::yield();  // the other's core may be busy with another program
        kith::thread::detail::relax();
      }
    } else {
      turn_.wait(turn);
    }
    if (broken_.load()) throw std::runtime_error("another rank of the run has failed");
  }

  void break_up() noexcept {
    broken_.store(true);
    turn_.fetch_add(1);
    turn_.notify_all();
  }

private:
  const std::size_t threads_;
  const bool spins_;
  alignas(64) std::atomic<std::size_t> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> turn_{0};
  std::atomic<bool> broken_{false};
};

/// @brief One rank of a run on the thread engine, as the measurements see it. Another engine brings a class with the
/// same members; publish() and peer() only where ranks can read each other's memory, allocate() where it hands some
/// out.
class ThreadGroup {
public:
  using Clock = std::chrono::steady_clock;
  /// The kinds of memory that a model can lie in.
  static constexpr std::string_view memories[] = {"own"};
  /// What is measured if nothing else is asked for.
  static constexpr const char* topologies = "ring,one-peer-exponential,static-exponential";

  /// The numbers of ranks that `--ranks` asks for, if it does.
  [[nodiscard]] static std::vector<kith::Rank> numbers_of_ranks(const std::string& asked) {
    return parse_ranks(asked.empty() ? "2,4,8" : asked);
  }

  /// Calls body(ThreadGroup&) on `size` ranks, each a thread, and rethrows the first failure.
  template <class Body>
  static void run(kith::Rank size, const Body& body) {
    Shared shared{static_cast<std::size_t>(size)};
    kith::thread::run(size, [&](kith::thread::Communicator& communicator) {
      ThreadGroup group{communicator, shared};
      try {
        body(group);
      } catch (...) {
        shared.barrier.break_up();
        throw;
      }
    });
  }

  /// The same: no option of a sweep is about threads.
  template <class Body>
  static void run(kith::Rank size, const SweepOptions&, const Body& body) {
    run(size, body);
  }

  [[nodiscard]] kith::thread::Communicator& communicator() const noexcept { return communicator_; }
  [[nodiscard]] kith::Rank rank() const noexcept { return communicator_.rank(); }
  [[nodiscard]] kith::Rank size() const noexcept { return communicator_.size(); }

  void barrier() { shared_.barrier.arrive_and_wait(); }

  /// Collective. Calls `call` on all ranks, which start together: microseconds from the earliest start to the latest
  /// end, the same figure on every rank.
  template <class Call>
  double time_us(const Call& call) {
    barrier();
    mine().begin = Clock::now();
    call();
    mine().end = Clock::now();
    barrier();
    Clock::time_point begin = mine().begin;
    Clock::time_point end = mine().end;
    for (const Slot& slot : shared_.slots) {
      begin = std::min(begin, slot.begin);
      end = std::max(end, slot.end);
    }
    return std::chrono::duration<double, std::micro>{end - begin}.count();
  }

  /// Collective. The value of every rank, in rank order.
  [[nodiscard]] std::vector<double> gather(double value) {
    mine().value = value;
    barrier();
    std::vector<double> values;
    for (const Slot& slot : shared_.slots) values.push_back(slot.value);
    barrier();  // nobody writes the next value before all have read this one
    return values;
  }

  /// Collective. Makes memory of this rank known to the others.
  void publish(void* memory) {
    mine().memory = memory;
    barrier();
  }

  /// What `rank` has published.
  [[nodiscard]] void* peer(kith::Rank rank) const noexcept {
    return shared_.slots[static_cast<std::size_t>(rank)].memory;
  }

private:
  struct alignas(128) Slot {
    Clock::time_point begin;
    Clock::time_point end;
    double value = 0;
    void* memory = nullptr;
  };
  struct Shared {
    explicit Shared(std::size_t size) : barrier(size), slots(size) {}
    Barrier barrier;
    std::vector<Slot> slots;
  };

  ThreadGroup(kith::thread::Communicator& communicator, Shared& shared)
      : communicator_(communicator), shared_(shared) {}

  [[nodiscard]] Slot& mine() const noexcept { return shared_.slots[static_cast<std::size_t>(rank())]; }

  kith::thread::Communicator& communicator_;
  Shared& shared_;
};

}  // namespace bench
