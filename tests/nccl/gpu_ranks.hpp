// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include <kith/nccl.hpp>
#include <kith/testing/conformance.hpp>
#include <kith/testing/failure.hpp>

#include "../reference.hpp"

/// @file
/// Ranks with a GPU each, for the tests of the NCCL engine: threads on the emulator, where a machine has no GPU; and
/// processes, because NCCL wants that, on however few real GPUs there are.
namespace gpu_ranks {

using kith::testing::expect;

/// Whether the emulator stands in for the GPUs.
[[nodiscard]] bool emulated();

/// For a case that cannot run here: says why, and that it has not run.
void skip(const std::string& reason);
[[nodiscard]] int skipped();

/// Says that ranks will wait for others in vain, and leave messages to them unanswered: no mistake in this case.
void expect_deadlocks();
/// Forgets what the emulator has found of that.
void forget_findings();

/// Runs body(rank) as `size` ranks at once, each with its own current device; rethrows the first failure of one.
void run(kith::Rank size, const std::function<void(kith::Rank, const ncclUniqueId&)>& body);

/// The same with a communicator of Kith's own.
inline void run(kith::Rank size, const std::function<void(kith::nccl::Communicator&)>& body) {
  run(size, [&](kith::Rank rank, const ncclUniqueId& id) {
    auto communicator = kith::nccl::Communicator::create(id, size, rank);
    body(communicator);
  });
}

/// A stream of the caller's.
class Stream {
public:
  Stream() { kith::cuda::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "create a stream"); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { (void)cudaStreamDestroy(stream_); }

  operator cudaStream_t() const noexcept { return stream_; }  // NOLINT(google-explicit-constructor)
  void synchronize() const { kith::cuda::check(cudaStreamSynchronize(stream_), "synchronize a stream"); }

private:
  cudaStream_t stream_ = nullptr;
};

/// A model in the memory of the current device; every buffer lies in an allocation of its own.
class DeviceModel {
public:
  DeviceModel(const reference::Model& from, cudaStream_t stream) : host_(from) {
    for (std::size_t b = 0; b < host_.buffers(); ++b) {
      const reference::Shape& shape = host_.shape(b);
      const std::size_t shift = shape.shift * kith::size_of(shape.dtype);
      memory_.emplace_back(shape.count > 0 ? shift + shape.count * kith::size_of(shape.dtype) : 0);
      views_.push_back(kith::view(shape.count > 0 ? memory_.back().data() + shift : nullptr, shape.count, shape.dtype));
    }
    set(from, stream);
  }

  [[nodiscard]] const std::vector<kith::BufferView>& views() const noexcept { return views_; }

  /// Behind what `stream` holds.
  void set(const reference::Model& from, cudaStream_t stream) {
    host_ = from;
    const auto views = host_.views();
    for (std::size_t b = 0; b < views.size(); ++b) copy(views_[b].data, views[b].data, views[b].bytes(), stream);
    kith::cuda::check(cudaStreamSynchronize(stream), "synchronize a stream");
  }

  /// As it is behind what `stream` holds.
  [[nodiscard]] const reference::Model& get(cudaStream_t stream) {
    const auto views = host_.views();
    for (std::size_t b = 0; b < views.size(); ++b) copy(views[b].data, views_[b].data, views[b].bytes(), stream);
    kith::cuda::check(cudaStreamSynchronize(stream), "synchronize a stream");
    return host_;
  }

private:
  static void copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    if (bytes > 0) kith::cuda::check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copy");
  }

  reference::Model host_;
  std::vector<kith::cuda::DeviceMemory> memory_;
  std::vector<kith::BufferView> views_;
};

}  // namespace gpu_ranks
