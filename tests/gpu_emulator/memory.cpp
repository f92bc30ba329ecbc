// SPDX-License-Identifier: Apache-2.0
#include "memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <map>
#include <utility>

#include "capture.hpp"
#include "queue.hpp"

namespace kith::gpu_emulator::detail {
namespace {

// How many freed allocations keep their addresses, so that a use after the free is seen for what it is.
constexpr std::size_t remembered_frees = 256;

struct Memory {
  std::map<const char*, Region> regions;  // by address
  std::deque<const char*> freed;
  History pageable;
};

Memory& memory() {
  static auto* const all = new Memory;
  return *all;
}

std::size_t round_to_pages(std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

void forget_oldest_free() {
  const auto oldest = memory().regions.find(memory().freed.front());
  munmap(oldest->second.user, oldest->second.mapped_bytes);
  memory().regions.erase(oldest);
  memory().freed.pop_front();
}

cudaError_t allocate_device(void** address, std::size_t bytes) {
  const std::size_t mapped = round_to_pages(bytes + 1);  // room behind it, where an overrun is known for what it is
  const int file = memfd_create("kith gpu emulator", MFD_CLOEXEC);
  if (file < 0) return cudaErrorMemoryAllocation;
  void* user = MAP_FAILED;
  void* shadow = MAP_FAILED;
  if (ftruncate(file, static_cast<off_t>(mapped)) == 0) {
    user = mmap(nullptr, mapped, PROT_NONE, MAP_SHARED, file, 0);
    shadow = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  }
  close(file);
  if (user == MAP_FAILED || shadow == MAP_FAILED) {
    if (user != MAP_FAILED) munmap(user, mapped);
    if (shadow != MAP_FAILED) munmap(shadow, mapped);
    return cudaErrorMemoryAllocation;
  }
  std::memset(shadow, 0xff, mapped);  // NaN, whatever the type
  auto* const begin = static_cast<char*>(user);
  memory().regions[begin] = {Region::Kind::device, begin, static_cast<char*>(shadow), bytes, mapped,
                             this_thread().device};
  *address = user;
  return cudaSuccess;
}

cudaError_t allocate_pinned(void** address, std::size_t bytes) {
  const std::size_t mapped = round_to_pages(bytes + 1);
  void* const user = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (user == MAP_FAILED) return cudaErrorMemoryAllocation;
  std::memset(user, 0xff, mapped);
  auto* const begin = static_cast<char*>(user);
  memory().regions[begin] = {Region::Kind::pinned, begin, begin, bytes, mapped, this_thread().device};
  *address = user;
  return cudaSuccess;
}

cudaError_t free_region(Region::Kind kind, void* address) {
  if (address == nullptr) return cudaSuccess;
  if (const cudaError_t refused = refuse_while_capturing()) return refused;
  Region* const region = find_region(address);
  if (region == nullptr || region->user != address || region->freed || region->kind != kind) {
    report("INVALID-HANDLE", std::string{"free of an address that is no such allocation"} +
                                 (region != nullptr && region->freed ? ", or not any more" : ""));
    return cudaErrorInvalidValue;
  }
  std::string what;
  if (in_flight(region->user, region->user + region->bytes, what)) {
    report("FREE-IN-FLIGHT", "memory is freed that is still to be used by " + what);
    if (kind != Region::Kind::registered) {
      region->freed = true;  // but the pages stay: the operation will come
      return cudaSuccess;
    }
  }
  release(*region);
  return cudaSuccess;
}

std::string text_of(const Region& region) {
  const char* const kind = region.kind == Region::Kind::device ? "device" : "pinned";
  return std::to_string(region.bytes) + " bytes of " + kind + " memory (device " + std::to_string(region.device) + ")";
}

}  // namespace

Region* find_region(const void* address) {
  const auto* const wanted = static_cast<const char*>(address);
  auto after = memory().regions.upper_bound(wanted);
  if (after == memory().regions.begin()) return nullptr;
  Region& region = std::prev(after)->second;
  return wanted < region.user + region.mapped_bytes ? &region : nullptr;
}

void* translate(const void* address) {
  const Region* const region = find_region(address);
  if (region == nullptr || region->shadow == nullptr) return const_cast<void*>(address);
  return region->shadow + (static_cast<const char*>(address) - region->user);
}

bool is_reachable(const void* address, std::size_t bytes) {
  const Region* const region = find_region(address);
  if (region == nullptr) return true;
  return region->shadow != nullptr && static_cast<const char*>(address) + bytes <= region->user + region->bytes;
}

bool is_pageable(const void* address) { return find_region(address) == nullptr; }

void check_bounds(const Access& access, const std::string& where, int device) {
  const Region* const region = find_region(access.begin);
  const std::string what = where + ": " + access.what;
  if (region == nullptr) {
    if (device >= 0) report("OUT-OF-BOUNDS", what + " is not in memory that a device can reach");
    return;
  }
  if (region->freed) {
    report("OUT-OF-BOUNDS", what + " is in memory that was freed: " + text_of(*region));
  } else if (access.begin + access.bytes > region->user + region->bytes) {
    report("OUT-OF-BOUNDS", what + " ends " + std::to_string(access.begin + access.bytes - region->user) +
                                " bytes after the start of " + text_of(*region));
  } else if (device >= 0 && region->kind == Region::Kind::device && region->device != device) {
    report("WRONG-DEVICE", what + " is on device " + std::to_string(device) + " but touches " + text_of(*region));
  }
}

void record_access(const Access& access, const Moment& moment) {
  Region* const region = find_region(access.begin);
  (region == nullptr ? memory().pageable : region->history).add(access, moment, host_clock());
}

cudaError_t allocate(Region::Kind kind, void** address, std::size_t bytes) {
  if (address == nullptr) return cudaErrorInvalidValue;
  if (const cudaError_t refused = refuse_while_capturing()) return refused;
  *address = nullptr;
  if (bytes == 0) return cudaSuccess;
  return kind == Region::Kind::device ? allocate_device(address, bytes) : allocate_pinned(address, bytes);
}

void release(Region& region) {
  if (region.kind == Region::Kind::registered) {
    memory().regions.erase(region.user);
    return;
  }
  if (region.kind == Region::Kind::device) munmap(region.shadow, region.mapped_bytes);
  // Mapped anew, so that the pages go and the addresses stay.
  mmap(region.user, region.mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  region.freed = true;
  region.shadow = nullptr;
  region.history = {};
  memory().freed.push_back(region.user);
  if (memory().freed.size() > remembered_frees) forget_oldest_free();
}

std::vector<std::string> live_memory() {
  std::vector<std::string> all;
  for (const auto& [address, region] : memory().regions)
    if (!region.freed) all.push_back(text_of(region));
  return all;
}

}  // namespace kith::gpu_emulator::detail

using namespace kith::gpu_emulator::detail;

extern "C" {

cudaError_t cudaMalloc(void** address, size_t bytes) {
  return cuda_call("cudaMalloc", [&](Lock&) { return allocate(Region::Kind::device, address, bytes); });
}

cudaError_t cudaFree(void* address) {
  return cuda_call("cudaFree", [&](Lock&) { return free_region(Region::Kind::device, address); });
}

cudaError_t cudaMallocHost(void** address, size_t bytes) {
  return cuda_call("cudaMallocHost", [&](Lock&) { return allocate(Region::Kind::pinned, address, bytes); });
}

cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned int) {
  return cuda_call("cudaHostAlloc", [&](Lock&) { return allocate(Region::Kind::pinned, address, bytes); });
}

cudaError_t cudaFreeHost(void* address) {
  return cuda_call("cudaFreeHost", [&](Lock&) { return free_region(Region::Kind::pinned, address); });
}

cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned int) {
  return cuda_call("cudaHostRegister", [&](Lock&) -> cudaError_t {
    if (address == nullptr || bytes == 0) return cudaErrorInvalidValue;
    if (find_region(address) != nullptr) return cudaErrorHostMemoryAlreadyRegistered;
    auto* const begin = static_cast<char*>(address);
    memory().regions[begin] = {Region::Kind::registered, begin, begin, bytes, bytes, this_thread().device};
    return cudaSuccess;
  });
}

cudaError_t cudaHostUnregister(void* address) {
  return cuda_call("cudaHostUnregister", [&](Lock&) {
    return find_region(address) == nullptr ? cudaErrorHostMemoryNotRegistered
                                           : free_region(Region::Kind::registered, address);
  });
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned int) {
  return cuda_call("cudaHostGetDevicePointer", [&](Lock&) -> cudaError_t {
    const Region* const region = find_region(host);
    if (device == nullptr || region == nullptr || region->freed || region->kind == Region::Kind::device)
      return cudaErrorInvalidValue;
    *device = host;
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  return cuda_call("cudaPointerGetAttributes", [&](Lock&) -> cudaError_t {
    if (attributes == nullptr) return cudaErrorInvalidValue;
    *attributes = {};
    const Region* const region = find_region(address);
    if (region == nullptr || region->freed) {
      attributes->type = cudaMemoryTypeUnregistered;
      attributes->device = cudaInvalidDeviceId;
      return cudaSuccess;
    }
    const bool on_device = region->kind == Region::Kind::device;
    attributes->type = on_device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    attributes->device = region->device;
    attributes->devicePointer = const_cast<void*>(address);
    attributes->hostPointer = on_device ? nullptr : const_cast<void*>(address);
    return cudaSuccess;
  });
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  return cuda_call("cudaMemGetInfo", [&](Lock&) {
    *total_bytes = std::size_t{80} << 30;
    *free_bytes = *total_bytes;
    for (const auto& [address, region] : memory().regions)
      if (region.kind == Region::Kind::device && !region.freed && region.device == this_thread().device)
        *free_bytes -= region.bytes;
    return cudaSuccess;
  });
}

ncclResult_t ncclMemAlloc(void** address, size_t bytes) {
  return nccl_call("ncclMemAlloc", [&](Lock&) {
    return allocate(Region::Kind::device, address, bytes) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
  });
}

ncclResult_t ncclMemFree(void* address) {
  return nccl_call("ncclMemFree", [&](Lock&) {
    return free_region(Region::Kind::device, address) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
  });
}
}
