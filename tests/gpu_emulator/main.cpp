// SPDX-License-Identifier: Apache-2.0
// The main of kith_gpu_emulator_tests, and the kernel that its cases share.
#define DOCTEST_CONFIG_IMPLEMENT
#include <cstdio>

#include "support.hpp"

void add_scaled(float*, const float*, float, std::size_t) {}

void bind_add_scaled() {
  using emulator::Range;
  emulator::KernelBody body;
  body.argument_bytes = {sizeof(float*), sizeof(const float*), sizeof(float), sizeof(std::size_t)};
  body.accesses = [](void** arguments, dim3, dim3, std::vector<Range>& reads, std::vector<Range>& writes) {
    const std::size_t bytes = *static_cast<std::size_t*>(arguments[3]) * sizeof(float);
    reads.push_back({*static_cast<const float**>(arguments[1]), bytes});
    writes.push_back({*static_cast<float**>(arguments[0]), bytes});
  };
  body.run = [](void** arguments, dim3, dim3, emulator::Translate translate) {
    auto* const y = static_cast<float*>(translate(*static_cast<float**>(arguments[0])));
    const auto* const x = static_cast<const float*>(translate(*static_cast<const float**>(arguments[1])));
    const float a = *static_cast<float*>(arguments[2]);
    for (std::size_t i = 0; i < *static_cast<std::size_t*>(arguments[3]); ++i) y[i] += a * x[i];
  };
  emulator::bind(reinterpret_cast<const void*>(&add_scaled), body);
}

cudaError_t launch_add_scaled(const Floats& y, const Floats& x, float a, cudaStream_t stream) {
  float* to = y.data();
  const float* from = x.data();
  std::size_t n = y.size();
  void* arguments[] = {&to, &from, &a, &n};
  return cudaLaunchKernel(reinterpret_cast<const void*>(&add_scaled), dim3{1}, dim3{32}, arguments, 0, stream);
}

int main(int argc, char** argv) {
  doctest::Context context{argc, argv};
  const bool lists = argc > 1 && std::string{argv[1]}.find("list") != std::string::npos;
  if (!emulator::available() && !lists) {
    std::puts("skipped: the emulator is not preloaded");
    return 77;
  }
  if (emulator::available()) bind_add_scaled();
  return context.run();
}
