// SPDX-License-Identifier: Apache-2.0
// Faults that a test can order, and what an abort leaves behind.
#include <atomic>
#include <chrono>
#include <future>

#include "support.hpp"

namespace {

void no_deadlocks() {
  emulator::reset();
  emulator::Options options;
  options.deadlock_ms = 0;
  emulator::set_options(options);
}

void wait_until_done(cudaStream_t stream) {
  while (cudaStreamQuery(stream) == cudaErrorNotReady) std::this_thread::yield();
}

}  // namespace

TEST_CASE("gpu emulator: a call fails when it was told to, and does nothing") {
  emulator::reset();
  emulator::fail_call("cudaMalloc", 2, cudaErrorMemoryAllocation);
  void* first = nullptr;
  void* second = nullptr;
  void* third = nullptr;
  good(cudaMalloc(&first, 10));
  CHECK(cudaMalloc(&second, 10) == cudaErrorMemoryAllocation);
  CHECK(second == nullptr);
  CHECK(cudaPeekAtLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  good(cudaMalloc(&third, 10));
  good(cudaFree(first));
  good(cudaFree(third));

  on_ranks(2, [](Rank& mine) {
    if (mine.rank == 0) emulator::fail_call("ncclGroupStart", 1, ncclSystemError, 1);
    const Floats x(std::vector<float>(1));
    const Stream stream;
    good(ncclAllReduce(x.data(), x.data(), 1, ncclFloat32, ncclSum, mine.comm, stream));  // the fault is set
    good(cudaStreamSynchronize(stream));
    CHECK(ncclGroupStart() == (mine.rank == 1 ? ncclSystemError : ncclSuccess));
    if (mine.rank == 0) good(ncclGroupEnd());
  });
  check_nothing_found();
}

TEST_CASE("gpu emulator: what has arrived before an abort is there, and the stream goes on") {
  no_deadlocks();
  std::atomic<bool> left{false};
  emulator::stall_rank(2);
  on_ranks(3, [&](Rank& mine) {
    const Floats out(std::vector<float>(4, static_cast<float>(mine.rank)));
    const Floats from_next(std::vector<float>(4, -1));
    const Floats from_last(std::vector<float>(4, -1));
    const Floats after(std::vector<float>(4, 1));
    const Stream stream;
    if (mine.rank == 2) {
      exchange(mine, out, 0, from_last, 1, stream);
      while (!left) std::this_thread::yield();
      CHECK(cudaStreamQuery(stream) == cudaErrorNotReady);  // its peers' aborts do not release it
      good(ncclCommAbort(mine.comm));
      mine.comm = nullptr;
      wait_until_done(stream);
      return;
    }
    good(ncclGroupStart());
    good(ncclSend(out.data(), 4, ncclFloat32, 1 - mine.rank, mine.comm, stream));
    good(ncclRecv(from_last.data(), 4, ncclFloat32, 1 - mine.rank, mine.comm, stream));
    if (mine.rank == 0) good(ncclRecv(from_next.data(), 4, ncclFloat32, 2, mine.comm, stream));
    good(ncclGroupEnd());
    good(launch_add_scaled(after, from_last, 1, stream));
    if (mine.rank == 1) {
      wait_until_done(stream);
      return;
    }
    // Rank 0 waits in one thread, and another one aborts.
    auto waiting = std::async(std::launch::async, [&] { return cudaStreamSynchronize(stream); });
    CHECK(waiting.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout);
    good(ncclCommAbort(mine.comm));
    mine.comm = nullptr;
    CHECK(waiting.get() == cudaSuccess);
    CHECK(from_last.read() == std::vector<float>(4, 1));   // rank 1 had come
    CHECK(from_next.read() == std::vector<float>(4, -1));  // rank 2 had not
    CHECK(after.read() == std::vector<float>(4, 2));
    left = true;
  });
  check_nothing_found();
}

TEST_CASE("gpu emulator: what was posted is taken back by an abort") {
  no_deadlocks();
  std::atomic<bool> aborted{false};
  on_ranks(2, [&](Rank& mine) {
    const Floats x(std::vector<float>(4, static_cast<float>(mine.rank)));
    const Stream stream;
    if (mine.rank == 0) {
      good(ncclSend(x.data(), 4, ncclFloat32, 1, mine.comm, stream));
      CHECK(cudaStreamQuery(stream) == cudaErrorNotReady);  // posted
      good(ncclCommAbort(mine.comm));
      good(cudaStreamSynchronize(stream));
      aborted = true;
    } else {
      while (!aborted) std::this_thread::yield();
      good(ncclRecv(x.data(), 4, ncclFloat32, 0, mine.comm, stream));
      CHECK(cudaStreamQuery(stream) == cudaErrorNotReady);
      good(ncclCommAbort(mine.comm));
      good(cudaStreamSynchronize(stream));
      CHECK(x.read() == std::vector<float>(4, 1));
    }
    mine.comm = nullptr;
  });
  check_nothing_found();
}

TEST_CASE("gpu emulator: a group that could not be ended is over") {
  emulator::reset();
  on_ranks(1, [](Rank& mine) {
    const Floats x(std::vector<float>{1});
    const Floats y(std::vector<float>{0});
    const Stream stream;
    emulator::fail_call("ncclGroupEnd", 1, ncclSystemError);
    good(ncclGroupStart());
    good(ncclAllReduce(x.data(), y.data(), 1, ncclFloat32, ncclSum, mine.comm, stream));
    CHECK(ncclGroupEnd() == ncclSystemError);
    good(cudaStreamSynchronize(stream));
    CHECK(y.read()[0] == 0);
    good(ncclAllReduce(x.data(), y.data(), 1, ncclFloat32, ncclSum, mine.comm, stream));
    good(cudaStreamSynchronize(stream));
    CHECK(y.read()[0] == 1);
    good(ncclGroupStart());
    CHECK(ncclSend(x.data(), 1, ncclFloat32, 7, mine.comm, stream) == ncclInvalidArgument);
    CHECK(ncclGroupEnd() == ncclInvalidArgument);
  });
  check_nothing_found();
}

TEST_CASE("gpu emulator: an abort releases the peers if asked to") {
  no_deadlocks();
  emulator::Options options = emulator::options();
  options.abort_releases_peers = true;
  emulator::set_options(options);
  on_ranks(2, [](Rank& mine) {
    const Floats in(std::vector<float>(4, -1));
    const Stream stream;
    if (mine.rank == 1) {
      good(ncclCommAbort(mine.comm));
      mine.comm = nullptr;
      return;
    }
    good(ncclRecv(in.data(), 4, ncclFloat32, 1, mine.comm, stream));
    wait_until_done(stream);
    CHECK(in.read() == std::vector<float>(4, -1));
  });
  check_nothing_found();
}

TEST_CASE("gpu emulator: a stalled rank comes when it is resumed") {
  no_deadlocks();
  emulator::stall_rank(1);
  on_ranks(2, [](Rank& mine) {
    const Floats out(std::vector<float>(4, 1));
    const Floats in(std::vector<float>(4));
    const Stream stream;
    exchange(mine, out, 1 - mine.rank, in, 1 - mine.rank, stream);
    if (mine.rank == 0) {
      CHECK(cudaStreamQuery(stream) == cudaErrorNotReady);
      emulator::resume_rank(1);
    }
    wait_until_done(stream);
  });
  check_nothing_found();
}

TEST_CASE("gpu emulator: a killed rank's calls fail or hang, and its messages never come") {
  no_deadlocks();
  std::atomic<bool> killed{false};
  on_ranks(2, [&](Rank& mine) {
    const Floats x(std::vector<float>(4, 1));
    const Stream stream;
    if (mine.rank == 1) {
      emulator::kill_rank(1);
      CHECK(ncclSend(x.data(), 4, ncclFloat32, 0, mine.comm, stream) == ncclRemoteError);
      emulator::kill_rank(1, emulator::Death::hangs);
      killed = true;
      auto call =
          std::async(std::launch::async, [&] { return ncclSend(x.data(), 4, ncclFloat32, 0, mine.comm, stream); });
      CHECK(call.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout);
      good(ncclCommAbort(mine.comm));
      CHECK(call.get() == ncclRemoteError);
    } else {
      while (!killed) std::this_thread::yield();
      good(ncclRecv(x.data(), 4, ncclFloat32, 1, mine.comm, stream));
      CHECK(cudaStreamQuery(stream) == cudaErrorNotReady);
      emulator::async_error(0, ncclRemoteError);
      ncclResult_t state = ncclSuccess;
      good(ncclCommGetAsyncError(mine.comm, &state));
      CHECK(state == ncclRemoteError);
      good(ncclCommAbort(mine.comm));
      wait_until_done(stream);
    }
    mine.comm = nullptr;
  });
  check_nothing_found();
}

TEST_CASE("gpu emulator: an abort ends the wait of a first contact") {
  no_deadlocks();
  emulator::Options options = emulator::options();
  options.first_contact_blocks = true;
  emulator::set_options(options);
  on_ranks(2, [](Rank& mine) {
    if (mine.rank == 1) return;
    const Floats x(std::vector<float>(4, 1));
    const Stream stream;
    auto call =
        std::async(std::launch::async, [&] { return ncclSend(x.data(), 4, ncclFloat32, 1, mine.comm, stream); });
    CHECK(call.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout);
    good(ncclCommAbort(mine.comm));
    mine.comm = nullptr;
    CHECK(call.get() == ncclInternalError);
  });
  check_nothing_found();
}

TEST_CASE("gpu emulator: a revoked communicator can only be destroyed") {
  emulator::reset();
  on_ranks(2, [](Rank& mine) {
    const Floats x(std::vector<float>(4, 1));
    const Stream stream;
    if (mine.rank == 0) good(ncclRecv(x.data(), 4, ncclFloat32, 1, mine.comm, stream));
    good(ncclCommRevoke(mine.comm, 0));
    good(cudaStreamSynchronize(stream));
    CHECK(ncclSend(x.data(), 4, ncclFloat32, 1 - mine.rank, mine.comm, stream) == ncclInvalidUsage);
  });
  check_nothing_found();
}

TEST_CASE("gpu emulator: ncclInProgress on demand") {
  emulator::reset();
  on_ranks(1, [](Rank& mine) {
    emulator::return_in_progress(2);
    ncclResult_t state = ncclSuccess;
    good(ncclCommGetAsyncError(mine.comm, &state));
    CHECK(state == ncclInProgress);
    good(ncclCommGetAsyncError(mine.comm, &state));
    CHECK(state == ncclInProgress);
    good(ncclCommGetAsyncError(mine.comm, &state));
    CHECK(state == ncclSuccess);
  });
  check_nothing_found();
}
