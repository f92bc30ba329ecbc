// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include <kith/cuda/arguments.hpp>

/// @file
/// How a round that runs on a device is watched by the host, and decided on the device itself: two kernels of one
/// block. Everything in between and after them needs no host.
namespace kith::cuda {

/// @brief What a rank tells those it sends to, besides its model: 64 bytes in device memory.
struct RoundHeader {
  static constexpr std::uint64_t here = 0x6B69'7468'2D72'6E64u;

  /// `here` in a header that has arrived.
  std::uint64_t mark = here;
  /// Which call it is: a digest of Call::what, and the others as they are.
  std::uint64_t what = 0;
  std::uint64_t channel = 0;
  std::uint64_t sequence = 0;
  std::uint64_t agreement = 0;
  /// What find_non_finite() has found on the rank.
  std::uint64_t finding = no_finding;
  std::uint64_t bytes = 0;
  /// Who says so.
  std::uint64_t rank = 0;
};
static_assert(sizeof(RoundHeader) == 64);

/// @brief In pinned host memory: why a round was not committed. Written once; the host clears it.
struct RoundReport {
  enum Reason : std::uint32_t { none = 0, aborted, protocol, non_finite };

  std::uint32_t reason = none;
  /// aborted: those whose header was missing, by their place among the in-neighbours; the first 32.
  std::uint32_t missing = 0;
  std::uint64_t ticket = 0;
  std::uint64_t sequence = 0;
  /// protocol, non_finite: the rank that it is about; with its round, or its finding.
  std::uint64_t rank = 0;
  std::uint64_t theirs = 0;
};

/// @brief In pinned host memory, one for a communicator: how far its stream has come. Tickets number the rounds.
struct RoundSignals {
  /// Not zero: the host has given up. Set before the communicator is aborted, so that no round commits what has not
  /// come.
  std::uint32_t abort = 0;
  std::uint32_t reserved = 0;
  /// The last round whose exchange has begun, and the last that has been decided.
  std::uint64_t started = 0;
  std::uint64_t settled = 0;
  /// The first round that could not be decided by values: nothing commits after that.
  RoundReport fatal{};
};

/// What a round's two kernels work on. All but `signals` and `report` is device memory.
struct RoundState {
  RoundHeader* sent;
  /// Of the in-neighbours, in the order of ranks.
  RoundHeader* received;
  std::uint32_t sources;
  /// 1: commit. Read by the kernels that write parameters.
  std::uint32_t* go;
  /// What find_non_finite() writes to; null where nobody looks.
  const std::uint64_t* finding;
  RoundSignals* signals;
  /// For values that are not finite; an averager's own.
  RoundReport* report;
  /// 0 in a captured graph, whose replays nobody watches.
  std::uint64_t ticket;
};

/// Enqueues the first kernel: completes the header that this rank sends, and tells the host that peers are waited for.
cudaError_t begin_round(const RoundState& state, const RoundHeader& header, cudaStream_t stream);

/// Enqueues the second: compares what has come with what this rank expects, and decides. `*go` is 1 only if all have
/// come, made the same call, hold finite values and the host has not given up.
cudaError_t settle_round(const RoundState& state, const RoundHeader& expected, cudaStream_t stream);

/// Enqueues, between the two, a kernel for rounds of several steps: what has come so far, from the first
/// `state.sources`, goes into the header that this rank sends in the next step. Where something is wrong with that, or
/// a value not finite, those who hear this rank do not commit either.
cudaError_t relay_round(const RoundState& state, const RoundHeader& expected, cudaStream_t stream);

}  // namespace kith::cuda

#ifdef __CUDACC__
#include <kith/cuda/round.cuh>
#endif
