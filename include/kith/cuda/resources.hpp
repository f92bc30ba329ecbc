// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include <cuda_runtime_api.h>

#include <kith/cuda/error.hpp>

/// @file
/// Owners of what the CUDA runtime hands out. Each is made and destroyed while its device is the current one.
namespace kith::cuda {

/// Makes a device the current one of this thread, and the one from before again at the end.
class DeviceGuard {
public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "tell the current device");
    if (device == before_) return;
    check(cudaSetDevice(device), "change to the communicator's device");
    changed_ = true;
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(before_);
  }

private:
  int before_ = 0;
  bool changed_ = false;
};

/// A stream of the highest priority, which does not wait for the legacy default stream.
class Stream {
public:
  Stream() {
    int least = 0;
    int greatest = 0;
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "tell the range of stream priorities");
    check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest), "create a stream");
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  }

  [[nodiscard]] cudaStream_t get() const noexcept { return stream_; }
  /// Forgets the stream without destroying it: where the device may never get to its end.
  void abandon() noexcept { stream_ = nullptr; }

private:
  cudaStream_t stream_ = nullptr;
};

/// An event without a time.
class Event {
public:
  Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "create an event"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() {
    if (event_ != nullptr) (void)cudaEventDestroy(event_);
  }

  [[nodiscard]] cudaEvent_t get() const noexcept { return event_; }

private:
  cudaEvent_t event_ = nullptr;
};

/// What the stream `behind` is given from now on waits for what `ahead` has been given so far.
inline void order(const Event& event, cudaStream_t ahead, cudaStream_t behind) {
  check(cudaEventRecord(event.get(), ahead), "record an event");
  check(cudaStreamWaitEvent(behind, event.get(), 0), "let a stream wait for an event");
}

/// Memory of the current device, not initialised.
class DeviceMemory {
public:
  DeviceMemory() = default;
  explicit DeviceMemory(std::size_t bytes) : bytes_(bytes) {
    if (bytes > 0) check(cudaMalloc(&data_, bytes), "allocate " + std::to_string(bytes) + " bytes on the device");
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceMemory() {
    if (data_ != nullptr) (void)cudaFree(data_);
  }

  [[nodiscard]] std::byte* data() const noexcept { return static_cast<std::byte*>(data_); }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  /// The same as elements.
  template <class T>
  [[nodiscard]] T* as(std::size_t offset_bytes = 0) const noexcept {
    return reinterpret_cast<T*>(data() + offset_bytes);
  }
  /// Forgets the memory without freeing it, which would wait for a device that may never be done.
  void abandon() noexcept { data_ = nullptr; }

private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Host memory that the device can read and write, and copies can run to and from.
class PinnedMemory {
public:
  PinnedMemory() = default;
  explicit PinnedMemory(std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    check(cudaHostAlloc(&data_, bytes, cudaHostAllocMapped | cudaHostAllocPortable),
          "allocate " + std::to_string(bytes) + " bytes of pinned host memory");
  }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  PinnedMemory(PinnedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~PinnedMemory() {
    if (data_ != nullptr) (void)cudaFreeHost(data_);
  }

  [[nodiscard]] std::byte* data() const noexcept { return static_cast<std::byte*>(data_); }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  void abandon() noexcept { data_ = nullptr; }

private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// One object in pinned memory.
template <class T>
requires std::is_trivially_destructible_v<T>
class Pinned {
public:
  Pinned() : memory_(sizeof(T)), host_(std::construct_at(reinterpret_cast<T*>(memory_.data()))) {
    void* device = nullptr;
    check(cudaHostGetDevicePointer(&device, memory_.data(), 0), "tell the device's address of pinned memory");
    device_ = static_cast<T*>(device);
  }

  [[nodiscard]] T& host() const noexcept { return *host_; }
  [[nodiscard]] T* on_device() const noexcept { return device_; }
  void abandon() noexcept { memory_.abandon(); }

private:
  PinnedMemory memory_;
  T* host_;
  T* device_;
};

}  // namespace kith::cuda
