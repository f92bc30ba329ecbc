// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__linux__)
#include <sched.h>
#endif

namespace kith::thread::detail {

/// Tells the processor that this thread is spinning.
inline void relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// The core that this thread runs on, or -1 where nobody tells: for choosing whom to wake, so it may be out of date.
inline int current_core() noexcept {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

/// @brief Where one thread waits: it spins for a little while, then sleeps, so that no waiting costs a core for long.
///
/// One thread waits, any thread wakes. There is one of these per rank, so nobody contends for its lock.
class Parking {
public:
  using Clock = std::chrono::steady_clock;

  /// Waits until `ready()`, which reads atomics with sequential consistency. False if the deadline came first.
  template <class Ready>
  [[nodiscard]] bool wait(int spins, Clock::time_point deadline, const Ready& ready) {
    for (int i = 0; i < spins; ++i) {
      if (ready()) return true;
      relax();
    }
    std::unique_lock lock{mutex_};
    asleep_.store(true);  // before the last look at ready(): whoever changes it afterwards sees a sleeper
    bool in_time = true;
    while (!ready()) {
      if (!in_time) break;
      if (deadline == Clock::time_point::max())
        changed_.wait(lock);
      else
        in_time = changed_.wait_until(lock, deadline) == std::cv_status::no_timeout;
    }
    asleep_.store(false);
    return in_time || ready();
  }

  /// To be called after what the waiter looks at has changed. True if there was a sleeper.
  bool wake() {
    if (!asleep_.load()) return false;
    { const std::lock_guard lock{mutex_}; }  // the sleeper is now inside its wait, or past its last look
    changed_.notify_one();
    return true;
  }

private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> asleep_{false};
};

}  // namespace kith::thread::detail
