// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <nccl.h>

#include <kith/communicator.hpp>
#include <kith/cuda/resources.hpp>
#include <kith/error.hpp>
#include <kith/nccl/engine.hpp>
#include <kith/nccl/error.hpp>
#include <kith/nccl/mail.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::nccl {

/// What Communicator::create() asks of NCCL. The defaults of NCCL itself are made for exchanges of all with all.
struct CommunicatorOptions {
  /// Channels to a peer on another machine; 0 = NCCL's own choice, one or two. With NCCL 2.28 or newer.
  int channels_per_net_peer = 4;
  /// With how many peers a rank exchanges in a round; 0 = NCCL's own choice. With NCCL 2.30 or newer.
  int peers = 2;
  /// By when all ranks have to be there.
  Seconds deadline{60};
};

/// @brief A rank whose model is in the memory of a GPU: a model of kith::Communicator and kith::StreamOrdered.
///
/// A round is enqueued on a stream of Kith's own, between what the caller's stream holds before and what it is given
/// after, and the call returns. Messages go by ncclSend and ncclRecv, all those of a round in one group, into memory of
/// Kith's own; the parameters are written by a kernel after everything has come.
///
/// The communicator remembers the device of NCCL's communicator; every call may be made with any current device.
///
/// @par Failures A thread of the communicator's watches over the rounds on the device. At a deadline (counted from when
/// a round's exchange begins on the device), or when NCCL reports an error, it aborts NCCL's communicator. The round
/// then commits nothing on this rank, and every later call throws BackendError, or PeerError where a host waited and it
/// is known for whom. An abort frees NCCL's communicator: one that was borrowed is not to be used or destroyed by its
/// owner any more; failed() tells.
/// @par Thread safety One thread at a time uses a communicator and what is made from it, and nothing else uses the same
/// ncclComm_t meanwhile.
class Communicator {
public:
  using DeviceStream = cudaStream_t;

  /// @brief Borrows `comm`, which outlives this object. Local. Where peers are on other machines, NCCL's defaults make
  /// few channels to a peer; set NCCL_NCHANNELS_PER_NET_PEER, or let create() make the communicator.
  /// @throws BackendError for what NCCL and CUDA report.
  explicit Communicator(ncclComm_t comm) : Communicator(comm, false) {}

  /// @brief Collective. Makes a communicator of NCCL for the current device, and owns it.
  /// @param id the same on all ranks: see kith/nccl/unique_id.hpp.
  /// @throws UsageError for a rank that is none of `size`. BackendError for what NCCL reports, and if not all ranks
  ///         have come by the deadline.
  [[nodiscard]] static Communicator create(const ncclUniqueId& id, Rank size, Rank rank,
                                           CommunicatorOptions options = {}) {
    if (size < 1 || rank < 0 || rank >= size)
      throw UsageError("rank " + std::to_string(rank) + " of " + std::to_string(size) +
                       ": ranks are 0 to size - 1, and there is at least one");
    return Communicator{connect(id, size, rank, options), true};
  }

  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  /// Averagers that use it have ended. What is enqueued is waited for; after a failure nothing is.
  ~Communicator() = default;

  [[nodiscard]] Rank rank() const noexcept { return engine_.rank(); }
  [[nodiscard]] Rank size() const noexcept { return engine_.size(); }
  /// The CUDA device that this rank's buffers are on.
  [[nodiscard]] int device() const noexcept { return engine_.device(); }
  /// Whether the communicator has failed and NCCL's has been aborted.
  [[nodiscard]] bool failed() const noexcept { return engine_.failed(); }

  /// See kith::Communicator.
  [[nodiscard]] std::uint32_t open_channel() noexcept { return channels_++; }

  /// See kith::Communicator. For memory of the host, by way of the device; waits on the host. Two messages for one.
  Seconds exchange(const Call& call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming) {
    return mail_.exchange(call, outgoing, incoming);
  }

