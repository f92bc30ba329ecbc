// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace bench {

/// Quartiles of measured times, in microseconds.
struct Quartiles {
  double p25 = 0;
  double p50 = 0;
  double p75 = 0;
};

/// The quartiles of at least one sample, each one of the samples themselves (nearest rank): a mean would let a single
/// interruption by the operating system speak for all.
[[nodiscard]] inline Quartiles quartiles(std::vector<double> samples) {
  const auto at = [&](std::size_t quarter) {
    const auto place = samples.begin() + static_cast<std::ptrdiff_t>((samples.size() - 1) * quarter / 4);
    std::nth_element(samples.begin(), place, samples.end());
    return *place;
  };
  return {at(1), at(2), at(3)};
}

}  // namespace bench
