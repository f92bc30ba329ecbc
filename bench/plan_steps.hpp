// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <kith/types.hpp>

#include "plan_model.hpp"

namespace bench::plan {

/// How long ranks compute between two rounds.
struct Compute {
  /// Of a step, mean.
  double us = 0;
  /// Standard deviation over mean, 0 to 1: a step takes us * (1 - jitter + jitter * E), E from the exponential
  /// distribution of mean 1, independent of all others. A step is never much shorter, and now and then much longer.
  double jitter = 0;
  /// Rank 0 takes so many times as long in every step.
  double slow_rank = 1;
};

/// @brief The times that each rank computes in each step, drawn from a seed. All that is compared is simulated with the
/// same times, so that chance favours nobody.
class ComputeTimes {
public:
  static constexpr std::size_t warm_up = 100;  // steps in which the ranks' delays find their usual spread

  ComputeTimes(const Compute& compute, kith::Rank ranks, std::size_t steps, std::uint64_t seed);

  [[nodiscard]] std::size_t steps() const noexcept { return steps_; }
  [[nodiscard]] kith::Rank ranks() const noexcept { return ranks_; }
  [[nodiscard]] double us(std::size_t step, kith::Rank rank) const noexcept {
    return us_[step * static_cast<std::size_t>(ranks_) + static_cast<std::size_t>(rank)];
  }

private:
  std::size_t steps_;
  kith::Rank ranks_;
  std::vector<double> us_;
};

enum class Launch { now, hidden };

/// @brief The time of a step in the long run, from a simulation of who waits for whom.
///
/// Now: a node computes, waits until all whom it hears or tells in the round have computed, and then for the round.
/// Hidden: it begins the round of a step once that of the step before has ended, and needs it only at the end of the
/// next step; so whom it waits for has a step's time to come.
[[nodiscard]] double step_us(const Communication& communication, const ComputeTimes& times, Launch launch);

}  // namespace bench::plan
