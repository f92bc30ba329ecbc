// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "plan_model.hpp"

namespace bench::plan {

/// A round that the slow-network lab has timed, and what the model says of it.
struct Comparison {
  std::string network = {};
  std::string exchange = {};  // "MPI_Allreduce (...)" or "Kith ..."
  bool is_gossip = false;
  double bytes = 0;
  double predicted_us = 0;
  double measured_us_p25 = 0;
  double measured_us_p50 = 0;
  double measured_us_p75 = 0;
  /// Of the frames on this network, by the switch's full queues, in this and all other rounds.
  double dropped_share = 0;

  [[nodiscard]] double ratio() const noexcept { return predicted_us / measured_us_p50; }
  [[nodiscard]] bool is_long() const noexcept { return measured_us_p50 > 10e3; }
  [[nodiscard]] bool is_near() const noexcept { return ratio() >= 0.75 && ratio() <= 1.25; }
  /// TCP's recovery from loss is not in the model: more than one frame in 2000 is.
  [[nodiscard]] bool is_lossy() const noexcept { return dropped_share > 1.0 / 2000; }
};

/// The cluster that a network of the lab is: "100 Mbit/s, 5 ms, one node 20 Mbit/s", over TCP. Throws kith::UsageError
/// for a name that says something else.
[[nodiscard]] Cluster cluster_of(const std::string& network, kith::Rank nodes, const std::string& congestion_control);

/// Kith's rounds and Open MPI's all-reduces in the lab's record. Throws kith::UsageError if it is none.
[[nodiscard]] std::vector<Comparison> compare(const nlohmann::json& record);

}  // namespace bench::plan
