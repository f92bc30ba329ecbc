// SPDX-License-Identifier: Apache-2.0
#pragma once

// The only file that knows MPI, for --engine mpi. A build that found no MPI has a stand-in that says so.

#include <exception>
#include <optional>
#include <string>
#include <utility>

#include <fmt/core.h>

#include <kith/kith.hpp>

#include "options.hpp"

#ifdef KITH_EXAMPLES_MPI
#include <kith/mpi.hpp>
#endif

namespace digits {

#ifdef KITH_EXAMPLES_MPI

/// MPI from its initialization to its end: this process is one of the ranks that mpirun started, or the only one.
class MpiJob {
public:
  /// Hidden rounds go on in a thread of Kith's, if MPI lets it.
  MpiJob(int& argc, char**& argv, bool hidden_rounds) {
    int provided = 0;
    MPI_Init_thread(&argc, &argv, hidden_rounds ? MPI_THREAD_MULTIPLE : MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks_);
  }
  MpiJob(const MpiJob&) = delete;
  MpiJob& operator=(const MpiJob&) = delete;
  ~MpiJob() { MPI_Finalize(); }

  [[nodiscard]] kith::Rank ranks() const noexcept { return ranks_; }
  /// Of all ranks one says what holds for all.
  [[nodiscard]] bool speaks() const noexcept { return rank_ == 0; }

  /// All ranks end if one does. It is the lowest of those that tells why: usually the reason is the same everywhere.
  [[nodiscard]] std::optional<Ending> agree(std::optional<Ending> mine) const {
    const int wants = mine ? rank_ : ranks_;
    int speaker = 0;
    MPI_Allreduce(&wants, &speaker, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (speaker == ranks_) return std::nullopt;
    Ending ending = speaker == rank_ ? *std::move(mine) : Ending{};
    MPI_Bcast(&ending.status, 1, MPI_INT, speaker, MPI_COMM_WORLD);
    return ending;
  }

  /// Calls body(communicator) on every rank. A rank that fails ends the job: the others would wait for it, and MPI
  /// could not be finalized after a deadline that has passed.
  template <class Body>
  void run(const Body& body) const {
    try {
      kith::mpi::Communicator communicator{MPI_COMM_WORLD};
      body(communicator);
    } catch (const kith::UsageError&) {
      throw;  // the same on every rank
    } catch (const std::exception& error) {
      fmt::print(stderr, "train_digits, rank {}: {}\n", rank_, error.what());
      MPI_Abort(MPI_COMM_WORLD, 1);
    }
  }

private:
  int rank_ = 0;
  int ranks_ = 1;
};

#else

class MpiJob {
public:
  MpiJob(int&, char**&, bool) {}
  [[nodiscard]] kith::Rank ranks() const noexcept { return 1; }
  [[nodiscard]] bool speaks() const noexcept { return true; }
  [[nodiscard]] std::optional<Ending> agree(const std::optional<Ending>&) const {
    return Ending{2,
                  "--engine mpi: this train_digits was built without MPI; install it (Debian: libopenmpi-dev) and "
                  "configure again, or run ./dev demo --engine mpi\n"};
  }
  template <class Body>
  void run(const Body&) const {}
};

#endif

}  // namespace digits
