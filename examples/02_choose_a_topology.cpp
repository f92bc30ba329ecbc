// SPDX-License-Identifier: Apache-2.0
// How fast topologies bring a group together, and what that costs: kith::analyze().
// usage: 02_choose_a_topology [RANKS]

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

#include <kith/kith.hpp>

namespace {

constexpr double goal = 1000;  // by which factor the models shall come closer

/// Prints a line of the table. False if what it says cannot be right.
template <kith::Topology T>
bool show(const T& topology, kith::Rank ranks) {
  const std::string name = kith::topology_name(topology);
  try {
    const kith::TopologyReport report = kith::analyze(topology, ranks);
    // Rounds until the consensus distance has shrunk by the goal: at once where the mean becomes exact.
    double rounds = std::ceil(std::log(goal) / -std::log1p(-report.spectral_gap));
    if (report.exact_after) rounds = static_cast<double>(*report.exact_after);
    const std::string exact = report.exact_after ? std::to_string(*report.exact_after) : "never";
    std::printf("%-22s %9d %12s %13.4f %9.0f %12.0f\n", name.c_str(), report.max_degree, exact.c_str(),
                report.spectral_gap, rounds, rounds * report.max_degree);
    return report.doubly_stochastic && report.connected && (ranks == 1 || rounds >= 1);
  } catch (const kith::UsageError& error) {  // not every topology exists for every size
    std::printf("%s\n", std::string{error.message()}.c_str());
    return true;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const kith::Rank ranks = argc > 1 ? std::atoi(argv[1]) : 16;
  if (ranks < 1 || ranks > 4096) {
    std::fprintf(stderr, "usage: 02_choose_a_topology [RANKS], 1 to 4096\n");
    return 2;
  }

  std::printf("%d ranks\n\n", ranks);
  std::printf("%-22s %9s %12s %13s %9s %12s\n", "", "messages", "rounds until", "spectral gap", "to come", "messages");
  std::printf("%-22s %9s %12s %13s %9s %12s\n", "", "a round", "exact", "of a round", "1000 x", "for that");
  bool plausible = show(kith::OnePeerExponential{}, ranks);
  plausible &= show(kith::BaseGraph{1}, ranks);
  plausible &= show(kith::BaseGraph{2}, ranks);
  plausible &= show(kith::RandomMatching{7}, ranks);
  plausible &= show(kith::StaticExponential{}, ranks);
  plausible &= show(kith::OnePeerHypercube{}, ranks);
  plausible &= show(kith::Torus{}, ranks);
  plausible &= show(kith::Ring{}, ranks);
  plausible &= show(kith::Complete{}, ranks);

  // Base-(k+1) graphs reach the exact mean for any number of ranks, with at most k messages a round.
  const bool exact = kith::analyze(kith::BaseGraph{1}, ranks).exact_after.has_value();
  std::printf("\nbase-graph:1 %s the exact mean of %d ranks with one message a round.\n",
              exact ? "reaches" : "DOES NOT REACH", ranks);
  return plausible && exact ? 0 : 1;
}
