// SPDX-License-Identifier: Apache-2.0
// Copies, fills, and the stream-ordered allocator.
#include <cstring>
#include <utility>
#include <vector>

#include "capture.hpp"
#include "core.hpp"
#include "memory.hpp"
#include "queue.hpp"

namespace kith::gpu_emulator::detail {
namespace {

Step start_copy(void* to, const void* from, std::size_t bytes) {
  const Region* const target = find_region(to);
  // Whoever reads the host's target too early sees NaN and not, by luck, what was there before.
  if (target == nullptr || target->kind != Region::Kind::device) std::memset(to, 0xff, bytes);
  if (!is_pageable(from)) {
    return [=] {
      std::memmove(translate(to), translate(from), bytes);
      return true;
    };
  }
  // The program may change pageable memory as soon as the call returns.
  const auto* const first = static_cast<const char*>(from);
  return [to, kept = std::vector<char>(first, first + bytes)] {
    std::memcpy(translate(to), kept.data(), kept.size());
    return true;
  };
}

std::shared_ptr<const Work> copy_work(void* to, const void* from, std::size_t bytes, const char* name) {
  Work work{name};
  work.is_copy = true;
  const auto* const source = static_cast<const char*>(from);
  if (!is_pageable(from)) work.accesses.push_back({source, bytes, false, 0, work.what + " (source)"});
  work.accesses.push_back({static_cast<const char*>(to), bytes, true, 0, work.what + " (target)"});
  work.start = [=] { return start_copy(to, from, bytes); };
  return std::make_shared<const Work>(std::move(work));
}

cudaError_t copy(void* to, const void* from, std::size_t bytes, cudaStream_t handle, const char* name) {
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr || from == nullptr) return cudaErrorInvalidValue;
  Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (is_pageable(to) || is_pageable(from)) trace("cudaMemcpyAsync (pageable)");
  return enqueue(*stream, copy_work(to, from, bytes, name));
}

cudaError_t fill(void* to, int value, std::size_t bytes, cudaStream_t handle, const char* name) {
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr || is_pageable(to)) return cudaErrorInvalidValue;
  Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  Work work{name};
  work.is_copy = true;
  work.accesses.push_back({static_cast<const char*>(to), bytes, true, 0, name});
  work.start = [=]() -> Step {
    return [=] {
      std::memset(translate(to), value, bytes);
      return true;
    };
  };
  return enqueue(*stream, std::make_shared<const Work>(std::move(work)));
}

cudaError_t allocate_in_order(void** address, std::size_t bytes, cudaStream_t handle) {
  Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->capture) return cudaErrorStreamCaptureUnsupported;  // such nodes of a graph are not emulated
  const cudaError_t failed = allocate(Region::Kind::device, address, bytes);
  if (failed != cudaSuccess || bytes == 0) return failed;
  Work work{"cudaMallocAsync"};
  work.is_copy = true;
  // Whoever is not ordered after this comes too early.
  work.accesses.push_back({static_cast<const char*>(*address), bytes, true, 0, work.what});
  return enqueue(*stream, std::make_shared<const Work>(std::move(work)));
}

cudaError_t free_in_order(void* address, cudaStream_t handle) {
  Stream* const stream = find_stream(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (address == nullptr) return cudaSuccess;
  Region* const region = find_region(address);
  if (region == nullptr || region->user != address || region->freed || region->kind != Region::Kind::device)
    return cudaErrorInvalidValue;
  if (stream->capture) return cudaErrorStreamCaptureUnsupported;
  Work work{"cudaFreeAsync"};
  work.is_copy = true;
  work.accesses.push_back({region->user, region->bytes, true, 0, work.what});
  work.start = [address]() -> Step {
    return [address] {
      release(*find_region(address));
      return true;
    };
  };
  const cudaError_t failed = enqueue(*stream, std::make_shared<const Work>(std::move(work)));
  region->freed = failed == cudaSuccess;  // for whatever is enqueued from now on
  return failed;
}

// A blocking call: its work goes to the default stream, which waits for the others; then the host waits.
template <class Enqueue>
cudaError_t blocking(Lock& lock, const char* name, Enqueue&& enqueue_work) {
  if (const cudaError_t refused = refuse_while_capturing()) return refused;
  if (const cudaError_t failed = enqueue_work()) return failed;
  Stream& stream = *find_stream(nullptr);
  const Point end{stream.id, stream.number};
  const Clock clock = stream.clock;
  if (!drain(
          lock, [&] { return reached(end); }, where(stream) + ": " + name))
    return cudaErrorLaunchTimeout;
  join(host_clock(), clock);
  return cudaSuccess;
}

}  // namespace
}  // namespace kith::gpu_emulator::detail

using namespace kith::gpu_emulator::detail;

extern "C" {

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return cuda_call("cudaMemcpyAsync", [&](Lock&) { return copy(to, from, bytes, stream, "cudaMemcpyAsync"); });
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return cuda_call("cudaMemcpyPeerAsync", [&](Lock&) { return copy(to, from, bytes, stream, "cudaMemcpyPeerAsync"); });
}

cudaError_t cudaMallocAsync(void** address, size_t bytes, cudaStream_t stream) {
  return cuda_call("cudaMallocAsync", [&](Lock&) { return allocate_in_order(address, bytes, stream); });
}

cudaError_t cudaFreeAsync(void* address, cudaStream_t stream) {
  return cuda_call("cudaFreeAsync", [&](Lock&) { return free_in_order(address, stream); });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return cuda_call("cudaMemcpy", [&](Lock& lock) {
    return blocking(lock, "cudaMemcpy", [&] { return copy(to, from, bytes, nullptr, "cudaMemcpy"); });
  });
}

cudaError_t cudaMemcpyPeer(void* to, int, const void* from, int, size_t bytes) {
  return cuda_call("cudaMemcpyPeer", [&](Lock& lock) {
    return blocking(lock, "cudaMemcpyPeer", [&] { return copy(to, from, bytes, nullptr, "cudaMemcpyPeer"); });
  });
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return cuda_call("cudaMemsetAsync", [&](Lock&) { return fill(to, value, bytes, stream, "cudaMemsetAsync"); });
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cuda_call("cudaMemset", [&](Lock& lock) {
    return blocking(lock, "cudaMemset", [&] { return fill(to, value, bytes, nullptr, "cudaMemset"); });
  });
}
}
