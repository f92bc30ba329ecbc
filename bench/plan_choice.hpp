// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <kith/topology/any.hpp>
#include <kith/types.hpp>

#include "plan_model.hpp"
#include "plan_steps.hpp"

namespace bench::plan {

/// What is to be planned.
struct Question {
  Cluster cluster;
  Compute compute;
  std::size_t model_bytes = 0;
  kith::DType dtype = kith::DType::f32;
  std::vector<kith::AnyTopology> topologies;
  /// Bytes of fp32 that a rank takes through an encoded exchange in a microsecond, for each message; 0: what was
  /// recorded for each exchange.
  double encoding_bytes_per_us = 0;
  /// Of a rank's memory, for averaging what has come; 0: averaging is hidden behind what is still coming.
  double memory_bytes_per_us = 0;
  std::size_t steps = 400;
  std::uint64_t seed = 1;
};

/// One way to train, and what the model predicts of it.
struct Line {
  std::string topology = {};  // "all-reduce" is one of them
  std::string exchange = {};
  std::string algorithm = {};  // of the all-reduce; else empty
  Launch launch = Launch::now;
  double round_us = 0;
  double step_us = 0;
  double card_bytes = 0;   // that leave the busiest network card in a step
  double inter_bytes = 0;  // that leave all network cards
  /// Steps in which the models' distance to their mean falls to a hundredth, at most; infinite: it does not.
  double steps_to_1_percent = 1;
  /// What one gives up against an all-reduce of full precision that is waited for.
  int concessions = 0;

  [[nodiscard]] bool is_all_reduce() const noexcept { return !algorithm.empty(); }
  /// Decimal digits by which the distance to the mean shrinks in a second.
  [[nodiscard]] double digits_per_second() const noexcept { return 2e6 / (steps_to_1_percent * step_us); }
};

struct Plan {
  std::vector<Line> lines;  // first all-reduce; each pair of launches together
  std::vector<std::string> left_out;
  std::size_t recommended = 0;
  std::vector<std::string> reasons;  // sentences
};

/// A step must be this much shorter for each concession.
inline constexpr double worth_of_concession = 0.05;
/// A scheme that needs more steps to 1 % is not recommended.
inline constexpr double most_steps_to_1_percent = 50;

/// Steps until the distance to the mean is at most a hundredth, from the worst models and the worst phase: by the
/// contraction of a period, or when the mean is exact. Infinite where it never is. Throws kith::UsageError for a size
/// that the topology refuses.
[[nodiscard]] double steps_to_1_percent(const kith::AnyTopology& topology, kith::Rank size);

/// The line to recommend: the shortest step, where each concession adds worth_of_concession to it, among those that
/// mix fast enough; among equals (2 %) the one that mixes fastest, and of those the first.
[[nodiscard]] std::size_t recommend(const std::vector<Line>& lines);

/// Throws kith::UsageError for numbers that make no sense.
[[nodiscard]] Plan make_plan(const Question& question);

}  // namespace bench::plan
