// SPDX-License-Identifier: Apache-2.0
// The life of communicators.
#include "nccl_comm.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <utility>

namespace kith::gpu_emulator::detail {
namespace {

struct Comms {
  std::vector<Comm> alive;
  std::map<std::string, std::shared_ptr<World>> forming;  // by unique id
  unsigned long ids = 0;
};

Comms& comms() {
  static auto* const all = new Comms;
  return *all;
}

std::string& last_error_of_thread() {
  thread_local std::string text;
  return text;
}

Comm add_comm(std::shared_ptr<World> world, int rank, int global_rank, bool blocking) {
  auto comm = std::make_shared<ncclComm>();
  world->joined[static_cast<std::size_t>(rank)] = true;
  ++world->arrived;
  comm->world = std::move(world);
  comm->rank = rank;
  comm->global_rank = global_rank;
  comm->device = this_thread().device;
  comm->blocking = blocking;
  acted();
  core().changed.notify_all();  // others may wait for this rank
  return comms().alive.emplace_back(std::move(comm));
}

void remove_comm(const Comm& comm) {
  auto& alive = comms().alive;
  alive.erase(std::remove(alive.begin(), alive.end(), comm), alive.end());
}

bool is_valid(const ncclConfig_t* config) {
  return config == nullptr || (config->magic == 0xcafebeef && config->size > 0);
}

ncclResult_t init(Lock& lock, ncclComm_t* handle, int size, const ncclUniqueId& id, int rank,
                  const ncclConfig_t* config) {
  if (handle == nullptr || size < 1 || rank < 0 || rank >= size || !is_valid(config)) return ncclInvalidArgument;
  std::shared_ptr<World>& forming = comms().forming[std::string(id.internal, sizeof id.internal)];
  if (!forming) forming = std::make_shared<World>(size);
  const std::shared_ptr<World> world = forming;
  if (world->size != size || world->joined[static_cast<std::size_t>(rank)]) return ncclInvalidUsage;
  // A thread that makes communicators in a group stands for several ranks.
  const int global_rank = this_thread().rank >= 0 && !in_group() ? this_thread().rank : rank;
  if (rank_is_dead(global_rank)) return ncclRemoteError;
  if (this_thread().rank < 0) this_thread().rank = rank;
  const Comm comm = add_comm(world, rank, global_rank, config == nullptr || config->blocking != 0);
  *handle = comm.get();
  if (world->arrived == size) comms().forming.erase(std::string(id.internal, sizeof id.internal));
  if (!comm->blocking) return go_on_later(comm, [world] { return world->arrived == world->size; });
  if (in_group()) {
    add_group_init(comm);
    return ncclSuccess;
  }
  const ncclResult_t result = wait_for_init(lock, comm);
  if (result != ncclSuccess) {
    *handle = nullptr;
    cut_off(comm);
    remove_comm(comm);
  }
  return result;
}

// The communicator for an operation that does not go to a stream.
ncclResult_t plain(ncclComm_t handle, Comm& comm) {
  comm = find_comm(handle);
  return comm ? ncclSuccess : ncclInvalidArgument;
}

ncclResult_t destroy(ncclComm_t handle) {
  Comm comm;
  if (handle == nullptr) return ncclSuccess;
  if (const ncclResult_t failed = plain(handle, comm)) return failed;
  if (comm->in_flight > 0 && !comm->aborted)
    report("COMM-DESTROYED-BUSY",
           name(*comm) + " is destroyed with " + std::to_string(comm->in_flight) + " groups that have not ended");
  for (const Posting* posting : comm->postings)
    report("UNMATCHED", name(*comm) + ": nobody has met its " + describe(posting->part));
  cut_off(comm);
  remove_comm(comm);
  return ncclSuccess;
}

void form_split(Split& split) {
  std::map<int, std::vector<std::pair<int, int>>> by_color;  // (key, rank)
  for (const auto& [rank, request] : split.requests)
    if (request.color != NCCL_SPLIT_NOCOLOR) by_color[request.color].emplace_back(request.key, rank);
  for (auto& [color, ranks] : by_color) {
    std::sort(ranks.begin(), ranks.end());
    const auto world = std::make_shared<World>(static_cast<int>(ranks.size()));
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      split.worlds[ranks[i].second] = world;
      split.new_rank[ranks[i].second] = static_cast<int>(i);
    }
  }
  acted();
  core().changed.notify_all();
}

// Meets `expected` ranks of the communicator and makes the new one that this rank asked for.
ncclResult_t regroup(Lock& lock, const Comm& comm, const SplitRequest& request, std::size_t expected, ncclComm_t* made,
                     const ncclConfig_t* config) {
  const bool was_aborted = comm->aborted;
  Split& together = comm->world->splits[comm->splits++];
  together.requests[comm->rank] = request;
  acted();
  if (together.requests.size() == expected) form_split(together);
  const auto done = [&] { return comm->aborted != was_aborted || together.requests.size() == expected; };
  if (!drain(lock, done, name(*comm) + ": a split") || comm->aborted != was_aborted)
    return fail(comm, ncclInternalError, "not every rank came to the split");
  *made = nullptr;
  if (request.color == NCCL_SPLIT_NOCOLOR) return ncclSuccess;
  const bool inherits = config == nullptr || config->blocking == NCCL_CONFIG_UNDEF_INT;
  const Comm child = add_comm(together.worlds[comm->rank], together.new_rank[comm->rank], comm->global_rank,
                              inherits ? comm->blocking : config->blocking != 0);
  child->device = comm->device;
  *made = child.get();
  if (child->blocking) return wait_for_init(lock, child);
  return go_on_later(child, [world = child->world] { return world->arrived == world->size; });
}

ncclResult_t split(Lock& lock, ncclComm_t handle, int color, int key, ncclComm_t* made, const ncclConfig_t* config) {
  const Comm comm = find_comm(handle);
  if (!comm || made == nullptr || !is_valid(config)) return ncclInvalidArgument;
  if (const ncclResult_t failed = check_comm(lock, comm)) return failed;
  return regroup(lock, comm, {color, key}, static_cast<std::size_t>(comm->world->size), made, config);
}

ncclResult_t shrink(Lock& lock, ncclComm_t handle, const int* excluded, int count, ncclComm_t* made,
                    const ncclConfig_t* config, int flags) {
  const Comm comm = find_comm(handle);
  if (!comm || made == nullptr || !is_valid(config) || count < 1 || count >= comm->world->size)
    return ncclInvalidArgument;
  if (std::find(excluded, excluded + count, comm->rank) != excluded + count) return ncclInvalidArgument;
  if ((flags & NCCL_SHRINK_ABORT) != 0) {
    cut_off(comm);
  } else if (comm->in_flight > 0) {
    return fail(comm, ncclInvalidUsage, "ncclCommShrink with operations that have not ended");
  }
  return regroup(lock, comm, {0, comm->rank}, static_cast<std::size_t>(comm->world->size - count), made, config);
}

ncclResult_t async_error_of(const Comm& comm) {
  if (take_in_progress()) return ncclInProgress;
  if (const ncclResult_t planned = rank_async_error(comm->global_rank)) return planned;
  if (comm->aborted) return ncclSuccess;
  if (comm->in_progress > 0) {
    --comm->in_progress;
    return ncclInProgress;
  }
  while (!comm->unfinished.empty() && comm->unfinished.front()()) comm->unfinished.erase(comm->unfinished.begin());
  return comm->unfinished.empty() ? comm->async_error : ncclInProgress;
}

}  // namespace

