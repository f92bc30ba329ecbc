// SPDX-License-Identifier: Apache-2.0
// Groups and point-to-point messages. A group is one operation per communicator and stream; each of its calls ends by
// itself as soon as its partner has come.
#include <algorithm>
#include <cstring>
#include <utility>

#include "memory.hpp"
#include "nccl_comm.hpp"

namespace kith::gpu_emulator::detail {
namespace {

struct Issued {
  Comm comm;
  Stream* stream;
  Part part;
};

struct Group {
  int depth = 0;
  ncclResult_t error = ncclSuccess;  // of a call inside; ncclGroupEnd says it again
  std::vector<Issued> calls;
  std::vector<Comm> inits;
};

Group& this_group() {
  thread_local Group group;
  return group;
}

std::size_t& connected() {
  static std::size_t count = 0;
  return count;
}

void finish(Posting& posting) {
  posting.done = true;
  posting.comm->postings.erase(&posting);
}

void match(Posting& send, Posting& recv) {
  const Part& from = send.part;
  const Part& to = recv.part;
  const std::size_t bytes = std::min(from.count * type_bytes(from.type), to.count * type_bytes(to.type));
  if (from.count != to.count || from.type != to.type)
    report("MISMATCH",
           name(*send.comm) + ": " + describe(from) + " meets, at " + name(*recv.comm) + ", " + describe(to));
  if (bytes > 0 && is_reachable(from.send, bytes) && is_reachable(to.recv, bytes))
    std::memmove(translate(to.recv), translate(from.send), bytes);
  finish(send);
  finish(recv);
}

std::pair<int, int> edge_of(const Part& part, const ncclComm& comm) {
  return part.kind == Part::Kind::send ? std::pair{comm.rank, part.peer} : std::pair{part.peer, comm.rank};
}

bool is_message(const Part& part) { return part.kind == Part::Kind::send || part.kind == Part::Kind::recv; }

void post_message(World& world, Posting& posting) {
  Edge& edge = world.edges[edge_of(posting.part, *posting.comm)];
  const bool sends = posting.part.kind == Part::Kind::send;
  auto& partners = sends ? edge.recvs : edge.sends;
  if (partners.empty()) {
    (sends ? edge.sends : edge.recvs).push_back(&posting);
    return;
  }
  Posting& partner = *partners.front();
  partners.pop_front();
  match(sends ? posting : partner, sends ? partner : posting);
}

void post_collective(World& world, Posting& posting) {
  std::vector<Posting*>& round = world.rounds[posting.round];
  round.push_back(&posting);
  if (round.size() < static_cast<std::size_t>(world.size)) return;
  std::sort(round.begin(), round.end(),
            [](const Posting* a, const Posting* b) { return a->comm->rank < b->comm->rank; });
  run_collective(round);
  for (Posting* part : round) finish(*part);
  world.rounds.erase(posting.round);
}

void withdraw(Posting& posting) {
  World& world = *posting.comm->world;
  const auto take_out = [&](auto& list) { list.erase(std::remove(list.begin(), list.end(), &posting), list.end()); };
  if (is_message(posting.part)) {
    Edge& edge = world.edges[edge_of(posting.part, *posting.comm)];
    take_out(edge.sends);
    take_out(edge.recvs);
  } else if (const auto round = world.rounds.find(posting.round); round != world.rounds.end()) {
    take_out(round->second);
  }
}

// One launch of a group's calls on one communicator and stream.
class Launch {
public:
  Launch(Comm comm, const std::vector<Part>& parts) : comm_(std::move(comm)) {
    ++comm_->in_flight;
    postings_.reserve(parts.size());
    for (const Part& part : parts) postings_.push_back({part, comm_.get(), is_message(part) ? 0 : comm_->rounds++});
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;
  ~Launch() { --comm_->in_flight; }

  bool step() {
    if (comm_->aborted) return true;
    if (rank_is_stalled(comm_->global_rank) || rank_is_dead(comm_->global_rank)) return false;
    if (!posted_) post();
    if (core().options.abort_releases_peers) release();
    return std::all_of(postings_.begin(), postings_.end(), [](const Posting& posting) { return posting.done; });
  }

private:
  void post() {
    posted_ = true;
    for (Posting& posting : postings_) {
      comm_->postings.insert(&posting);
      is_message(posting.part) ? post_message(*comm_->world, posting) : post_collective(*comm_->world, posting);
    }
    ++core().activity;
  }

  void release() {
    const std::vector<bool>& left = comm_->world->left;
    const bool any = std::find(left.begin(), left.end(), true) != left.end();
    for (Posting& posting : postings_) {
      const bool gone = is_message(posting.part) ? left[static_cast<std::size_t>(posting.part.peer)] : any;
      if (posting.done || !gone) continue;
      withdraw(posting);
      finish(posting);
    }
  }

  Comm comm_;
  std::vector<Posting> postings_;
  bool posted_ = false;
};

void add_accesses(Work& work, const ncclComm& comm, const Part& part, std::size_t index) {
  const std::string what = describe(part);
  const std::size_t reads = send_bytes(part, comm);
  const std::size_t writes = recv_bytes(part, comm);
  if (reads > 0) work.accesses.push_back({static_cast<const char*>(part.send), reads, false, index, what});
  if (writes > 0) work.accesses.push_back({static_cast<const char*>(part.recv), writes, true, index, what});
}

std::shared_ptr<const Work> group_work(const Comm& comm, const std::vector<Part>& parts) {
  Work work{describe(parts.front())};
  if (parts.size() > 1) work.what = "a group of " + std::to_string(parts.size()) + " from " + work.what;
  for (std::size_t i = 0; i < parts.size(); ++i) add_accesses(work, *comm, parts[i], i);
  work.cancelled = [comm] { return comm->aborted; };
  work.start = [comm, parts]() -> Step {
    return [launch = std::make_shared<Launch>(comm, parts)] { return launch->step(); };
  };
  return std::make_shared<const Work>(std::move(work));
}

// This end of the part's edge is in use from now on.
void contact(const ncclComm& comm, const Part& part) {
  if (!is_message(part)) return;
  Edge& edge = comm.world->edges[edge_of(part, comm)];
  bool& end = part.kind == Part::Kind::send ? edge.send_end : edge.recv_end;
  if (end) return;
  end = true;
  if (!edge.send_end || !edge.recv_end) return;
  ++connected();
  acted();
  core().changed.notify_all();
}

bool are_connected(const ncclComm& comm, const std::vector<Part>& parts) {
  return std::all_of(parts.begin(), parts.end(), [&](const Part& part) {
    if (!is_message(part)) return true;
    const Edge& edge = comm.world->edges[edge_of(part, comm)];
    return edge.send_end && edge.recv_end;
  });
}

// The stream is looked up again: it may have been destroyed during a wait.
ncclResult_t launch(const Comm& comm, Stream* handle, const std::vector<Part>& parts) {
  Stream* const stream = find_stream(handle);
  if (stream == nullptr || enqueue(*stream, group_work(comm, parts)) != cudaSuccess)
    return fail(comm, ncclUnhandledCudaError, "the stream refused " + describe(parts.front()));
  return ncclSuccess;
}

// The calls of a group on one communicator and stream.
struct Batch {
  Comm comm;
  Stream* stream;
  std::vector<Part> parts;
};

std::vector<Batch> batches(const std::vector<Issued>& calls) {
  std::vector<Batch> all;
  for (const Issued& call : calls) {
    const auto same = [&](const Batch& batch) { return batch.comm == call.comm && batch.stream == call.stream; };
    auto batch = std::find_if(all.begin(), all.end(), same);
    if (batch == all.end()) batch = all.insert(all.end(), Batch{call.comm, call.stream, {}});
    batch->parts.push_back(call.part);
  }
  return all;
}

ncclResult_t start(Lock& lock, const Batch& batch) {
  const Comm& comm = batch.comm;
  const bool connects = core().options.first_contact_blocks;
  if (!comm->blocking) {
    // By its plain address: the communicator holds this function, not the other way round.
    return go_on_later(comm, [connects, raw = comm.get(), stream = batch.stream, parts = batch.parts] {
      if (connects && !are_connected(*raw, parts)) return false;
      raw->async_error = launch(find_comm(raw), stream, parts);
      return true;
    });
  }
  const auto done = [&] { return comm->aborted || are_connected(*comm, batch.parts); };
  if (connects && !drain(lock, done, name(*comm) + ": first contact of " + describe(batch.parts.front())))
    return fail(comm, ncclInternalError, "a peer did not come to connect");
  return comm->aborted ? ncclInternalError : launch(comm, batch.stream, batch.parts);
}

ncclResult_t flush(Lock& lock) {
  Group group = std::exchange(this_group(), {});
  if (group.error != ncclSuccess) return group.error;
  for (const Comm& comm : group.inits)
    if (const ncclResult_t failed = wait_for_init(lock, comm)) return failed;
  const std::vector<Batch> all = batches(group.calls);
  for (const Batch& batch : all)
    if (const ncclResult_t failed = check_comm(lock, batch.comm)) return failed;
  for (const Issued& call : group.calls) contact(*call.comm, call.part);
  ncclResult_t result = ncclSuccess;
  for (const Batch& batch : all) {
    const ncclResult_t started = start(lock, batch);
    if (started != ncclSuccess && (result == ncclSuccess || result == ncclInProgress)) result = started;
  }
  return result;
}

ncclResult_t check_part(const Comm& comm, const Stream& stream, const Part& part) {
  const bool rooted = is_message(part) || part.kind == Part::Kind::reduce || part.kind == Part::Kind::broadcast;
  if (rooted && (part.peer < 0 || part.peer >= comm->world->size))
    return fail(comm, ncclInvalidArgument, describe(part) + ": there is no such rank");
  if (type_bytes(part.type) == 0) return fail(comm, ncclInvalidArgument, "no such data type");
  const bool misses_buffer =
      (send_bytes(part, *comm) > 0 && part.send == nullptr) || (recv_bytes(part, *comm) > 0 && part.recv == nullptr);
  if (misses_buffer) return fail(comm, ncclInvalidArgument, describe(part) + ": the buffer is null");
  if (stream.device != comm->device)
    return fail(comm, ncclInvalidArgument, describe(part) + ": the stream is of another device");
  if (stream.built_in) report("DEFAULT-STREAM", name(*comm) + ": " + describe(part) + " on a default stream");
  return ncclSuccess;
}

ncclResult_t add(ncclComm_t handle, cudaStream_t stream_handle, const Part& part) {
  const Comm comm = find_comm(handle);
  Stream* const stream = find_stream(stream_handle);
  if (!comm || stream == nullptr) return ncclInvalidArgument;
  if (const ncclResult_t failed = check_part(comm, *stream, part)) return failed;
  this_group().calls.push_back({comm, stream, part});
  return ncclSuccess;
}

}  // namespace

bool in_group() { return this_group().depth > 0; }

void add_group_init(const Comm& comm) { this_group().inits.push_back(comm); }

ncclResult_t issue(Lock& lock, ncclComm_t handle, cudaStream_t stream, const Part& part) {
  const ncclResult_t failed = add(handle, stream, part);
  if (in_group()) {
    if (failed != ncclSuccess) this_group().error = failed;
    return failed;
  }
  return failed == ncclSuccess ? flush(lock) : failed;
}

void withdraw_all(ncclComm& comm) {
  for (Posting* posting : comm.postings) withdraw(*posting);
  comm.postings.clear();
}

void cut_off(const Comm& comm) {
  comm->aborted = true;
  comm->unfinished.clear();
  comm->in_progress = 0;
  comm->world->left[static_cast<std::size_t>(comm->rank)] = true;
  withdraw_all(*comm);
  acted();
  core().changed.notify_all();
}

std::size_t connected_edges() { return connected(); }

}  // namespace kith::gpu_emulator::detail

using namespace kith::gpu_emulator::detail;

extern "C" {

ncclResult_t ncclGroupStart() {
  return nccl_call("ncclGroupStart", [](Lock&) {
    ++this_group().depth;
    return ncclSuccess;
  });
}

ncclResult_t ncclGroupEnd() {
  const ncclResult_t result = nccl_call("ncclGroupEnd", [](Lock& lock) -> ncclResult_t {
    if (!in_group()) return ncclInvalidUsage;
    if (this_group().depth > 1) {
      --this_group().depth;
      return ncclSuccess;
    }
    return flush(lock);
  });
  // However it failed, and be it on a test's order, the group is over.
  if (result != ncclSuccess && result != ncclInProgress) {
    const Lock lock{core().mutex};
    this_group() = {};
  }
  return result;
}

ncclResult_t ncclSend(const void* buffer, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return nccl_call("ncclSend", [&](Lock& lock) {
    return issue(lock, comm, stream, {Part::Kind::send, buffer, nullptr, count, type, peer, ncclSum});
  });
}

ncclResult_t ncclRecv(void* buffer, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
  return nccl_call("ncclRecv", [&](Lock& lock) {
    return issue(lock, comm, stream, {Part::Kind::recv, nullptr, buffer, count, type, peer, ncclSum});
  });
}
}
