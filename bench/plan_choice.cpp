// SPDX-License-Identifier: Apache-2.0
#include "plan_choice.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include <fmt/core.h>
#include <kith/codec/cast.hpp>
#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/error.hpp>
#include <kith/topology/analysis.hpp>

namespace bench::plan {
namespace {

using kith::AnyTopology;
using kith::DType;
using kith::Rank;

// Rounds of a schedule without an end, or with a far one, that are looked at.
constexpr std::size_t most_rounds = 120;

constexpr const char* sharded = "sharded";

// How a message is made.
struct Exchange {
  const char* name;
  /// Bytes of fp32 in a microsecond and message: encoding, decoding and the replicas' arithmetic on a host. The bytes
  /// over (time - time of full precision, median of all lines) of the 16 MiB lines in bench/results/exchange.json.
  double bytes_per_us;
  int concessions;
  double (*wire_bytes)(std::size_t count, DType dtype);
};

template <class Codec>
double wire_bytes(std::size_t count, DType dtype) {
  // What is encoded are differences: f32 for 16-bit models, too.
  return static_cast<double>(Codec{}.wire_bytes(count, dtype == DType::f64 ? DType::f64 : DType::f32));
}

double full_bytes(std::size_t count, DType dtype) { return static_cast<double>(count * kith::size_of(dtype)); }

constexpr Exchange exchanges[] = {
    {"full-precision", 0, 0, full_bytes},
    {"choco:cast-bf16", 3400, 1, wire_bytes<kith::Cast<kith::bfloat16>>},
    {"choco:int8-block", 3800, 1, wire_bytes<kith::Int8Block>},
    {"choco:int4-block", 2300, 2, wire_bytes<kith::Int4Block>},
};

Message message_of(const Question& question, const Exchange& exchange) {
  const std::size_t count = question.model_bytes / kith::size_of(question.dtype);
  const auto model_bytes = static_cast<double>(question.model_bytes);
  Message message{.bytes = exchange.wire_bytes(count, question.dtype)};
  if (exchange.bytes_per_us > 0) {
    const double rate = question.encoding_bytes_per_us > 0 ? question.encoding_bytes_per_us : exchange.bytes_per_us;
    message.host_us = 4.0 * static_cast<double>(count) / rate;
  }
  if (question.memory_bytes_per_us > 0) {  // reads its own model and what has come, writes its own
    message.host_us += model_bytes / question.memory_bytes_per_us;
    message.host_us_once = 2 * model_bytes / question.memory_bytes_per_us;
  }
  return message;
}

// The same of one rank's shard.
Message shard_of(Message message, Rank ranks_per_machine) {
  message.bytes /= ranks_per_machine;
  message.host_us /= ranks_per_machine;
  message.host_us_once /= ranks_per_machine;
  return message;
}

class Planner {
public:
  explicit Planner(const Question& question)
      : question_(question), times_(question.compute, question.cluster.ranks, question.steps, question.seed) {}

  void add_all_reduce() {
    const AllReduce best = best_all_reduce(question_.cluster, static_cast<double>(question_.model_bytes));
    Line line{.topology = "all-reduce", .exchange = "full-precision", .algorithm = best.algorithm};
    add(line, best.communication(question_.cluster.ranks));
  }

  // Each rank on its own.
  void add_flat(const AnyTopology& topology) {
    const std::optional<double> steps = steps_of(topology, question_.cluster.ranks, "");
    if (!steps) return;
    const bool randomized = topology.period(question_.cluster.ranks) == 0;
    for (const Exchange& exchange : exchanges) {
      // Choco keeps a replica for each edge of a period.
      if (exchange.concessions > 0 && randomized) continue;
      const Message message = message_of(question_, exchange);
      if (exchange.concessions > 0 && message.bytes >= static_cast<double>(question_.model_bytes)) continue;
      Line line{.topology = topology_name(topology), .exchange = exchange.name};
      line.steps_to_1_percent = *steps;
      line.concessions = 1 + exchange.concessions;
      add(line, gossip(question_.cluster, topology, message, most_rounds));
    }
  }

