// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core.hpp"
#include "history.hpp"

/// @file
/// Memory. A device allocation is mapped twice: at the address that the program gets nothing may be touched, so a host
/// access faults; the emulator works through the second mapping.
namespace kith::gpu_emulator::detail {

struct Region {
  enum class Kind { device, pinned, registered };
  Kind kind;
  char* user;
  char* shadow;  // the same as `user` for host memory; null once it is gone
  std::size_t bytes;
  std::size_t mapped_bytes;
  int device;
  bool freed = false;  // the address is kept for a while, so that a later use can be told from a good one
  History history{};
};

/// The allocation that has this address, freed ones included, or null.
Region* find_region(const void* address);

/// See Translate.
void* translate(const void* address);

/// The address is that of memory which cudaMemcpyAsync cannot reach without the host's help.
bool is_pageable(const void* address);

/// True if the emulator can work on all of these bytes.
bool is_reachable(const void* address, std::size_t bytes);

/// Reports an access outside an allocation or on the wrong device. `device` is the one that makes the access, or -1 for
/// copies, which reach everything, pageable memory too.
void check_bounds(const Access& access, const std::string& where, int device);

/// Adds the access to the history of its memory, which reports races.
void record_access(const Access& access, const Moment& moment);

cudaError_t allocate(Region::Kind kind, void** address, std::size_t bytes);

/// Takes the memory back at once.
void release(Region& region);

/// A line for each allocation that was not freed.
std::vector<std::string> live_memory();

}  // namespace kith::gpu_emulator::detail
