// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

/// @file
/// What a test program may ask of the emulated GPU. The functions are in the library that is preloaded; without it
/// (on a real GPU) available() is false and none of the others may be called.
///
/// Any thread may call them. A "rank" is the rank of the first communicator that a thread made (or that a communicator
/// was split from).
///
/// Stricter than a GPU: streams are lazy, so nothing runs until a thread waits or asks, and that thread then drives all
/// streams; messages and collectives are rendezvous. What it cannot show: the kernels themselves (launch geometry,
/// races inside), NCCL's own faults, real overlap, performance. A message does not order what its two ranks do to other
/// memory. A graph is launched as one sequence. Of two threads, each comes after whatever the other one waited for.
namespace kith::gpu_emulator {

/// `bytes` bytes of device or pinned memory, by the address that the program knows.
struct Range {
  const void* data;
  std::size_t bytes;
};

/// Turns a device address into one where the host can work on the memory; leaves host addresses alone.
using Translate = void* (*)(const void*);

/// What a kernel does when it is launched here: `arguments[i]` points to a copy of the i-th argument.
struct KernelBody {
  /// sizeof of each argument.
  std::vector<std::size_t> argument_bytes;
  /// What a launch reads and writes: for the detection of races and of accesses out of bounds. Called at the launch.
  std::function<void(void** arguments, dim3 grid, dim3 block, std::vector<Range>& reads, std::vector<Range>& writes)>
      accesses;
  /// Does the work. Called when the stream gets there. It must not call CUDA or NCCL.
  std::function<void(void** arguments, dim3 grid, dim3 block, Translate translate)> run;
};

/// A mistake of the program. Kinds: MISMATCH, DEADLOCK, RACE, OUT-OF-BOUNDS, WRONG-DEVICE, FREE-IN-FLIGHT,
/// STREAM-DESTROYED-BUSY, COMM-DESTROYED-BUSY, UNMATCHED, EVENT-NEVER-RECORDED, INVALID-HANDLE, DEFAULT-STREAM,
/// COMM-NOT-READY, NO-HOST-BODY, LEAK. Two more show without a finding: the host's own access to device memory faults
/// (SIGSEGV), and what an asynchronous copy will write to the host is NaN (bytes 0xff) until it has really run.
struct Finding {
  std::string kind;
  std::string text;
};

struct Options {
  /// What cudaGetDeviceCount says. Any number of ranks may use one device.
  int devices = 8;
  /// A call that waits reports a DEADLOCK after so long without any progress anywhere; 0 = never. The default comes
  /// from KITH_GPU_EMULATOR_DEADLOCK_MS where that is set. The call returns cudaErrorLaunchTimeout (ncclInternalError);
  /// so do later ones, at once, as long as nothing has happened since.
  int deadlock_ms = 2000;
  /// Abort releases the peers too: what they wait for from the aborted rank completes, without data.
  bool abort_releases_peers = false;
  /// The first group that uses an edge blocks its host thread until the other end has come, as NCCL does. With a
  /// communicator of `blocking = 0`, it says ncclInProgress until then.
  bool first_contact_blocks = false;
  /// How many calls of ncclCommGetAsyncError say ncclInProgress after each operation on a communicator of
  /// `blocking = 0`. Nothing is on the stream before.
  int in_progress_polls = 2;
  /// At exit, memory, streams, events and communicators that are left are findings (LEAK).
  bool report_leaks = false;
};

/// How a killed rank's own NCCL calls end.
enum class Death { returns_error, hangs };

#define KITH_GPU_EMULATOR_WEAK __attribute__((weak))

/// What was found since the start or the last clear; equal findings once. With KITH_GPU_EMULATOR_FATAL=1 in the
/// environment, a process that would end with 0 ends with 86 if there are any left.
KITH_GPU_EMULATOR_WEAK std::vector<Finding> findings();
KITH_GPU_EMULATOR_WEAK void clear_findings();

/// True if the emulator is there.
inline bool available() { return &findings != nullptr; }

/// What the kernel at this address (the function that `<<<>>>` names) does. A later bind replaces an earlier one.
KITH_GPU_EMULATOR_WEAK void bind(const void* kernel, KernelBody body);

KITH_GPU_EMULATOR_WEAK Options options();
KITH_GPU_EMULATOR_WEAK void set_options(const Options& options);
/// Default options, no faults, no findings. Memory, streams, communicators and kernels stay.
KITH_GPU_EMULATOR_WEAK void reset();

/// The `nth` call (1 = the next) of this CUDA or NCCL function, by any thread or by those of one rank, does nothing and
/// returns `code`.
KITH_GPU_EMULATOR_WEAK void fail_call(const std::string& function, int nth, int code, int rank = -1);
/// The next `count` calls of ncclCommGetAsyncError say ncclInProgress, whatever the communicator.
KITH_GPU_EMULATOR_WEAK void return_in_progress(int count);
/// NCCL operations of this rank do not start any more, until it is resumed.
KITH_GPU_EMULATOR_WEAK void stall_rank(int rank);
KITH_GPU_EMULATOR_WEAK void resume_rank(int rank);
/// The rank's NCCL operations never come, and its NCCL calls on a communicator return ncclRemoteError or hang until the
/// communicator is aborted.
KITH_GPU_EMULATOR_WEAK void kill_rank(int rank, Death death = Death::returns_error);
/// ncclCommGetAsyncError on this rank's communicators says `code` from now on (ncclSuccess takes it back).
KITH_GPU_EMULATOR_WEAK void async_error(int rank, int code);

/// From the first mark on, this thread's calls of CUDA and NCCL functions are recorded. Returns the position.
KITH_GPU_EMULATOR_WEAK std::size_t mark();
/// The names of this thread's calls since the mark.
KITH_GPU_EMULATOR_WEAK std::vector<std::string> calls(std::size_t mark);
/// Those of them that make the host wait for the device, or may: synchronizations, blocking copies, allocations, and
/// asynchronous copies from or to pageable memory.
KITH_GPU_EMULATOR_WEAK std::vector<std::string> synchronizations(std::size_t mark);

/// The number of directed edges, over all communicators, whose two ends have both been used.
KITH_GPU_EMULATOR_WEAK std::size_t edges_connected();
/// The number of edges that were connected since edges_connected() said `mark`.
KITH_GPU_EMULATOR_WEAK std::size_t first_contacts_since(std::size_t mark);

/// What is alive now: device and pinned memory, streams, events, graphs, communicators. One line each.
KITH_GPU_EMULATOR_WEAK std::vector<std::string> leaks();

}  // namespace kith::gpu_emulator
