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
  if (observe(&state.signals->abort) != 0) report.reason = RoundReport::aborted;
  for (std::uint32_t k = 0; k < state.sources; ++k) {
    const RoundHeader& received = state.received[k];
    if (received.mark != RoundHeader::here) {
      if (report.reason != RoundReport::protocol) report.reason = RoundReport::aborted;
      if (k < 32) report.missing |= std::uint32_t{1} << k;
    } else if (!same_call(received, expected) && report.reason != RoundReport::protocol) {
      report.reason = RoundReport::protocol;
      report.rank = received.rank;
      report.theirs = received.sequence;
    }
  }
  if (report.reason != RoundReport::none) return report;
  const RoundHeader* finder = state.sent;
  for (std::uint32_t k = 0; k < state.sources && finder->finding == no_finding; ++k) finder = &state.received[k];
  if (finder->finding == no_finding) return report;
  report.reason = RoundReport::non_finite;
  report.rank = finder->rank;
  report.theirs = finder->finding;
  return report;
}

/// Puts a report where the host looks, unless one is there.
__host__ __device__ inline void file(const RoundReport& report, RoundReport* to) {
  if (observe(&to->reason) != RoundReport::none) return;
  to->missing = report.missing;
  to->ticket = report.ticket;
  to->sequence = report.sequence;
  to->rank = report.rank;
  to->theirs = report.theirs;
  publish(&to->reason, report.reason);
}

__host__ __device__ inline void settle_round(const RoundState& state, const RoundHeader& expected) {
  const RoundReport report = judge(state, expected);
  *state.go = report.reason == RoundReport::none ? 1 : 0;
  if (report.reason == RoundReport::non_finite) {
    file(report, state.report);
  } else if (report.reason != RoundReport::none) {
    file(report, &state.signals->fatal);
    publish(&state.signals->abort, std::uint32_t{1});  // ranks that are not in step commit no later round either
  }
  if (state.ticket > 0) publish(&state.signals->settled, state.ticket);
}

__host__ __device__ inline void relay_round(const RoundState& state, const RoundHeader& expected) {
  const RoundReport report = judge(state, expected);
  if (report.reason == RoundReport::none) return;
  if (report.reason != RoundReport::non_finite) {
    state.sent->mark = 0;
    return;
  }
  state.sent->rank = report.rank;
  state.sent->finding = report.theirs;
}

/// Enqueues. The launch's own error comes back, and no earlier one is taken away from the caller.
inline cudaError_t enqueue(void (*kernel)(RoundState, RoundHeader), RoundState state, RoundHeader header,
                           cudaStream_t stream) {
  void* arguments[] = {&state, &header};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(1), dim3(1), arguments, 0, stream);
}

template <int>  // a template, so that it may be defined in every translation unit
__global__ void begin_round_kernel(RoundState state, RoundHeader header) {
  begin_round(state, header);
}

template <int>
__global__ void settle_round_kernel(RoundState state, RoundHeader expected) {
  settle_round(state, expected);
}

template <int>
__global__ void relay_round_kernel(RoundState state, RoundHeader expected) {
  relay_round(state, expected);
}

}  // namespace kith::cuda::detail

namespace kith::cuda {

[[gnu::weak]] cudaError_t relay_round(const RoundState& state, const RoundHeader& expected, cudaStream_t stream) {
  return detail::enqueue(&detail::relay_round_kernel<0>, state, expected, stream);
}

[[gnu::weak]] cudaError_t begin_round(const RoundState& state, const RoundHeader& header, cudaStream_t stream) {
  return detail::enqueue(&detail::begin_round_kernel<0>, state, header, stream);
}

[[gnu::weak]] cudaError_t settle_round(const RoundState& state, const RoundHeader& expected, cudaStream_t stream) {
  return detail::enqueue(&detail::settle_round_kernel<0>, state, expected, stream);
}

}  // namespace kith::cuda
