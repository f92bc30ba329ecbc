// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#if defined(KITH_BENCH_MPI)
#include <mpi.h>
#endif

#include "command_line.hpp"

namespace bench {

/// @brief The processes that run this program together: those of mpirun if the command line says `--engine mpi`, else
/// this one alone. One object, made first in main().
///
/// Standard output of all but rank 0 goes nowhere.
class Launch {
public:
  Launch(int& argc, char**& argv);

  /// What the records say of it.
  void describe(Invocation& invocation) const;

  /// @brief Ends this process's part: the exit status. `message`: what went wrong, for the standard error.
  ///
  /// Where all processes end, they do so in order, with the worst status, and the first one that has a message prints
  /// it. Where one fails and the others do not come within a second, it prints its own and ends them.
  [[nodiscard]] int end(int status, const std::string& message);

#if defined(KITH_BENCH_MPI)
private:
  // Of its own, for the end: a rank that fails alone must not disturb what the others are in the midst of.
  MPI_Comm all_ = MPI_COMM_NULL;  // null without `--engine mpi`
#endif
};

}  // namespace bench
