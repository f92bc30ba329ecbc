// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include <kith/cuda/resources.hpp>

/// Elements on the device that begin `shift` bytes behind an aligned address, with a pattern around them.
template <class T>
class DeviceArray {
public:
  static constexpr std::size_t margin = 64;

  explicit DeviceArray(std::span<const T> values, std::size_t shift = 0)
      : count_(values.size()), start_(margin + shift), memory_(start_ + values.size_bytes() + margin) {
    std::vector<std::byte> bytes(memory_.bytes(), std::byte{0xa5});
    const auto source = std::as_bytes(values);
    std::copy(source.begin(), source.end(), bytes.begin() + static_cast<std::ptrdiff_t>(start_));
    copy(memory_.data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice);
  }
  explicit DeviceArray(const std::vector<T>& values, std::size_t shift = 0)
      : DeviceArray(std::span<const T>{values}, shift) {}
  DeviceArray(std::size_t count, T value) : DeviceArray(std::vector<T>(count, value)) {}

  [[nodiscard]] T* data() const { return memory_.template as<T>(start_); }

  /// What the array holds now, after all that the device has been given. Fails the test if what is around has changed.
  [[nodiscard]] std::vector<T> values() const {
    std::vector<std::byte> bytes(memory_.bytes());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    copy(bytes.data(), memory_.data(), bytes.size(), cudaMemcpyDeviceToHost);
    const std::size_t end = start_ + count_ * sizeof(T);
    std::size_t changed = 0;
    for (std::size_t i = 0; i < bytes.size(); ++i)
      if ((i < start_ || i >= end) && bytes[i] != std::byte{0xa5}) ++changed;
    CHECK(changed == 0);
    std::vector<T> values(count_);
    if (count_ != 0) std::memcpy(values.data(), bytes.data() + start_, count_ * sizeof(T));
    return values;
  }

private:
  static void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    const kith::cuda::Stream stream;
    REQUIRE(cudaMemcpyAsync(to, from, bytes, kind, stream.get()) == cudaSuccess);
    REQUIRE(cudaStreamSynchronize(stream.get()) == cudaSuccess);
  }

  std::size_t count_;
  std::size_t start_;
  kith::cuda::DeviceMemory memory_;
};
