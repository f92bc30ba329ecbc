// SPDX-License-Identifier: Apache-2.0
// One broken program for each mistake that the emulator knows. Each is found under its name.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "support.hpp"

namespace {

void short_deadlocks() {
  emulator::reset();
  emulator::Options options;
  options.deadlock_ms = 100;
  emulator::set_options(options);
}

// What waitpid says of a child that runs `body` and ends with 0.
int status_of(const std::function<void()>& body) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    body();
    std::exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  return status;
}

}  // namespace

TEST_CASE("gpu emulator: MISMATCH, counts differ") {
  emulator::reset();
  on_ranks(2, [](Rank& mine) {
    const Floats x(std::vector<float>(10, 1));
    const Stream stream;
    if (mine.rank == 0) {
      good(ncclSend(x.data(), 5, ncclFloat32, 1, mine.comm, stream));
    } else {
      good(ncclRecv(x.data(), 10, ncclFloat32, 0, mine.comm, stream));
    }
    good(cudaStreamSynchronize(stream));
  });
  check_found("MISMATCH", "rank 0 of 2: ncclSend of 5 float32 to 1 meets, at rank 1 of 2, ncclRecv of 10 float32");
}

TEST_CASE("gpu emulator: MISMATCH, types differ") {
  emulator::reset();
  on_ranks(2, [](Rank& mine) {
    const Floats x(std::vector<float>(10, 1));
    const Stream stream;
    const ncclDataType_t type = mine.rank == 0 ? ncclFloat32 : ncclInt32;
    good(ncclAllReduce(x.data(), x.data(), 10, type, ncclSum, mine.comm, stream));
    good(cudaStreamSynchronize(stream));
  });
  check_found("MISMATCH", "int32");
}

