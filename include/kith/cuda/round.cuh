// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include <kith/cuda/round.hpp>

namespace kith::cuda::detail {

// Memory that the host looks at while the device writes it, and the other way round.
template <class T>
__host__ __device__ inline void publish(T* to, T value) {
#ifdef __CUDA_ARCH__
  __threadfence_system();
  *static_cast<volatile T*>(to) = value;
#else
  __atomic_store_n(to, value, __ATOMIC_RELEASE);
#endif
}
template <class T>
__host__ __device__ inline T observe(const T* from) {
#ifdef __CUDA_ARCH__
  const T value = *static_cast<const volatile T*>(from);
  __threadfence_system();
  return value;
#else
  return __atomic_load_n(from, __ATOMIC_ACQUIRE);
#endif
}

__host__ __device__ inline bool same_call(const RoundHeader& a, const RoundHeader& b) {
  return a.what == b.what && a.channel == b.channel && a.sequence == b.sequence && a.agreement == b.agreement &&
         a.bytes == b.bytes;
}

__host__ __device__ inline void begin_round(const RoundState& state, const RoundHeader& header) {
  for (std::uint32_t k = 0; k < state.sources; ++k) state.received[k].mark = 0;
  RoundHeader sent = header;
  sent.finding = state.finding != nullptr ? *state.finding : no_finding;
  *state.sent = sent;
  if (state.ticket > 0) publish(&state.signals->started, state.ticket);
}

/// Why the round cannot be committed: what is wrong with all of them first, then with the values.
__host__ __device__ inline RoundReport judge(const RoundState& state, const RoundHeader& expected) {
  RoundReport report;
  report.ticket = state.ticket;
  report.sequence = expected.sequence;
  const bool aborted = observe(&state.signals->abort) != 0;
  for (std::uint32_t k = 0; k < state.sources && report.reason == RoundReport::none; ++k) {
    const RoundHeader& received = state.received[k];
    if (received.mark != RoundHeader::here) {
      report.reason = RoundReport::aborted;
      report.source = k;
    } else if (!same_call(received, expected)) {
      report.reason = RoundReport::protocol;
      report.source = k;
      report.finding = received.sequence;
    }
  }
  if (aborted && report.reason != RoundReport::protocol) report.reason = RoundReport::aborted;
  if (report.reason != RoundReport::none) return report;
  report.finding = state.sent->finding;
  for (std::uint32_t k = 0; k < state.sources && report.finding == no_finding; ++k) {
    report.finding = state.received[k].finding;
    report.source = k;
  }
  if (report.finding != no_finding)
    report.reason = RoundReport::non_finite;
  else
    report.source = RoundReport::own;
  return report;
}

__host__ __device__ inline void settle_round(const RoundState& state, const RoundHeader& expected) {
  const RoundReport report = judge(state, expected);
  *state.go = report.reason == RoundReport::none ? 1 : 0;
  if (report.reason != RoundReport::none && observe(&state.report->reason) == RoundReport::none) {
    state.report->source = report.source;
    state.report->ticket = report.ticket;
    state.report->sequence = report.sequence;
    state.report->finding = report.finding;
    publish(&state.report->reason, report.reason);
  }
  // Ranks that are not in step must not commit any later round either.
  if (report.reason == RoundReport::protocol) publish(&state.signals->abort, std::uint32_t{1});
  if (state.ticket > 0) publish(&state.signals->settled, state.ticket);
}

template <int>  // a template, so that it may be defined in every translation unit
__global__ void begin_round_kernel(RoundState state, RoundHeader header) {
  begin_round(state, header);
}

template <int>
__global__ void settle_round_kernel(RoundState state, RoundHeader expected) {
  settle_round(state, expected);
}

}  // namespace kith::cuda::detail

namespace kith::cuda {

[[gnu::weak]] cudaError_t begin_round(const RoundState& state, const RoundHeader& header, cudaStream_t stream) {
  detail::begin_round_kernel<0><<<1, 1, 0, stream>>>(state, header);
  return cudaGetLastError();
}

[[gnu::weak]] cudaError_t settle_round(const RoundState& state, const RoundHeader& expected, cudaStream_t stream) {
  detail::settle_round_kernel<0><<<1, 1, 0, stream>>>(state, expected);
  return cudaGetLastError();
}

}  // namespace kith::cuda
