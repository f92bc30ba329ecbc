// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include <nccl.h>

#include <kith/error.hpp>

#if NCCL_VERSION_CODE < NCCL_VERSION(2, 18, 1)
#error "Kith's NCCL engine needs NCCL 2.18.1 or newer"
#endif

namespace kith::nccl {

/// "unhandled system error (2: ncclCommInitRank: Connection refused)": NCCL's words, and those of its last error.
[[nodiscard]] inline std::string to_text(ncclResult_t code) {
  std::string text = ncclGetErrorString(code);
  if (const char* const last = ncclGetLastError(nullptr); last != nullptr && *last != '\0')
    text += std::string{" ("} + last + ")";
  return text;
}

/// Throws BackendError, with NCCL's own words, for anything but success. `doing` completes "NCCL failed to ...".
inline void check(ncclResult_t code, std::string_view doing) {
  if (code == ncclSuccess) return;
  throw BackendError("NCCL failed to " + std::string{doing} + ": " + to_text(code), static_cast<int>(code));
}

}  // namespace kith::nccl
