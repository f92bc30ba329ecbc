// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include <nccl.h>

#include "emulator.hpp"

/// @file
/// What every part of the emulator shares: the one lock, what is known of a thread, findings, and the frame that each
/// CUDA and NCCL function runs in.
namespace kith::gpu_emulator::detail {

using Lock = std::unique_lock<std::mutex>;

struct Thread {
  int device = 0;
  int rank = -1;  // of its first communicator
  cudaError_t last_error = cudaSuccess;
  cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
  bool traced = false;
  std::vector<const char*> trace;  // names are literals
};
Thread& this_thread();

/// Everything below belongs to whoever holds the mutex. It is never destroyed: programs call CUDA until the very end.
struct Core {
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t activity = 0;  // grows with everything that may let a waiting thread go on
  int host_functions = 0;      // running now, with the mutex released
  Options options;
  std::vector<Finding> findings;
};
Core& core();

void report(const std::string& kind, const std::string& text);

/// Something has happened that waiting threads should look at. One of them can do the work for all (see drain()).
void acted();

/// Adds a name to this thread's trace.
void trace(const char* name);

/// Records the call; true if it is to fail with `code`.
bool begin_call(const char* name, int& code);

/// The frame of a CUDA function: `body(lock)` does the work with the lock held.
template <class Body>
cudaError_t cuda_call(const char* name, Body&& body) {
  Lock lock{core().mutex};
  int code = 0;
  const cudaError_t result = begin_call(name, code) ? static_cast<cudaError_t>(code) : body(lock);
  if (result != cudaSuccess) this_thread().last_error = result;
  return result;
}

/// The same for NCCL.
template <class Body>
ncclResult_t nccl_call(const char* name, Body&& body) {
  Lock lock{core().mutex};
  int code = 0;
  return begin_call(name, code) ? static_cast<ncclResult_t>(code) : body(lock);
}

/// The state of faults that the NCCL part asks about; `rank` as in the control functions.
bool rank_is_stalled(int rank);
bool rank_is_dead(int rank);
bool rank_hangs(int rank);
ncclResult_t rank_async_error(int rank);
bool take_in_progress();

/// See leaks().
std::vector<std::string> leaks_now();

}  // namespace kith::gpu_emulator::detail
