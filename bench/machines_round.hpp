// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <kith/topology/any.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

#include "engines.hpp"
#include "sweep.hpp"

namespace bench {

/// A line of `round --machines`.
struct MachinesLine {
  /// Its bytes_sent are those between machines.
  Line line;
  /// In a round, the mean over rounds: by the rank that sends most between machines and inside its own, and by all
  /// ranks of the machine that sends most.
  double slow_bytes = 0;
  double fast_bytes = 0;
  double slow_bytes_of_machine = 0;
};

/// @brief Collective. A round of messages alone, counted by whether they leave the machine: `machine_ranks` consecutive
/// ranks share one. `line.wrong` also counts the ranks whose bytes between machines are not what the formula says.
MachinesLine measure_machines(ThreadGroup& group, const SweepOptions& options, const kith::AnyTopology& topology,
                              bool sharded, kith::Rank machine_ranks, const kith::BufferView& model);
#if defined(KITH_BENCH_MPI)
MachinesLine measure_machines(MpiGroup& group, const SweepOptions& options, const kith::AnyTopology& topology,
                              bool sharded, kith::Rank machine_ranks, const kith::BufferView& model);
#endif

/// The table of `round --machines`; its lines also go to the report.
void add_machines_line(Report& report, const Subject& subject, kith::Rank machines, const MachinesLine& measured);

}  // namespace bench
