// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace bench {

/// Fills a rank's model with seeded random values in [1, 2): a function of (seed, rank, index), so that every rank
/// knows everybody's values. In that range no mean of them is ever subnormal, infinite or NaN.
void fill(const kith::BufferView& model, std::uint64_t seed, kith::Rank rank) noexcept;

/// What a rank holds after one round on models that fill() has filled.
struct Expectation {
  std::uint64_t seed = 0;
  /// Whose value the differences are taken from; the rank itself, but for an exact global mean.
  kith::Rank self = 0;
  std::vector<kith::Neighborhood::Source> sources;
};

/// The exact mean of all ranks: x_0 + sum_j (x_j - x_0) / n on every rank.
[[nodiscard]] Expectation global_mean(std::uint64_t seed, kith::Rank size);

/// @brief The elements of `model` that are not what is expected, found by plain scalar arithmetic that shares nothing
/// with Kith's kernels.
///
/// x_self + sum w_j (x_j - x_self) in ascending j, every operation rounded on its own, in f32 (f64 for f64), f16 and
/// bf16 rounded once at the end. `tolerance` = 0 asks for the same bits, else it is relative.
[[nodiscard]] std::size_t count_wrong(const kith::BufferView& model, const Expectation& expected,
                                      double tolerance = 0) noexcept;

/// The same arithmetic for one f64 element: self + sum w_j (values[j] - self).
[[nodiscard]] double average_of(double self, const std::vector<kith::Neighborhood::Source>& sources,
                                const std::vector<const double*>& models, std::size_t index) noexcept;

}  // namespace bench
