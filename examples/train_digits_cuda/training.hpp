// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <fmt/format.h>

#include <kith/nccl.hpp>

#include "kernels.hpp"
#include "train_digits/dataset.hpp"
#include "train_digits/mlp.hpp"
#include "train_digits/options.hpp"

namespace digits {

using kith::cuda::check;
using kith::cuda::DeviceMemory;

// What nvcc reads cannot include dataset.hpp: it refuses fmt.
static_assert(Step::pixels == pixels && Step::classes == classes);

/// The trainer's own stream.
class Stream {
public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "create a stream"); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { (void)cudaStreamDestroy(stream_); }
  operator cudaStream_t() const noexcept { return stream_; }  // NOLINT(google-explicit-constructor)

private:
  cudaStream_t stream_ = nullptr;
};

/// Copies and waits until it is done.
inline void copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copy");
  check(cudaStreamSynchronize(stream), "wait for a copy");
}

template <class T>
DeviceMemory on_device(const std::vector<T>& values, cudaStream_t stream) {
  DeviceMemory memory{values.size() * sizeof(T)};
  copy(memory.data(), values.data(), memory.bytes(), stream);
  return memory;
}

/// One worker with everything it has on its GPU: data, model, gradient, momenta. It knows nothing of the others.
class DeviceWorker {
public:
  DeviceWorker(const Options& options, const Dataset& data, std::size_t rank, std::size_t size, cudaStream_t stream)
      : options_(options) {
    std::vector<float> images;
    std::vector<std::size_t> labels;
    for (const Sample& sample : data.training) {
      images.insert(images.end(), sample.image.begin(), sample.image.end());
      labels.push_back(sample.label);
    }
    images_ = on_device(images, stream);
    labels_ = on_device(labels, stream);

    // The mini-batches of the whole training: so no step waits for the host.
    Batches batches{shard_of(data.training, options.split, rank, size, options.seed),
                    options.batch,
                    {options.seed, Random::Purpose::batches, static_cast<std::uint32_t>(rank)}};
    std::vector<std::size_t> rows;
    for (std::size_t step = 0; step < options.steps; ++step) {
      const std::vector<std::size_t>& batch = batches.next();
      rows.insert(rows.end(), batch.begin(), batch.end());
    }
    batch_rows_ = rows.size() / options.steps;
    rows_ = on_device(rows, stream);

    Mlp model{options.hidden};
    model.initialise({options.seed, Random::Purpose::model});
    count_ = model.parameters().size();
    parameters_ = on_device(model.parameters(), stream);
    gradient_ = on_device(std::vector<float>(count_), stream);
    velocity_ = on_device(std::vector<float>(count_), stream);
    activation_ = DeviceMemory{batch_rows_ * options.hidden * sizeof(float)};
    hidden_error_ = DeviceMemory{batch_rows_ * options.hidden * sizeof(float)};
    logit_error_ = DeviceMemory{batch_rows_ * classes * sizeof(float)};
  }

  /// How many parameters there are, and where.
  std::size_t count() const { return count_; }
  float* parameters() const { return parameters_.as<float>(); }

  /// Enqueues optimizer step 0, 1, ... on the next mini-batch.
  void step(std::size_t step, cudaStream_t stream) {
    // Falls linearly to a tenth, as in train_digits.
    const double rate =
        options_.learning_rate * (1 - 0.9 * static_cast<double>(step) / static_cast<double>(options_.steps));
    check(enqueue_step({.images = images_.as<float>(),
                        .labels = labels_.as<std::size_t>(),
                        .batch = rows_.as<std::size_t>() + step * batch_rows_,
                        .batch_rows = batch_rows_,
                        .hidden = options_.hidden,
                        .parameter_count = count_,
                        .parameters = parameters(),
                        .gradient = gradient_.as<float>(),
                        .velocity = velocity_.as<float>(),
                        .activation = activation_.as<float>(),
                        .hidden_error = hidden_error_.as<float>(),
                        .logit_error = logit_error_.as<float>(),
                        .rate = static_cast<float>(rate),
                        .momentum = static_cast<float>(options_.momentum)},
                       stream),
          "launch a step");
  }

private:
  const Options& options_;
  std::size_t batch_rows_ = 0;
  std::size_t count_ = 0;
  DeviceMemory images_, labels_, rows_;
  DeviceMemory parameters_, gradient_, velocity_;
  DeviceMemory activation_, hidden_error_, logit_error_;
};

/// The share of the held-out rows that a model on the GPU reads right. Waits for what `stream` holds.
inline double accuracy_of(const float* parameters, std::size_t hidden, const Dataset& data, cudaStream_t stream) {
  Mlp model{hidden};
  copy(model.parameters().data(), parameters, model.parameters().size() * sizeof(float), stream);
  Evaluator evaluator{hidden};
  const auto right = std::count_if(data.held_out.begin(), data.held_out.end(),
                                   [&](const Sample& sample) { return evaluator.is_right(model, sample); });
  return static_cast<double>(right) / static_cast<double>(data.held_out.size());
}

/// Trains on this rank's GPU together with the other ranks; rank 0 tells how it goes. All ranks call it. Returns
/// whether all hold the same model in the end.
inline bool train(kith::nccl::Communicator& communicator, const Options& options, const Dataset& data) {
  const bool tells = communicator.rank() == 0;
  const std::size_t interval = std::max<std::size_t>(1, options.steps / 5);
  const Stream stream;
  DeviceWorker worker{options, data, static_cast<std::size_t>(communicator.rank()),
                      static_cast<std::size_t>(communicator.size()), stream};
  const DeviceMemory merged{worker.count() * sizeof(float)};

  // ------------------------------------------------------------------------------------------------------------ Kith
  kith::DecentralizedAverager averager{
      communicator, options.topology, {kith::view(worker.parameters(), worker.count())}};
  averager.broadcast(0, stream);  // everybody starts from the model of rank 0

  for (std::size_t step = 0; step < options.steps; ++step) {
    worker.step(step, stream);  // forwards, backwards and the optimizer: kernels on the stream

    averager.average(stream);  // with the peers of this round, behind those kernels; the host does not wait
    // ----------------------------------------------------------------------------------------------------------------

    if ((step + 1) % interval != 0) continue;
    averager.mean_into({kith::view(merged.as<float>(), worker.count())}, stream);  // leaves the worker's own alone
    if (tells) {
      const double accuracy = accuracy_of(merged.as<float>(), options.hidden, data, stream);
      fmt::print("step {:>4}/{}  accuracy {:>5.1f} %\n", step + 1, options.steps, 100 * accuracy);
    }
  }
  const kith::Metrics sent = averager.metrics();

  averager.average_globally(stream);  // the training is over: everybody takes the merged model
  const bool agree = averager.buffers_agree(stream);
  averager.synchronize();  // throws if a round has failed that nobody has heard of yet

  if (tells)
    fmt::print(
        "The merged model reads {:.1f} % of the digits that it has never seen; {}.\n"
        "Rank 0 sent {} messages, {:.2f} MB.\n",
        100 * accuracy_of(worker.parameters(), options.hidden, data, stream),
        agree ? "all ranks hold it" : "but the ranks' models differ", sent.messages_sent,
        static_cast<double>(sent.bytes_sent) / 1e6);
  return agree;
}

}  // namespace digits
