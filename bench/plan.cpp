// SPDX-License-Identifier: Apache-2.0
// kith_bench plan: which way to average suits a cluster, by a model; nothing is measured.
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <kith/error.hpp>
#include <nlohmann/json.hpp>

#include "commands.hpp"
#include "plan_choice.hpp"
#include "plan_compare.hpp"
#include "report.hpp"

namespace bench {
namespace {

using plan::Comparison;
using plan::Launch;
using plan::Line;
using plan::Plan;
using plan::Question;

struct PlanOptions {
  kith::Rank ranks = 16;
  kith::Rank ranks_per_machine = 1;
  kith::Rank cards = 1;
  std::string model_bytes = "100M";
  std::string dtype = "f32";
  double inter_gbit = 10;
  double inter_latency_us = 30;
  std::string headers = "tcp";
  bool bbr = false;
  double intra_gbyte = 20;
  double intra_latency_us = 5;
  double compute_ms = 100;
  double jitter = 0.1;
  double slow_rank = 1;
  double encoding_gbyte = 0;
  double memory_gbyte = 0;
  std::string topologies = "one-peer-exponential,base-graph:1,random-matching,static-exponential,ring";
  std::size_t steps = 400;
  std::uint64_t seed = 1;
  std::string compare;
  std::string json;
};

// Infinity has no place in JSON.
nlohmann::ordered_json number_or_null(double number) {
  return std::isfinite(number) ? nlohmann::ordered_json(number) : nlohmann::ordered_json(nullptr);
}

Question question_of(const PlanOptions& options) {
  const std::vector<kith::DType> dtypes = parse_dtypes(options.dtype);
  if (dtypes.size() != 1) throw kith::UsageError("--dtype: a plan is for one element type");
  Question question;
  question.cluster = {.ranks = options.ranks,
                      .ranks_per_machine = options.ranks_per_machine,
                      .cards_per_machine = options.cards,
                      .intra = {options.intra_latency_us, 1e3 * options.intra_gbyte},
                      .inter = {options.inter_latency_us, 1e3 / 8 * options.inter_gbit},
                      .wire_bytes_per_byte = options.headers == "tcp" ? plan::tcp_wire_bytes_per_byte : 1,
                      .sending_round_trips = options.bbr ? plan::bbr_round_trips : 0};
  question.compute = {1e3 * options.compute_ms, options.jitter, options.slow_rank};
  question.model_bytes = parse_bytes(options.model_bytes);
  question.dtype = dtypes.front();
  question.topologies = parse_topologies(options.topologies);
  question.encoding_bytes_per_us = 1e3 * options.encoding_gbyte;
  question.memory_bytes_per_us = 1e3 * options.memory_gbyte;
  question.steps = options.steps;
  question.seed = options.seed;
  return question;
}

void print_head() {
  constexpr const char* form = "# {:>42} {:>16} {:>9} {:>8} {:>9} | {:>9} {:>8} | {:>9} {:>8}";
  Report::line("#");
  Report::line(fmt::format(form, "", "", "a card", "steps", "round", "now: step", "digits", "hidden:", "digits"));
  Report::line(fmt::format(form, "topology", "exchange", "sends", "to 1 %", "", "", "", "step", ""));
  Report::line(fmt::format(form, "", "", "(MB)", "", "(ms)", "(ms)", "(1/s)", "(ms)", "(1/s)"));
}

// Both launches of one scheme.
void print_pair(const Line& now, const Line& hidden) {
  const std::string name = now.is_all_reduce() ? now.topology + " (" + now.algorithm + ")" : now.topology;
  Report::line(fmt::format("  {:>42} {:>16} {:>9.4g} {:>8.3g} {:>9.4g} | {:>9.4g} {:>8.3g} | {:>9.4g} {:>8.3g}", name,
                           now.exchange, now.card_bytes / 1e6, now.steps_to_1_percent, now.round_us / 1e3,
                           now.step_us / 1e3, now.digits_per_second(), hidden.step_us / 1e3,
                           hidden.digits_per_second()));
}

nlohmann::ordered_json result_of(const PlanOptions& options, const Question& question, const Line& line) {
  nlohmann::ordered_json result;
  result["name"] = "plan";
  result["engine"] = "none";
  result["ranks"] = question.cluster.ranks;
  result["topology"] = line.topology;
  result["exchange"] = line.exchange;
  result["algorithm"] = line.algorithm;
  result["launch"] = line.launch == Launch::now ? "now" : "hidden";
  result["dtype"] = options.dtype;
  result["bytes"] = question.model_bytes;
  result["predicted_round_us"] = line.round_us;
  result["predicted_step_us"] = line.step_us;
  result["slow_link_bytes_per_card"] = line.card_bytes;
  result["slow_link_bytes"] = line.inter_bytes;
  result["steps_to_1_percent"] = number_or_null(line.steps_to_1_percent);
  result["digits_per_second"] = line.digits_per_second();
  result["concessions"] = line.concessions;
  result["recommended"] = false;
  return result;
}

int plan_cluster(const PlanOptions& options, const Invocation& invocation) {
  const Question question = question_of(options);
  const Plan made = make_plan(question);
  Report report{invocation, options.json};
  for (const std::string& reason : made.left_out) Report::line("# left out: " + reason);
  print_head();
  for (std::size_t i = 0; i + 1 < made.lines.size(); i += 2) print_pair(made.lines[i], made.lines[i + 1]);
  for (std::size_t i = 0; i < made.lines.size(); ++i) {
    nlohmann::ordered_json result = result_of(options, question, made.lines[i]);
    if (i == made.recommended) {
      result["recommended"] = true;
      result["reasons"] = made.reasons;
    }
    report.add(std::move(result));
  }
  Report::line("#");
  for (const std::string& reason : made.reasons) Report::line("# " + reason);
  report.write();
  return 0;
}

std::string remark_on(const Comparison& one) {
  if (!one.is_long() || one.is_near()) return "";
  if (one.is_lossy())
    return fmt::format("the switch dropped {:.2f} % of this network's frames: the model knows no loss",
                       100 * one.dropped_share);
  return one.is_gossip ? "unexplained" : "Open MPI stays far below the links' rate: not explained by the model";
}

// "13 of 16", of the rounds that are long enough to be judged.
std::string count_near(const std::vector<Comparison>& all, bool gossip) {
  std::size_t of = 0;
  std::size_t near = 0;
  for (const Comparison& one : all) {
    if (one.is_gossip != gossip || !one.is_long()) continue;
    ++of;
    if (one.is_near()) ++near;
  }
  return fmt::format("{} of {}", near, of);
}

int compare_with_lab(const PlanOptions& options, const Invocation& invocation) {
  std::ifstream file{options.compare};
  if (!file) throw kith::UsageError("cannot read the file " + options.compare);
  const std::vector<Comparison> all = plan::compare(nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false));
  Report report{invocation, options.json};
  constexpr const char* head = "# {:>36} {:>9} {:>36} {:>10} {:>10} {:>10} {:>10} {:>6}";
  Report::line("#");
  Report::line(fmt::format(head, "network", "model", "exchange", "predicted", "measured", "p25", "p75", "ratio"));
  Report::line(fmt::format(head, "", "(B)", "", "(ms)", "p50 (ms)", "(ms)", "(ms)", ""));
  for (const Comparison& one : all) {
    const std::string remark = remark_on(one);
    Report::line(fmt::format("  {:>36} {:>9.0f} {:>36} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f} {:>6.2f}{}", one.network,
                             one.bytes, one.exchange, one.predicted_us / 1e3, one.measured_us_p50 / 1e3,
                             one.measured_us_p25 / 1e3, one.measured_us_p75 / 1e3, one.ratio(),
                             remark.empty() ? "" : "  " + remark));
    nlohmann::ordered_json result;
    result["name"] = "plan";
    result["network"] = one.network;
    result["bytes"] = one.bytes;
    result["exchange"] = one.exchange;
    result["gossip"] = one.is_gossip;
    result["predicted_round_us"] = one.predicted_us;
    result["measured_round_us_p25"] = one.measured_us_p25;
    result["measured_round_us_p50"] = one.measured_us_p50;
    result["measured_round_us_p75"] = one.measured_us_p75;
    result["ratio"] = one.ratio();
    result["dropped_share"] = one.dropped_share;
    result["remark"] = remark;
    report.add(std::move(result));
  }
  Report::line("#");
  Report::line(
      fmt::format("# Of the rounds over 10 ms the model is within 25 % for {} of gossip, {} of Open MPI's "
                  "all-reduce.",
                  count_near(all, true), count_near(all, false)));
  report.write();
  return 0;
}

void add_cluster_options(CLI::App& command, PlanOptions& options) {
  const auto positive = [&](const char* name, double& value, const char* unit, const char* what) {
    command.add_option(name, value, what)->check(CLI::PositiveNumber)->type_name(unit)->capture_default_str();
  };
  const auto not_negative = [&](const char* name, double& value, const char* unit, const char* what) {
    command.add_option(name, value, what)->check(CLI::NonNegativeNumber)->type_name(unit)->capture_default_str();
  };
  constexpr kith::Rank most_ranks = 4096;  // some seconds
  command.add_option("--ranks", options.ranks, "ranks, on all machines together")
      ->check(CLI::Range(2, most_ranks))
      ->type_name("NUMBER")
      ->capture_default_str();
  command.add_option("--ranks-per-machine", options.ranks_per_machine, "ranks of a machine")
      ->check(CLI::Range(1, most_ranks))
      ->type_name("NUMBER")
      ->capture_default_str();
  command.add_option("--cards", options.cards, "network cards of a machine, which its ranks share evenly")
      ->check(CLI::Range(1, most_ranks))
      ->type_name("NUMBER")
      ->capture_default_str();
  positive("--inter-Gbit", options.inter_gbit, "GBIT/S", "rate of a network card, each way, in Gbit/s");
  not_negative("--inter-latency-us", options.inter_latency_us, "US", "of a message between machines, one way");
  command.add_option("--headers", options.headers, "what a card's rate is shared with: tcp (Ethernet, MTU 1500), none")
      ->check(CLI::IsMember({"tcp", "none"}))
      ->capture_default_str();
  command.add_flag("--bbr", options.bbr, "TCP between machines has the congestion control BBR");
  positive("--intra-GBps", options.intra_gbyte, "GB/S", "rate of a rank to others of its machine, each way, in GB/s");
  not_negative("--intra-latency-us", options.intra_latency_us, "US", "of a message inside a machine");
}

}  // namespace

