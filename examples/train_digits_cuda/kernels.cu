// SPDX-License-Identifier: Apache-2.0
// The network of train_digits, forwards, backwards and updated, in five plain kernels. Each has one thread for each
// number that it computes; what a thread does is a function of its own, which a host can call as well.
// Nothing here knows of Kith.

#include "kernels.hpp"

#include <cstddef>

namespace digits {
namespace {

constexpr std::size_t pixels = Step::pixels;
constexpr std::size_t classes = Step::classes;

__host__ __device__ const float* image_of(const Step& s, std::size_t n) { return s.images + s.batch[n] * pixels; }

/// activation[n][h] = ReLU(bias_h + sum_p image_p weight_ph).
__host__ __device__ void activate(const Step& s, std::size_t thread) {
  const std::size_t h = thread % s.hidden;
  const float* const image = image_of(s, thread / s.hidden);
  float sum = s.parameters[pixels * s.hidden + h];
  for (std::size_t p = 0; p < pixels; ++p) sum += image[p] * s.parameters[p * s.hidden + h];
  s.activation[thread] = sum > 0 ? sum : 0;
}

/// logit_error[n][.] = (softmax(logits) - what is right) / rows: the derivative of the mean cross-entropy.
__host__ __device__ void compare(const Step& s, std::size_t n) {
  const float* const weights = s.parameters + (pixels + 1) * s.hidden;
  const float* const activation = s.activation + n * s.hidden;
  float value[classes];
  float largest = 0;
  for (std::size_t k = 0; k < classes; ++k) {
    value[k] = weights[s.hidden * classes + k];  // the bias
    for (std::size_t h = 0; h < s.hidden; ++h) value[k] += activation[h] * weights[h * classes + k];
    if (k == 0 || value[k] > largest) largest = value[k];
  }
  float sum = 0;
  for (float& v : value) sum += v = expf(v - largest);
  const float share = 1 / static_cast<float>(s.batch_rows);
  for (std::size_t k = 0; k < classes; ++k)
    s.logit_error[n * classes + k] = share * (value[k] / sum - (k == s.labels[s.batch[n]] ? 1.0F : 0.0F));
}

/// hidden_error[n][h] = sum_k weight_hk logit_error[n][k] where the ReLU is open.
__host__ __device__ void propagate(const Step& s, std::size_t thread) {
  const float* const weights = s.parameters + (pixels + 1) * s.hidden + thread % s.hidden * classes;
  const float* const error = s.logit_error + thread / s.hidden * classes;
  float sum = 0;
  if (s.activation[thread] > 0)
    for (std::size_t k = 0; k < classes; ++k) sum += weights[k] * error[k];
  s.hidden_error[thread] = sum;
}

/// gradient[i] = sum_n (what weight i is multiplied with) (the error behind it).
__host__ __device__ void differentiate(const Step& s, std::size_t i) {
  const std::size_t hidden_end = (pixels + 1) * s.hidden;  // of the hidden layer's weights and biases
  const bool in_hidden = i < hidden_end;
  const std::size_t outputs = in_hidden ? s.hidden : classes;
  const std::size_t inputs = in_hidden ? pixels : s.hidden;
  const std::size_t input = (in_hidden ? i : i - hidden_end) / outputs;
  const std::size_t output = (in_hidden ? i : i - hidden_end) % outputs;
  const float* const errors = in_hidden ? s.hidden_error : s.logit_error;
  float sum = 0;
  for (std::size_t n = 0; n < s.batch_rows; ++n) {
    const float* const values = in_hidden ? image_of(s, n) : s.activation + n * s.hidden;
    sum += (input < inputs ? values[input] : 1) * errors[n * outputs + output];  // a bias is multiplied with 1
  }
  s.gradient[i] = sum;
}

/// Momentum SGD: v <- m v + gradient, x <- x - rate v.
__host__ __device__ void update(const Step& s, std::size_t i) {
  s.velocity[i] = s.momentum * s.velocity[i] + s.gradient[i];
  s.parameters[i] -= s.rate * s.velocity[i];
}

__device__ std::size_t thread_index() { return std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; }

__global__ void activate_kernel(Step s) {
  if (const std::size_t i = thread_index(); i < s.batch_rows * s.hidden) activate(s, i);
}
__global__ void compare_kernel(Step s) {
  if (const std::size_t i = thread_index(); i < s.batch_rows) compare(s, i);
}
__global__ void propagate_kernel(Step s) {
  if (const std::size_t i = thread_index(); i < s.batch_rows * s.hidden) propagate(s, i);
}
__global__ void differentiate_kernel(Step s) {
  if (const std::size_t i = thread_index(); i < s.parameter_count) differentiate(s, i);
}
__global__ void update_kernel(Step s) {
  if (const std::size_t i = thread_index(); i < s.parameter_count) update(s, i);
}

void launch(void (*kernel)(Step), const Step& step, std::size_t threads, cudaStream_t stream) {
  constexpr unsigned block = 128;
  kernel<<<static_cast<unsigned>((threads + block - 1) / block), block, 0, stream>>>(step);
}

}  // namespace

cudaError_t enqueue_step(const Step& step, cudaStream_t stream) {
  launch(activate_kernel, step, step.batch_rows * step.hidden, stream);
  launch(compare_kernel, step, step.batch_rows, stream);
  launch(propagate_kernel, step, step.batch_rows * step.hidden, stream);
  launch(differentiate_kernel, step, step.parameter_count, stream);
  launch(update_kernel, step, step.parameter_count, stream);
  return cudaGetLastError();
}

}  // namespace digits
