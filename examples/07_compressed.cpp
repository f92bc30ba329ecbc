// SPDX-License-Identifier: Apache-2.0
// A quarter of the bytes, and the same model in the end. Direct sends the weights in 8 bits, and its ranks stop at a
// distance of such a step from each other. Choco sends in 8 bits how the weights differ from what the others remember
// of them: whatever is lost is made up for in the next round, and the ranks come together.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <utility>
#include <vector>

#include <kith/kith.hpp>

namespace {

constexpr kith::Rank ranks = 8;
constexpr int rounds = 200;

struct Result {
  double distance = 0;  // of a rank's model to the mean, for each weight
  std::uint64_t bytes = 0;
};

/// Averages models of random weights on a ring.
template <kith::Exchange E>
Result average(const E& exchange) {
  Result result;
  kith::thread::run(ranks, [&](kith::thread::Communicator& communicator) {
    std::mt19937 random(static_cast<unsigned>(communicator.rank()));
    std::normal_distribution<float> normal;
    std::vector<float> weights(10'000);
    for (float& weight : weights) weight = normal(random);

    kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(weights)}, exchange};
    for (int round = 0; round < rounds; ++round) averager.average();

    const double distance = averager.consensus_distance();
    if (communicator.rank() == 0) result = {distance / 100, averager.metrics().bytes_sent};  // 100 = sqrt(10'000)
  });
  return result;
}

}  // namespace

int main() {
  const Result full = average(kith::FullPrecision{});
  const Result direct = average(kith::Direct{kith::Int8Block{}});
  const Result choco = average(kith::Choco{kith::Int8Block{}});

  std::printf("%d rounds on a ring of %d, from a distance of about 1\n", rounds, ranks);
  for (const auto& [name, result] :
       {std::pair{"full precision", full}, std::pair{"direct, int8", direct}, std::pair{"choco, int8", choco}})
    std::printf("  %-15s %9.2g left, %5.1f MB sent by a rank\n", name, result.distance,
                static_cast<double>(result.bytes) / 1e6);
  const bool stops = direct.distance > 1e-3;
  const bool converges = choco.distance < 1e-6;
  return stops && converges && choco.bytes * 100 < full.bytes * 26 ? 0 : 1;
}
