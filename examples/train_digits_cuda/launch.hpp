// SPDX-License-Identifier: Apache-2.0
#pragma once

// Three ways to be several ranks with a GPU each. All that NCCL wants is that every rank has chosen its GPU, and that
// all of them come by the same unique id.

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <kith/nccl.hpp>

#ifdef KITH_EXAMPLES_MPI
#include <kith/mpi.hpp>
#endif

namespace digits {

/// Calls body(communicator) on this rank and returns what it returns.
using RankBody = std::function<bool(kith::nccl::Communicator&)>;

inline int gpus() {
  int count = 0;
  kith::cuda::check(cudaGetDeviceCount(&count), "count the GPUs");
  return count;
}

/// One GPU several times over, for a try: NCCL refuses that to ranks of one host, so each process says that it is a
/// host of its own, and they meet over loopback. Slow. Before the first call of NCCL.
inline void share_gpus(kith::Rank rank) {
  const auto set = [](const char* name, const std::string& value) { setenv(name, value.c_str(), 0); };
  set("NCCL_HOSTID", fmt::format("kith-rank-{}", rank));
  set("NCCL_SOCKET_IFNAME", "lo");
  set("NCCL_NET", "Socket");
  set("NCCL_NET_PLUGIN", "none");
  set("NCCL_IB_DISABLE", "1");
  set("NCCL_MNNVL_ENABLE", "0");
  set("NCCL_NVLS_ENABLE", "0");
  set("NCCL_MAX_CTAS", "4");
  set("NCCL_RAS_ENABLE", "0");
}

/// Chooses the GPU of a process that is the `local`-th of `local_size` on its machine.
inline void choose_gpu(kith::Rank rank, int local, int local_size) {
  if (local_size > gpus()) share_gpus(rank);
  kith::cuda::check(cudaSetDevice(local % gpus()), "choose a GPU");
}

/// Every rank is a thread of this process.
inline bool run_as_threads(kith::Rank ranks, const RankBody& body) {
  if (ranks > gpus())
    throw kith::UsageError(fmt::format(
        "{} ranks as threads need as many GPUs, and there are {}: start processes instead (--rank, or --mpi)", ranks,
        gpus()));
  std::vector<char> good(static_cast<std::size_t>(ranks));
  kith::thread::run(ranks, [&](kith::thread::Communicator& threads) {
    kith::cuda::check(cudaSetDevice(threads.rank()), "choose a GPU");
    const ncclUniqueId id = kith::nccl::share_unique_id(threads);
    auto communicator = kith::nccl::Communicator::create(id, threads.size(), threads.rank());
    good[static_cast<std::size_t>(threads.rank())] = body(communicator) ? 1 : 0;
  });
  return std::count(good.begin(), good.end(), 0) == 0;
}

/// This process is one of the ranks, all on this machine. The file brings them together, and is gone afterwards.
inline bool run_as_process(kith::Rank rank, kith::Rank ranks, const std::string& id_file, const RankBody& body) {
  choose_gpu(rank, rank, ranks);
  const ncclUniqueId id = kith::nccl::share_unique_id(std::filesystem::path{id_file}, rank);
  auto communicator = kith::nccl::Communicator::create(id, ranks, rank);
  if (rank == 0) std::filesystem::remove(id_file);  // all have read it
  return body(communicator);
}

#ifdef KITH_EXAMPLES_MPI
/// This process is one of those that mpirun has started, on one machine or many. MPI only brings them together.
inline bool run_under_mpi(const RankBody& body) {
  int thread_level = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &thread_level);  // no thread but this one calls MPI
  bool good = false;
  try {
    kith::mpi::Communicator world{MPI_COMM_WORLD};
    MPI_Comm machine = MPI_COMM_NULL;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
    int local = 0;
    int local_size = 1;
    MPI_Comm_rank(machine, &local);
    MPI_Comm_size(machine, &local_size);
    MPI_Comm_free(&machine);
    choose_gpu(world.rank(), local, local_size);
    const ncclUniqueId id = kith::nccl::share_unique_id(world);
    auto communicator = kith::nccl::Communicator::create(id, world.size(), world.rank());
    good = body(communicator);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);  // the others would wait for this rank
  }
  MPI_Finalize();
  return good;
}
#endif

}  // namespace digits