TEST_CASE("gpu emulator: DEADLOCK, send and receive not in one group") {
  short_deadlocks();
  on_ranks(2, [](Rank& mine) {
    const Floats out(std::vector<float>(10, 1));
    const Floats in(std::vector<float>(10));
    cudaStream_t stream = nullptr;
    good(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    good(ncclSend(out.data(), 10, ncclFloat32, 1 - mine.rank, mine.comm, stream));
    good(ncclRecv(in.data(), 10, ncclFloat32, 1 - mine.rank, mine.comm, stream));
    CHECK(cudaStreamSynchronize(stream) == cudaErrorLaunchTimeout);
    good(ncclCommAbort(mine.comm));
    mine.comm = nullptr;
    good(cudaStreamSynchronize(stream));
    good(cudaStreamDestroy(stream));
  });
  check_found("DEADLOCK", "is at ncclSend of 10 float32 to 1");
}

TEST_CASE("gpu emulator: RACE, no event between the streams") {
  emulator::reset();
  on_ranks(2, [](Rank& mine) {
    const Floats x(std::vector<float>(10, 1));
    const Floats in(std::vector<float>(10));
    const Stream compute;
    const Stream messages;
    good(launch_add_scaled(x, x, 1, compute));
    exchange(mine, x, 1 - mine.rank, in, 1 - mine.rank, messages);
    good(cudaStreamSynchronize(compute));
    good(cudaStreamSynchronize(messages));
    CHECK(in.read() == std::vector<float>(10, 2));  // the numbers are right, by luck
  });
  const auto all = emulator::findings();
  CHECK(all.size() == 2);  // one for each rank, by name
  check_found("RACE", "rank 1, stream");
}

TEST_CASE("gpu emulator: RACE, receive into what is being sent") {
  emulator::reset();
  on_ranks(2, [](Rank& mine) {
    const Floats x(std::vector<float>(10, 1));
    const Stream stream;
    exchange(mine, x, 1 - mine.rank, x, 1 - mine.rank, stream);
    good(cudaStreamSynchronize(stream));
  });
  check_found("RACE", "overlaps, in the same group,");
}

TEST_CASE("gpu emulator: RACE, only the part of a buffer that overlaps counts") {
  emulator::reset();
  const Floats x(std::vector<float>(100, 1));
  const Stream a;
  const Stream b;
  good(cudaMemsetAsync(x.data(), 0, 200, a));
  good(cudaMemsetAsync(x.data() + 50, 0, 200, b));
  check_nothing_found();
  good(cudaMemsetAsync(x.data() + 40, 0, 80, a));
  check_found("RACE", "cudaMemsetAsync");
  good(cudaDeviceSynchronize());
}

TEST_CASE("gpu emulator: RACE, what a later access hides only in part is still known") {
  emulator::reset();
  const Floats x(std::vector<float>(100, 1));
  const Stream a;
  const Stream b;
  good(cudaMemsetAsync(x.data(), 0, 400, a));
  good(cudaMemsetAsync(x.data() + 25, 0, 100, a));
  good(cudaMemsetAsync(x.data(), 0, 40, b));
  check_found("RACE", "cudaMemsetAsync");
  good(cudaMemsetAsync(x.data() + 75, 0, 40, b));
  check_found("RACE", "cudaMemsetAsync");
  good(cudaDeviceSynchronize());
}

TEST_CASE("gpu emulator: RACE, a read does not hide the write before it, a wait by the host orders everything") {
  emulator::reset();
  const Floats x(std::vector<float>(10, 1));
  const Floats y(std::vector<float>(10, 1));
  const Floats z(std::vector<float>(10, 1));
  const Stream a;
  const Stream b;
  const Stream c;
  const Event written;
  good(cudaMemsetAsync(x.data(), 0, 40, a));
  good(cudaEventRecord(written, a));
  good(cudaStreamWaitEvent(b, written, 0));
  good(launch_add_scaled(y, x, 1, b));
  check_nothing_found();
  good(launch_add_scaled(z, x, 1, c));
  CHECK(emulator::findings().size() == 1);  // with the write, not with the read
  check_found("RACE", "(reads) is not ordered after");
  good(cudaEventSynchronize(written));
  good(launch_add_scaled(z, x, 1, c));
  check_nothing_found();
  good(cudaMemsetAsync(x.data(), 0, 40, c));  // b still reads: the host has not waited for that
  check_found("RACE", "(reads)");
  while (cudaStreamQuery(b) == cudaErrorNotReady) std::this_thread::yield();
  while (cudaStreamQuery(c) == cudaErrorNotReady) std::this_thread::yield();
  good(cudaMemsetAsync(x.data(), 0, 40, a));
  good(cudaStreamSynchronize(a));
  check_nothing_found();
}

TEST_CASE("gpu emulator: OUT-OF-BOUNDS, a byte count taken for a count of floats") {
  emulator::reset();
  on_ranks(2, [](Rank& mine) {
    const Floats loss(std::vector<float>{1});
    const Stream stream;
    good(ncclAllReduce(loss.data(), loss.data(), sizeof(float), ncclFloat32, ncclSum, mine.comm, stream));
    good(cudaStreamSynchronize(stream));
  });
  check_found("OUT-OF-BOUNDS", "ncclAllReduce of 4 float32");
}

TEST_CASE("gpu emulator: OUT-OF-BOUNDS, freed memory and host memory in a kernel") {
  emulator::reset();
  const Stream stream;
  float* kept = nullptr;
  {
    const Floats x(std::vector<float>(10, 1));
    kept = x.data();
  }
  good(cudaMemsetAsync(kept, 0, 4, stream));
  check_found("OUT-OF-BOUNDS", "was freed");
  float host = 0;
  good(cudaMemcpyAsync(&host, kept, 4, cudaMemcpyDeviceToHost, stream));
  check_found("OUT-OF-BOUNDS", "was freed");
  const Floats page(std::vector<float>(1024));
  good(cudaMemcpyAsync(&host, page.data() + 1024, 4, cudaMemcpyDeviceToHost, stream));
  check_found("OUT-OF-BOUNDS", "ends 4100 bytes after the start of 4096 bytes");
  good(cudaStreamSynchronize(stream));
  const Floats y(std::vector<float>{1});
  float* to = y.data();
  const float* from = &host;
  float a = 1;
  std::size_t n = 1;
  void* arguments[] = {&to, &from, &a, &n};
  good(cudaLaunchKernel(reinterpret_cast<const void*>(&add_scaled), dim3{1}, dim3{32}, arguments, 0, stream));
  check_found("OUT-OF-BOUNDS", "is not in memory that a device can reach");
  good(cudaStreamSynchronize(stream));
  from = kept;
  good(cudaLaunchKernel(reinterpret_cast<const void*>(&add_scaled), dim3{1}, dim3{32}, arguments, 0, stream));
  check_found("OUT-OF-BOUNDS", "was freed");
  good(cudaStreamSynchronize(stream));
}

TEST_CASE("gpu emulator: WRONG-DEVICE, memory that was allocated for another device") {
  emulator::reset();
  good(cudaSetDevice(1));
  const Floats x(std::vector<float>(10, 1));
  good(cudaSetDevice(0));
  const Stream stream;
  good(launch_add_scaled(x, x, 1, stream));
  good(cudaStreamSynchronize(stream));
  check_found("WRONG-DEVICE", "device 1");
}

TEST_CASE("gpu emulator: the host's access to device memory faults") {
  emulator::reset();
  const Floats x(std::vector<float>(10, 1));
  const int status = status_of([&] {
    std::signal(SIGSEGV, SIG_DFL);  // a test framework or a sanitizer may have its own
    const volatile float value = *x.data();
    static_cast<void>(value);
  });
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGSEGV);
}

