// SPDX-License-Identifier: Apache-2.0
// Findings, faults, the record of calls, and what happens at exit.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string_view>

#include "capture.hpp"
#include "core.hpp"
#include "memory.hpp"
#include "nccl_comm.hpp"
#include "queue.hpp"

namespace kith::gpu_emulator {
namespace detail {
namespace {

struct Fault {
  std::string function;
  int nth;
  int code;
  int rank;
};

struct Faults {
  std::vector<Fault> calls;
  int in_progress = 0;
  std::set<int> stalled;
  std::map<int, Death> dead;
  std::map<int, ncclResult_t> async_errors;
};

Faults& faults() {
  static auto* const all = new Faults;  // never destroyed, as Core
  return *all;
}

bool environment_says(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr && std::string_view{value} == "1";
}

Options default_options() {
  Options options;
  if (const char* text = std::getenv("KITH_GPU_EMULATOR_DEADLOCK_MS")) options.deadlock_ms = std::atoi(text);
  return options;
}

// Calls that wait for the device or may do so. cudaMemcpyAsync is not among them: it adds "(pageable)" where it is.
constexpr std::array<std::string_view, 20> synchronizing{"cudaDeviceSynchronize",
                                                         "cudaStreamSynchronize",
                                                         "cudaEventSynchronize",
                                                         "cudaMemcpy",
                                                         "cudaMemset",
                                                         "cudaMalloc",
                                                         "cudaFree",
                                                         "cudaMallocHost",
                                                         "cudaHostAlloc",
                                                         "cudaFreeHost",
                                                         "cudaHostRegister",
                                                         "cudaHostUnregister",
                                                         "ncclMemAlloc",
                                                         "ncclMemFree",
                                                         "cudaMemcpyAsync (pageable)",
                                                         "cudaMemcpyPeer",
                                                         "cudaMallocManaged",
                                                         "cudaDeviceReset",
                                                         "cudaGraphInstantiate",
                                                         "cudaGraphInstantiateWithFlags"};

void at_exit(int status, void*) {
  Lock lock{core().mutex};
  pump(lock);
  report_unmatched();
  if (core().options.report_leaks)
    for (const std::string& leak : leaks_now()) report("LEAK", leak);
  if (status != 0 || core().findings.empty() || !environment_says("KITH_GPU_EMULATOR_FATAL")) return;
  std::fprintf(stderr, "[gpu emulator] %zu findings\n", core().findings.size());
  std::fflush(nullptr);
  _exit(86);
}

// on_exit and not a destructor, because it knows the status. Registered when the library is loaded, so it runs after
// what the program has registered.
[[maybe_unused]] const int registered_at_exit = on_exit(at_exit, nullptr);

}  // namespace

Thread& this_thread() {
  thread_local Thread mine;
  return mine;
}

Core& core() {
  static auto* const only = [] {
    auto* made = new Core;
    made->options = default_options();
    return made;
  }();
  return *only;
}

void report(const std::string& kind, const std::string& text) {
  std::vector<Finding>& all = core().findings;
  const auto same = [&](const Finding& finding) { return finding.kind == kind && finding.text == text; };
  if (std::any_of(all.begin(), all.end(), same)) return;
  all.push_back({kind, text});
  std::fprintf(stderr, "[gpu emulator] %s: %s\n", kind.c_str(), text.c_str());
}

void acted() {
  ++core().activity;
  core().changed.notify_one();
}

void trace(const char* name) {
  if (this_thread().traced) this_thread().trace.push_back(name);
}

bool begin_call(const char* name, int& code) {
  trace(name);
  std::vector<Fault>& planned = faults().calls;
  for (auto fault = planned.begin(); fault != planned.end(); ++fault) {
    if (fault->function != name || (fault->rank >= 0 && fault->rank != this_thread().rank)) continue;
    if (--fault->nth > 0) continue;
    code = fault->code;
    planned.erase(fault);
    return true;
  }
  return false;
}

bool rank_is_stalled(int rank) { return faults().stalled.count(rank) > 0; }
bool rank_is_dead(int rank) { return faults().dead.count(rank) > 0; }
bool rank_hangs(int rank) {
  const auto found = faults().dead.find(rank);
  return found != faults().dead.end() && found->second == Death::hangs;
}
ncclResult_t rank_async_error(int rank) {
  const auto found = faults().async_errors.find(rank);
  return found == faults().async_errors.end() ? ncclSuccess : found->second;
}
bool take_in_progress() { return faults().in_progress > 0 && faults().in_progress-- > 0; }

std::vector<std::string> leaks_now() {
  std::vector<std::string> all = live_memory();
  for (const auto& more : {live_streams_and_events(), live_graphs(), live_comms()})
    all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace detail

using detail::core;
using detail::Lock;

std::vector<Finding> findings() {
  const Lock lock{core().mutex};
  return core().findings;
}

void clear_findings() {
  const Lock lock{core().mutex};
  core().findings.clear();
}

Options options() {
  const Lock lock{core().mutex};
  return core().options;
}

void set_options(const Options& options) {
  const Lock lock{core().mutex};
  core().options = options;
}

void reset() {
  const Lock lock{core().mutex};
  core().options = detail::default_options();
  core().findings.clear();
  detail::faults() = {};
  detail::acted();
}

void fail_call(const std::string& function, int nth, int code, int rank) {
  const Lock lock{core().mutex};
  detail::faults().calls.push_back({function, nth, code, rank});
}

void return_in_progress(int count) {
  const Lock lock{core().mutex};
  detail::faults().in_progress = count;
}

void stall_rank(int rank) {
  const Lock lock{core().mutex};
  detail::faults().stalled.insert(rank);
}

void resume_rank(int rank) {
  const Lock lock{core().mutex};
  detail::faults().stalled.erase(rank);
  detail::acted();
}

void kill_rank(int rank, Death death) {
  const Lock lock{core().mutex};
  detail::faults().dead[rank] = death;
  detail::withdraw_rank(rank);
  detail::acted();
}

void async_error(int rank, int code) {
  const Lock lock{core().mutex};
  detail::faults().async_errors[rank] = static_cast<ncclResult_t>(code);
}

std::size_t mark() {
  detail::this_thread().traced = true;
  return detail::this_thread().trace.size();
}

std::vector<std::string> calls(std::size_t mark) {
  const std::vector<const char*>& all = detail::this_thread().trace;
  return {all.begin() + static_cast<std::ptrdiff_t>(std::min(mark, all.size())), all.end()};
}

std::vector<std::string> synchronizations(std::size_t mark) {
  std::vector<std::string> found = calls(mark);
  const auto harmless = [](const std::string& name) {
    return std::find(detail::synchronizing.begin(), detail::synchronizing.end(), name) == detail::synchronizing.end();
  };
  found.erase(std::remove_if(found.begin(), found.end(), harmless), found.end());
  return found;
}

std::size_t edges_connected() {
  const Lock lock{core().mutex};
  return detail::connected_edges();
}

std::size_t first_contacts_since(std::size_t mark) { return edges_connected() - mark; }

std::vector<std::string> leaks() {
  const Lock lock{core().mutex};
  return detail::leaks_now();
}

}  // namespace kith::gpu_emulator