  /// See kith::Communicator; for memory of the host. Among more than 16 ranks, where messages from each to each would
  /// take connections, and memory for them, that rounds never need, it is NCCL's collective. A deadline that passes is
  /// a BackendError then: nobody knows who is missing.
  Seconds all_gather(const Call& call, std::span<const std::byte> mine, std::span<std::byte> all) {
    if (size() > most_pairwise) return mail_.all_gather(call, mine, all);
    outgoing_.clear();
    incoming_.clear();
    for (Rank r = 0; r < size(); ++r) {
      std::byte* const room = all.data() + static_cast<std::size_t>(r) * mine.size();
      if (r != rank()) {
        outgoing_.push_back({r, mine.data(), mine.size()});
        incoming_.push_back({r, room, mine.size()});
      } else if (!mine.empty()) {
        std::memcpy(room, mine.data(), mine.size());
      }
    }
    return exchange(call, outgoing_, incoming_);
  }

  /// @throws UsageError for a buffer that is not in the memory of this communicator's device (managed memory is), or
  ///         not at a multiple of its element's size.
  void require_readable(std::span<const BufferView> buffers) const {
    for (std::size_t b = 0; b < buffers.size(); ++b) {
      if (buffers[b].count == 0 || buffers[b].data == nullptr) continue;
      const std::string buffer = "buffer " + std::to_string(b);
      cudaPointerAttributes found{};
      if (cudaPointerGetAttributes(&found, buffers[b].data) != cudaSuccess) (void)cudaGetLastError();
      if (found.type != cudaMemoryTypeDevice && found.type != cudaMemoryTypeManaged)
        throw UsageError(buffer +
                         " is not in the memory of a GPU: the NCCL engine averages device buffers; for buffers "
                         "of the host use kith::mpi::Communicator or kith::thread::Communicator");
      if (found.type == cudaMemoryTypeDevice && found.device != device())
        throw UsageError(buffer + " is on device " + std::to_string(found.device) + ", the communicator on device " +
                         std::to_string(device()));
      if (reinterpret_cast<std::uintptr_t>(buffers[b].data) % size_of(buffers[b].dtype) != 0)
        throw UsageError(buffer + " does not lie at a multiple of its element's size");
    }
  }

  /// For what is built upon it.
  [[nodiscard]] detail::Engine& engine() noexcept { return engine_; }

private:
  static constexpr Rank most_pairwise = 16;

  Communicator(ncclComm_t comm, bool owned) : engine_(comm, owned), mail_(engine_) {}

  // NCCL waits for all ranks, on the host, for ever: so another thread does, and stays behind at the deadline.
  static ncclComm_t connect(const ncclUniqueId& id, Rank size, Rank rank, const CommunicatorOptions& options) {
    struct Attempt {
      std::mutex mutex;
      std::condition_variable changed;
      std::optional<ncclResult_t> result;
      ncclComm_t comm = nullptr;
    };
    int device = 0;
    cuda::check(cudaGetDevice(&device), "tell the current device");
    const auto attempt = std::make_shared<Attempt>();
    std::thread{[attempt, id, size, rank, device, config = to_config(options)]() mutable {
      (void)cudaSetDevice(device);
      ncclComm_t comm = nullptr;
      const ncclResult_t result = ncclCommInitRankConfig(&comm, size, id, rank, &config);
      const std::lock_guard lock{attempt->mutex};
      attempt->comm = comm;
      attempt->result = result;
      attempt->changed.notify_all();
    }}.detach();
    std::unique_lock lock{attempt->mutex};
    const std::string who = "rank " + std::to_string(rank) + "/" + std::to_string(size);
    if (!attempt->changed.wait_for(lock, options.deadline, [&] { return attempt->result.has_value(); }))
      throw BackendError(who + ": NCCL's ranks have not all come within " + kith::detail::to_text(options.deadline),
                         static_cast<int>(ncclSystemError));
    check(*attempt->result, "make a communicator on " + who);
    return attempt->comm;
  }

  static ncclConfig_t to_config(const CommunicatorOptions& options) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)
    if (options.channels_per_net_peer > 0) config.nChannelsPerNetPeer = options.channels_per_net_peer;
#endif
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 30, 3)
    if (options.peers > 0) config.maxP2pPeers = options.peers;
#endif
    (void)options;
    return config;
  }

  detail::Engine engine_;
  detail::Mail mail_;
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
  std::uint32_t channels_ = 0;
};

static_assert(kith::Communicator<Communicator>);
static_assert(kith::StreamOrdered<Communicator>);

}  // namespace kith::nccl