  // Machines as one, in shards.
  void add_sharded(const AnyTopology& topology) {
    const Cluster& cluster = question_.cluster;
    if (cluster.ranks_per_machine == 1 || cluster.machines() == 1) return;
    if (topology.max_degree(cluster.machines()) != 1) return;  // those with one peer send least
    const std::optional<double> steps = steps_of(topology, cluster.machines(), "hierarchical:");
    if (!steps) return;
    const auto model_bytes = static_cast<double>(question_.model_bytes);
    Line line{.topology = "hierarchical:" + topology_name(topology), .exchange = sharded};
    line.steps_to_1_percent = *steps;
    line.concessions = 1;
    const Message shard = shard_of(message_of(question_, exchanges[0]), cluster.ranks_per_machine);
    add(line, sharded_gossip(cluster, topology, model_bytes, shard, most_rounds));
  }

  [[nodiscard]] Plan take() { return std::move(plan_); }

private:
  // Empty, with a remark, where the topology does not exist for the size.
  std::optional<double> steps_of(const AnyTopology& topology, Rank size, const char* prefix) {
    try {
      return steps_to_1_percent(topology, size);
    } catch (const kith::UsageError& error) {
      plan_.left_out.push_back(prefix + topology_name(topology) + ": " + std::string{error.message()});
      return std::nullopt;
    }
  }

  void add(Line line, const Communication& communication) {
    line.round_us = communication.round_us();
    line.card_bytes = communication.card_bytes();
    line.inter_bytes = communication.inter_bytes();
    for (const Launch launch : {Launch::now, Launch::hidden}) {
      line.launch = launch;
      line.step_us = step_us(communication, times_, launch);
      plan_.lines.push_back(line);
      ++line.concessions;  // hidden: a round counts one step later
    }
  }

