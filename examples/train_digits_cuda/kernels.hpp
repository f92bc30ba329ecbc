// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include <cuda_runtime_api.h>

namespace digits {

/// What the kernels of an optimizer step work on. All of it is in the memory of the GPU. Parameters, gradient and
/// velocity are one buffer each: hidden weights [pixels][hidden], hidden biases [hidden], output weights
/// [hidden][classes] and output biases [classes], one after the other.
struct Step {
  static constexpr std::size_t pixels = 64;
  static constexpr std::size_t classes = 10;

  const float* images;        // [rows of the training set][pixels]
  const std::size_t* labels;  // [rows of the training set]
  const std::size_t* batch;   // [batch_rows]: which rows of the training set this step learns from
  std::size_t batch_rows;
  std::size_t hidden;
  std::size_t parameter_count;
  float* parameters;
  float* gradient;
  float* velocity;
  float* activation;    // [batch_rows][hidden]
  float* hidden_error;  // [batch_rows][hidden]: the derivative of the loss by what goes into the ReLU
  float* logit_error;   // [batch_rows][classes]: by what goes into the softmax
  float rate;
  float momentum;
};

/// Enqueues one step of momentum SGD: forwards, backwards, update. Returns the launches' error.
cudaError_t enqueue_step(const Step& step, cudaStream_t stream);

}  // namespace digits
