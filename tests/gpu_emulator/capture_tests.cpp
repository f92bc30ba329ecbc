// SPDX-License-Identifier: Apache-2.0
#include "support.hpp"

TEST_CASE("gpu emulator: a captured exchange is replayed, with a fork and a join") {
  emulator::reset();
  on_ranks(4, [](Rank& mine) {
    const Floats x(std::vector<float>(8, static_cast<float>(mine.rank)));
    const Floats in(std::vector<float>(8));
    const Stream stream;
    const Stream messages;
    const Event fork;
    const Event joined;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    good(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    good(cudaEventRecord(fork, stream));
    good(cudaStreamWaitEvent(messages, fork, 0));
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    good(cudaStreamIsCapturing(messages, &status));
    CHECK(status == cudaStreamCaptureStatusActive);
    exchange(mine, x, (mine.rank + 1) % 4, in, (mine.rank + 3) % 4, messages);
    good(cudaEventRecord(joined, messages));
    good(cudaStreamWaitEvent(stream, joined, 0));
    good(launch_add_scaled(x, in, 1, stream));
    good(cudaStreamEndCapture(stream, &graph));
    good(cudaGraphInstantiate(&executable, graph, 0));
    good(cudaGraphDestroy(graph));
    good(cudaStreamSynchronize(stream));
    CHECK(x.read()[0] == static_cast<float>(mine.rank));  // nothing has run yet
    good(cudaGraphLaunch(executable, stream));
    good(cudaGraphLaunch(executable, stream));
    good(cudaStreamSynchronize(stream));
    // x_r + 2 x_(r-1) + x_(r-2) after two rounds
    const auto at = [&](int shift) { return static_cast<float>((mine.rank + 4 - shift) % 4); };
    CHECK(x.read() == std::vector<float>(8, at(0) + 2 * at(1) + at(2)));
    good(cudaGraphExecDestroy(executable));
  });
  check_nothing_found();
  CHECK(emulator::leaks().empty());
}

TEST_CASE("gpu emulator: a capture that waits is invalid") {
  emulator::reset();
  const Stream stream;
  const Floats x(std::vector<float>(8));
  cudaGraph_t graph = nullptr;
  good(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  CHECK(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported);
  CHECK(launch_add_scaled(x, x, 1, stream) == cudaErrorStreamCaptureInvalidated);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
  CHECK(graph == nullptr);

  // Of the three modes, only the relaxed one lets its own thread allocate.
  for (const auto mode :
       {cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed}) {
    void* memory = nullptr;
    const bool relaxed = mode == cudaStreamCaptureModeRelaxed;
    good(cudaStreamBeginCapture(stream, mode));
    CHECK(cudaMalloc(&memory, 8) == (relaxed ? cudaSuccess : cudaErrorStreamCaptureUnsupported));
    CHECK(cudaStreamEndCapture(stream, &graph) == (relaxed ? cudaSuccess : cudaErrorStreamCaptureInvalidated));
    good(cudaFree(memory));
    if (graph != nullptr) good(cudaGraphDestroy(graph));
  }
  check_nothing_found();
}

TEST_CASE("gpu emulator: a thread may change how strictly it is kept from unsafe calls") {
  emulator::reset();
  const Stream stream;
  void* memory = nullptr;
  cudaGraph_t graph = nullptr;
  good(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  good(cudaThreadExchangeStreamCaptureMode(&mode));
  CHECK(mode == cudaStreamCaptureModeGlobal);
  good(cudaMalloc(&memory, 8));
  good(cudaThreadExchangeStreamCaptureMode(&mode));
  CHECK(mode == cudaStreamCaptureModeRelaxed);
  good(cudaStreamEndCapture(stream, &graph));
  good(cudaGraphDestroy(graph));
  good(cudaFree(memory));
  check_nothing_found();
}

TEST_CASE("gpu emulator: forks that do not come back, and work from outside") {
  emulator::reset();
  const Stream stream;
  const Stream other;
  const Event event;
  const Floats x(std::vector<float>(8));
  cudaGraph_t graph = nullptr;
  good(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  good(cudaEventRecord(event, stream));
  good(cudaStreamWaitEvent(other, event, 0));
  good(launch_add_scaled(x, x, 1, other));
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureUnjoined);

  good(cudaEventRecord(event, other));
  good(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  CHECK(cudaStreamWaitEvent(stream, event, 0) == cudaErrorStreamCaptureIsolation);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
  good(cudaStreamSynchronize(other));
  check_nothing_found();
}

TEST_CASE("gpu emulator: RACE, inside a captured graph") {
  emulator::reset();
  const Stream stream;
  const Stream other;
  const Event fork;
  const Event joined;
  const Floats x(std::vector<float>(8));
  cudaGraph_t graph = nullptr;
  good(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  good(cudaEventRecord(fork, stream));
  good(cudaStreamWaitEvent(other, fork, 0));
  good(launch_add_scaled(x, x, 1, stream));
  good(launch_add_scaled(x, x, 1, other));
  good(cudaEventRecord(joined, other));
  good(cudaStreamWaitEvent(stream, joined, 0));
  good(cudaStreamEndCapture(stream, &graph));
  good(cudaGraphDestroy(graph));
  check_found("RACE", "(captured)");
}
