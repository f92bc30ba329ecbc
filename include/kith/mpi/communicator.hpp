// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <vector>

#include <mpi.h>
#include <sys/uio.h>
#include <unistd.h>

#include <kith/background.hpp>
#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/mpi/engine.hpp>
#include <kith/mpi/memory.hpp>
#include <kith/mpi/native.hpp>
#include <kith/mpi/stream.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::mpi {

/// How the ranks of a communicator reach each other; the same on all of them.
struct CommunicatorOptions {
  /// Ranks on one machine read each other's models in memory that they share. Off: they send messages, as they do to
  /// ranks elsewhere. Also off if some rank says so, and for averagers for which /dev/shm is too small.
  bool shared_memory = true;
  /// From how many bytes on a model in memory from Communicator::allocate is read where it is. To wait until all have
  /// read a piece before it is written costs more than to copy it, as long as the copy stays in the cache.
  std::size_t in_place_from_bytes = std::size_t{1} << 23;
  /// How long the ranks wait for each other where no averager is concerned: when the communicator is constructed, in
  /// allocate(), and at its end. (An averager's calls have AveragerOptions::deadline.)
  Seconds deadline = Call{}.deadline;
};

/// @brief A rank of an MPI program: a model of kith::Communicator for host buffers, across processes and machines.
///
/// A gossip round costs a message to every neighbour on another machine, cut into chunks: while one travels, the one
/// before it is averaged. Neighbours on the same machine pass chunks on through memory that they share, and read models
/// that lie in memory from allocate() where they are. A round waits for the neighbours, and for nobody else.
///
/// @par Failures A peer that does not come by the deadline is named in PeerError on every rank that waits for it, or
/// for one that waits for it, within 0.1 s of the deadline. MPI itself cannot go on then: its requests stay pending, in
/// memory that is Kith's own and is never freed, and MPI_Finalize would wait for ever. Save what is to be saved, then
/// end the program by MPI_Abort. Kith itself never ends it.
/// @par Thread safety One thread at a time uses a communicator and what is made from it, besides Kith's own thread for
/// hidden rounds (see background()); with less than
/// MPI_THREAD_SERIALIZED it is the one that initialized MPI.
class Communicator {
public:
  using Stream = detail::Stream;

  /// @brief Collective, without a deadline. Duplicates `comm`, which stays the caller's, and owns the duplicate.
  /// @throws UsageError if MPI is not running, this thread may not call it, or `comm` is no group of ranks.
  /// @throws BackendError for what MPI reports.
  explicit Communicator(MPI_Comm comm, CommunicatorOptions options = {})
      : engine_(comm, options.shared_memory, options.in_place_from_bytes, options.deadline) {}

  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  /// Collective, before MPI_Finalize; averagers and memory that came from here have ended. After a failure, or in an
  /// exception, it waits for nobody. Where not all ranks come within CommunicatorOptions::deadline, those that have
  /// come leave, calls of the others throw PeerError, and what MPI had given stays until the program ends.
  ~Communicator() { engine_.leave(std::uncaught_exceptions() > uncaught_); }

  [[nodiscard]] Rank rank() const noexcept { return rank_; }
  [[nodiscard]] Rank size() const noexcept { return size_; }
  /// How many ranks, this one among them, are on this machine.
  [[nodiscard]] Rank ranks_here() const noexcept { return engine_.arena().ranks_here(); }

  /// See kith::Communicator.
  [[nodiscard]] std::uint32_t open_channel() noexcept { return channels_++; }

  /// @brief Collective. Memory for `count` elements, zeros, which ranks on the same machine can read in place: a large
  /// model (see CommunicatorOptions) that lies in such memory on all ranks is averaged without a copy. Ordinary memory
  /// where nothing is shared. An averager that has begun with such memory can only rebind() to such memory.
  /// @throws UsageError on every rank if memory is shared and they give different counts. @throws PeerError.
  template <Element T>
  [[nodiscard]] Memory<T> allocate(std::size_t count) {
    if (count > (SIZE_MAX / 2) / sizeof(T))
      throw UsageError("allocate: " + std::to_string(count) + " elements are more than there is memory");
    return {engine_.take(count * sizeof(T)), rank_, count};
  }

