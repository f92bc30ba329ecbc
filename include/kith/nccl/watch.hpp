// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include <nccl.h>

#include <kith/communicator.hpp>
#include <kith/cuda/resources.hpp>
#include <kith/cuda/round.hpp>
#include <kith/error.hpp>
#include <kith/nccl/error.hpp>
#include <kith/types.hpp>

namespace kith::nccl::detail {

using Clock = std::chrono::steady_clock;

/// Why a communicator cannot be used any more: what every later call throws.
struct Failure {
  std::string message;
  int code = static_cast<int>(ncclRemoteError);
  /// A peer is known to be at fault.
  std::optional<Rank> peer{};
  PeerError::Reason reason = PeerError::timeout;

  [[noreturn]] void raise() const {
    if (peer) throw PeerError(message, *peer, reason);
    throw BackendError(message, code);
  }
};

/// A round that has been enqueued, for the error that it may end in.
struct Watched {
  Call call;
  /// Whom the rank receives from, in ascending rank: the first of them, as many as RoundReport::missing has bits.
  std::array<Rank, 32> sources{};
  std::size_t source_count = 0;
};

/// @brief Looks after what nobody waits for: rounds on the device, and calls of NCCL that meet their peers on the host.
///
/// A thread of its own compares the signals of the device with the clock, asks NCCL for asynchronous errors, and aborts
/// the communicator when there is one or a deadline has passed; because an abort may itself never return, everything
/// that this thread touches is kept alive by it.
class Watch {
public:
  /// Starts the thread. `name` of the rank for messages: "rank 1/4".
  static std::shared_ptr<Watch> start(ncclComm_t comm, int device, std::string name) {
    auto watch = std::make_shared<Watch>(comm, device, std::move(name));
    watch->thread_ = std::thread{[watch] { watch->run(); }};
    return watch;
  }

  Watch(ncclComm_t comm, int device, std::string name) : comm_(comm), device_(device), name_(std::move(name)) {}
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  ~Watch() = default;

  /// Ends the thread; says whether the communicator is still the caller's to destroy. Called once, at the end.
  bool stop() {
    std::unique_lock lock{mutex_};
    stop_ = true;
    wake_.notify_all();
    lock.unlock();
    if (at_rest()) {
      thread_.join();
    } else {
      signals_.abandon();
      thread_.detach();
    }
    return !failed();
  }

  [[nodiscard]] cuda::RoundSignals* signals_on_device() const noexcept { return signals_.on_device(); }

  [[nodiscard]] bool failed() const noexcept { return failed_.load(std::memory_order_acquire); }
  /// False after a failure that this thread is not done with, nor will be soon: the device may then never come to an
  /// end, and nothing that it or the reports of rounds use may be freed.
  [[nodiscard]] bool at_rest() {
    std::unique_lock lock{mutex_};
    return !failed() || settled_.wait_for(lock, patience, [&] { return aborted_; });
  }

  /// Throws what the communicator has failed with, if it has.
  void require_alive() {
    if (failed()) raise();
  }
  /// Throws what the communicator has failed with.
  [[noreturn]] void raise() {
    std::unique_lock lock{mutex_};
    settled_.wait_for(lock, patience, [&] { return explained_; });
    failure_->raise();
  }

  /// Registers a round, whose sources are as in Watched; the number that its kernels report. Waits where too many are
  /// in flight.
  [[nodiscard]] std::uint64_t add(const Call& call, std::span<const Rank> sources) {
    const std::uint64_t ticket = enqueued_.load(std::memory_order_relaxed) + 1;
    while (settled() + rounds_.size() <= ticket) {
      require_alive();
      std::this_thread::yield();
    }
    Watched& round = rounds_[ticket % rounds_.size()];
    round.call = call;
    round.source_count = std::min(sources.size(), round.sources.size());
    std::copy_n(sources.begin(), round.source_count, round.sources.begin());
    enqueued_.store(ticket, std::memory_order_release);
    return ticket;
  }
  /// Fails the communicator if a round on the device has found that ranks are not in step.
  void require_in_step() {
    require_alive();
    if (std::optional<Failure> found = found_by_device()) {
      fail(*std::move(found));
      raise();
    }
  }
  /// Rounds registered and decided so far.
  [[nodiscard]] std::uint64_t enqueued() const noexcept { return enqueued_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t settled() const noexcept {
    return std::atomic_ref{signals_.host().settled}.load(std::memory_order_acquire);
  }

  /// Calls f, which may wait for peers inside NCCL and does not throw, with the deadline of `call`.
  template <class F>
  auto guarded(const Call& call, const F& f) {
    {
      const std::lock_guard lock{mutex_};
      host_call_ = call;
      host_since_ = Clock::now();
    }
    const auto result = f();
    const std::lock_guard lock{mutex_};
    host_call_.reset();
    settled_.notify_all();
    return result;
  }

  /// What NCCL says of the communicator. Asked under the lock: an abort by the other thread would be in between.
  [[nodiscard]] ncclResult_t ask() {
    const std::lock_guard lock{mutex_};
    return failed() ? ncclSuccess : ask_locked();
  }

  /// The communicator has failed: aborts it, for a time waits for that, and keeps the first reason.
  void fail(Failure failure) {
    std::unique_lock lock{mutex_};
    declare(std::move(failure));
    explained_ = true;
    wake_.notify_all();
    settled_.wait_for(lock, patience, [&] { return aborted_; });
  }
  /// Replaces the reason by one that says more.
  void explain(Failure failure) {
    const std::lock_guard lock{mutex_};
    failure_ = std::move(failure);
  }

private:
  static constexpr std::chrono::milliseconds pulse{20};
  static constexpr std::chrono::milliseconds patience{1500};

  // Under the lock. From here on nothing commits.
  void declare(Failure failure) {
    if (!failure_) failure_ = std::move(failure);
    std::atomic_ref{signals_.host().abort}.store(1, std::memory_order_seq_cst);
    failed_.store(true, std::memory_order_release);
  }

  [[nodiscard]] ncclResult_t ask_locked() {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    return asked != ncclSuccess ? asked : state;
  }

  void run() {
    (void)cudaSetDevice(device_);  // or the next call would make a context on device 0
    // Another thread of the program may be capturing a graph: that must not forbid this one to ask questions.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    (void)cudaThreadExchangeStreamCaptureMode(&mode);
    std::unique_lock lock{mutex_};
    while (!stop_ && !failed()) {
      wake_.wait_for(lock, pulse);
      if (!stop_ && !failed()) look();
    }
    if (!failed()) return;
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 7)
    // An abort frees the communicator: not while the other thread is inside, if it can be brought out of there.
    if (host_call_) {
      lock.unlock();
      (void)ncclCommRevoke(comm_, NCCL_REVOKE_DEFAULT);
      lock.lock();
      settled_.wait_for(lock, patience, [&] { return !host_call_; });
    }
#endif
    lock.unlock();
    (void)ncclCommAbort(comm_);
    if (overdue_) explain_round(*overdue_);
    lock.lock();
    aborted_ = explained_ = true;
    settled_.notify_all();
  }

