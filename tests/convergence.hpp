// SPDX-License-Identifier: Apache-2.0
// What the convergence tests share: training runs on threads through the real averager. Every coordinate of a buffer is
// a training run of its own, so that one run of some rounds gives thousands of independent samples.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include <kith/averager.hpp>
#include <kith/thread/run.hpp>
#include <kith/topology/any.hpp>
#include <kith/view.hpp>

namespace convergence {

using kith::Rank;
using kith::Round;

/// One row for each rank: its model, or anything else with one number for each coordinate.
using Models = std::vector<std::vector<double>>;

[[nodiscard]] inline std::size_t index(Rank rank) { return static_cast<std::size_t>(rank); }

/// Gradient noise of one rank: +1 or -1 at random, so of mean 0 and variance 1. A linear recursion driven by signs
/// gives sums of squares that vary no more than those of a Gaussian recursion: for independent signs s and a symmetric
/// B, Var(s^T B s) = 2 (sum of the squares of B's entries off the diagonal); for Gaussians the diagonal counts as well.
class Signs {
public:
  Signs(std::uint64_t seed, Rank rank) : engine_(1000 * seed + static_cast<std::uint64_t>(rank)) {}

  [[nodiscard]] double operator()() {
    if (left_ == 0) {
      bits_ = engine_();
      left_ = 64;
    }
    --left_;
    const bool up = (bits_ & 1U) != 0;
    bits_ >>= 1U;
    return up ? 1.0 : -1.0;
  }

private:
  std::mt19937_64 engine_;
  std::uint64_t bits_ = 0;
  int left_ = 0;
};

/// `size` rows of independent standard normal numbers.
[[nodiscard]] inline Models random_models(Rank size, std::size_t coordinates, std::uint64_t seed) {
  std::mt19937_64 engine{seed};
  std::normal_distribution<double> normal;
  Models models(index(size), std::vector<double>(coordinates));
  for (std::vector<double>& model : models)
    for (double& value : model) value = normal(engine);
  return models;
}

/// Calls body(rank, model, averager) on a thread for each rank, with an averager of its row of `models`. Returns the
/// models as the bodies leave them.
template <class T, kith::Exchange E, class Body>
[[nodiscard]] std::vector<std::vector<T>> on_ranks(std::string_view topology, std::vector<std::vector<T>> models,
                                                   const E& exchange, const kith::AveragerOptions& options,
                                                   const Body& body) {
  const kith::AnyTopology chosen = kith::parse_topology(topology);
  kith::thread::run(static_cast<Rank>(models.size()), [&](kith::thread::Communicator& communicator) {
    std::vector<T>& model = models[index(communicator.rank())];
    kith::DecentralizedAverager averager{communicator, chosen, {kith::view(model)}, exchange, options};
    body(communicator.rank(), model, averager);
  });
  return models;
}

template <class Body>
[[nodiscard]] Models on_ranks(std::string_view topology, Models models, const kith::AveragerOptions& options,
                              const Body& body) {
  return on_ranks(topology, std::move(models), kith::FullPrecision{}, options, body);
}

/// `calls` calls of average() with nothing in between.
[[nodiscard]] inline Models averaged(std::string_view topology, Models models, Round calls,
                                     const kith::AveragerOptions& options = {}) {
  return on_ranks(topology, std::move(models), options, [&](Rank, std::vector<double>&, auto& averager) {
    for (Round call = 0; call < calls; ++call) averager.average();
  });
}

[[nodiscard]] inline std::vector<double> mean_of(const Models& models) {
  std::vector<double> mean(models.front().size());
  for (const std::vector<double>& model : models)
    for (std::size_t d = 0; d < mean.size(); ++d) mean[d] += model[d] / static_cast<double>(models.size());
  return mean;
}

/// For each coordinate sum_i (x_i - mean)^2.
[[nodiscard]] inline std::vector<double> squared_spread(const Models& models) {
  const std::vector<double> mean = mean_of(models);
  std::vector<double> sum(mean.size());
  for (const std::vector<double>& model : models)
    for (std::size_t d = 0; d < mean.size(); ++d) sum[d] += (model[d] - mean[d]) * (model[d] - mean[d]);
  return sum;
}

[[nodiscard]] inline double average(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value / static_cast<double>(values.size());
  return sum;
}

/// The largest distance between numbers at the same place.
[[nodiscard]] inline double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (std::size_t d = 0; d < a.size(); ++d) largest = std::max(largest, std::abs(a[d] - b[d]));
  return largest;
}

[[nodiscard]] inline double largest_difference(const Models& a, const Models& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, largest_difference(a[i], b[i]));
  return largest;
}

}  // namespace convergence
