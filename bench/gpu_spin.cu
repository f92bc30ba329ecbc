// SPDX-License-Identifier: Apache-2.0
#include "gpu_spin.hpp"

#include <vector>

#include "../tests/gpu_emulator/emulator.hpp"

namespace {

template <int>
__global__ void spin_kernel(long long ticks) {
  const long long begin = clock64();
  while (clock64() - begin < ticks) {
  }
}

}  // namespace

void bench::spin(long long ticks, cudaStream_t stream) { spin_kernel<0><<<1, 1, 0, stream>>>(ticks); }

void bench::bind_spin() {
  if (!kith::gpu_emulator::available()) return;
  kith::gpu_emulator::KernelBody body;
  body.argument_bytes = {sizeof(long long)};
  body.accesses = [](void**, dim3, dim3, std::vector<kith::gpu_emulator::Range>&,
                     std::vector<kith::gpu_emulator::Range>&) {};
  body.run = [](void**, dim3, dim3, kith::gpu_emulator::Translate) {};
  kith::gpu_emulator::bind(reinterpret_cast<const void*>(&spin_kernel<0>), body);
}
