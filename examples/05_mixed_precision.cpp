// SPDX-License-Identifier: Apache-2.0
// Mixed precision: average the fp32 master weights, then recast the bf16 working copy. Training that keeps its weights
// in bf16 alone stalls: once a step is smaller than half the distance to the next bf16, rounding undoes it.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <vector>

#include <kith/kith.hpp>
#include <kith/numeric/convert.hpp>

namespace {

constexpr kith::Rank ranks = 8;
constexpr int steps = 500;
constexpr float target = 3;

/// A model of two tensors, as the trainer computes with it.
struct WorkingCopy {
  std::vector<kith::bfloat16> matrix = std::vector<kith::bfloat16>(256, kith::to_bfloat16(1));
  std::vector<kith::bfloat16> biases = std::vector<kith::bfloat16>(16, kith::to_bfloat16(1));
};

/// The gradient of (x - target)^2 / 2, a little different on every rank, evaluated at the bf16 weight.
float gradient(kith::bfloat16 weight, kith::Rank rank) {
  return kith::to_float(weight) - target + 0.1F * static_cast<float>(2 * rank - (ranks - 1));
}

/// The right way: fp32 masters take the step and are averaged; the working copy is cast from them.
float train_with_masters(kith::thread::Communicator& communicator) {
  WorkingCopy working;
  std::vector<float> matrix(working.matrix.size(), 1);
  std::vector<float> biases(working.biases.size(), 1);
  kith::DecentralizedAverager averager{
      communicator, kith::OnePeerExponential{}, {kith::view(matrix), kith::view(biases)}};
  const auto descend = [&](std::vector<float>& master, const std::vector<kith::bfloat16>& weights) {
    for (std::size_t i = 0; i < master.size(); ++i) master[i] -= 0.01F * gradient(weights[i], communicator.rank());
  };
  for (int step = 0; step < steps; ++step) {
    descend(matrix, working.matrix);
    descend(biases, working.biases);
    averager.average();
    std::transform(matrix.begin(), matrix.end(), working.matrix.begin(), kith::to_bfloat16);
    std::transform(biases.begin(), biases.end(), working.biases.begin(), kith::to_bfloat16);
  }
  return kith::to_float(working.matrix[0]);
}

/// The way that stalls: bf16 is all there is. Kith averages it correctly, but the steps are lost before.
float train_without_masters(kith::thread::Communicator& communicator) {
  WorkingCopy working;
  kith::DecentralizedAverager averager{
      communicator, kith::OnePeerExponential{}, {kith::view(working.matrix), kith::view(working.biases)}};
  const auto descend = [&](std::vector<kith::bfloat16>& weights) {
    for (kith::bfloat16& weight : weights)
      weight = kith::to_bfloat16(kith::to_float(weight) - 0.01F * gradient(weight, communicator.rank()));
  };
  for (int step = 0; step < steps; ++step) {
    descend(working.matrix);
    descend(working.biases);
    averager.average();
  }
  return kith::to_float(working.matrix[0]);
}

}  // namespace

int main() {
  float with_masters = 0;
  float without_masters = 0;
  kith::thread::run(ranks, [&](kith::thread::Communicator& communicator) {
    const float with = train_with_masters(communicator);
    const float without = train_without_masters(communicator);
    if (communicator.rank() != 0) return;
    with_masters = with;
    without_masters = without;
  });

  std::printf("a weight that should go from 1 to %g, after %d steps:\n", double{target}, steps);
  std::printf("  fp32 masters averaged, bf16 recast: %g\n", double{with_masters});
  std::printf("  bf16 alone:                         %g\n", double{without_masters});
  return std::abs(with_masters - target) < 0.05F && std::abs(without_masters - target) > 0.2F ? 0 : 1;
}