std::string name(const ncclComm& comm) {
  return "rank " + std::to_string(comm.rank) + " of " + std::to_string(comm.world->size);
}

Comm find_comm(ncclComm_t handle) {
  for (const Comm& comm : comms().alive)
    if (comm.get() == handle) return comm;
  report("INVALID-HANDLE", "a communicator that was destroyed or aborted, or never made, is used");
  return nullptr;
}

ncclResult_t fail(const Comm& comm, ncclResult_t code, const std::string& text) {
  comm->last_error = text;
  last_error_of_thread() = text;
  return code;
}

ncclResult_t check_comm(Lock& lock, const Comm& comm) {
  while (rank_hangs(comm->global_rank) && !comm->aborted) core().changed.wait_for(lock, std::chrono::milliseconds(20));
  if (rank_is_dead(comm->global_rank)) return fail(comm, ncclRemoteError, "this rank was killed");
  if (comm->aborted || comm->finalized)
    return fail(comm, ncclInvalidUsage, "the communicator was finalized, revoked or aborted");
  if (comm->in_progress > 0 || !comm->unfinished.empty()) {
    report("COMM-NOT-READY", name(*comm) + ": a call before the last one has ended (ncclCommGetAsyncError)");
    return fail(comm, ncclInvalidArgument, "the previous operation is still in progress");
  }
  return ncclSuccess;
}

