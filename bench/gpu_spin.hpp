// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

// The one kernel of kith_gpu_rounds, apart from it: nvcc takes three times as long as the host's compiler.

namespace bench {

/// Keeps one processor of the GPU busy for so many ticks of its clock, in the order of `stream`.
void spin(long long ticks, cudaStream_t stream);

/// Tells the emulator, where it is linked, what spin() does: there, where only the flow of the program is tried, it is
/// over at once.
void bind_spin();

}  // namespace bench
