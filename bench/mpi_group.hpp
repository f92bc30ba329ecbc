// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <mpi.h>

#include <kith/error.hpp>
#include <kith/mpi.hpp>
#include <kith/types.hpp>

#include "command_line.hpp"

namespace bench {

/// An MPI communicator that frees itself, unless a failure is under way: the other ranks may not come.
class OwnedComm {
public:
  OwnedComm() = default;
  OwnedComm(const OwnedComm&) = delete;
  OwnedComm& operator=(const OwnedComm&) = delete;
  ~OwnedComm() {
    if (comm_ != MPI_COMM_NULL && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }
  /// For the call that makes it.
  [[nodiscard]] MPI_Comm* out() noexcept { return &comm_; }
  [[nodiscard]] MPI_Comm get() const noexcept { return comm_; }

private:
  MPI_Comm comm_ = MPI_COMM_NULL;
};

/// @brief One rank of a run on the MPI engine, as the measurements see it: a sibling of ThreadGroup. What it says to
/// the other ranks itself goes through a communicator of its own, between the timed parts.
class MpiGroup {
public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::string_view memories[] = {"own", "allocated"};
  static constexpr const char* topologies = "one-peer-exponential,ring";

  /// The number of ranks that mpirun has started. Throws kith::UsageError where `asked` says something else.
  [[nodiscard]] static std::vector<kith::Rank> numbers_of_ranks(const std::string& asked) {
    int size = 0;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    std::vector<kith::Rank> started{size};
    if (!asked.empty() && parse_ranks(asked) != started)
      throw kith::UsageError("mpirun has started " + std::to_string(size) + " ranks, and --ranks says " + asked +
                             ": leave --ranks out, or say mpirun -n " + asked);
    return started;
  }

  /// Calls body(MpiGroup&).
  template <class Body>
  static void run(kith::Rank, const SweepOptions& options, const Body& body) {
    MpiGroup group{kith::mpi::CommunicatorOptions{.shared_memory = !options.no_shared_memory}};
    body(group);
  }

  [[nodiscard]] kith::mpi::Communicator& communicator() noexcept { return communicator_; }
  [[nodiscard]] MPI_Comm comm() const noexcept { return comm_.get(); }
  [[nodiscard]] kith::Rank rank() const noexcept { return communicator_.rank(); }
  [[nodiscard]] kith::Rank size() const noexcept { return communicator_.size(); }

  /// @brief Collective. Calls `call` on all ranks, which start together: microseconds from the earliest start to the
  /// latest end, the same figure on every rank.
  ///
  /// Ranks of one machine share its clock, as threads do. Of several machines each has its own figure, and the largest
  /// counts.
  template <class Call>
  double time_us(const Call& call) {
    Times& mine = times_[static_cast<std::size_t>(rank())];
    start_together();
    mine.begin_ns = now_ns();
    call();
    mine.end_ns = now_ns();
    MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, times_.data(), 2, MPI_INT64_T, comm());
    std::int64_t longest_ns = 0;
    for (std::size_t r = 0; r < times_.size(); ++r) {
      std::int64_t begin_ns = times_[r].begin_ns;
      for (std::size_t other = 0; other < times_.size(); ++other)
        if (machines_[other] == machines_[r]) begin_ns = std::min(begin_ns, times_[other].begin_ns);
      longest_ns = std::max(longest_ns, times_[r].end_ns - begin_ns);
    }
    return static_cast<double>(longest_ns) / 1e3;
  }

  /// @brief Collective. Returns on all ranks at about the same time.
  ///
  /// A barrier alone lets the rank that comes last go at once, and the others when they hear of it: on a slow network
  /// some delays later. Where ranks of different machines share a clock all the same (network namespaces of one
  /// kernel), they agree on a time, which lies far enough ahead for the news to have reached everybody.
  void start_together() const {
    if (head_start_ns_ == 0) {
      MPI_Barrier(comm());
      return;
    }
    const std::int64_t start_ns = latest_ns(now_ns()) + head_start_ns_;  // nobody knows it before all have come
    std::this_thread::sleep_for(std::chrono::nanoseconds{start_ns - now_ns()});
  }

  /// Collective. The value of every rank, in rank order.
  [[nodiscard]] std::vector<double> gather(double value) const {
    std::vector<double> values(static_cast<std::size_t>(size()));
    MPI_Allgather(&value, 1, MPI_DOUBLE, values.data(), 1, MPI_DOUBLE, comm());
    return values;
  }

  /// Collective. Memory for a model of so many bytes that the ranks of this machine can read in place.
  [[nodiscard]] std::shared_ptr<void> allocate(kith::DType dtype, std::size_t bytes) {
    switch (dtype) {
      case kith::DType::f64:
        return allocate<double>(bytes);
      case kith::DType::f16:
        return allocate<kith::float16>(bytes);
      case kith::DType::bf16:
        return allocate<kith::bfloat16>(bytes);
      case kith::DType::f32:
        break;
    }
    return allocate<float>(bytes);
  }

private:
  struct Times {
    std::int64_t begin_ns;
    std::int64_t end_ns;
  };

  explicit MpiGroup(kith::mpi::CommunicatorOptions options) : communicator_(MPI_COMM_WORLD, options) {
    MPI_Comm_dup(MPI_COMM_WORLD, comm_.out());
    times_.resize(static_cast<std::size_t>(size()));
    OwnedComm machine;
    MPI_Comm_split_type(comm(), MPI_COMM_TYPE_SHARED, rank(), MPI_INFO_NULL, machine.out());
    int first = rank();
    MPI_Bcast(&first, 1, MPI_INT, 0, machine.get());
    for (const double of_rank : gather(first)) machines_.push_back(static_cast<kith::Rank>(of_rank));
    share_clock();
  }

  // Finds out whether different machines are one kernel.
  void share_clock() {
    const bool one_machine = std::count(machines_.begin(), machines_.end(), 0) == size();
    std::string boot;
    std::ifstream{"/proc/sys/kernel/random/boot_id"} >> boot;
    const double kernel = static_cast<double>(std::hash<std::string>{}(boot) >> 16);
    const std::vector<double> kernels = gather(kernel);
    if (one_machine || boot.empty() || std::count(kernels.begin(), kernels.end(), kernel) != size()) return;
    machines_.assign(machines_.size(), 0);
    for (int i = 0; i < 5; ++i) {  // the first ones make the connections
      const std::int64_t last_ns = latest_ns(now_ns());
      head_start_ns_ = latest_ns(now_ns() - last_ns) * 5 / 4;
    }
  }

  [[nodiscard]] std::int64_t latest_ns(std::int64_t mine) const {
    MPI_Allreduce(MPI_IN_PLACE, &mine, 1, MPI_INT64_T, MPI_MAX, comm());
    return mine;
  }

  [[nodiscard]] static std::int64_t now_ns() noexcept {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
  }

  template <class T>
  [[nodiscard]] std::shared_ptr<void> allocate(std::size_t bytes) {
    auto memory = std::make_shared<kith::mpi::Memory<T>>(communicator_.allocate<T>(bytes / sizeof(T)));
    return {memory, memory->data()};
  }

  kith::mpi::Communicator communicator_;
  OwnedComm comm_;
  std::vector<Times> times_;
  std::vector<kith::Rank> machines_;  // each rank's, by the first rank there
  std::int64_t head_start_ns_ = 0;    // how far ahead a common start lies; 0: a barrier does
};

}  // namespace bench
