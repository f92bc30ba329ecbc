// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <cuda_runtime_api.h>

#include <kith/cuda/error.hpp>

// How the programs that measure kernels on a GPU take the time.

namespace bench {

/// An event that knows when it was.
class Clock {
public:
  Clock() { kith::cuda::check(cudaEventCreate(&event_), "create an event"); }
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;
  ~Clock() { (void)cudaEventDestroy(event_); }
  void record(cudaStream_t stream) { kith::cuda::check(cudaEventRecord(event_, stream), "record an event"); }
  [[nodiscard]] double us_since(const Clock& start) const {
    kith::cuda::check(cudaEventSynchronize(event_), "wait for an event");
    float ms = 0;
    kith::cuda::check(cudaEventElapsedTime(&ms, start.event_, event_), "tell a time");
    return 1e3 * static_cast<double>(ms);
  }

private:
  cudaEvent_t event_ = nullptr;
};

/// Median over the repetitions of the mean time of a call, in microseconds, of calls that follow one another.
template <class F>
double time_us(std::size_t repetitions, std::size_t bytes_per_call, cudaStream_t stream, const F& call) {
  const std::size_t calls = std::clamp<std::size_t>((std::size_t{4} << 30) / bytes_per_call, 5, 200);
  std::vector<double> means;
  Clock start;
  Clock end;
  for (std::size_t r = 0; r <= repetitions; ++r) {
    start.record(stream);
    for (std::size_t i = 0; i < calls; ++i) call();
    end.record(stream);
    const double mean = end.us_since(start) / static_cast<double>(calls);
    if (r > 0) means.push_back(mean);  // the first one warms up
  }
  std::nth_element(means.begin(), means.begin() + static_cast<std::ptrdiff_t>(means.size() / 2), means.end());
  return means[means.size() / 2];
}

}  // namespace bench
