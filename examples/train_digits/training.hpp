// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <kith/kith.hpp>

#include "dataset.hpp"
#include "exchanges.hpp"
#include "mlp.hpp"
#include "options.hpp"
#include "worker.hpp"

namespace digits {

/// The one thing in which the runs differ: how the averager is set up.
struct Method {
  std::string name;
  kith::AnyTopology topology;
  AnyExchange exchange;
  kith::AveragerOptions averaging;
  Launch launch = Launch::now;
};

/// One for each exchange and launch, named after them (the uncompressed one is just "kith"), and the two that they are
/// compared with.
inline std::vector<Method> methods_to_compare(const Options& options) {
  const kith::AveragerOptions schedule{.every = options.every, .global_every = options.global_every};
  std::vector<Method> methods;
  for (const auto& [name, exchange] : options.exchanges) {
    const bool plain = std::holds_alternative<kith::FullPrecision>(exchange);
    for (const Launch launch : options.launches)
      methods.push_back({(plain ? "kith" : name) + (launch == Launch::hidden ? " hidden" : ""), options.topology,
                         exchange, schedule, launch});
  }
  // Every round is an exact global mean: no topology is asked.
  methods.push_back({"all_reduce", options.topology, kith::FullPrecision{}, {.global_every = 1}});
  methods.push_back({"isolated", kith::Isolated{}, kith::FullPrecision{}, {}});
  return methods;
}

/// How the training stands: the mean loss of the mini-batches since last told, the merged model's accuracy on the
/// held-out rows, and the bytes that the rank has sent by then that sent most.
struct Standing {
  std::size_t step;
  double loss;
  double accuracy;
  std::uint64_t bytes_sent;
};

/// The accuracy that `Result::bytes_to_target` is about.
constexpr double target_accuracy = 0.95;

/// Called on rank 0, at points that do not depend on who watches.
using Watcher = std::function<void(const Standing&)>;

/// How a run went, and how it ended. The same on every rank. Accuracies are shares of the held-out rows.
struct Result {
  std::string name;
  std::vector<Standing> curve;
  double merged_accuracy = 0;                    // of the mean of all models
  double worst_accuracy = 0;                     // of the worker whose model does worst
  double mean_accuracy = 0;                      // over the workers, each with its own model
  double final_loss = 0;                         // of the mean of all models, over all training rows
  double consensus_distance = 0;                 // how far apart the workers' models are
  std::uint64_t messages_sent = 0;               // by the rank that sent most, without evaluation and final merge
  std::uint64_t bytes_sent = 0;                  // likewise
  std::optional<std::uint64_t> bytes_to_target;  // when the merged model was first seen to be as accurate as that
  double seconds_per_step = 0;                   // gradient, optimizer and averaging; mean over ranks
  double seconds_communicating = 0;              // inside Kith, waiting for slower workers included; mean over ranks
  double seconds_waiting = 0;                    // the part of it spent waiting
};

/// Brings together a small value of every rank, in rank order: what is added up from it is the same on every rank and
/// in every run, to the last bit.
template <kith::Communicator C>
class Everyone {
public:
  explicit Everyone(C& communicator) : communicator_(communicator) {
    call_.what = "statistics of train_digits";
    call_.channel = communicator.open_channel();
  }

  template <class T>
  std::vector<T> values(const T& mine) {
    std::vector<T> all(static_cast<std::size_t>(communicator_.size()));
    ++call_.sequence;
    communicator_.all_gather(call_, std::as_bytes(std::span{&mine, 1}), std::as_writable_bytes(std::span{all}));
    return all;
  }

  /// The sum of the ranks' `mine`.
  double sum(double mine) {
    const std::vector<double> all = values(mine);
    return std::accumulate(all.begin(), all.end(), 0.0);
  }

  std::uint64_t largest(std::uint64_t mine) {
    const std::vector<std::uint64_t> all = values(mine);
    return *std::max_element(all.begin(), all.end());
  }

private:
  C& communicator_;
  kith::Call call_;
};

/// Where the time of the training steps goes, in seconds.
struct Times {
  double stepping = 0;       // gradient, optimizer and averaging
  double communicating = 0;  // the part of it inside Kith
};

/// What a trainer adds to its loop.
template <class Averager>
class Averaging {
public:
  Averaging(Averager& averager, Launch launch) : averager_(averager), hidden_(launch == Launch::hidden) {}

