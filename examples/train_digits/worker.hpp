// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "dataset.hpp"
#include "mlp.hpp"
#include "options.hpp"

namespace digits {

/// One worker of one run: its shard, its model, its optimizer. It knows nothing of the others.
class Worker {
public:
  Worker(const Options& options, const Dataset& data, std::size_t rank, std::size_t size)
      : model(options.hidden),
        data_(data),
        options_(options),
        shard_(shard_of(data.training, options.split, rank, size, options.seed)),
        batches_(shard_, options.batch, {options.seed, Random::Purpose::batches, static_cast<std::uint32_t>(rank)}),
        gradient_(options.hidden),
        optimizer_(options.hidden, static_cast<float>(options.momentum)),
        evaluator_(options.hidden) {
    model.initialise({options.seed, Random::Purpose::model});
  }

  Mlp model;

  /// Optimizer step 1, 2, ... on the next mini-batch. Returns the loss before it.
  double optimizer_step(std::size_t step) {
    std::fill(gradient_.parameters().begin(), gradient_.parameters().end(), 0.0F);
    const std::vector<std::size_t>& rows = batches_.next();
    const float share = 1 / static_cast<float>(rows.size());
    double loss = 0;
    for (const std::size_t row : rows) loss += evaluator_.add_gradient(model, data_.training[row], share, gradient_);
    optimizer_.step(model, gradient_, rate(step));
    return loss / static_cast<double>(rows.size());
  }

  /// Of the held-out rows first, first + stride, ..., how many `other` reads right.
  double right_answers(const Mlp& other, std::size_t first, std::size_t stride) {
    double right = 0;
    for (std::size_t row = first; row < data_.held_out.size(); row += stride)
      right += evaluator_.is_right(other, data_.held_out[row]) ? 1 : 0;
    return right;
  }

  /// The sum of the losses of `other` on this worker's shard.
  double shard_loss(const Mlp& other) {
    double sum = 0;
    for (const std::size_t row : shard_) sum += evaluator_.loss(other, data_.training[row]);
    return sum;
  }

private:
  // Falls linearly to a tenth: the noise of the mini-batches, and with it the distance between workers, falls too.
  float rate(std::size_t step) const {
    return static_cast<float>(options_.learning_rate *
                              (1 - 0.9 * static_cast<double>(step - 1) / static_cast<double>(options_.steps)));
  }

  const Dataset& data_;
  const Options& options_;
  std::vector<std::size_t> shard_;
  Batches batches_;
  Mlp gradient_;
  MomentumSgd optimizer_;
  Evaluator evaluator_;
};

}  // namespace digits
