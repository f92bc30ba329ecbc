// SPDX-License-Identifier: Apache-2.0
// What nvcc makes of <<<>>> reaches the emulator.
#include "support.hpp"

namespace {

template <class T>
__global__ void fill(T* to, T value, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) to[i] = value;
}

__global__ void nobody_knows_me(float*) {}

}  // namespace

TEST_CASE("gpu emulator: a kernel launched with <<<>>> runs its host body") {
  emulator::reset();
  emulator::KernelBody body;
  body.argument_bytes = {sizeof(float*), sizeof(float), sizeof(int)};
  body.accesses = [](void** arguments, dim3, dim3, std::vector<emulator::Range>&,
                     std::vector<emulator::Range>& writes) {
    const int n = *static_cast<int*>(arguments[2]);
    writes.push_back({*static_cast<float**>(arguments[0]), static_cast<std::size_t>(n) * sizeof(float)});
  };
  body.run = [](void** arguments, dim3 grid, dim3 block, emulator::Translate translate) {
    auto* const to = static_cast<float*>(translate(*static_cast<float**>(arguments[0])));
    const int n = *static_cast<int*>(arguments[2]);
    const int threads = static_cast<int>(grid.x * block.x);
    for (int i = 0; i < n && i < threads; ++i) to[i] = *static_cast<float*>(arguments[1]);
  };
  emulator::bind(reinterpret_cast<const void*>(&fill<float>), body);
  const Floats x(std::vector<float>(100));
  const Stream stream;
  fill<<<2, 40, 0, stream>>>(x.data(), 3.0F, 100);
  good(cudaGetLastError());
  good(cudaStreamSynchronize(stream));
  std::vector<float> expected(100, 3);
  std::fill(expected.begin() + 80, expected.end(), 0.0F);  // 2 blocks of 40 threads
  CHECK(x.read() == expected);

  fill<<<0, 40, 0, stream>>>(x.data(), 3.0F, 0);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
  check_nothing_found();
}

TEST_CASE("gpu emulator: NO-HOST-BODY, a kernel without one, by its name") {
  emulator::reset();
  const Floats x(std::vector<float>(1));
  const Stream stream;
  nobody_knows_me<<<1, 1, 0, stream>>>(x.data());
  CHECK(cudaGetLastError() == cudaErrorInvalidDeviceFunction);
  check_found("NO-HOST-BODY", "nobody_knows_me(float*)");
}
