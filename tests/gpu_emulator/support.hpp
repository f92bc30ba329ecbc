// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>
#include <nccl.h>

#include "emulator.hpp"

/// @file
/// What the tests of the emulator share. They use CUDA and NCCL as any program does, and emulator.hpp.
namespace emulator = kith::gpu_emulator;

inline void good(cudaError_t code) { CHECK(code == cudaSuccess); }
inline void good(ncclResult_t code) { CHECK(code == ncclSuccess); }

inline std::size_t count_findings(const std::string& kind) {
  const auto all = emulator::findings();
  return static_cast<std::size_t>(
      std::count_if(all.begin(), all.end(), [&](const emulator::Finding& finding) { return finding.kind == kind; }));
}

/// Exactly findings of this kind, at least one, and one of them says `text`. They are cleared.
inline void check_found(const std::string& kind, const std::string& text) {
  const auto all = emulator::findings();
  CAPTURE(kind);
  CHECK(count_findings(kind) == all.size());
  CHECK(std::any_of(all.begin(), all.end(),
                    [&](const emulator::Finding& finding) { return finding.text.find(text) != std::string::npos; }));
  emulator::clear_findings();
}

inline void check_nothing_found() { CHECK(emulator::findings().empty()); }

/// Floats on the device. Made and read in blocking calls.
class Floats {
public:
  explicit Floats(const std::vector<float>& values) : count_(values.size()) {
    good(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()));
    good(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice));
  }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  ~Floats() { cudaFree(data_); }

  [[nodiscard]] float* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] std::size_t bytes() const { return count_ * sizeof(float); }
  [[nodiscard]] std::vector<float> read() const {
    std::vector<float> values(count_);
    good(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return values;
  }

private:
  float* data_ = nullptr;
  std::size_t count_;
};

class Stream {
public:
  Stream() { good(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }  // NOLINT: used as one everywhere

private:
  cudaStream_t stream_ = nullptr;
};

class Event {
public:
  Event() { good(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  operator cudaEvent_t() const { return event_; }  // NOLINT: used as one everywhere

private:
  cudaEvent_t event_ = nullptr;
};

struct Rank {
  int rank;
  int size;
  ncclComm_t comm;  // set it to null after an abort
};

/// Runs `body` on `size` ranks, each a thread with a device and a communicator of its own.
inline void on_ranks(int size, const std::function<void(Rank&)>& body) {
  ncclUniqueId id;
  good(ncclGetUniqueId(&id));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back([&, rank] {
      Rank mine{rank, size, nullptr};
      good(cudaSetDevice(rank));
      good(ncclCommInitRank(&mine.comm, size, id, rank));
      body(mine);
      if (mine.comm != nullptr) good(ncclCommDestroy(mine.comm));
    });
  for (std::thread& thread : threads) thread.join();
}

/// Sends to `to` and receives from `from` in one group.
inline void exchange(const Rank& mine, const Floats& out, int to, const Floats& in, int from, cudaStream_t stream) {
  good(ncclGroupStart());
  good(ncclSend(out.data(), out.size(), ncclFloat32, to, mine.comm, stream));
  good(ncclRecv(in.data(), in.size(), ncclFloat32, from, mine.comm, stream));
  good(ncclGroupEnd());
}

/// A "kernel" for host compilers: y += a * x for n floats. Only its address is used.
void add_scaled(float* y, const float* x, float a, std::size_t n);
void bind_add_scaled();
cudaError_t launch_add_scaled(const Floats& y, const Floats& x, float a, cudaStream_t stream);
