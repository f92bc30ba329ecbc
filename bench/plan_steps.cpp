// SPDX-License-Identifier: Apache-2.0
#include "plan_steps.hpp"

#include <algorithm>
#include <cmath>

#include <kith/numeric/counter_rng.hpp>

namespace bench::plan {

ComputeTimes::ComputeTimes(const Compute& compute, kith::Rank ranks, std::size_t steps, std::uint64_t seed)
    : steps_(warm_up + steps), ranks_(ranks), us_(steps_ * static_cast<std::size_t>(ranks)) {
  for (std::size_t i = 0; i < us_.size(); ++i) {
    const double uniform = (static_cast<double>(kith::splitmix64(seed, i) >> 11) + 0.5) * 0x1p-53;  // in (0, 1)
    us_[i] = compute.us * (1 - compute.jitter - compute.jitter * std::log(uniform));
    if (i % static_cast<std::size_t>(ranks) == 0) us_[i] *= compute.slow_rank;
  }
}

double step_us(const Communication& communication, const ComputeTimes& times, Launch launch) {
  const auto ranks = static_cast<std::size_t>(times.ranks());
  const auto width = static_cast<std::size_t>(communication.ranks_per_node);
  const std::size_t nodes = ranks / width;
  std::vector<double> now(ranks);      // when each rank begins its step
  std::vector<double> ready(nodes);    // when each node has begun its round
  std::vector<double> arrived(nodes);  // when that round has ended
  double begun = 0;
  for (std::size_t step = 0; step < times.steps(); ++step) {
    if (step == ComputeTimes::warm_up) begun = *std::max_element(now.begin(), now.end());
    const Round& round = communication.rounds[step % communication.rounds.size()];
    std::fill(ready.begin(), ready.end(), 0.0);
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      now[rank] += times.us(step, static_cast<kith::Rank>(rank));
      if (launch == Launch::hidden) now[rank] = std::max(now[rank], arrived[rank / width]);
      ready[rank / width] = std::max(ready[rank / width], now[rank]);
    }
    for (std::size_t node = 0; node < nodes; ++node) {
      double last = ready[node];
      for (const kith::Rank other : round.waits_for[node])
        last = std::max(last, ready[static_cast<std::size_t>(other)]);
      arrived[node] = last + round.us[node];
    }
    if (launch == Launch::now)
      for (std::size_t rank = 0; rank < ranks; ++rank) now[rank] = arrived[rank / width];
  }
  const double ended = *std::max_element(now.begin(), now.end());
  return (ended - begun) / static_cast<double>(times.steps() - ComputeTimes::warm_up);
}

}  // namespace bench::plan