  const Question& question_;
  ComputeTimes times_;
  Plan plan_;
};

std::string title(const Line& line) {
  std::string how = " with " + line.exchange;
  if (line.is_all_reduce()) how = " (" + line.algorithm + ")";
  if (line.exchange == sharded) how = ", sharded";
  return line.topology + how + (line.launch == Launch::hidden ? ", hidden" : "");
}

std::string time_text(double us) {
  return us < 1e6 ? fmt::format("{:.4g} ms", us / 1e3) : fmt::format("{:.4g} s", us / 1e6);
}
std::string megabytes(double bytes) { return fmt::format("{:.3g} MB", bytes / 1e6); }

// Of a step, beyond what its parts take.
double waiting_us(const Line& line, double compute_us) {
  return line.step_us - (line.launch == Launch::now ? compute_us + line.round_us : std::max(compute_us, line.round_us));
}

void explain_all_reduce(Plan& plan) {
  const Line& best = plan.lines[plan.recommended];
  const Line& other = *std::min_element(plan.lines.begin() + 1, plan.lines.end(),
                                        [](const Line& a, const Line& b) { return a.step_us < b.step_us; });
  plan.reasons.push_back(fmt::format("Use {}: a step takes {}, {} of it the all-reduce, and all models stay the same.",
                                     title(best), time_text(best.step_us), time_text(best.round_us)));
  plan.reasons.push_back(
      fmt::format("The shortest step of all, {}, takes {}: {:.1f} % less, where what it gives up is to save {:.0f} %.",
                  title(other), time_text(other.step_us), 100 * (1 - other.step_us / best.step_us),
                  100 * worth_of_concession * other.concessions));
}

void explain_one_machine(const Question& question, Plan& plan) {
  if (question.cluster.machines() == 1 && plan.lines[plan.recommended].is_all_reduce())
    plan.reasons.emplace_back(
        "Inside one machine gossip has little to win: its links are fast, and no card is shared.");
}

void explain_other(const Question& question, Plan& plan) {
  const Line& best = plan.lines[plan.recommended];
  const Line& all = plan.lines[0];
  plan.reasons.push_back(best.is_all_reduce() ? fmt::format("Use {}: a step takes {}, waited for {}.", title(best),
                                                            time_text(best.step_us), time_text(all.step_us))
                                              : fmt::format("Use {}: a step takes {}; with {} it takes {}, hidden {}.",
                                                            title(best), time_text(best.step_us), title(all),
                                                            time_text(all.step_us), time_text(plan.lines[1].step_us)));
  if (best.card_bytes < 0.8 * all.card_bytes)
    plan.reasons.push_back(fmt::format("It sends {} through a network card in a step, the all-reduce {}.",
                                       megabytes(best.card_bytes), megabytes(all.card_bytes)));
  const double waiting = waiting_us(best, question.compute.us);
  const double all_waiting = waiting_us(all, question.compute.us);
  if (all_waiting - waiting > worth_of_concession * question.compute.us)
    plan.reasons.push_back(fmt::format("A rank waits {} a step for slower ones, with the all-reduce {}.",
                                       time_text(waiting), time_text(all_waiting)));
  if (best.launch == Launch::hidden)
    plan.reasons.push_back(fmt::format(
        "A round takes {}, {} the {} of computing that hide it; it counts a step later.", time_text(best.round_us),
        best.round_us < question.compute.us ? "less than" : "more than", time_text(question.compute.us)));
  if (!best.is_all_reduce())
    plan.reasons.push_back(fmt::format("The models' distance to their mean falls to 1 % in {:.3g} steps at most ({}).",
                                       best.steps_to_1_percent, time_text(best.steps_to_1_percent * best.step_us)));
}

}  // namespace

double steps_to_1_percent(const AnyTopology& topology, Rank size) {
  const kith::TopologyReport report = kith::analyze(topology, size);
  const double infinite = std::numeric_limits<double>::infinity();
  const double exact = report.exact_after_any_phase ? static_cast<double>(*report.exact_after_any_phase) : infinite;
  const double per_round = 1 - report.spectral_gap;
  if (per_round <= 0) return std::isfinite(exact) ? exact : std::max(1.0, static_cast<double>(report.period));
  return std::max(1.0, std::min(exact, per_round < 1 ? std::log(0.01) / std::log(per_round) : infinite));
}

std::size_t recommend(const std::vector<Line>& lines) {
  const auto score = [](const Line& line) { return line.step_us * (1 + worth_of_concession * line.concessions); };
  std::size_t best = 0;
  for (std::size_t i = 1; i < lines.size(); ++i)
    if (lines[i].steps_to_1_percent <= most_steps_to_1_percent && score(lines[i]) < score(lines[best])) best = i;
  if (lines[best].is_all_reduce()) return best;
  std::size_t chosen = lines.size();
  for (std::size_t i = 0; i < lines.size(); ++i)
    if (score(lines[i]) <= 1.02 * score(lines[best]) &&
        (chosen == lines.size() || lines[i].steps_to_1_percent < lines[chosen].steps_to_1_percent))
      chosen = i;
  return chosen;
}

Plan make_plan(const Question& question) {
  require_cluster(question.cluster);
  if (question.model_bytes < kith::size_of(question.dtype))
    throw kith::UsageError("--model-bytes holds not one element of " + std::string{to_string(question.dtype)});
  Planner planner{question};
  planner.add_all_reduce();
  for (const AnyTopology& topology : question.topologies) planner.add_flat(topology);
  for (const AnyTopology& topology : question.topologies) planner.add_sharded(topology);
  Plan plan = planner.take();
  plan.recommended = recommend(plan.lines);
  if (plan.recommended == 0)
    explain_all_reduce(plan);
  else
    explain_other(question, plan);
  explain_one_machine(question, plan);
  if (question.compute.slow_rank > 1)
    plan.reasons.push_back(fmt::format(
        "Rank 0 is slow in every step: it takes {} to compute, and sets the pace of everybody in every scheme here. "
        "Give it less work, or replace it.",
        time_text(question.compute.us * question.compute.slow_rank)));
  return plan;
}

}  // namespace bench::plan
