// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include <mpi.h>

#include <kith/error.hpp>
#include <kith/topology.hpp>

#include "by_hand.hpp"
#include "mpi_group.hpp"
#include "sweep.hpp"

/// What a user of MPI would write without a library. f32 and f64; compiled with the flags of the build.
namespace bench::by_hand {

template <class T>
[[nodiscard]] MPI_Datatype mpi_type() {
  return std::is_same_v<T, float> ? MPI_FLOAT : MPI_DOUBLE;
}

/// MPI counts in int.
[[nodiscard]] inline int mpi_count(std::size_t count) {
  if (count > std::numeric_limits<int>::max())
    throw kith::UsageError("what a user would write counts elements in an int: choose a smaller -e");
  return static_cast<int>(count);
}

/// The exact mean of all ranks: what data-parallel training has today.
template <class T>
void mpi_all_reduce(MPI_Comm comm, T* x, std::size_t count) {
  MPI_Allreduce(MPI_IN_PLACE, x, mpi_count(count), mpi_type<T>(), MPI_SUM, comm);
  int size = 1;
  MPI_Comm_size(comm, &size);
  const T scale = T{1} / static_cast<T>(size);
  for (std::size_t i = 0; i < count; ++i) x[i] *= scale;
}

/// Room for the models of a round's sources.
template <class T>
struct Inbox {
  Inbox(kith::Rank degree, std::size_t elements)
      : count(elements), memory(own_memory(static_cast<std::size_t>(degree) * elements * sizeof(T))) {}

  /// Where the model of the k-th source goes.
  [[nodiscard]] T* at(std::size_t k) const noexcept { return static_cast<T*>(memory.get()) + k * count; }

  /// x = the average of x and what has come.
  void average_into(T* x, const kith::Neighborhood& now) {
    peers.assign(now, [&](std::size_t k) { return at(k); });
    peers.average(x, x, count);
  }

  std::size_t count;
  std::shared_ptr<void> memory;
  Peers<T> peers;
  std::vector<MPI_Request> requests;
};

/// A gossip round: the whole model to the targets, those of the sources into the inbox, then a loop.
template <class T>
void mpi_round(MPI_Comm comm, const kith::Neighborhood& now, T* x, Inbox<T>& inbox) {
  const int count = mpi_count(inbox.count);
  const auto sources = now.sources();
  const auto targets = now.targets();
  if (sources.size() == 1 && targets.size() == 1) {
    MPI_Sendrecv(x, count, mpi_type<T>(), targets[0], 0, inbox.at(0), count, mpi_type<T>(), sources[0].rank, 0, comm,
                 MPI_STATUS_IGNORE);
  } else {
    inbox.requests.clear();
    for (std::size_t k = 0; k < sources.size(); ++k)
      MPI_Irecv(inbox.at(k), count, mpi_type<T>(), sources[k].rank, 0, comm, &inbox.requests.emplace_back());
    for (const kith::Rank target : targets)
      MPI_Isend(x, count, mpi_type<T>(), target, 0, comm, &inbox.requests.emplace_back());
    MPI_Waitall(static_cast<int>(inbox.requests.size()), inbox.requests.data(), MPI_STATUSES_IGNORE);
  }
  inbox.average_into(x, now);
}

/// The same round where the neighbours are always the same, through a distributed graph communicator. Of the
/// Neighbor_alltoall family the one with displacements: every neighbour gets the same model, which need not be copied.
template <class T>
class NeighborRound {
public:
  NeighborRound(MPI_Comm comm, const kith::Neighborhood& now, std::size_t elements)
      : send_counts_(now.targets().size(), mpi_count(elements)),
        send_offsets_(now.targets().size(), 0),
        counts_(now.sources().size(), mpi_count(elements)) {
    std::vector<int> sources;
    for (const auto& source : now.sources()) {
      offsets_.push_back(mpi_count(sources.size() * elements));
      sources.push_back(source.rank);
    }
    const std::vector<int> targets(now.targets().begin(), now.targets().end());
    MPI_Dist_graph_create_adjacent(comm, static_cast<int>(sources.size()), sources.data(), MPI_UNWEIGHTED,
                                   static_cast<int>(targets.size()), targets.data(), MPI_UNWEIGHTED, MPI_INFO_NULL, 0,
                                   graph_.out());
  }

  void operator()(const kith::Neighborhood& now, T* x, Inbox<T>& inbox) const {
    MPI_Neighbor_alltoallv(x, send_counts_.data(), send_offsets_.data(), mpi_type<T>(), inbox.at(0), counts_.data(),
                           offsets_.data(), mpi_type<T>(), graph_.get());
    inbox.average_into(x, now);
  }

private:
  std::vector<int> send_counts_;
  std::vector<int> send_offsets_;
  std::vector<int> counts_;
  std::vector<int> offsets_;
  OwnedComm graph_;
};

// Each is the sibling of a function of the same name for ThreadGroup.

/// The contestant of both sub-commands.
[[nodiscard]] inline Contestant mpi_all_reduce_contestant(MpiGroup& group, const kith::BufferView& model,
                                                          std::uint64_t seed) {
  Contestant contestant{
      "mpi_allreduce", "Allreduce", model, {}, [&group, seed] { return global_mean(seed, group.size()); }};
  with_elements(model, [&]<class T>(T* x) {
    contestant.call = [&group, x, count = model.count] { mpi_all_reduce(group.comm(), x, count); };
  });
  return contestant;
}

[[nodiscard]] inline std::vector<Contestant> rivals_of_all_reduce(MpiGroup& group, const kith::BufferView& model,
                                                                  std::uint64_t seed) {
  return {mpi_all_reduce_contestant(group, model, seed)};
}

[[nodiscard]] inline std::vector<Contestant> rivals_of_round(MpiGroup& group, const RoundSubject& round) {
  Contestant by_hand{"by_hand", "by hand", round.model, {}, {}};
  Contestant neighbor{"mpi_neighbor", "Neighbor", round.model, {}, {}};
  with_elements(round.model, [&]<class T>(T* x) {
    const std::size_t count = round.model.count;
    const auto inbox = std::make_shared<Inbox<T>>(round.topology.max_degree(group.size()), count);
    by_hand.call = [&group, &now = round.now, inbox, x] { mpi_round(group.comm(), now, x, *inbox); };
    if (round.topology.period(group.size()) != 1) return;  // another communicator for every round would be no rival
    const auto exchange = std::make_shared<NeighborRound<T>>(group.comm(), round.now, count);
    neighbor.call = [&now = round.now, exchange, inbox, x] { (*exchange)(now, x, *inbox); };
  });
  return {mpi_all_reduce_contestant(group, round.model, round.seed), by_hand, neighbor};
}

}  // namespace bench::by_hand
