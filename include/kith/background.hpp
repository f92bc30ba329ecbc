// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace kith::detail {

/// @brief Operations of a communicator that go on beside the thread that uses it: one thread, started for the first of
/// them, which performs them one after another in the order in which they were given.
///
/// An engine that has one (Communicator::background()) calls settle() at the start of everything that uses the
/// communicator. So whatever the caller does meanwhile, operations begin on every rank in the order of the calls, and
/// one thread at a time uses the communicator.
///
/// Where the engine cannot be used by a thread of its own, or the system starts none, start() performs the operation
/// itself, before it returns: the order is the same.
///
/// @par Thread safety One thread at a time calls its members; is_here() is safe everywhere.
class Background {
public:
  /// Something to be done. Stays in place from start() on until it is done.
  class Task {
  public:
    Task() = default;
    Task(const Task&) = delete;
    Task& operator=(const Task&) = delete;
    ~Task() = default;

  private:
    friend class Background;
    std::function<void()> work_;
    Task* next_ = nullptr;
    bool done_ = true;
  };

  /// Without `threaded` it never starts a thread.
  explicit Background(bool threaded = true) noexcept : threaded_(threaded) {}
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;
  ~Background() {
    settle();
    if (!thread_.joinable()) return;
    {
      const std::lock_guard lock{mutex_};
      ending_ = true;
    }
    given_.notify_one();
    thread_.join();
  }

  /// Gives it `work()`, which does not throw. No allocation for a lambda with one pointer, but for the thread.
  template <class Work>
  void start(Task& task, Work work) {
    if (threaded_ && !thread_.joinable()) start_thread();
    if (!threaded_) return work();
    {
      const std::lock_guard lock{mutex_};
      task.work_ = std::move(work);
      task.done_ = false;
      task.next_ = nullptr;
      (first_ == nullptr ? first_ : last_->next_) = &task;
      last_ = &task;
      pending_.fetch_add(1, std::memory_order_relaxed);
    }
    given_.notify_one();
  }

  /// Returns once the task is done.
  void wait(Task& task) {
    std::unique_lock lock{mutex_};
    done_.wait(lock, [&] { return task.done_; });
  }

  /// Returns once nothing is left to do. Within a task: at once.
  void settle() {
    if (pending_.load(std::memory_order_acquire) == 0 || is_here()) return;
    std::unique_lock lock{mutex_};
    done_.wait(lock, [this] { return first_ == nullptr; });
  }

  /// Whether this is the thread that performs tasks.
  [[nodiscard]] bool is_here() const noexcept { return here_.load() == std::this_thread::get_id(); }

private:
  void start_thread() {
    try {
      thread_ = std::thread{[this] { serve(); }};
    } catch (const std::system_error&) {
      threaded_ = false;
    }
  }

  void serve() {
    here_.store(std::this_thread::get_id());
    std::unique_lock lock{mutex_};
    for (;;) {
      given_.wait(lock, [this] { return first_ != nullptr || ending_; });
      if (first_ == nullptr) return;
      Task& task = *first_;
      lock.unlock();
      task.work_();
      lock.lock();
      first_ = task.next_;
      task.done_ = true;
      pending_.fetch_sub(1, std::memory_order_release);
      done_.notify_one();
    }
  }

  bool threaded_;
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable given_;
  std::condition_variable done_;
  Task* first_ = nullptr;
  Task* last_ = nullptr;
  bool ending_ = false;
  std::atomic<std::size_t> pending_{0};
  std::atomic<std::thread::id> here_{};
};

/// What settles a communicator before it is used, where there is anything to settle.
template <class C>
void settle(C& communicator) {
  if constexpr (requires { communicator.background(); }) communicator.background().settle();
}

/// @brief Held in place by what goes on in the background: when it is moved from or destroyed, nothing does any more.
///
/// The first member of a class waits before the others are moved, the last one before they are destroyed.
template <class C>
class Settled {
public:
  explicit Settled(C& communicator) : communicator_(communicator) { settle(communicator); }
  Settled(Settled&& other) noexcept : communicator_(other.communicator_) { settle(communicator_); }
  Settled(const Settled&) = delete;
  Settled& operator=(const Settled&) = delete;
  Settled& operator=(Settled&&) = delete;
  ~Settled() { settle(communicator_); }

private:
  C& communicator_;
};

}  // namespace kith::detail
