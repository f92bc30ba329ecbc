// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <kith/kith.hpp>

#include "options.hpp"
#include "pace.hpp"
#include "training.hpp"

namespace digits {

inline std::string percent(double share) { return fmt::format("{:.1f} %", 100 * share); }

/// Shows how a run goes: a bar that moves on a terminal, a line now and then elsewhere.
class Progress {
public:
  Progress(const std::string& name, const Options& options)
      : name_(fmt::format("{:<10}", name)),
        steps_(options.steps),
        next_line_((options.steps + 4) / 5),
        // Open MPI's mpirun gives its ranks a terminal whatever it has itself.
        on_terminal_(options.engine != Engine::mpi && isatty(STDOUT_FILENO) == 1) {}

  void show(const Standing& now) {
    const std::string numbers = fmt::format("loss {:.4f}  accuracy {:>7}", now.loss, percent(now.accuracy));
    if (on_terminal_) {
      const std::size_t width = 30 - std::min<std::size_t>(name_.size(), 29);  // the whole line fits into 80 columns
      const std::string filled(width * now.step / steps_, '#');
      fmt::print("\r{} [{:-<{}}] {:>4}/{}  {}\x1b[K", name_, filled, width, now.step, steps_, numbers);
      if (now.step == steps_) fmt::print("\n");
    } else if (now.step == steps_ || now.step >= next_line_) {
      fmt::print("{} step {:>4}/{}  {}\n", name_, now.step, steps_, numbers);
      next_line_ += (steps_ + 4) / 5;
    }
    std::fflush(stdout);
  }

private:
  std::string name_;
  std::size_t steps_;
  std::size_t next_line_;
  bool on_terminal_;
};

inline void print_heading(const Options& options, const Dataset& data) {
  fmt::print("{} workers ({}), {}, {} split, {} steps of {} rows, seed {}\n", options.ranks, to_string(options.engine),
             kith::topology_name(options.topology), to_string(options.split), options.steps, options.batch,
             options.seed);
  fmt::print("{} digits to learn from, {} held out; exchange: {}\n", data.training.size(), data.held_out.size(),
             names_of(options.exchanges, ", "));
  if (options.every > 1) fmt::print("averaging once in {} steps\n", options.every);
  if (options.global_every > 0) fmt::print("an exact global mean once in {} averages\n", options.global_every);
  if (const auto traffic = kith::analyze(options.topology, options.ranks).traffic; options.machines > 0 && traffic)
    fmt::print(
        "{} machines: between them a worker sends {:.2f} models in a round at most, with the exchange sharded {:.2f}\n",
        traffic->machines, traffic->slow.models, traffic->sharded_slow ? traffic->sharded_slow->models : 0);
  fmt::print("\n");
}

inline std::string megabytes(std::optional<std::uint64_t> bytes) {
  return bytes ? fmt::format("{:.2f}", static_cast<double>(*bytes) / 1e6) : "-";
}

inline void print_table(const std::vector<Result>& results) {
  std::size_t width = 10;
  for (const Result& r : results) width = std::max(width, r.name.size());
  fmt::print("\n{:<{}}  {:^14}  {:>9}  {:^23}  {:>15}\n", "", width, "test accuracy", "consensus", "sent by a rank",
             "communicating");
  fmt::print("{:<{}}  {:>6}  {:>6}  {:>9}  {:>8} {:>6} {:>7}  {:>15}\n", "", width, "merged", "worst", "distance",
             "messages", "MB", fmt::format("to {:.0f} %", 100 * target_accuracy), "(of it waiting)");
  for (const Result& r : results)
    fmt::print("{:<{}}  {:>6}  {:>6}  {:>9.4f}  {:>8} {:>6} {:>7}  {:>15}\n", r.name, width, percent(r.merged_accuracy),
               percent(r.worst_accuracy), r.consensus_distance, r.messages_sent, megabytes(r.bytes_sent),
               megabytes(r.bytes_to_target),
               fmt::format("{:.2f} s ({:.2f} s)", r.seconds_communicating, r.seconds_waiting));
}

/// What the table says, in words. The results are those of one exchange or more, all_reduce and isolated; of the
/// exchanges it speaks of the first.
inline void print_conclusion(const std::vector<Result>& results) {
  const Result& gossip = results.front();
  const Result& all_reduce = results[results.size() - 2];
  const Result& isolated = results.back();
  const auto share = [](std::uint64_t part, std::uint64_t whole) {
    return percent(static_cast<double>(part) / static_cast<double>(whole));
  };
  const std::string subject = results.size() == 3 ? "The" : fmt::format("With {} the", gossip.name);
  fmt::print("\n{} merged model reads {} of the digits that it has never seen, with all-reduce {}.\n", subject,
             percent(gossip.merged_accuracy), percent(all_reduce.merged_accuracy));
  if (all_reduce.messages_sent > 0)
    fmt::print("For that a rank sent {} of the bytes of all-reduce in {} of the messages.\n",
               share(gossip.bytes_sent, all_reduce.bytes_sent), share(gossip.messages_sent, all_reduce.messages_sent));
  fmt::print("The worst worker reads {}; the worst of those that do not communicate {}.\n",
             percent(gossip.worst_accuracy), percent(isolated.worst_accuracy));
}

inline nlohmann::ordered_json to_json(const Options& options, const Dataset& data, const std::vector<Result>& results) {
  nlohmann::ordered_json json;
  nlohmann::ordered_json& context = json["context"];
  context["options"] = {{"engine", to_string(options.engine)},
                        {"ranks", options.ranks},
                        {"topology", kith::topology_name(options.topology)},
                        {"machines", options.machines},
                        {"exchange", names_of(options.exchanges, ",")},
                        {"launch", names_of(options.launches)},
                        {"every", options.every},
                        {"global_every", options.global_every},
                        {"steps", options.steps},
                        {"split", to_string(options.split)},
                        {"batch", options.batch},
                        {"hidden", options.hidden},
                        {"learning_rate", options.learning_rate},
                        {"momentum", options.momentum}};
  context["seed"] = options.seed;
  context["target_accuracy"] = target_accuracy;
#ifdef __clang__
  const std::string compiler = __VERSION__;
#else
  const std::string compiler = std::string{"g++ "} + __VERSION__;
#endif
  context["versions"] = {{"kith", fmt::format("{}.{}.{}", KITH_VERSION_MAJOR, KITH_VERSION_MINOR, KITH_VERSION_PATCH)},
                         {"compiler", compiler},
                         {"fmt", FMT_VERSION},
                         {"CLI11", CLI11_VERSION},
                         {"nlohmann_json", fmt::format("{}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR,
                                                       NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH)}};
  context["training_rows"] = data.training.size();
  context["held_out_rows"] = data.held_out.size();
  json["results"] = nlohmann::ordered_json::array();
  for (const Result& r : results) {
    nlohmann::ordered_json curve = nlohmann::ordered_json::array();
    for (const Standing& at : r.curve)
      curve.push_back({{"step", at.step}, {"bytes_sent", at.bytes_sent}, {"loss", at.loss}, {"accuracy", at.accuracy}});
    json["results"].push_back({{"name", r.name},
                               {"merged_accuracy", r.merged_accuracy},
                               {"worst_accuracy", r.worst_accuracy},
                               {"mean_accuracy", r.mean_accuracy},
                               {"final_loss", r.final_loss},
                               {"consensus_distance", r.consensus_distance},
                               {"messages_sent", r.messages_sent},
                               {"bytes_sent", r.bytes_sent},
                               {"bytes_to_target", nullptr},
                               {"seconds_per_step", r.seconds_per_step},
                               {"seconds_communicating", r.seconds_communicating},
                               {"seconds_waiting", r.seconds_waiting},
                               {"curve", std::move(curve)}});
    if (r.bytes_to_target) json["results"].back()["bytes_to_target"] = *r.bytes_to_target;
  }
  return json;
}

inline void print_paces(const Options& options, const std::vector<Pace>& paces) {
  std::size_t width = 10;
  for (const Pace& pace : paces) width = std::max(width, pace.name.size());
  fmt::print("\nPace: steps that take {} ms, and what averaging adds; means over the workers\n\n", options.step_ms);
  fmt::print("{:<{}}  {:>9}", "", width, "steady");
  if (options.jitter > 0) fmt::print("  {:>19}", fmt::format("jitter {}", options.jitter));
  if (options.stall)
    fmt::print("  {:>28}", fmt::format("worker {} stalls {} steps", options.stall->rank, options.stall->steps));
  fmt::print("\n{:<{}}  {:>9}", "", width, "ms a step");
  if (options.jitter > 0) fmt::print("  {:>9} {:>9}", "ms a step", "/ steady");
  if (options.stall) fmt::print("  {:>9} {:>8} {:>9}", "ms a step", "/ steady", "delayed");
  fmt::print("\n");
  for (const Pace& pace : paces) {
    fmt::print("{:<{}}  {:>9.3f}", pace.name, width, 1e3 * pace.steady);
    if (pace.jitter) fmt::print("  {:>9.3f} {:>9.2f}", 1e3 * *pace.jitter, *pace.jitter / pace.steady);
    if (pace.stall)
      fmt::print("  {:>9.3f} {:>8.2f} {:>9}", 1e3 * *pace.stall, *pace.stall / pace.steady,
                 fmt::format("{:.1f}", *pace.stall_delay));
    fmt::print("\n");
  }
  fmt::print("\n");
  if (options.jitter > 0)
    fmt::print(
        "Jitter: each step of each worker takes a random time longer, exponentially distributed, {} steps in\n"
        "the mean. Isolated workers show that mean; the rest is waiting for whoever is slower just then.\n",
        options.jitter);
  if (options.stall)
    fmt::print(
        "Stall: worker {} stops once, for {} steps. Delayed: by how many steps a worker comes later, in the\n"
        "mean over all. Averaging with fewer workers does not help: in a few rounds all have waited.\n",
        options.stall->rank, options.stall->steps);
  if (std::find(options.launches.begin(), options.launches.end(), Launch::hidden) != options.launches.end())
    fmt::print(
        "Hidden: a round has the time of a step to come in. What is late by less delays nobody; what is late by\n"
        "more comes one step less late to those that hear of it, and to those that hear of it from them.\n");
  fmt::print("A worker that is slow for good sets the pace of all that average, by whatever method.\n");
}

inline nlohmann::ordered_json to_json(const Options& options, const std::vector<Pace>& paces) {
  const auto number = [](const std::optional<double>& value) {
    return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
  };
  nlohmann::ordered_json json;
  json["step_seconds"] = options.step_ms / 1e3;
  json["jitter"] = options.jitter;
  json["stall"] = nullptr;
  if (options.stall) json["stall"] = {{"rank", options.stall->rank}, {"steps", options.stall->steps}};
  json["results"] = nlohmann::ordered_json::array();
  for (const Pace& pace : paces)
    json["results"].push_back({{"name", pace.name},
                               {"seconds_per_step", pace.steady},
                               {"seconds_per_step_with_jitter", number(pace.jitter)},
                               {"seconds_per_step_with_stall", number(pace.stall)},
                               {"delay_by_stall_steps", number(pace.stall_delay)}});
  return json;
}

inline void write_json(const std::string& path, const nlohmann::ordered_json& json) {
  std::ofstream file{path};
  file << json.dump(2) << '\n';
  if (!file.flush()) throw std::runtime_error(fmt::format("cannot write {}", path));
}

}  // namespace digits