ncclResult_t go_on_later(const Comm& comm, std::function<bool()> finish) {
  comm->in_progress = core().options.in_progress_polls;
  comm->unfinished.push_back(std::move(finish));
  return ncclInProgress;
}

ncclResult_t wait_for_init(Lock& lock, const Comm& comm) {
  const auto done = [&] { return comm->aborted || comm->world->arrived == comm->world->size; };
  if (!drain(lock, done, name(*comm) + ": the making of a communicator") || comm->aborted)
    return fail(comm, ncclInternalError, "not every rank came to make the communicator");
  return ncclSuccess;
}

std::vector<std::string> live_comms() {
  std::vector<std::string> all;
  for (const Comm& comm : comms().alive) all.push_back("a communicator: " + name(*comm));
  return all;
}

void report_unmatched() {
  for (const Comm& comm : comms().alive)
    for (const Posting* posting : comm->postings)
      report("UNMATCHED", name(*comm) + ": nobody has met its " + describe(posting->part));
}

void withdraw_rank(int global_rank) {
  for (const Comm& comm : comms().alive)
    if (comm->global_rank == global_rank) withdraw_all(*comm);
}

}  // namespace kith::gpu_emulator::detail

using namespace kith::gpu_emulator::detail;

extern "C" {

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  return nccl_call("ncclGetUniqueId", [&](Lock&) -> ncclResult_t {
    if (id == nullptr) return ncclInvalidArgument;
    std::memset(id, 0, sizeof *id);
    std::snprintf(id->internal, sizeof id->internal, "gpu emulator %lu", ++comms().ids);
    return ncclSuccess;
  });
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
  return nccl_call("ncclCommInitRankConfig", [&](Lock& lock) { return init(lock, comm, size, id, rank, config); });
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int size, ncclUniqueId id, int rank) {
  return nccl_call("ncclCommInitRank", [&](Lock& lock) { return init(lock, comm, size, id, rank, nullptr); });
}

ncclResult_t ncclCommInitRankScalable(ncclComm_t* comm, int size, int rank, int id_count, ncclUniqueId* ids,
                                      ncclConfig_t* config) {
  return nccl_call("ncclCommInitRankScalable", [&](Lock& lock) -> ncclResult_t {
    if (id_count < 1 || ids == nullptr) return ncclInvalidArgument;
    return init(lock, comm, size, ids[0], rank, config);
  });
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* made, ncclConfig_t* config) {
  return nccl_call("ncclCommSplit", [&](Lock& lock) { return split(lock, comm, color, key, made, config); });
}

ncclResult_t ncclCommShrink(ncclComm_t comm, int* excluded, int count, ncclComm_t* made, ncclConfig_t* config,
                            int flags) {
  return nccl_call("ncclCommShrink",
                   [&](Lock& lock) { return shrink(lock, comm, excluded, count, made, config, flags); });
}

