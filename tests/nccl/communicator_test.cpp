// SPDX-License-Identifier: Apache-2.0
#include <kith/nccl/communicator.hpp>
#include <kith/nccl/engine.hpp>
#include <kith/nccl/mail.hpp>
#include <kith/nccl/unique_id.hpp>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <kith/testing/conformance.hpp>
#include <kith/thread/run.hpp>

#include <doctest/doctest.h>

#include "gpu_ranks.hpp"

namespace nccl_communicator_test {

using gpu_ranks::expect;
using kith::Rank;
using kith::Seconds;
using kith::nccl::Communicator;

TEST_CASE("nccl communicator: does what every engine must do") {
  for (const Rank size : {1, 2, 3, 5, 8})
    gpu_ranks::run(size, [](Communicator& communicator) { kith::testing::check_communicator(communicator); });
}

TEST_CASE("nccl communicator: among many ranks all_gather is NCCL's own") {
  if (!gpu_ranks::emulated()) return gpu_ranks::skip("needs the emulator");
  gpu_ranks::run(17, [](Communicator& communicator) {
    for (std::uint64_t round = 1; round < 4; ++round)
      for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{600}})
        kith::testing::detail::check_all_gather(communicator, 10 * round + bytes, bytes);
  });
}

TEST_CASE("nccl communicator: a rank that does not come is named by the deadline, and nothing works after that") {
  for (const Rank size : {2, 3, 4})
    gpu_ranks::run(size, [](Communicator& communicator) {
      kith::testing::check_deadline(communicator, communicator.size() - 1, Seconds{0.3});
      expect(communicator.failed(), "failed() says so");
    });
}

TEST_CASE("nccl communicator: ranks that make different calls all learn of it") {
  using kith::testing::CallPart;
  for (const CallPart part : {CallPart::what, CallPart::channel, CallPart::sequence, CallPart::agreement})
    gpu_ranks::run(3, [part](Communicator& communicator) { kith::testing::check_protocol(communicator, 1, part); });
}

TEST_CASE("nccl communicator: borrows a communicator of the caller's and leaves it as it was") {
  gpu_ranks::run(2, [](Rank rank, const ncclUniqueId& id) {
    ncclComm_t comm = nullptr;
    kith::nccl::check(ncclCommInitRank(&comm, 2, id, rank), "make a communicator");
    for (int i = 0; i < 2; ++i) {
      Communicator communicator{comm};
      expect(communicator.rank() == rank && communicator.size() == 2, "rank and size are those of the communicator");
      kith::testing::detail::check_all_gather(communicator, 1, 100);
    }
    kith::nccl::check(ncclCommDestroy(comm), "destroy a communicator");
  });
}

TEST_CASE("nccl communicator: works with one that does not block the host") {
  gpu_ranks::run(3, [](Rank rank, const ncclUniqueId& id) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t comm = nullptr;
    ncclResult_t state = ncclCommInitRankConfig(&comm, 3, id, rank, &config);
    while (state == ncclInProgress) kith::nccl::check(ncclCommGetAsyncError(comm, &state), "tell its state");
    kith::nccl::check(state, "make a communicator");
    {
      Communicator communicator{comm};
      kith::testing::check_communicator(communicator);
    }
    while ((state = ncclCommFinalize(comm)) == ncclInProgress) {
      while (state == ncclInProgress) kith::nccl::check(ncclCommGetAsyncError(comm, &state), "tell its state");
      break;
    }
    kith::nccl::check(ncclCommDestroy(comm), "destroy a communicator");
  });
}

TEST_CASE("nccl communicator: may be called with any current device") {
  gpu_ranks::run(2, [](Communicator& communicator) {
    int devices = 0;
    kith::cuda::check(cudaGetDeviceCount(&devices), "count the devices");
    const int other = (communicator.device() + 1) % devices;
    kith::cuda::check(cudaSetDevice(other), "choose a device");
    kith::testing::detail::check_all_gather(communicator, 1, 100);
    int now = -1;
    kith::cuda::check(cudaGetDevice(&now), "tell the device");
    expect(now == other, "and the current device is left as it was");
  });
}

