// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <kith/averager/options.hpp>
#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/exchange/finite.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

// What an averager says no to, and what it counts, as far as that does not depend on what it holds.

namespace kith::detail {

/// Looks at the first rounds of the schedule, before anybody relies on it.
template <Topology T>
void require_plans(const T& topology, Rank rank, Rank size) {
  constexpr Round rounds = 64;
  const Round period = topology.period(size);
  const Rank max_degree = topology.max_degree(size);
  Neighborhood plan{max_degree};
  for (Round t = 0; t < (period == 0 ? rounds : std::min(period, rounds)); ++t) {
    plan_round(topology, rank, size, t, plan);
    require_valid(plan, rank, size, max_degree, T::name);
  }
}

/// NCCL connects two ranks when they first meet, on the host, and that takes its time: better before the first round.
/// All edges of a period, in the order in which they come; all pairs, if the schedule is drawn at random and they are
/// few.
template <class Session, Topology T>
void meet_peers(Session& session, const T& topology, Rank rank, Rank size, Neighborhood& plan, const Call& here) {
  constexpr Round rounds = 4096;
  constexpr Rank most_pairwise = 64;
  const Round period = topology.period(size);
  if (topology.max_degree(size) == 0) return;
  for (Round t = 0; t < std::min(period, rounds); ++t) {
    plan_round(topology, rank, size, t, plan);
    require_valid(plan, rank, size, topology.max_degree(size), T::name);
    session.meet(here, plan);
  }
  for (Rank d = 1; period == 0 && size <= most_pairwise && d < size; ++d) {
    plan.clear();
    plan.tell((rank + d) % size);
    plan.hear((rank + size - d) % size, 1);
    session.meet(here, plan);
  }
  session.staging().engine().finish(here);
}

/// Throws UsageError for buffers that do not look like the averager's.
inline void require_same_layout(std::span<const BufferView> own, std::span<const BufferView> others,
                                std::string_view what) {
  if (others.size() != own.size())
    throw UsageError(std::string{what} + ": " + std::to_string(others.size()) + " buffers given, the averager has " +
                     std::to_string(own.size()));
  for (std::size_t b = 0; b < others.size(); ++b)
    if (others[b].count != own[b].count || others[b].dtype != own[b].dtype)
      throw UsageError(std::string{what} + ": buffer " + std::to_string(b) + " has " + std::to_string(others[b].count) +
                       " elements of " + std::string{to_string(others[b].dtype)} + ", the averager's has " +
                       std::to_string(own[b].count) + " of " + std::string{to_string(own[b].dtype)});
}

/// Throws NonFiniteError for a value that was found before a round.
[[noreturn]] inline void throw_non_finite(const NonFinite& found, const Call& here, Rank rank, Rank size) {
  throw NonFiniteError("rank " + std::to_string(rank) + "/" + std::to_string(size) + ": " + describe(here) + ": rank " +
                           std::to_string(found.rank) + " holds a NaN or infinity in buffer " +
                           std::to_string(found.buffer) + " at index " + std::to_string(found.index) +
                           "; nothing has been averaged on this rank",
                       found.rank, found.buffer, found.index);
}

/// Counts the messages of a reduce-scatter and an all-gather with slices as even as bytes allow.
inline void count_global_round(Metrics& metrics, Rank rank, Rank size, std::uint64_t model_bytes) noexcept {
  ++metrics.global_rounds;
  const auto ranks = static_cast<std::uint64_t>(size);
  const auto own = static_cast<std::uint64_t>(rank);
  const std::uint64_t slice = model_bytes * (own + 1) / ranks - model_bytes * own / ranks;
  metrics.messages_sent += 2 * (ranks - 1);
  metrics.bytes_sent += (model_bytes - slice) + (ranks - 1) * slice;
  metrics.bytes_received += (ranks - 1) * slice + (model_bytes - slice);
}

}  // namespace kith::detail
