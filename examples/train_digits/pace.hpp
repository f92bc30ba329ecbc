// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include <kith/kith.hpp>

#include "dataset.hpp"
#include "mlp.hpp"
#include "options.hpp"
#include "training.hpp"
#include "worker.hpp"

// How many seconds a step takes when workers are not equally fast all the time. The digits are learned in microseconds
// a step; so each step is made to last as long as --step-ms says, and the rest of it is slept. Workers that sleep need
// no core, so that there may be more of them than cores.

namespace digits {

/// What keeps workers from being equally fast.
enum class Disturbance : std::uint8_t { none, jitter, stall };

/// How long this rank's steps take.
class StepTimes {
public:
  using Clock = std::chrono::steady_clock;

  StepTimes(const Options& options, Disturbance disturbance, std::size_t rank)
      : options_(options),
        disturbance_(disturbance),
        stalls_(disturbance == Disturbance::stall && rank == static_cast<std::size_t>(options.stall->rank)),
        random_({options.seed, Random::Purpose::delays, static_cast<std::uint32_t>(rank)}) {}

  /// The step in which a rank stalls: in the middle of the run.
  static std::size_t stall_step(const Options& options) { return options.steps / 2 + 1; }

  /// Computes on, so to say, until step `step`, which began at `begin`, has taken its time.
  void wait_for_end(std::size_t step, Clock::time_point begin) {
    double steps = 1;
    if (disturbance_ == Disturbance::jitter) steps += options_.jitter * random_.exponential();
    if (stalls_ && step == stall_step(options_)) steps += static_cast<double>(options_.stall->steps);
    std::this_thread::sleep_until(begin + std::chrono::duration_cast<Clock::duration>(
                                              std::chrono::duration<double, std::milli>(steps * options_.step_ms)));
  }

private:
  const Options& options_;
  Disturbance disturbance_;
  bool stalls_;
  Random random_;
};

/// How fast a method is: means over the ranks, the same on every rank.
struct Pace {
  std::string name;
  double steady = 0;                  // seconds per step
  std::optional<double> jitter;       // likewise, where there is jitter
  std::optional<double> stall;        // likewise, where a rank stalls
  std::optional<double> stall_delay;  // by how many step times that has delayed a rank
};

/// By how many step times the steps from the stall on took longer than others do, on this rank. They are as many as the
/// delay can need to reach the last rank.
inline double delay_of(const std::vector<double>& seconds, const Options& options) {
  const auto from = static_cast<std::ptrdiff_t>(StepTimes::stall_step(options) - 1);
  const std::size_t rounds = static_cast<std::size_t>(options.ranks) + 4;
  const auto steps = static_cast<std::ptrdiff_t>(
      std::min(rounds * static_cast<std::size_t>(options.every), seconds.size() - static_cast<std::size_t>(from)));
  std::vector<double> others(seconds.begin(), seconds.begin() + from);
  others.insert(others.end(), seconds.begin() + from + steps, seconds.end());
  double usual = options.step_ms / 1000;
  if (!others.empty()) {
    const auto middle = others.begin() + static_cast<std::ptrdiff_t>(others.size() / 2);
    std::nth_element(others.begin(), middle, others.end());
    usual = *middle;
  }
  const double took = std::accumulate(seconds.begin() + from, seconds.begin() + from + steps, 0.0);
  return (took - static_cast<double>(steps) * usual) / (options.step_ms / 1000);
}

/// Trains by one of the methods, and fills in what one kind of disturbance does to its pace. Nobody looks at the models
/// meanwhile: that would make everybody wait for everybody. All ranks call it.
template <kith::Communicator C, kith::Exchange E>
void measure(C& communicator, const Method& method, const E& exchange, const Options& options, const Dataset& data,
             Disturbance disturbance, Pace& pace) {
  const auto rank = static_cast<std::size_t>(communicator.rank());
  Worker worker{options, data, rank, static_cast<std::size_t>(communicator.size())};
  StepTimes step_times{options, disturbance, rank};
  Everyone everyone{communicator};
  kith::AveragerOptions averaging = method.averaging;  // whoever stalls is waited for
  if (options.stall)
    averaging.deadline += kith::Seconds{static_cast<double>(options.stall->steps) * options.step_ms / 1e3};
  kith::DecentralizedAverager averager{communicator, method.topology, worker.model.views(), exchange, averaging};
  averager.broadcast(0);
  Averaging rounds{averager, method.launch};
  std::vector<double> seconds(options.steps);

  (void)everyone.sum(0);  // all begin together
  const auto start = StepTimes::Clock::now();
  auto begin = start;
  for (std::size_t step = 1; step <= options.steps; ++step) {
    worker.optimizer_step(step);
    step_times.wait_for_end(step, begin);
    rounds.after_step();
    if (step == options.steps) rounds.settle();
    const auto end = StepTimes::Clock::now();
    seconds[step - 1] = std::chrono::duration<double>(end - begin).count();
    begin = end;
  }
  const double whole = std::chrono::duration<double>(begin - start).count();

  const auto mean = [&](double mine) { return everyone.sum(mine) / static_cast<double>(communicator.size()); };
  const double per_step = mean(whole) / static_cast<double>(options.steps);
  switch (disturbance) {
    case Disturbance::none:
      pace.steady = per_step;
      break;
    case Disturbance::jitter:
      pace.jitter = per_step;
      break;
    case Disturbance::stall:
      pace.stall = per_step;
      pace.stall_delay = mean(delay_of(seconds, options));
      break;
  }
}

/// The paces of all methods, each with nothing to disturb it and with what was asked for. All ranks call it.
template <kith::Communicator C>
std::vector<Pace> measure_paces(C& communicator, const Options& options, const Dataset& data) {
  std::vector<Disturbance> disturbances{Disturbance::none};
  if (options.jitter > 0) disturbances.push_back(Disturbance::jitter);
  if (options.stall) disturbances.push_back(Disturbance::stall);
  std::vector<Pace> paces;
  for (const Method& method : methods_to_compare(options)) {
    paces.push_back({method.name, 0, {}, {}, {}});
    for (const Disturbance disturbance : disturbances)
      std::visit(
          [&](const auto& exchange) {
            measure(communicator, method, exchange, options, data, disturbance, paces.back());
          },
          method.exchange);
  }
  return paces;
}

}  // namespace digits