  // Why a round on the device could not be decided by values, if one could not.
  [[nodiscard]] std::optional<Failure> found_by_device() const {
    const cuda::RoundReport& fatal = signals_.host().fatal;
    const auto reason = std::atomic_ref{signals_.host().fatal.reason}.load(std::memory_order_acquire);
    if (reason == cuda::RoundReport::none) return std::nullopt;
    const std::string text = name_ + ": " + kith::detail::describe(rounds_[fatal.ticket % rounds_.size()].call) + ": ";
    if (reason == cuda::RoundReport::aborted)
      return Failure{text + "what the peers send has not come; " + std::string{aftermath}};
    const auto peer = static_cast<Rank>(fatal.rank);
    return Failure{text + "rank " + std::to_string(peer) + " made a different call (its round is " +
                       std::to_string(fatal.theirs) + "). All ranks make the same calls in the same order; " +
                       std::string{aftermath},
                   0, peer, PeerError::protocol};
  }

  void look() {
    const Clock::time_point now = Clock::now();
    if (std::optional<Failure> found = found_by_device()) {
      explained_ = true;
      return declare(*std::move(found));
    }
    if (host_call_ && now - host_since_ > host_call_->deadline)
      return declare({name_ + ": " + kith::detail::describe(*host_call_) + ": the peers did not all come within " +
                      kith::detail::to_text(host_call_->deadline) + " to connect; " + std::string{aftermath}});
    const std::uint64_t done = settled();
    if (enqueued_.load(std::memory_order_acquire) == done && !host_call_) return;
    if (const ncclResult_t code = ask_locked(); code != ncclSuccess && code != ncclInProgress)
      return declare({name_ + ": NCCL reports an error: " + to_text(code) + "; " + std::string{aftermath},
                      static_cast<int>(code)});
    const std::uint64_t started = std::atomic_ref{signals_.host().started}.load(std::memory_order_acquire);
    if (started <= done) return;
    if (started != waiting_) {
      waiting_ = started;
      waiting_since_ = now;
    }
    const Watched& round = rounds_[started % rounds_.size()];
    if (now - waiting_since_ < round.call.deadline) return;
    overdue_ = started;
    declare({overdue_text(round, "the peers did not all come")});
  }

  // The round's own verdict, which it gives once the abort has let it go on, says who was missing.
  void explain_round(std::uint64_t ticket) {
    const Clock::time_point end = Clock::now() + std::chrono::seconds{1};
    while (settled() < ticket && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds{1});
    const Watched& round = rounds_[ticket % rounds_.size()];
    const cuda::RoundReport& fatal = signals_.host().fatal;
    if (settled() < ticket || fatal.ticket != ticket) return;
    std::string missing;
    for (std::size_t k = 0; k < round.source_count; ++k)
      if ((fatal.missing >> k & 1) != 0) missing += (missing.empty() ? "" : ", ") + std::to_string(round.sources[k]);
    if (missing.empty()) return;
    const std::lock_guard lock{mutex_};
    failure_->message = overdue_text(round, "rank " + missing + " did not come");
  }

  [[nodiscard]] std::string overdue_text(const Watched& round, const std::string& what) const {
    return name_ + ": " + kith::detail::describe(round.call) + ": " + what + " within " +
           kith::detail::to_text(round.call.deadline) + "; " + std::string{aftermath};
  }

  static constexpr std::string_view aftermath =
      "the communicator has been aborted, the parameters hold what they held before the round";

  ncclComm_t comm_;
  int device_;
  std::string name_;
  cuda::Pinned<cuda::RoundSignals> signals_;
  std::thread thread_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable settled_;
  bool stop_ = false;
  bool aborted_ = false;
  bool explained_ = false;
  std::optional<Failure> failure_;
  std::atomic<bool> failed_{false};

  std::optional<Call> host_call_;
  Clock::time_point host_since_{};
  std::atomic<std::uint64_t> enqueued_{0};
  std::array<Watched, 1024> rounds_{};
  std::uint64_t waiting_ = 0;
  Clock::time_point waiting_since_{};
  std::optional<std::uint64_t> overdue_;
};

}  // namespace kith::nccl::detail
