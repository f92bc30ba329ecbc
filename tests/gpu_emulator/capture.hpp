// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "queue.hpp"

/// @file
/// Stream capture. A graph is the captured operations in the order of capture, which is one of the orders that the
/// streams and events allow; a launch enqueues them one after the other.
namespace kith::gpu_emulator::detail {

struct Capture {
  unsigned long long id = 0;
  Stream* origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread{};
  bool ended = false;
  bool invalid = false;
  std::vector<std::shared_ptr<const Work>> nodes{};
  std::map<Stream*, Clock> lanes{};  // what each capturing stream comes after
  std::map<StreamId, std::uint64_t> numbers{};
  History history{};
};

/// Records the work in the stream's capture.
cudaError_t capture_work(Stream& stream, std::shared_ptr<const Work> work);

/// A wait of `stream` for a point of `capture` (null: for work that is not captured).
cudaError_t capture_wait(Stream& stream, const std::shared_ptr<Capture>& capture, const Clock& clock);

/// An error, which invalidates captures, if the calling thread must not make an unsafe call now: one that waits, or
/// that allocates. See cudaThreadExchangeStreamCaptureMode.
cudaError_t refuse_while_capturing();

/// The stream is capturing: it cannot be waited for. Invalidates the capture.
cudaError_t refuse_capturing(Stream& stream);

std::vector<std::string> live_graphs();

}  // namespace kith::gpu_emulator::detail
