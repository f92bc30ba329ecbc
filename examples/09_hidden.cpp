// SPDX-License-Identifier: Apache-2.0
// A round behind the next step. begin() snapshots the model and lets the round go on in a thread of Kith's; the step is
// computed and applied meanwhile; finish() adds what the round has changed. No step is lost: the mean of the models is
// where the steps have taken it, although every round works with models that are a step old.

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <vector>

#include <kith/kith.hpp>

namespace {

constexpr kith::Rank ranks = 8;
constexpr int steps = 400;
constexpr float rate = 0.02F;

struct Result {
  double mean = 0;      // of the models
  double distance = 0;  // of a rank's model to it, for each weight
};

/// Each rank is drawn to its own number: rank r to r. Together they are drawn to 3.5.
Result train(bool hidden) {
  Result result;
  kith::thread::run(ranks, [&](kith::thread::Communicator& communicator) {
    const auto target = static_cast<float>(communicator.rank());
    std::vector<float> weights(1000);
    const auto step = [&] {
      for (float& weight : weights) weight -= rate * (weight - target);
    };
    kith::DecentralizedAverager averager{communicator, kith::OnePeerExponential{}, {kith::view(weights)}};
    for (int i = 0; i < steps; ++i) {
      if (hidden) averager.begin();
      step();
      if (hidden)
        averager.finish();
      else
        averager.average();
    }
    const double distance = averager.consensus_distance();
    averager.average_globally();
    if (communicator.rank() == 0) result = {static_cast<double>(weights[0]), distance / std::sqrt(1000.0)};
  });
  return result;
}

}  // namespace

int main() {
  const Result open = train(false);
  const Result hidden = train(true);
  std::printf("%d steps on one-peer exponential graphs of %d\n", steps, ranks);
  std::printf("  average()            mean %.4f, %.4f from it\n", open.mean, open.distance);
  std::printf("  begin() ... finish() mean %.4f, %.4f from it\n", hidden.mean, hidden.distance);
  // The mean moves as one model would; the models lag behind each other by one step more.
  const double expected = 3.5 * (1 - std::pow(1 - static_cast<double>(rate), steps));
  const bool kept = std::abs(open.mean - expected) < 1e-3 && std::abs(hidden.mean - expected) < 1e-3;
  return kept && hidden.distance < 3 * open.distance ? 0 : 1;
}