  /// See kith::Communicator. A rank waits for those that it has messages with, and for nobody else. What is sent and
  /// received is copied once.
  Seconds exchange(const Call& call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming) {
    return engine_.exchange(call, outgoing, incoming);
  }

  /// See kith::Communicator. size() - 1 messages from every rank.
  Seconds all_gather(const Call& call, std::span<const std::byte> mine, std::span<std::byte> all) {
    return engine_.all_gather(call, mine, all);
  }

  /// See kith::Communicator.
  [[noreturn]] void refuse(const Call& call, Rank peer, const std::string& text) { engine_.refuse(call, peer, text); }

  /// Allocates what exchange() will need for so many messages of at most `bytes`, so that no later call does.
  void reserve(std::size_t outgoing, std::size_t incoming, std::size_t bytes) {
    engine_.settle();
    engine_.mail().reserve(outgoing, incoming, bytes);
  }

  /// @throws UsageError for a buffer that this processor cannot read: one in the memory of a GPU.
  void require_readable(std::span<const BufferView> buffers) const {
    for (std::size_t b = 0; b < buffers.size(); ++b) {
      if (buffers[b].count == 0 || buffers[b].data == nullptr) continue;
      auto* const data = static_cast<std::byte*>(buffers[b].data);
      if (!readable(data) || !readable(data + buffers[b].bytes() - 1))
        throw UsageError("buffer " + std::to_string(b) +
                         " is not in the memory of the host. The MPI engine averages host "
                         "buffers; for buffers on a GPU use the NCCL engine, kith::nccl::Communicator");
    }
  }

  /// See kith::Communicator. It has a thread if MPI was initialized with MPI_THREAD_MULTIPLE; with less, hidden rounds
  /// are performed by begin().
  [[nodiscard]] kith::detail::Background& background() noexcept { return engine_.peers().background(); }

  /// For Stream.
  [[nodiscard]] detail::Engine& engine() noexcept { return engine_; }

private:
  // Asks the kernel, which answers with an error where a load would end the program. Where it does not let itself be
  // asked, everything is taken for readable.
  static bool readable(std::byte* address) noexcept {
    std::byte copy{};
    const iovec to{&copy, 1};
    const iovec from{address, 1};
    return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1 || errno != EFAULT;
  }

  detail::Engine engine_;
  Rank rank_ = engine_.peers().rank();
  Rank size_ = engine_.peers().size();
  std::uint32_t channels_ = 0;
  const int uncaught_ = std::uncaught_exceptions();
};

static_assert(kith::Communicator<Communicator>);

/// @brief Collective, without a deadline. The machine of each rank of `comm`, by the lowest rank there, for
/// kith::Hierarchical: the same on every rank. Machines are what MPI says can share memory.
///
/// @code
/// kith::Hierarchical topology{kith::mpi::machines(MPI_COMM_WORLD), kith::OnePeerExponential{}};
/// @endcode
/// @throws BackendError for what MPI reports.
[[nodiscard]] inline std::vector<Rank> machines(MPI_Comm comm) {
  int rank = 0;
  int size = 0;
  detail::require_success(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
  detail::require_success(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  MPI_Comm machine = MPI_COMM_NULL;
  detail::require_success(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &machine),
                          "MPI_Comm_split_type");
  Rank lowest = rank;
  const int told = MPI_Bcast(&lowest, 1, MPI_INT32_T, 0, machine);
  MPI_Comm_free(&machine);
  detail::require_success(told, "MPI_Bcast");
  std::vector<Rank> all(static_cast<std::size_t>(size));
  detail::require_success(MPI_Allgather(&lowest, 1, MPI_INT32_T, all.data(), 1, MPI_INT32_T, comm), "MPI_Allgather");
  return all;
}

}  // namespace kith::mpi
