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

/// A neural network with one hidden layer (ReLU) and softmax outputs: its parameters, one tensor for each layer's
/// weights and biases, in fp32. Gradients and momenta have the same shape.
struct Mlp {
  explicit Mlp(std::size_t hidden)
      : hidden_weights(pixels * hidden),
        hidden_biases(hidden),
        output_weights(hidden * classes),
        output_biases(classes) {}

  std::vector<float> hidden_weights;  // [pixels][hidden]
  std::vector<float> hidden_biases;   // [hidden]
  std::vector<float> output_weights;  // [hidden][classes]
  std::vector<float> output_biases;   // [classes]

  std::size_t hidden() const { return hidden_biases.size(); }

  std::array<std::vector<float>*, 4> tensors() {
    return {&hidden_weights, &hidden_biases, &output_weights, &output_biases};
  }

  /// What Kith is given: where the parameters are. It needs no more than that.
  std::vector<kith::BufferView> views() {
    std::vector<kith::BufferView> views;
    for (std::vector<float>* tensor : tensors()) views.push_back(kith::view(*tensor));
    return views;
  }

  /// Uniform weights of the variance 2 / inputs, which suits ReLU (He et al. 2015), and no biases.
  void initialise(Random random) {
    const auto fill = [&](std::vector<float>& weights, std::size_t inputs) {
      const float bound = std::sqrt(6 / static_cast<float>(inputs));
      for (float& weight : weights) weight = random.symmetric(bound);
    };
    fill(hidden_weights, pixels);
    fill(output_weights, hidden());
  }
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
      gradient.output_biases[k] += logit_error_[k];
    }
    for (std::size_t h = 0; h < hidden; ++h) {
      error_[h] = 0;
      if (activation_[h] <= 0) continue;
      const float* const weights = model.output_weights.data() + h * classes;
      float* const slopes = gradient.output_weights.data() + h * classes;
      for (std::size_t k = 0; k < classes; ++k) {
        error_[h] += weights[k] * logit_error_[k];
        slopes[k] += activation_[h] * logit_error_[k];
      }
    }
    add(1, error_.data(), gradient.hidden_biases.data(), hidden);
    for (std::size_t p = 0; p < pixels; ++p)
      add(sample.image[p], error_.data(), gradient.hidden_weights.data() + p * hidden, hidden);
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
    activation_ = model.hidden_biases;
    for (std::size_t p = 0; p < pixels; ++p)
      add(sample.image[p], model.hidden_weights.data() + p * hidden, activation_.data(), hidden);
    std::copy(model.output_biases.begin(), model.output_biases.end(), probability_.begin());
    for (std::size_t h = 0; h < hidden; ++h) {
      activation_[h] = std::max(activation_[h], 0.0F);
      add(activation_[h], model.output_weights.data() + h * classes, probability_.data(), classes);
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
    for (std::size_t t = 0; t < 4; ++t) {
      float* const x = model.tensors()[t]->data();
      float* const v = velocity_.tensors()[t]->data();
      const float* const g = gradient.tensors()[t]->data();
      const std::size_t count = gradient.tensors()[t]->size();
      for (std::size_t i = 0; i < count; ++i) {
        v[i] = momentum_ * v[i] + g[i];
        x[i] -= rate * v[i];
      }
    }
  }

private:
  Mlp velocity_;
  float momentum_;
};

}  // namespace digits
