// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core.hpp"
#include "queue.hpp"

/// @file
/// Communicators and what meets in them.
namespace kith::gpu_emulator::detail {

/// ncclRedOpCreatePreMulSum's operator.
struct Scale {
  bool alive = true;
  ncclDataType_t type = ncclFloat32;
  const void* device = nullptr;  // where the factor is read when the operation runs, or null
  double value = 1;
};

/// One NCCL call inside a group.
struct Part {
  enum class Kind { send, recv, all_reduce, reduce, broadcast, reduce_scatter, all_gather };
  Kind kind;
  const void* send;
  void* recv;
  std::size_t count;
  ncclDataType_t type;
  int peer;  // or the root
  ncclRedOp_t op;
};

/// A part that waits for its partner or its round.
struct Posting {
  Part part;
  ncclComm* comm;
  std::uint64_t round = 0;  // of collectives
  bool done = false;
};

/// The messages from one rank to another, matched first to first.
struct Edge {
  std::deque<Posting*> sends{};
  std::deque<Posting*> recvs{};
  bool send_end = false;
  bool recv_end = false;
};

struct SplitRequest {
  int color;
  int key;
};
struct World;
struct Split {
  std::map<int, SplitRequest> requests{};  // by rank
  std::map<int, std::shared_ptr<World>> worlds{};
  std::map<int, int> new_rank{};
};

struct World {
  explicit World(int ranks) : size(ranks), joined(static_cast<std::size_t>(ranks)), left(joined) {}
  int size;
  std::vector<bool> joined;
  std::vector<bool> left;  // aborted or destroyed
  int arrived = 0;
  std::map<std::pair<int, int>, Edge> edges{};
  std::map<std::uint64_t, std::vector<Posting*>> rounds{};  // collectives by number, then by rank
  std::map<std::uint64_t, Split> splits{};
};

}  // namespace kith::gpu_emulator::detail

struct ncclComm {
  std::shared_ptr<kith::gpu_emulator::detail::World> world{};
  int rank = 0;
  int global_rank = 0;
  int device = 0;
  bool blocking = true;
  bool aborted = false;  // or destroyed, or revoked: nothing of it moves any more
  bool finalized = false;
  ncclResult_t async_error = ncclSuccess;
  int in_progress = 0;                              // polls that still say so
  std::vector<std::function<bool()>> unfinished{};  // what a non-blocking call has still to do; true when done
  std::uint64_t rounds = 0;
  std::uint64_t splits = 0;
  int in_flight = 0;
  std::vector<kith::gpu_emulator::detail::Scale> scales{};
  std::set<kith::gpu_emulator::detail::Posting*> postings{};  // not met yet
  std::string last_error{};
};

namespace kith::gpu_emulator::detail {

using Comm = std::shared_ptr<ncclComm>;

/// "rank 2 of 4".
std::string name(const ncclComm& comm);

/// The communicator, or null, after a finding, for a handle that is not alive.
Comm find_comm(ncclComm_t handle);

/// The error that a call on this communicator ends with before it does anything, as for a killed rank.
ncclResult_t check_comm(Lock& lock, const Comm& comm);

ncclResult_t fail(const Comm& comm, ncclResult_t code, const std::string& text);

/// Nothing of this communicator moves any more; what its rank has posted is taken back.
void cut_off(const Comm& comm);
/// Takes back what was posted in this communicator and not met; or by this rank in any.
void withdraw_all(ncclComm& comm);
void withdraw_rank(int global_rank);

/// What follows a call on a communicator of `blocking = 0` that has something left to do: `finish()` is asked by
/// ncclCommGetAsyncError until it is true.
ncclResult_t go_on_later(const Comm& comm, std::function<bool()> finish);

/// Between ncclGroupStart and ncclGroupEnd.
bool in_group();
/// Leaves the waiting for the other ranks to ncclGroupEnd.
void add_group_init(const Comm& comm);
ncclResult_t wait_for_init(Lock& lock, const Comm& comm);

/// Adds a call to the group, or makes it one of its own.
ncclResult_t issue(Lock& lock, ncclComm_t comm, cudaStream_t stream, const Part& part);

std::size_t type_bytes(ncclDataType_t type);
std::string describe(const Part& part);
/// The buffers that a call reads and writes, in bytes.
std::size_t send_bytes(const Part& part, const ncclComm& comm);
std::size_t recv_bytes(const Part& part, const ncclComm& comm);
bool is_reduction(const Part& part);

/// All ranks of a collective are there, in order: moves the data.
void run_collective(const std::vector<Posting*>& ranks);

std::size_t connected_edges();

std::vector<std::string> live_comms();
/// A finding for each posted part that nobody has met.
void report_unmatched();

}  // namespace kith::gpu_emulator::detail
