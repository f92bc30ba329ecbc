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
  std::uint64_t reserved = 0;
};
static_assert(sizeof(RoundHeader) == 64);

/// @brief In pinned host memory, one for a communicator: how far its stream has come. Tickets number the rounds.
struct RoundSignals {
  /// Not zero: the host has given up. Set before the communicator is aborted, so that no round commits what has not
  /// come.
  std::uint32_t abort = 0;
  std::uint32_t reserved = 0;
  /// The last round whose exchange has begun, and the last that has been decided.
  std::uint64_t started = 0;
  std::uint64_t settled = 0;
};

/// @brief In pinned host memory, one for an averager: why a round was not committed. Written once; the host clears it.
struct RoundReport {
  enum Reason : std::uint32_t { none = 0, aborted, protocol, non_finite };

  std::uint32_t reason = none;
  /// Which in-neighbour of the round it was, by its place in the order of ranks; `own` for the rank itself.
  static constexpr std::uint32_t own = ~std::uint32_t{0};
  std::uint32_t source = own;
  std::uint64_t ticket = 0;
  std::uint64_t sequence = 0;
  std::uint64_t finding = no_finding;
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
  RoundReport* report;
  /// 0 in a captured graph, whose replays nobody watches.
  std::uint64_t ticket;
};

/// Enqueues the first kernel: completes the header that this rank sends, and tells the host that peers are waited for.
cudaError_t begin_round(const RoundState& state, const RoundHeader& header, cudaStream_t stream);

/// Enqueues the second: compares what has come with what this rank expects, and decides. `*go` is 1 only if all have
/// come, made the same call, hold finite values and the host has not given up.
cudaError_t settle_round(const RoundState& state, const RoundHeader& expected, cudaStream_t stream);

}  // namespace kith::cuda

#ifdef __CUDACC__
#include <kith/cuda/round.cuh>
#endif
