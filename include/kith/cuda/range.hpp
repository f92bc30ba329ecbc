// SPDX-License-Identifier: Apache-2.0
#pragma once

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define KITH_HAS_NVTX 1
#else
#define KITH_HAS_NVTX 0
#endif

namespace kith::cuda {

/// Names what this thread is doing, for a profiler's timeline. Costs a few nanoseconds where no profiler runs, and
/// nothing where the NVTX headers are missing.
class Range {
public:
  explicit Range([[maybe_unused]] const char* name) noexcept {
#if KITH_HAS_NVTX
    nvtxRangePushA(name);
#endif
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
  ~Range() {
#if KITH_HAS_NVTX
    nvtxRangePop();
#endif
  }
};

}  // namespace kith::cuda
