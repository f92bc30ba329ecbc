// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include <cuda_runtime_api.h>

#include <kith/error.hpp>

namespace kith::cuda {

/// Throws BackendError, with CUDA's own words, for anything but success. `doing` completes "CUDA failed to ...".
inline void check(cudaError_t code, std::string_view doing) {
  if (code == cudaSuccess) return;
  (void)cudaGetLastError();  // or the next caller would take it for its own
  throw BackendError(
      "CUDA failed to " + std::string{doing} + ": " + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) + ")",
      static_cast<int>(code));
}

}  // namespace kith::cuda
