// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include <nccl.h>

#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/nccl/error.hpp>
#include <kith/types.hpp>

/// @file
/// Ways for all ranks of a job to come by the same ncclUniqueId: what Communicator::create() needs.
namespace kith::nccl {

/// A new id; on one rank. @throws BackendError.
[[nodiscard]] inline ncclUniqueId make_unique_id() {
  ncclUniqueId id;
  check(ncclGetUniqueId(&id), "make a unique id");
  return id;
}

/// @brief Collective. Rank 0's new id, brought to all ranks by a communicator that exists already: kith::mpi, say.
/// @throws BackendError on every rank if rank 0 got none; PeerError if a rank does not come.
template <kith::Communicator C>
[[nodiscard]] ncclUniqueId share_unique_id(C& communicator, Seconds deadline = Call{}.deadline) {
  struct Offer {
    ncclUniqueId id;
    int code;
  } mine{};
  if (communicator.rank() == 0) mine.code = static_cast<int>(ncclGetUniqueId(&mine.id));
  std::vector<Offer> all(static_cast<std::size_t>(communicator.size()));
  Call call;
  call.what = "sharing of NCCL's unique id";
  call.deadline = deadline;
  communicator.all_gather(call, std::as_bytes(std::span{&mine, 1}), std::as_writable_bytes(std::span{all}));
  check(static_cast<ncclResult_t>(all[0].code), "make a unique id on rank 0");
  return all[0].id;
}

/// @brief Collective. The same through a file in a folder that all ranks see: for programs that have no MPI.
///
/// Rank 0 makes the file, the others wait for it. Every job needs a path of its own. The file can go once all ranks
/// have a communicator.
/// @throws UsageError on rank 0 if the file exists or cannot be written: a rank that read an id of another job would
///         wait for it. BackendError on the others if it has not come by the deadline.
[[nodiscard]] inline ncclUniqueId share_unique_id(const std::filesystem::path& file, Rank rank,
                                                  Seconds deadline = Call{}.deadline) {
  ncclUniqueId id;
  const std::string name = file.string();
  if (rank == 0) {
    if (std::filesystem::exists(file))
      throw UsageError(name + " exists, perhaps from an earlier job: remove it, or name another file for this job");
    id = make_unique_id();
    const std::string whole = name + ".new";  // others shall never see half of it
    std::FILE* const stream = std::fopen(whole.c_str(), "wb");
    bool written = stream != nullptr && std::fwrite(&id, sizeof id, 1, stream) == 1;
    if (stream != nullptr) written = std::fclose(stream) == 0 && written;
    std::error_code failure;
    if (written) std::filesystem::rename(whole, file, failure);
    if (!written || failure) throw UsageError("cannot write NCCL's unique id to " + name);
    return id;
  }
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (!std::filesystem::exists(file)) {
    if (std::chrono::steady_clock::now() > end)
      throw BackendError("rank " + std::to_string(rank) + ": rank 0 has not written NCCL's unique id to " + name +
                             " within " + kith::detail::to_text(deadline),
                         static_cast<int>(ncclSystemError));
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> stream{std::fopen(name.c_str(), "rb"), &std::fclose};
  if (stream == nullptr || std::fread(&id, sizeof id, 1, stream.get()) != 1)
    throw UsageError(name + " does not hold a unique id of NCCL");
  return id;
}

}  // namespace kith::nccl
