// SPDX-License-Identifier: Apache-2.0
// Devices and errors. The functions that only name an error code or a version are not here: the real library behind
// this one answers them without a GPU.
#include <cstdio>
#include <cstring>
#include <utility>

#include "core.hpp"

using namespace kith::gpu_emulator::detail;

namespace {

bool is_device(int device) { return device >= 0 && device < core().options.devices; }

int attribute_value(cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return 1024;
    case cudaDevAttrMaxBlockDimZ:
      return 64;
    case cudaDevAttrMaxGridDimX:
      return 0x7fffffff;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return 48 * 1024;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return 227 * 1024;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return 65536;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMultiProcessorCount:
      return 132;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 2048;
    case cudaDevAttrL2CacheSize:
      return 50 << 20;
    case cudaDevAttrComputeCapabilityMajor:
      return 9;
    case cudaDevAttrComputeCapabilityMinor:
      return 0;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrStreamPrioritiesSupported:
      return 1;
    default:
      return 0;
  }
}

cudaDeviceProp properties() {
  cudaDeviceProp all;
  std::memset(&all, 0, sizeof all);
  std::snprintf(all.name, sizeof all.name, "emulated GPU");
  all.totalGlobalMem = std::size_t{80} << 30;
  all.sharedMemPerBlock = static_cast<std::size_t>(attribute_value(cudaDevAttrMaxSharedMemoryPerBlock));
  all.sharedMemPerBlockOptin = static_cast<std::size_t>(attribute_value(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  all.warpSize = attribute_value(cudaDevAttrWarpSize);
  all.maxThreadsPerBlock = attribute_value(cudaDevAttrMaxThreadsPerBlock);
  all.maxThreadsPerMultiProcessor = attribute_value(cudaDevAttrMaxThreadsPerMultiProcessor);
  all.multiProcessorCount = attribute_value(cudaDevAttrMultiProcessorCount);
  all.major = attribute_value(cudaDevAttrComputeCapabilityMajor);
  all.minor = attribute_value(cudaDevAttrComputeCapabilityMinor);
  all.l2CacheSize = attribute_value(cudaDevAttrL2CacheSize);
  all.canMapHostMemory = 1;
  all.unifiedAddressing = 1;
  all.concurrentKernels = 1;
  return all;
}

}  // namespace

extern "C" {

cudaError_t cudaSetDevice(int device) {
  return cuda_call("cudaSetDevice", [&](Lock&) -> cudaError_t {
    if (!is_device(device)) return cudaErrorInvalidDevice;
    this_thread().device = device;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return cuda_call("cudaGetDevice", [&](Lock&) -> cudaError_t {
    if (device == nullptr) return cudaErrorInvalidValue;
    *device = this_thread().device;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceCount(int* count) {
  return cuda_call("cudaGetDeviceCount", [&](Lock&) -> cudaError_t {
    if (count == nullptr) return cudaErrorInvalidValue;
    *count = core().options.devices;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return cuda_call("cudaDeviceGetAttribute", [&](Lock&) -> cudaError_t {
    if (value == nullptr) return cudaErrorInvalidValue;
    if (!is_device(device)) return cudaErrorInvalidDevice;
    *value = attribute_value(attribute);
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* all, int device) {
  return cuda_call("cudaGetDeviceProperties", [&](Lock&) -> cudaError_t {
    if (all == nullptr) return cudaErrorInvalidValue;
    if (!is_device(device)) return cudaErrorInvalidDevice;
    *all = properties();
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  return cuda_call("cudaDeviceGetPCIBusId", [&](Lock&) -> cudaError_t {
    if (text == nullptr || length < 13) return cudaErrorInvalidValue;
    if (!is_device(device)) return cudaErrorInvalidDevice;
    std::snprintf(text, static_cast<std::size_t>(length), "0000:%02x:00.0", static_cast<unsigned>(device) & 0xffU);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return cuda_call("cudaDeviceCanAccessPeer", [&](Lock&) -> cudaError_t {
    if (!is_device(device) || !is_device(peer)) return cudaErrorInvalidDevice;
    *can = 0;  // a kernel that touches another device's memory is a finding
    return cudaSuccess;
  });
}

cudaError_t cudaDriverGetVersion(int* version) {
  return cuda_call("cudaDriverGetVersion", [&](Lock&) {
    *version = CUDART_VERSION;
    return cudaSuccess;
  });
}

// These two name the error of the last call, so they are not calls that could set it.
cudaError_t cudaGetLastError() {
  trace("cudaGetLastError");
  return std::exchange(this_thread().last_error, cudaSuccess);
}

cudaError_t cudaPeekAtLastError() {
  trace("cudaPeekAtLastError");
  return this_thread().last_error;
}
}
