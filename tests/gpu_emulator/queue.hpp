// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core.hpp"
#include "history.hpp"

/// @file
/// Streams as lazy queues. Nothing runs until some thread waits or asks; that thread then drives all streams.
namespace kith::gpu_emulator::detail {

/// Does what can be done now; true when the operation has ended.
using Step = std::function<bool()>;

/// An operation as a stream or a graph holds it. A graph starts it several times.
struct Work {
  std::string what;
  std::vector<Access> accesses{};
  bool is_copy = false;  // copies reach host memory and other devices
  /// Called at each enqueue; the steps of that enqueue follow. Null: nothing to do.
  std::function<Step()> start{};
  /// The operation will not touch its buffers any more (its communicator was aborted). Null: never.
  std::function<bool()> cancelled{};
  /// Called without the lock when the stream gets there (cudaLaunchHostFunc). Null for everything else.
  std::function<void()> host_function{};
};

/// The end of an operation.
struct Point {
  StreamId stream;
  std::uint64_t number;
};

struct Capture;

struct Operation {
  std::uint64_t number;
  std::shared_ptr<const Work> work;
  std::vector<Point> waits;
  Step step;
};

}  // namespace kith::gpu_emulator::detail

struct CUstream_st {
  kith::gpu_emulator::detail::StreamId id = 0;
  int device = 0;
  int rank = -1;
  unsigned flags = 0;
  int priority = 0;
  bool built_in = false;  // a default stream: nobody created it and nobody destroys it
  bool destroyed = false;
  bool running = false;  // a host function, with the lock released
  std::uint64_t number = 0;
  kith::gpu_emulator::detail::Clock clock{};
  std::deque<kith::gpu_emulator::detail::Operation> queue{};
  std::shared_ptr<kith::gpu_emulator::detail::Capture> capture{};
};

namespace kith::gpu_emulator::detail {

using Stream = CUstream_st;

/// "rank 0, stream 3".
std::string where(const Stream& stream);

/// The stream that a handle means; null, after a finding, for one that is not alive.
Stream* find_stream(cudaStream_t handle);

Stream& create_stream(unsigned flags, int priority);
/// It goes on until its queue is empty.
void destroy_stream(Stream& stream);
std::vector<Stream*> all_streams();

/// Appends the work, or records it where the stream is capturing.
cudaError_t enqueue(Stream& stream, std::shared_ptr<const Work> work, std::vector<Point> waits = {});

bool reached(const Point& point);

/// Runs what can run, on all streams. True if anything moved. May release the lock meanwhile.
bool pump(Lock& lock);

/// Waits until `done()`, driving all streams. False after a deadlock, which is reported.
bool drain(Lock& lock, const std::function<bool()>& done, const std::string& what);

/// What the device's destroyed streams have done.
const Clock& clock_of_ended_streams(int device);

/// What host code knows to have ended: everything that it enqueues comes after that. One for all threads: they order
/// themselves by means that cannot be seen here.
Clock& host_clock();

/// True if an operation that has not ended yet touches the region; `what` says which.
bool in_flight(const char* begin, const char* end, std::string& what);

std::vector<std::string> live_streams_and_events();

}  // namespace kith::gpu_emulator::detail