TEST_CASE("gpu emulator: a copy's target holds NaN until the stream was waited for") {
  emulator::reset();
  const Floats x(std::vector<float>(10, 1));
  const Stream stream;
  std::vector<float> host(10, 1);
  good(cudaMemcpyAsync(host.data(), x.data(), x.bytes(), cudaMemcpyDeviceToHost, stream));
  CHECK(std::isnan(host[0]));
  good(cudaStreamSynchronize(stream));
  CHECK(host[0] == 1);
  check_nothing_found();
}

TEST_CASE("gpu emulator: FREE-IN-FLIGHT") {
  emulator::reset();
  const Stream stream;
  float* x = nullptr;
  good(cudaMalloc(reinterpret_cast<void**>(&x), 40));
  good(cudaMemsetAsync(x, 0, 40, stream));
  good(cudaFree(x));
  check_found("FREE-IN-FLIGHT", "cudaMemsetAsync");
  good(cudaStreamSynchronize(stream));
  CHECK(cudaFree(x) == cudaErrorInvalidValue);
  check_found("INVALID-HANDLE", "or not any more");
}

TEST_CASE("gpu emulator: STREAM-DESTROYED-BUSY") {
  emulator::reset();
  const Floats x(std::vector<float>(10, 1));
  {
    const Stream stream;
    good(launch_add_scaled(x, x, 1, stream));
  }
  check_found("STREAM-DESTROYED-BUSY", "still has to do");
  good(cudaDeviceSynchronize());
  CHECK(x.read() == std::vector<float>(10, 2));  // it was done nevertheless
}

