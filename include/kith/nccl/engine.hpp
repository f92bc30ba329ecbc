// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <nccl.h>

#include <kith/communicator.hpp>
#include <kith/cuda/resources.hpp>
#include <kith/cuda/round.hpp>
#include <kith/error.hpp>
#include <kith/nccl/error.hpp>
#include <kith/nccl/watch.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>

namespace kith::nccl::detail {

/// NCCL's name of an element type.
[[nodiscard]] constexpr ncclDataType_t to_nccl(DType dtype) noexcept {
  switch (dtype) {
    case DType::f64:
      return ncclFloat64;
    case DType::f16:
      return ncclFloat16;
    case DType::bf16:
      return ncclBfloat16;
    case DType::f32:
      break;
  }
  return ncclFloat32;
}

/// FNV-1a: which operation it is, as a number that all ranks compute alike.
[[nodiscard]] inline std::uint64_t digest_of(std::string_view what) noexcept {
  std::uint64_t digest = 14695981039346656037u;
  for (const char c : what) digest = (digest ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return digest;
}

/// @brief A communicator of NCCL, the stream on which Kith uses it, and what watches both.
///
/// Everything goes to the one stream, in the same order on all ranks: so no two operations of NCCL are ever in each
/// other's way. The members that enqueue throw BackendError where CUDA or NCCL refuse; enqueue() then fails the
/// communicator, because peers wait for the rest.
class Engine {
public:
  Engine(ncclComm_t comm, bool owned) : comm_(comm), owned_(owned) {
    check(ncclCommCount(comm_, &size_), "tell the size of the communicator");
    check(ncclCommUserRank(comm_, &rank_), "tell the rank in the communicator");
    check(ncclCommCuDevice(comm_, &device_), "tell the device of the communicator");
    const cuda::DeviceGuard guard{device_};
    stream_ = std::make_unique<cuda::Stream>();
    sent_to_.resize(static_cast<std::size_t>(size_));
    received_from_.resize(static_cast<std::size_t>(size_));
    watch_ = Watch::start(comm_, device_, name());
  }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// After a failure nothing is waited for, and what the device may still be using is left to it.
  ~Engine() {
    const bool idle = quiesce();
    const bool intact = watch_->stop();
    if (!idle) stream_->abandon();
    if (intact && owned_) (void)ncclCommDestroy(comm_);
  }

  [[nodiscard]] Rank rank() const noexcept { return rank_; }
  [[nodiscard]] Rank size() const noexcept { return size_; }
  [[nodiscard]] int device() const noexcept { return device_; }
  [[nodiscard]] cudaStream_t stream() const noexcept { return stream_->get(); }
  [[nodiscard]] Watch& watch() noexcept { return *watch_; }
  [[nodiscard]] bool failed() const noexcept { return watch_->failed(); }
  /// "rank 1/4", for messages.
  [[nodiscard]] std::string name() const { return "rank " + std::to_string(rank_) + "/" + std::to_string(size_); }

  /// What a rank says of its call.
  [[nodiscard]] cuda::RoundHeader header(const Call& call, std::size_t bytes) const noexcept {
    cuda::RoundHeader header;
    header.rank = static_cast<std::uint64_t>(rank_);
    header.what = digest_of(call.what);
    header.channel = call.channel;
    header.sequence = call.sequence;
    header.agreement = call.agreement;
    header.bytes = bytes;
    return header;
  }

  /// Calls f, which enqueues the parts of one operation. If that breaks off in the middle, the communicator has failed.
  template <class F>
  void enqueue(const Call& call, const F& f) {
    watch_->require_alive();
    const cuda::DeviceGuard guard{device_};
    try {
      f();
    } catch (const BackendError& error) {
      watch_->fail({name() + ": " + kith::detail::describe(call) + ": " + std::string{error.message()}, error.code()});
      (void)quiesce();  // nothing orders the caller's stream behind what was enqueued
      watch_->raise();
    }
  }

  /// The sends and receives that f makes are one operation, and go on together.
  template <class F>
  void group(const Call& call, const F& f) {
    check(ncclGroupStart(), "start a group");
    try {
      f();
    } catch (...) {
      (void)ncclGroupEnd();
      throw;
    }
    // NCCL connects two ranks when they first meet, and waits for that here, on the host.
    const bool first = std::exchange(first_contact_, false);
    const auto end = [] { return ncclGroupEnd(); };
    ncclResult_t result = first ? watch_->guarded(call, end) : end();
    if (result == ncclInProgress) result = watch_->guarded(call, [&] { return completed(); });
    check(result, "enqueue an exchange");
  }

  void send(const void* data, std::size_t bytes, Rank to) {
    meet(sent_to_, to);
    check(ncclSend(data, bytes, ncclUint8, to, comm_, stream()), "send");
  }
  void receive(void* data, std::size_t bytes, Rank from) {
    meet(received_from_, from);
    check(ncclRecv(data, bytes, ncclUint8, from, comm_, stream()), "receive");
  }
  /// all = the `bytes` bytes of every rank, in rank order.
  void all_gather(const void* mine, void* all, std::size_t bytes) {
    first_contact_ = true;  // of a ring, or a tree: NCCL connects what each of its algorithms needs when it comes to it
    check(ncclAllGather(mine, all, bytes, ncclUint8, comm_, stream()), "gather");
  }
  void all_reduce_mean(const void* values, void* mean, std::size_t count, DType dtype) {
    first_contact_ = true;
    check(ncclAllReduce(values, mean, count, to_nccl(dtype), ncclAvg, comm_, stream()),
          "compute a mean over all ranks");
  }
  void broadcast(const void* values, void* copy, std::size_t bytes, Rank root) {
    first_contact_ = true;
    check(ncclBroadcast(values, copy, bytes, ncclUint8, root, comm_, stream()), "broadcast");
  }

  /// Whether the two ends of an edge have met before; both know the same.
  [[nodiscard]] bool has_sent_to(Rank peer) const { return sent_to_[static_cast<std::size_t>(peer)]; }
  [[nodiscard]] bool has_received_from(Rank peer) const { return received_from_[static_cast<std::size_t>(peer)]; }

  /// @brief Waits until the stream has come to its present end, and asks NCCL meanwhile.
  /// @return false at the deadline, which counts from when the rounds before have been decided: those are watched.
  ///         Throws what the communicator has failed with.
  [[nodiscard]] bool wait(const Call& call, Seconds deadline) {
    const cuda::DeviceGuard guard{device_};
    Clock::time_point begin = Clock::now();
    try {
      for (int round = 0;; ++round) {
        if (watch_->settled() < watch_->enqueued()) begin = Clock::now();
        const cudaError_t state = cudaStreamQuery(stream());
        if (state == cudaSuccess) return true;
        if (state != cudaErrorNotReady) cuda::check(state, "finish what was enqueued");
        (void)cudaGetLastError();  // "not ready" is left behind as if it were an error
        watch_->require_alive();
        if (Clock::now() - begin > deadline) return false;
        if (const ncclResult_t asked = watch_->ask(); asked != ncclInProgress) check(asked, "go on");
        if (round > 100) std::this_thread::sleep_for(std::chrono::microseconds{50});
      }
    } catch (const BackendError& error) {
      watch_->fail({name() + ": " + kith::detail::describe(call) + ": " + std::string{error.message()}, error.code()});
      watch_->raise();
    }
  }

  /// The same for what has to be done with peers that are known to have come: a deadline that passes is a failure.
  void finish(const Call& call) {
    if (wait(call, call.deadline)) return;
    watch_->fail({name() + ": " + kith::detail::describe(call) + ": not done within " +
                  kith::detail::to_text(call.deadline) + "; the communicator has been aborted"});
    watch_->raise();
  }

  /// The same for rounds, which are watched, and what the device does besides: that may take as long as it takes.
  void drain(const Call& call) { (void)wait(call, Seconds::max()); }

  /// Waits until nothing is in flight, as long as rounds are watched over, and after a failure a little. Where it says
  /// false, what the device may still be using must not be freed.
  [[nodiscard]] bool quiesce() noexcept {
    try {
      if (!watch_->failed()) drain(Call{});
    } catch (const Error&) {  // what follows looks for itself
    }
    const bool at_rest = watch_->at_rest();
    const Clock::time_point end = Clock::now() + std::chrono::seconds{1};
    cudaError_t state = cudaErrorNotReady;
    while ((state = cudaStreamQuery(stream())) == cudaErrorNotReady && Clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
    (void)cudaGetLastError();
    return state == cudaSuccess && at_rest;
  }

private:
  void meet(std::vector<bool>& known, Rank peer) {
    if (known[static_cast<std::size_t>(peer)]) return;
    known[static_cast<std::size_t>(peer)] = true;
    first_contact_ = true;
  }

  // What a communicator that does not block the host has made of the last group.
  ncclResult_t completed() {
    ncclResult_t state = ncclInProgress;
    while (state == ncclInProgress && !watch_->failed()) {
      std::this_thread::yield();
      state = watch_->ask();
    }
    return state;
  }

  ncclComm_t comm_;
  bool owned_;
  int size_ = 0;
  int rank_ = 0;
  int device_ = 0;
  std::unique_ptr<cuda::Stream> stream_;
  std::vector<bool> sent_to_;
  std::vector<bool> received_from_;
  bool first_contact_ = false;
  std::shared_ptr<Watch> watch_;
};

}  // namespace kith::nccl::detail