void add_plan(CLI::App& app, Invocation& invocation) {
  auto* const command = app.add_subcommand("plan", "which way to average suits a cluster, by a model");
  const auto options = std::make_shared<PlanOptions>();
  add_cluster_options(*command, *options);
  command->add_option("--model-bytes", options->model_bytes, "model of one rank, in bytes: 4096, 4K, 32M, 1G")
      ->type_name("SIZE")
      ->capture_default_str();
  command->add_option("-d,--dtype", options->dtype, "element type: f32, f64, f16, bf16")
      ->type_name("TYPE")
      ->capture_default_str();
  command->add_option("--compute-ms", options->compute_ms, "time that a rank computes in a step, mean")
      ->check(CLI::PositiveNumber)
      ->type_name("MS")
      ->capture_default_str();
  command->add_option("--jitter", options->jitter, "standard deviation of that time over its mean")
      ->check(CLI::Range(0.0, 1.0))
      ->type_name("SHARE")
      ->capture_default_str();
  command->add_option("--slow-rank", options->slow_rank, "rank 0 computes so many times as long, always")
      ->check(CLI::Range(1.0, 1e6))
      ->type_name("FACTOR")
      ->capture_default_str();
  command
      ->add_option(
          "--encoding-GBps", options->encoding_gbyte,
          "fp32 that a rank encodes and decodes in a second, in GB/s for each message; 0: as recorded on a host")
      ->check(CLI::NonNegativeNumber)
      ->type_name("GB/S")
      ->capture_default_str();
  command
      ->add_option("--memory-GBps", options->memory_gbyte,
                   "of a rank, for averaging after all has come; 0: it averages while the rest comes")
      ->check(CLI::NonNegativeNumber)
      ->type_name("GB/S")
      ->capture_default_str();
  command->add_option("--topology", options->topologies, "topologies: " + kith::topology_spellings())
      ->type_name("LIST")
      ->capture_default_str();
  command->add_option("--steps", options->steps, "steps to simulate")
      ->check(CLI::Range(100, 100000))
      ->type_name("COUNT")
      ->capture_default_str();
  command->add_option("--seed", options->seed, "of the jitter")->type_name("NUMBER")->capture_default_str();
  command
      ->add_option("--compare", options->compare,
                   "instead: the model beside a record of the slow-network lab (bench/results/network_lab.json)")
      ->type_name("FILE");
  add_json_option(*command, options->json);
  command->callback([options, &invocation] {
    invocation.status =
        options->compare.empty() ? plan_cluster(*options, invocation) : compare_with_lab(*options, invocation);
  });
}

}  // namespace bench
