// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <iterator>
#include <string>
#include <type_traits>
#include <vector>

#include <kith/error.hpp>

#include "by_hand.hpp"
#include "command_line.hpp"
#include "thread_group.hpp"
#if defined(KITH_BENCH_MPI)
#include "mpi_by_hand.hpp"
#include "mpi_group.hpp"
#endif

namespace bench {

/// Calls f(std::type_identity<Group>{}) with the group of the engine of this name.
template <class F>
decltype(auto) with_engine([[maybe_unused]] const std::string& engine, const F& f) {
#if defined(KITH_BENCH_MPI)
  if (engine == "mpi") return f(std::type_identity<MpiGroup>{});
#endif
  return f(std::type_identity<ThreadGroup>{});
}

/// The kinds of memory that `--memory` names. Throws kith::UsageError for one that the engine does not have.
template <class Group>
[[nodiscard]] std::vector<std::string> parse_memories(const SweepOptions& options) {
  std::vector<std::string> kinds = split(options.memories);
  for (const std::string& kind : kinds)
    if (std::find(std::begin(Group::memories), std::end(Group::memories), kind) == std::end(Group::memories))
      throw kith::UsageError("--engine " + options.engine + " has no memory \"" + kind + "\"; there is own, and" +
                             " allocated with --engine mpi");
  return kinds;
}

}  // namespace bench
