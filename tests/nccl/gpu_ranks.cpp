// SPDX-License-Identifier: Apache-2.0
#include "gpu_ranks.hpp"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../gpu_emulator/emulator.hpp"

namespace gpu_ranks {

bool emulated() { return kith::gpu_emulator::available(); }

namespace {
int skipped_cases = 0;
}

void skip(const std::string& reason) {
  ++skipped_cases;
  std::printf("skipped: %s\n", reason.c_str());
}
int skipped() { return skipped_cases; }

void expect_deadlocks() {
  if (!emulated()) return;
  auto options = kith::gpu_emulator::options();
  options.deadlock_ms = 0;
  kith::gpu_emulator::set_options(options);
}

void forget_findings() {
  if (emulated()) kith::gpu_emulator::clear_findings();
}

namespace {

void run_threads(kith::Rank size, const std::function<void(kith::Rank, const ncclUniqueId&)>& body) {
  {
    const kith::cuda::Range first{"start"};
  }  // NVTX gets ready at its first use, by ways that ThreadSanitizer mistrusts
  const ncclUniqueId id = kith::nccl::make_unique_id();
  std::mutex mutex;
  std::exception_ptr first;
  {
    std::vector<std::jthread> threads;
    for (kith::Rank rank = 0; rank < size; ++rank)
      threads.emplace_back([&, rank] {
        try {
          kith::cuda::check(cudaSetDevice(rank % kith::gpu_emulator::options().devices), "choose a device");
          body(rank, id);
        } catch (...) {
          const std::lock_guard lock{mutex};
          if (!first) first = std::current_exception();
        }
      });
  }
  if (first) std::rethrow_exception(first);
}

/// In memory that all processes share.
struct Meeting {
  std::atomic<int> ready{0};
  ncclUniqueId id{};
};

// One GPU several times over: each process says that it is a host of its own, and the ranks meet over loopback.
void prepare_environment(kith::Rank rank, int devices, kith::Rank size) {
  const auto set = [](const char* name, const std::string& value) { setenv(name, value.c_str(), 0); };
  if (devices >= size) return;
  set("NCCL_HOSTID", "kith-rank-" + std::to_string(rank));
  set("NCCL_SOCKET_IFNAME", "lo");
  set("NCCL_NET", "Socket");
  set("NCCL_NET_PLUGIN", "none");
  set("NCCL_IB_DISABLE", "1");
  set("NCCL_MNNVL_ENABLE", "0");
  set("NCCL_NVLS_ENABLE", "0");
  set("NCCL_MAX_CTAS", "4");
  set("NCCL_RAS_ENABLE", "0");
}

int run_rank(kith::Rank rank, kith::Rank size, Meeting& meeting,
             const std::function<void(kith::Rank, const ncclUniqueId&)>& body) {
  try {
    int devices = 0;
    kith::cuda::check(cudaGetDeviceCount(&devices), "count the devices");
    prepare_environment(rank, devices, size);
    kith::cuda::check(cudaSetDevice(rank % devices), "choose a device");
    if (rank == 0) {
      meeting.id = kith::nccl::make_unique_id();
      meeting.ready.store(1, std::memory_order_release);
    }
    while (meeting.ready.load(std::memory_order_acquire) == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
    body(rank, meeting.id);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rank %d of %d: %s\n", rank, size, error.what());
    return 1;
  }
}

// This process never calls CUDA, which does not survive a fork.
void run_processes(kith::Rank size, const std::function<void(kith::Rank, const ncclUniqueId&)>& body) {
  void* const memory = mmap(nullptr, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no shared memory");
  auto* const meeting = new (memory) Meeting;
  std::fflush(nullptr);
  std::vector<pid_t> children;
  for (kith::Rank rank = 0; rank < size; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(120);
      std::_Exit(run_rank(rank, size, *meeting, body));
    }
    children.push_back(child);
  }
  int failures = 0;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    failures += status == 0 ? 0 : 1;
  }
  munmap(memory, sizeof(Meeting));
  if (failures > 0) throw std::runtime_error(std::to_string(failures) + " ranks failed; see above");
}

}  // namespace

void run(kith::Rank size, const std::function<void(kith::Rank, const ncclUniqueId&)>& body) {
  emulated() ? run_threads(size, body) : run_processes(size, body);
}

}  // namespace gpu_ranks