TEST_CASE("gpu emulator: EVENT-NEVER-RECORDED and handles that are gone") {
  emulator::reset();
  const Stream stream;
  cudaEvent_t event = nullptr;
  good(cudaEventCreate(&event));
  good(cudaStreamWaitEvent(stream, event, 0));
  check_found("EVENT-NEVER-RECORDED", "never recorded");
  good(cudaEventDestroy(event));
  cudaGetLastError();
  CHECK(cudaEventRecord(event, stream) == cudaErrorInvalidResourceHandle);
  check_found("INVALID-HANDLE", "event");
  CHECK(cudaGetLastError() == cudaErrorInvalidResourceHandle);
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("gpu emulator: COMM-DESTROYED-BUSY and UNMATCHED") {
  emulator::reset();
  on_ranks(2, [](Rank& mine) {
    const Floats x(std::vector<float>(10, 1));
    const Stream stream;
    if (mine.rank == 0) {
      good(ncclSend(x.data(), 10, ncclFloat32, 1, mine.comm, stream));
      CHECK(cudaStreamQuery(stream) == cudaErrorNotReady);  // posted
    }
    good(ncclCommDestroy(mine.comm));
    mine.comm = nullptr;
    good(cudaStreamSynchronize(stream));
  });
  CHECK(count_findings("COMM-DESTROYED-BUSY") == 1);
  CHECK(count_findings("UNMATCHED") == 1);
  CHECK(emulator::findings().size() == 2);
  emulator::clear_findings();
}

TEST_CASE("gpu emulator: DEFAULT-STREAM") {
  emulator::reset();
  on_ranks(1, [](Rank& mine) {
    const Floats x(std::vector<float>(10, 1));
    good(ncclAllReduce(x.data(), x.data(), 10, ncclFloat32, ncclSum, mine.comm, nullptr));
    good(cudaDeviceSynchronize());
  });
  check_found("DEFAULT-STREAM", "ncclAllReduce");
}

TEST_CASE("gpu emulator: COMM-NOT-READY, a call while the last one is in progress") {
  emulator::reset();
  ncclUniqueId id;
  good(ncclGetUniqueId(&id));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  CHECK(ncclCommInitRankConfig(&comm, 1, id, 0, &config) == ncclInProgress);
  const Floats x(std::vector<float>(10, 1));
  const Stream stream;
  CHECK(ncclAllReduce(x.data(), x.data(), 10, ncclFloat32, ncclSum, comm, stream) == ncclInvalidArgument);
  check_found("COMM-NOT-READY", "rank 0 of 1");
  good(ncclCommDestroy(comm));
}

TEST_CASE("gpu emulator: a process with findings ends with 86 if it is told to") {
  emulator::reset();
  const auto broken = [] {
    const Stream stream;
    float* x = nullptr;
    good(cudaMalloc(reinterpret_cast<void**>(&x), 40));
    good(cudaMemsetAsync(x, 0, 40, stream));
    good(cudaFree(x));
    good(cudaStreamSynchronize(stream));
  };
  setenv("KITH_GPU_EMULATOR_FATAL", "1", 1);
  int status = status_of(broken);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 86);
  status = status_of([&] {
    broken();
    emulator::clear_findings();
  });
  CHECK(status == 0);
  unsetenv("KITH_GPU_EMULATOR_FATAL");
  CHECK(status_of(broken) == 0);
}

TEST_CASE("gpu emulator: what is left at exit is found: LEAK when asked for, UNMATCHED always") {
  emulator::reset();
  setenv("KITH_GPU_EMULATOR_FATAL", "1", 1);
  const auto leak = [] {
    float* x = nullptr;
    good(cudaMalloc(reinterpret_cast<void**>(&x), 40));
  };
  CHECK(status_of(leak) == 0);
  const int leaked = status_of([&] {
    leak();
    emulator::Options options;
    options.report_leaks = true;
    emulator::set_options(options);
  });
  CHECK(WEXITSTATUS(leaked) == 86);
  const int unmatched = status_of([] {
    ncclUniqueId id;
    good(ncclGetUniqueId(&id));
    ncclComm_t comms[2];
    good(ncclGroupStart());
    good(ncclCommInitRank(&comms[0], 2, id, 0));
    good(ncclCommInitRank(&comms[1], 2, id, 1));
    good(ncclGroupEnd());
    float* x = nullptr;
    good(cudaMalloc(reinterpret_cast<void**>(&x), 40));
    cudaStream_t stream = nullptr;
    good(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    good(ncclSend(x, 10, ncclFloat32, 1, comms[0], stream));
  });
  CHECK(WEXITSTATUS(unmatched) == 86);
  unsetenv("KITH_GPU_EMULATOR_FATAL");
}
