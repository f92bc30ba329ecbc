// SPDX-License-Identifier: Apache-2.0
// A GPU trainer in mixed precision, as llm.c is one: the optimizer updates fp32 master weights, forward and backward
// read a bf16 copy. Kith averages the masters, and the copy is refreshed after the round. A rank that skips an update
// still averages. Its ranks are threads with a GPU each, as many as there are, but four at most.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <vector>

#include <cuda_bf16.h>

#include <kith/nccl.hpp>

namespace {

constexpr int steps = 500;
constexpr float target = 3;
constexpr std::size_t count = 1000;

struct Model {
  float* master;           // [count] what the optimizer updates
  float* momentum;         // [count] its state: the rank's own
  __nv_bfloat16* working;  // [count] what forward and backward read
  float* gradient;         // [count]
};

// What one thread does. The target of each rank is a little different: the ranks have different data.
__host__ __device__ void backward(const Model& model, float own_target, std::size_t i) {
  model.gradient[i] = __bfloat162float(model.working[i]) - own_target;
}
__host__ __device__ void update(const Model& model, float rate, std::size_t i) {
  model.momentum[i] = 0.9F * model.momentum[i] + model.gradient[i];
  model.master[i] -= rate * model.momentum[i];
}
__host__ __device__ void refresh(const Model& model, std::size_t i) {
  model.working[i] = __float2bfloat16_rn(model.master[i]);
}

__device__ std::size_t thread_index() { return std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__global__ void backward_kernel(Model model, float own_target) {
  if (const std::size_t i = thread_index(); i < count) backward(model, own_target, i);
}
__global__ void update_kernel(Model model, float rate) {
  if (const std::size_t i = thread_index(); i < count) update(model, rate, i);
}
__global__ void refresh_kernel(Model model) {
  if (const std::size_t i = thread_index(); i < count) refresh(model, i);
}

constexpr unsigned threads = 256;
constexpr unsigned blocks = (count + threads - 1) / threads;

/// Trains on this rank; returns whether the model has come to where it should.
bool train(kith::nccl::Communicator& communicator, cudaStream_t stream) {
  using kith::cuda::check;
  const kith::Rank rank = communicator.rank();
  const kith::cuda::DeviceMemory master(count * 4), momentum(count * 4), working(count * 2), gradient(count * 4);
  const kith::cuda::DeviceMemory merged(count * 4);
  const Model model{master.as<float>(), momentum.as<float>(), working.as<__nv_bfloat16>(), gradient.as<float>()};
  check(cudaMemsetAsync(model.master, 0, count * 4, stream), "clear the weights");
  check(cudaMemsetAsync(model.momentum, 0, count * 4, stream), "clear the momentum");
  const float own_target = target + 0.1F * static_cast<float>(2 * rank - (communicator.size() - 1));

  kith::DecentralizedAverager averager{communicator, kith::OnePeerExponential{}, {kith::view(model.master, count)}};
  averager.broadcast(0, stream);
  refresh_kernel<<<blocks, threads, 0, stream>>>(model);

  for (int step = 0; step < steps; ++step) {
    backward_kernel<<<blocks, threads, 0, stream>>>(model, own_target);
    // no all-reduce of the gradients, and none of the loss
    const bool outlier = rank == 1 && step % 100 == 10;  // stands for the trainer's check: each rank decides for itself
    if (!outlier) update_kernel<<<blocks, threads, 0, stream>>>(model, 0.002F);

    averager.average(stream);                               // the masters; also on the rank that has skipped its update
    refresh_kernel<<<blocks, threads, 0, stream>>>(model);  // and the copy that the next step reads
  }
  averager.mean_into({kith::view(merged.as<float>(), count)}, stream);  // to evaluate and save: all ranks call it
  averager.synchronize();

  check(cudaGetLastError(), "launch a kernel");
  std::vector<float> saved(count);
  std::vector<__nv_bfloat16> own(count);
  check(cudaMemcpyAsync(saved.data(), merged.data(), count * 4, cudaMemcpyDeviceToHost, stream), "copy");
  check(cudaMemcpyAsync(own.data(), model.working, count * 2, cudaMemcpyDeviceToHost, stream), "copy");
  check(cudaStreamSynchronize(stream), "wait for the copies");
  if (rank == 0)
    std::printf("a weight that should go to %g: %.3f in the merged masters, %g in rank 0's bf16 copy\n", double{target},
                double{saved[0]}, double{__bfloat162float(own[0])});
  const auto arrived = [](float weight) { return std::abs(weight - target) < 0.02F; };
  return std::all_of(saved.begin(), saved.end(), arrived) &&
         std::all_of(own.begin(), own.end(), [&](__nv_bfloat16 w) { return arrived(__bfloat162float(w)); });
}

}  // namespace

int main() {
  try {
    int gpus = 0;
    kith::cuda::check(cudaGetDeviceCount(&gpus), "count the GPUs");
    std::vector<char> arrived(static_cast<std::size_t>(std::min(gpus, 4)));
    kith::thread::run(static_cast<kith::Rank>(arrived.size()), [&](kith::thread::Communicator& rank) {
      kith::cuda::check(cudaSetDevice(rank.rank()), "choose a GPU");
      const ncclUniqueId id = kith::nccl::share_unique_id(rank);
      auto communicator = kith::nccl::Communicator::create(id, rank.size(), rank.rank());
      cudaStream_t stream = nullptr;
      kith::cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "create a stream");
      arrived[static_cast<std::size_t>(rank.rank())] = train(communicator, stream) ? 1 : 0;
      kith::cuda::check(cudaStreamDestroy(stream), "destroy a stream");
    });
    return std::find(arrived.begin(), arrived.end(), 0) == arrived.end() ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
