// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <vector>

#include <kith/view.hpp>

#include "dataset.hpp"

namespace digits {

/// Where the weights and biases of each layer begin.
template <class Float>
struct Tensors {
  Tensors(Float* parameters, std::size_t hidden)
      : hidden_weights(parameters),
        hidden_biases(hidden_weights + pixels * hidden),
        output_weights(hidden_biases + hidden),
        output_biases(output_weights + hidden * classes) {}

  Float* hidden_weights;  // [pixels][hidden]
  Float* hidden_biases;   // [hidden]
  Float* output_weights;  // [hidden][classes]
  Float* output_biases;   // [classes]
};

/// A neural network with one hidden layer (ReLU) and softmax outputs: its parameters in fp32, one tensor
/// behind the other. Gradients and momenta have the same shape.
class Mlp {
public:
  explicit Mlp(std::size_t hidden) : hidden_(hidden), parameters_((pixels + 1) * hidden + (hidden + 1) * classes) {}

  std::size_t hidden() const { return hidden_; }

  Tensors<float> tensors() { return {parameters_.data(), hidden_}; }
  Tensors<const float> tensors() const { return {parameters_.data(), hidden_}; }
  std::vector<float>& parameters() { return parameters_; }

  /// What Kith is given: where the parameters are. It takes any number of buffers; one for all lets an exchange that
  /// encodes see the small tensors, too, and top-k choose among all of them.
  std::vector<kith::BufferView> views() { return {kith::view(parameters_)}; }

  /// Uniform weights of the variance 2 / inputs, which suits ReLU (He et al. 2015), and no biases.
  void initialise(Random random) {
    const auto fill = [&](float* weights, std::size_t inputs, std::size_t outputs) {
      const float bound = std::sqrt(6 / static_cast<float>(inputs));
      std::generate_n(weights, inputs * outputs, [&] { return random.symmetric(bound); });
    };
    fill(tensors().hidden_weights, pixels, hidden_);
    fill(tensors().output_weights, hidden_, classes);
  }

private:
  std::size_t hidden_;
  std::vector<float> parameters_;
};

/// Runs a network forwards and backwards, one sample at a time, with room for what is in between.
class Evaluator {
public:
  explicit Evaluator(std::size_t hidden) : activation_(hidden), error_(hidden) {}

  /// The cross-entropy of one sample. Leaves the class probabilities behind.
  float loss(const Mlp& model, const Sample& sample) {
    forward(model, sample);
    return -std::log(std::max(probability_[sample.label], 1e-30F));
  }

  /// Whether the likeliest class is the right one.
  bool is_right(const Mlp& model, const Sample& sample) {
    forward(model, sample);
    const auto* const likeliest = std::max_element(probability_.begin(), probability_.end());
    return static_cast<std::size_t>(likeliest - probability_.begin()) == sample.label;
  }

  /// Adds `scale` times the gradient of one sample's loss to `gradient`; returns the loss.
  float add_gradient(const Mlp& model, const Sample& sample, float scale, Mlp& gradient) {
    const float value = loss(model, sample);
    const std::size_t hidden = activation_.size();
    for (std::size_t k = 0; k < classes; ++k) {
      logit_error_[k] = scale * (probability_[k] - (k == sample.label ? 1.0F : 0.0F));
      gradient.tensors().output_biases[k] += logit_error_[k];
    }
    for (std::size_t h = 0; h < hidden; ++h) {
      error_[h] = 0;
      if (activation_[h] <= 0) continue;
      const float* const weights = model.tensors().output_weights + h * classes;
      float* const slopes = gradient.tensors().output_weights + h * classes;
      for (std::size_t k = 0; k < classes; ++k) {
        error_[h] += weights[k] * logit_error_[k];
        slopes[k] += activation_[h] * logit_error_[k];
      }
    }
    add(1, error_.data(), gradient.tensors().hidden_biases, hidden);
    for (std::size_t p = 0; p < pixels; ++p)
      add(sample.image[p], error_.data(), gradient.tensors().hidden_weights + p * hidden, hidden);
    return value;
  }

private:
  // sum += factor * values. White pixels are half of an image and need no work.
  static void add(float factor, const float* values, float* sum, std::size_t count) {
    if (factor == 0) return;
    for (std::size_t i = 0; i < count; ++i) sum[i] += factor * values[i];
  }

  void forward(const Mlp& model, const Sample& sample) {
    const std::size_t hidden = activation_.size();
    std::copy_n(model.tensors().hidden_biases, hidden, activation_.begin());
    for (std::size_t p = 0; p < pixels; ++p)
      add(sample.image[p], model.tensors().hidden_weights + p * hidden, activation_.data(), hidden);
    std::copy_n(model.tensors().output_biases, classes, probability_.begin());
    for (std::size_t h = 0; h < hidden; ++h) {
      activation_[h] = std::max(activation_[h], 0.0F);
      add(activation_[h], model.tensors().output_weights + h * classes, probability_.data(), classes);
    }
    const float largest = *std::max_element(probability_.begin(), probability_.end());
    float sum = 0;
    for (float& value : probability_) sum += value = std::exp(value - largest);
    for (float& value : probability_) value /= sum;
  }

  std::vector<float> activation_;             // of the hidden layer
  std::vector<float> error_;                  // the derivative by the hidden layer's sums
  std::array<float, classes> probability_{};  // first the logits
  std::array<float, classes> logit_error_{};
};

/// Momentum SGD: v <- m v + gradient, x <- x - rate v. The momentum is the worker's own affair: only x is averaged.
class MomentumSgd {
public:
  MomentumSgd(std::size_t hidden, float momentum) : velocity_(hidden), momentum_(momentum) {}

  void step(Mlp& model, Mlp& gradient, float rate) {
    std::vector<float>& x = model.parameters();
    std::vector<float>& v = velocity_.parameters();
    const std::vector<float>& g = gradient.parameters();
    for (std::size_t i = 0; i < x.size(); ++i) {
      v[i] = momentum_ * v[i] + g[i];
      x[i] -= rate * v[i];
    }
  }

private:
  Mlp velocity_;
  float momentum_;
};

}  // namespace digits