  /// With the peers of this round: now, or while the next optimizer step is computed.
  void after_step() {
    if (!hidden_) return averager_.average();
    settle();
    averager_.begin();
    in_flight_ = true;
  }

  /// Nothing is under way afterwards: before somebody looks at the models.
  void settle() {
    if (std::exchange(in_flight_, false)) averager_.finish();
  }

private:
  Averager& averager_;
  bool hidden_;
  bool in_flight_ = false;
};

/// Looks at what the training has led to. Changes no model, and is not counted in the averager's metrics.
template <class Averager, kith::Communicator C>
Result assess(Averager& averager, Worker& worker, Everyone<C>& everyone, const Dataset& data, Mlp& merged) {
  const auto held_out = static_cast<double>(data.held_out.size());
  Result result;
  result.consensus_distance = averager.consensus_distance();
  averager.mean_into(merged.views());
  result.merged_accuracy = worker.right_answers(merged, 0, 1) / held_out;
  result.final_loss = everyone.sum(worker.shard_loss(merged)) / static_cast<double>(data.training.size());
  const std::vector<double> right = everyone.values(worker.right_answers(worker.model, 0, 1));
  result.worst_accuracy = *std::min_element(right.begin(), right.end()) / held_out;
  result.mean_accuracy =
      std::accumulate(right.begin(), right.end(), 0.0) / (held_out * static_cast<double>(right.size()));
  result.messages_sent = everyone.largest(averager.metrics().messages_sent);
  result.bytes_sent = everyone.largest(averager.metrics().bytes_sent);
  return result;
}

/// Trains on this rank, together with the other ranks of `communicator`, by one of the methods. All ranks call it.
template <kith::Communicator C, kith::Exchange E>
Result train(C& communicator, const Method& method, const E& exchange, const Options& options, const Dataset& data,
             const Watcher& watch) {
  using Clock = std::chrono::steady_clock;
  const auto rank = static_cast<std::size_t>(communicator.rank());
  const auto size = static_cast<std::size_t>(communicator.size());
  const std::size_t interval = std::max<std::size_t>(1, options.steps / 30);
  Worker worker{options, data, rank, size};
  Mlp merged{options.hidden};
  Everyone everyone{communicator};
  Times times;
  std::vector<Standing> curve;
  double loss = 0;
  std::size_t last_told = 0;

  // ------------------------------------------------------------------------------------------------------------ Kith
  kith::DecentralizedAverager averager{communicator, method.topology, worker.model.views(), exchange, method.averaging};
  averager.broadcast(0);  // everybody starts from the model of rank 0
  Averaging averaging{averager, method.launch};

  for (std::size_t step = 1; step <= options.steps; ++step) {
    const auto begin = Clock::now();
    loss += worker.optimizer_step(step);

    const auto stepped = Clock::now();
    averaging.after_step();  // with the peers of this round
    const bool looks = step % interval == 0 || step == options.steps;
    if (looks) averaging.settle();
    // ----------------------------------------------------------------------------------------------------------------

    const auto averaged = Clock::now();
    times.stepping += std::chrono::duration<double>(averaged - begin).count();
    times.communicating += std::chrono::duration<double>(averaged - stepped).count();
    if (!looks) continue;

    averager.mean_into(merged.views());  // the merged model, beside the worker's own; each rank tests a part of it
    const double right = everyone.sum(worker.right_answers(merged, rank, size));
    const double losses = everyone.sum(std::exchange(loss, 0));
    const auto batches = static_cast<double>(size * (step - std::exchange(last_told, step)));
    curve.push_back({step, losses / batches, right / static_cast<double>(data.held_out.size()),
                     everyone.largest(averager.metrics().bytes_sent)});
    if (rank == 0) watch(curve.back());
  }

  Result result = assess(averager, worker, everyone, data, merged);
  const auto mean = [&](double mine) { return everyone.sum(mine) / static_cast<double>(size); };
  result.name = method.name;
  const auto there = std::find_if(curve.begin(), curve.end(),
                                  [](const Standing& standing) { return standing.accuracy >= target_accuracy; });
  if (there != curve.end()) result.bytes_to_target = there->bytes_sent;
  result.curve = std::move(curve);
  result.seconds_per_step = mean(times.stepping) / static_cast<double>(options.steps);
  result.seconds_communicating = mean(times.communicating);
  result.seconds_waiting = mean(averager.metrics().seconds_waiting);
  return result;
}

}  // namespace digits
