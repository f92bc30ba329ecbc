// SPDX-License-Identifier: Apache-2.0
// Kernel launches: the functions that nvcc's host code calls for `<<<>>>`, and those of the runtime's interface. A
// kernel is known by the address of its host stub; what it does is what bind() said.
#include <cxxabi.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include "core.hpp"
#include "memory.hpp"
#include "queue.hpp"

namespace kith::gpu_emulator {
namespace detail {
namespace {

constexpr std::size_t argument_alignment = alignof(std::max_align_t);
constexpr unsigned most_threads = 1024;
constexpr std::size_t most_shared_bytes = 227 * 1024;  // of one block, on the GPUs that these tests stand for

struct Launch {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes;
  cudaStream_t stream;
};

struct Kernels {
  std::map<const void*, std::shared_ptr<const KernelBody>> bodies;
  std::map<const void*, std::string> names;
};

// nvcc's host code registers kernels while static objects are constructed, so this is made at the first use.
Kernels& kernels() {
  static auto* const all = new Kernels;
  return *all;
}

Launch& pushed_configuration() {
  thread_local Launch configuration{};
  return configuration;
}

std::string kernel_name(const void* kernel) {
  const auto found = kernels().names.find(kernel);
  if (found == kernels().names.end()) return "a kernel without a name";  // not one of nvcc's
  int status = 0;
  char* const readable = abi::__cxa_demangle(found->second.c_str(), nullptr, nullptr, &status);
  const std::string name = status == 0 ? readable : found->second;
  std::free(readable);
  return name;
}

// A copy of the arguments, as a launch makes one.
class Arguments {
public:
  Arguments(void** from, const std::vector<std::size_t>& bytes) {
    std::size_t total = 0;
    for (const std::size_t size : bytes) total += room(size);
    storage_ = std::make_unique<std::max_align_t[]>(total / sizeof(std::max_align_t) + 1);
    auto* next = reinterpret_cast<char*>(storage_.get());
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      std::memcpy(next, from[i], bytes[i]);
      pointers_.push_back(next);
      next += room(bytes[i]);
    }
  }
  void** get() { return pointers_.data(); }

private:
  static std::size_t room(std::size_t bytes) {
    return (bytes + argument_alignment - 1) / argument_alignment * argument_alignment;
  }
  std::unique_ptr<std::max_align_t[]> storage_;
  std::vector<void*> pointers_;
};

bool possible(const Launch& launch) {
  const dim3& grid = launch.grid;
  const dim3& block = launch.block;
  const auto threads = std::size_t{block.x} * block.y * block.z;
  return grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.y <= 65535 && grid.z <= 65535 && threads > 0 &&
         threads <= most_threads && block.z <= 64 && launch.shared_bytes <= most_shared_bytes;
}

std::shared_ptr<const Work> kernel_work(const std::string& name, std::shared_ptr<const KernelBody> body,
                                        std::shared_ptr<Arguments> arguments, const Launch& launch) {
  Work work{name};
  std::vector<Range> reads;
  std::vector<Range> writes;
  if (body->accesses) body->accesses(arguments->get(), launch.grid, launch.block, reads, writes);
  for (const Range& range : reads)
    work.accesses.push_back({static_cast<const char*>(range.data), range.bytes, false, 0, name + " (reads)"});
  for (const Range& range : writes)
    work.accesses.push_back({static_cast<const char*>(range.data), range.bytes, true, 0, name + " (writes)"});
  work.start = [=]() -> Step {
    return [=] {
      body->run(arguments->get(), launch.grid, launch.block, translate);
      return true;
    };
  };
  return std::make_shared<const Work>(std::move(work));
}

cudaError_t launch_kernel(const void* kernel, void** arguments, const Launch& launch) {
  if (!possible(launch)) return cudaErrorInvalidConfiguration;
  Stream* const stream = find_stream(launch.stream);
  if (stream == nullptr || stream->device != this_thread().device) return cudaErrorInvalidResourceHandle;
  const auto found = kernels().bodies.find(kernel);
  if (found == kernels().bodies.end()) {
    report("NO-HOST-BODY", kernel_name(kernel) + " was launched, but bind() was not called for it");
    return cudaErrorInvalidDeviceFunction;
  }
  auto copied = std::make_shared<Arguments>(arguments, found->second->argument_bytes);
  return enqueue(*stream, kernel_work(kernel_name(kernel), found->second, std::move(copied), launch));
}

}  // namespace
}  // namespace detail

void bind(const void* kernel, KernelBody body) {
  const detail::Lock lock{detail::core().mutex};
  detail::kernels().bodies[kernel] = std::make_shared<const KernelBody>(std::move(body));
}

}  // namespace kith::gpu_emulator

using namespace kith::gpu_emulator::detail;

extern "C" {

cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t stream) {
  return cuda_call("cudaLaunchKernel", [&](Lock&) {
    return launch_kernel(kernel, arguments, {grid, block, shared_bytes, stream});
  });
}

cudaError_t cudaLaunchCooperativeKernel(const void* kernel, dim3 grid, dim3 block, void** arguments,
                                        size_t shared_bytes, cudaStream_t stream) {
  return cuda_call("cudaLaunchCooperativeKernel", [&](Lock&) {
    return launch_kernel(kernel, arguments, {grid, block, shared_bytes, stream});
  });
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  return cuda_call("cudaLaunchKernelExC", [&](Lock&) -> cudaError_t {
    if (config == nullptr) return cudaErrorInvalidValue;
    return launch_kernel(kernel, arguments,
                         {config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream});
  });
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  return cuda_call("cudaFuncGetAttributes", [&](Lock&) -> cudaError_t {
    if (attributes == nullptr || kernels().names.count(kernel) + kernels().bodies.count(kernel) == 0)
      return cudaErrorInvalidDeviceFunction;
    *attributes = {};
    attributes->maxThreadsPerBlock = static_cast<int>(most_threads);
    attributes->numRegs = 32;
    attributes->binaryVersion = 90;
    attributes->ptxVersion = 90;
    return cudaSuccess;
  });
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return cuda_call("cudaFuncSetAttribute", [&](Lock&) { return cudaSuccess; });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int threads, size_t,
                                                                   unsigned int) {
  return cuda_call("cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", [&](Lock&) -> cudaError_t {
    if (blocks == nullptr || threads <= 0) return cudaErrorInvalidValue;
    *blocks = threads <= static_cast<int>(most_threads) ? 2048 / threads : 0;
    return cudaSuccess;
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                          size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, kernel, threads, shared_bytes, 0);
}

// What nvcc 13 writes into the host code of a file with kernels. None of it is in a public header: the declarations
// are those of the objects that it makes.
void** __cudaRegisterFatBinary(void*);
void __cudaRegisterFatBinaryEnd(void**);
void __cudaUnregisterFatBinary(void**);
char __cudaInitModule(void**);
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*, dim3*, int*);
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int);
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, CUstream_st*);
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*);
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*);
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t);

void** __cudaRegisterFatBinary(void*) {
  static void* module = nullptr;
  return &module;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void**, const char* kernel, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  const Lock lock{core().mutex};
  kernels().names[kernel] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, CUstream_st* stream) {
  pushed_configuration() = {grid, block, shared_bytes, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  const Launch& launch = pushed_configuration();
  *grid = launch.grid;
  *block = launch.block;
  *shared_bytes = launch.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = launch.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* handle, const void* kernel) {
  *handle = reinterpret_cast<cudaKernel_t>(const_cast<void*>(kernel));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                               cudaStream_t stream) {
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments, shared_bytes, stream);
}
}
