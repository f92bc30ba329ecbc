// SPDX-License-Identifier: Apache-2.0
// Machines: fast links inside, slow ones between. Two machines of four ranks, pretended with threads: each rank sends a
// quarter of its model over the slow links, and all the same every round averages whole machines.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include <kith/kith.hpp>

namespace {

constexpr kith::Rank ranks = 8;
constexpr kith::Rank ranks_per_machine = 4;
constexpr std::size_t parameters = 100'000;

// With processes: kith::Hierarchical{kith::mpi::machines(MPI_COMM_WORLD), kith::OnePeerExponential{}}
const kith::Hierarchical topology{ranks_per_machine, kith::OnePeerExponential{}};

}  // namespace

int main() {
  bool exact = true;
  std::uint64_t bytes_sent = 0;
  kith::thread::run(ranks, [&](kith::thread::Communicator& communicator) {
    std::vector<float> weights(parameters, static_cast<float>(communicator.rank()));
    kith::DecentralizedAverager averager{communicator, topology, {kith::view(weights)}, kith::Sharded{}};
    averager.average();  // two machines: one round is the mean of all
    if (communicator.rank() != 0) return;
    exact = std::all_of(weights.begin(), weights.end(), [](float weight) { return weight == 3.5F; });
    bytes_sent = averager.metrics().bytes_sent;
  });

  // What goes over which links, in models.
  const kith::TopologyReport report = kith::analyze(topology, ranks);
  const kith::MachineTraffic& traffic = report.traffic.value();
  std::printf("a rank sends %g models between machines, %g inside (with FullPrecision %g and %g)\n",
              traffic.sharded_slow->models, traffic.sharded_fast->models, traffic.slow.models, traffic.fast.models);

  // The last machine may have fewer ranks: pairs of machines still end at the mean of all their ranks.
  const kith::MixingMatrix uneven = kith::mixing_matrix(topology, 6, 0);  // machines of 4 and 2
  std::printf("machines of 4 and 2 ranks: rank 0 gives each rank there %.4f\n", uneven(0, 5));

  const double expected = (0.25 + 1.5) * parameters * sizeof(float);
  const bool counted = static_cast<double>(bytes_sent) == expected;
  return exact && counted && uneven(0, 5) > 0.1666 && uneven(0, 5) < 0.1667 ? 0 : 1;
}
