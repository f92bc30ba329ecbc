// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <kith/view.hpp>

#include "engines.hpp"
#include "sweep.hpp"

namespace bench {

/// What the host does between begin() and finish().
struct ComputeTime {
  /// In microseconds; empty: 1.5 times as long as the round.
  std::optional<double> us;
  /// It waits, as for a GPU, and leaves its core to the round.
  bool idle = false;
};

/// What `--overlap` asks for: "auto", "200", "auto,idle,1000". Throws kith::UsageError for anything else.
[[nodiscard]] std::vector<ComputeTime> parse_overlaps(const std::string& list);

/// The calls of an averager that are timed.
struct HiddenCalls {
  std::function<void()> average;
  std::function<void()> begin;
  std::function<void()> finish;
};

/// A line of `round --overlap`. All times are of all ranks, from the first start to the last end.
struct OverlapLine {
  bool idle = false;
  std::size_t iterations = 0;
  Quartiles round;
  Quartiles compute;
  /// begin(), the same compute, finish().
  Quartiles together;

  /// The part of a round that costs nothing: 1 - (together - compute) / round, of the medians; 0 where the hidden round
  /// costs as much as an open one, or more.
  [[nodiscard]] double hidden() const;
};

/// Collective. The round, the compute and both together take turns.
OverlapLine measure_overlap(ThreadGroup& group, const SweepOptions& options, const kith::BufferView& model,
                            const HiddenCalls& calls, const ComputeTime& compute);
#if defined(KITH_BENCH_MPI)
OverlapLine measure_overlap(MpiGroup& group, const SweepOptions& options, const kith::BufferView& model,
                            const HiddenCalls& calls, const ComputeTime& compute);
#endif

/// Prints a line, after a head if it is the first, and adds it to the report.
void add_overlap(Report& report, const Subject& subject, const OverlapLine& line);

}  // namespace bench
