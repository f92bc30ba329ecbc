// SPDX-License-Identifier: Apache-2.0
// The program of somebody who uses the NCCL engine. That it links is the test: there may be no GPU to run it on.
#include <cstddef>
#include <cstdio>

#include <kith/nccl.hpp>

int main() {
  constexpr std::size_t count = 1000;
  ncclUniqueId id;
  ncclGetUniqueId(&id);
  auto communicator = kith::nccl::Communicator::create(id, 1, 0);
  float* weights = nullptr;
  cudaStream_t stream = nullptr;
  cudaMalloc(&weights, count * sizeof(float));
  cudaStreamCreate(&stream);
  {
    kith::DecentralizedAverager averager{communicator, kith::OnePeerExponential{}, {kith::view(weights, count)}};
    averager.average(stream);
    cudaStreamSynchronize(stream);
  }
#ifndef WITHOUT_CODECS  // only programs that use such an exchange compile kernels for them
  {
    const kith::Choco exchange{kith::Int8Block{}};
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(weights, count)}, exchange};
    averager.average(stream);
    cudaStreamSynchronize(stream);
  }
#endif
  cudaStreamDestroy(stream);
  cudaFree(weights);
  std::puts("averaged");
}