TEST_CASE("nccl communicator: create() refuses ranks that do not exist, and does not wait for ever") {
  gpu_ranks::expect_deadlocks();
  gpu_ranks::run(1, [](Rank, const ncclUniqueId& id) {
    for (const auto& [size, rank] : {std::pair{0, 0}, std::pair{2, 2}, std::pair{2, -1}}) {
      bool refused = false;
      try {
        auto communicator = Communicator::create(id, size, rank);
      } catch (const kith::UsageError&) {
        refused = true;
      }
      expect(refused, "a rank outside of the group is refused");
    }
    const auto begin = std::chrono::steady_clock::now();
    std::string text;
    try {
      auto communicator = Communicator::create(id, 2, 0, {.deadline = Seconds{0.3}});
    } catch (const kith::BackendError& error) {
      text = error.what();
    }
    expect(text.find("0.3 s") != std::string::npos, "the deadline is named: " + text);
    expect(std::chrono::steady_clock::now() - begin < Seconds{5}, "the deadline holds");
  });
}

TEST_CASE("nccl communicator: refuses memory that is not its device's") {
  gpu_ranks::run(1, [](Communicator& communicator) {
    const auto refuses = [&](void* data, kith::DType dtype) {
      const kith::BufferView view = kith::view(data, 4, dtype);
      try {
        communicator.require_readable(std::span{&view, 1});
      } catch (const kith::UsageError&) {
        return true;
      }
      return false;
    };
    const kith::cuda::DeviceMemory device{64};
    const kith::cuda::PinnedMemory pinned{64};
    std::vector<float> host(4);
    expect(!refuses(device.data(), kith::DType::f32), "memory of the device is accepted");
    expect(refuses(device.data() + 2, kith::DType::f32), "but not half an element further");
    expect(refuses(host.data(), kith::DType::f32), "memory of the host is refused");
    expect(refuses(pinned.data(), kith::DType::f32), "pinned or not");
    int devices = 0;
    kith::cuda::check(cudaGetDeviceCount(&devices), "count the devices");
    if (devices < 2) return;
    const kith::cuda::DeviceGuard guard{(communicator.device() + 1) % devices};
    const kith::cuda::DeviceMemory elsewhere{64};
    expect(refuses(elsewhere.data(), kith::DType::f32), "memory of another device is refused");
  });
}

TEST_CASE("nccl communicator: an id can be shared through a file") {
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("kith-id-" + std::to_string(std::random_device{}()));
  gpu_ranks::run(3, [&](Rank rank, const ncclUniqueId&) {
    auto communicator = Communicator::create(kith::nccl::share_unique_id(file, rank), 3, rank);
    kith::testing::detail::check_all_gather(communicator, 1, 8);
  });
  CHECK_THROWS_AS((void)kith::nccl::share_unique_id(file, 0), kith::UsageError);  // a file from an earlier job
  std::filesystem::remove(file);
  CHECK_THROWS_AS((void)kith::nccl::share_unique_id(file, 1, Seconds{0.05}), kith::BackendError);
  gpu_ranks::run(1, [&](Rank, const ncclUniqueId&) {
    try {
      (void)kith::nccl::share_unique_id(file / "nowhere", 0);
    } catch (const kith::UsageError&) {
      return;
    }
    expect(false, "a file that cannot be written is refused");
  });
}

TEST_CASE("nccl communicator: an id can be shared through a communicator of another engine") {
  gpu_ranks::run(1, [](Rank, const ncclUniqueId&) {
    kith::thread::run(3, [](kith::thread::Communicator& others) {
      const ncclUniqueId id = kith::nccl::share_unique_id(others);
      std::vector<ncclUniqueId> all(3);
      kith::Call call;
      call.what = "comparison";
      others.all_gather(call, std::as_bytes(std::span{&id, 1}), std::as_writable_bytes(std::span{all}));
      for (const ncclUniqueId& other : all)
        expect(std::memcmp(&other, &all[0], sizeof other) == 0, "the id is the same everywhere");
    });
  });
}

}  // namespace nccl_communicator_test