ncclResult_t ncclCommFinalize(ncclComm_t handle) {
  return nccl_call("ncclCommFinalize", [&](Lock& lock) -> ncclResult_t {
    const Comm comm = find_comm(handle);
    if (!comm) return ncclInvalidArgument;
    if (const ncclResult_t failed = check_comm(lock, comm)) return failed;
    comm->finalized = true;
    if (!comm->blocking) return go_on_later(comm, [raw = comm.get()] { return raw->in_flight == 0; });
    const auto done = [&] { return comm->aborted || comm->in_flight == 0; };
    return drain(lock, done, name(*comm) + ": ncclCommFinalize") ? ncclSuccess : ncclInternalError;
  });
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  return nccl_call("ncclCommDestroy", [&](Lock&) { return destroy(comm); });
}

ncclResult_t ncclCommAbort(ncclComm_t handle) {
  return nccl_call("ncclCommAbort", [&](Lock&) -> ncclResult_t {
    Comm comm;
    if (const ncclResult_t failed = plain(handle, comm)) return failed;
    cut_off(comm);
    remove_comm(comm);
    return ncclSuccess;
  });
}

ncclResult_t ncclCommRevoke(ncclComm_t handle, int) {
  return nccl_call("ncclCommRevoke", [&](Lock&) -> ncclResult_t {
    Comm comm;
    if (const ncclResult_t failed = plain(handle, comm)) return failed;
    cut_off(comm);
    return ncclSuccess;
  });
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* error) {
  return nccl_call("ncclCommGetAsyncError", [&](Lock&) -> ncclResult_t {
    Comm comm;
    if (const ncclResult_t failed = plain(handle, comm)) return failed;
    *error = async_error_of(comm);
    return ncclSuccess;
  });
}

ncclResult_t ncclCommCount(const ncclComm_t handle, int* count) {
  return nccl_call("ncclCommCount", [&](Lock&) -> ncclResult_t {
    Comm comm;
    if (const ncclResult_t failed = plain(handle, comm)) return failed;
    *count = comm->world->size;
    return ncclSuccess;
  });
}

ncclResult_t ncclCommUserRank(const ncclComm_t handle, int* rank) {
  return nccl_call("ncclCommUserRank", [&](Lock&) -> ncclResult_t {
    Comm comm;
    if (const ncclResult_t failed = plain(handle, comm)) return failed;
    *rank = comm->rank;
    return ncclSuccess;
  });
}

ncclResult_t ncclCommCuDevice(const ncclComm_t handle, int* device) {
  return nccl_call("ncclCommCuDevice", [&](Lock&) -> ncclResult_t {
    Comm comm;
    if (const ncclResult_t failed = plain(handle, comm)) return failed;
    *device = comm->device;
    return ncclSuccess;
  });
}

ncclResult_t ncclCommRegister(const ncclComm_t handle, void* buffer, size_t bytes, void** registration) {
  return nccl_call("ncclCommRegister", [&](Lock&) -> ncclResult_t {
    Comm comm;
    if (const ncclResult_t failed = plain(handle, comm)) return failed;
    if (buffer == nullptr || bytes == 0 || registration == nullptr) return ncclInvalidArgument;
    *registration = buffer;
    return ncclSuccess;
  });
}

ncclResult_t ncclCommDeregister(const ncclComm_t handle, void*) {
  return nccl_call("ncclCommDeregister", [&](Lock&) -> ncclResult_t {
    Comm comm;
    return plain(handle, comm);
  });
}

const char* ncclGetLastError(ncclComm_t handle) {
  const Lock lock{core().mutex};
  trace("ncclGetLastError");
  std::string& text = last_error_of_thread();
  for (const Comm& comm : comms().alive)
    if (comm.get() == handle) text = comm->last_error;
  return text.c_str();
}
}
