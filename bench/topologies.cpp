// SPDX-License-Identifier: Apache-2.0
// kith_bench topologies: what kith::analyze says of each topology at each size, and what planning a round costs.
#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <kith/error.hpp>
#include <kith/topology.hpp>
#include <kith/topology/analysis.hpp>
#include <kith/topology/any.hpp>

#include "commands.hpp"
#include "report.hpp"
#include "statistics.hpp"

namespace bench {
namespace {

using kith::AnyTopology;
using kith::Rank;
using kith::Round;

struct TopologiesOptions {
  std::string sizes = "2,4,6,8,16,64";
  std::string topologies;
  std::string json;
};

struct Planning {
  Quartiles us;           // of planning one round for one rank
  std::size_t wrong = 0;  // rounds in which a rank hears one that does not tell it
};

// Plans rounds of ranks that are spread over the whole group and, for each, one of the peers that it hears.
Planning plan_samples(const AnyTopology& topology, Rank size) {
  using Clock = std::chrono::steady_clock;
  constexpr int samples = 64;
  constexpr auto enough = std::chrono::milliseconds{200};  // planning a complete graph takes a while
  kith::Neighborhood mine{topology.max_degree(size)};
  kith::Neighborhood theirs{topology.max_degree(size)};
  Planning planning;
  std::vector<double> us;
  const Clock::time_point first = Clock::now();
  for (int i = 0; i < samples && (i == 0 || Clock::now() - first < enough); ++i) {
    const auto rank = static_cast<Rank>((static_cast<std::int64_t>(size) * i / samples + i) % size);
    const auto round = static_cast<Round>(i);
    // A single plan takes less than the clock can tell: many of consecutive rounds.
    const int repeats = topology.max_degree(size) < 100 ? 64 : 1;
    const Clock::time_point begin = Clock::now();
    for (int k = 0; k < repeats; ++k) plan_round(topology, rank, size, round + static_cast<Round>(k), mine);
    us.push_back(std::chrono::duration<double, std::micro>{Clock::now() - begin}.count() / repeats);
    plan_round(topology, rank, size, round, mine);
    if (mine.sources().empty()) continue;
    const auto& source = mine.sources()[static_cast<std::size_t>(i) % mine.sources().size()];
    plan_round(topology, source.rank, size, round, theirs);
    if (!std::binary_search(theirs.targets().begin(), theirs.targets().end(), rank)) ++planning.wrong;
  }
  planning.us = quartiles(us);
  return planning;
}

std::string yes_no(bool value) { return value ? "yes" : "no"; }

std::string rounds_or_never(const std::optional<Round>& rounds) { return rounds ? std::to_string(*rounds) : "never"; }

nlohmann::ordered_json number_or_null(const std::optional<Round>& rounds) {
  return rounds ? nlohmann::ordered_json(*rounds) : nlohmann::ordered_json(nullptr);
}

void print_line(Rank size, const std::string& topology, const std::vector<std::string>& cells) {
  std::string line = fmt::format("  {:>8} {:>36}", size, topology);
  constexpr int widths[] = {7, 7, 13, 9, 11, 6, 6, 5, 11, 7};
  for (std::size_t i = 0; i < cells.size(); ++i) line += fmt::format(" {:>{}}", cells[i], widths[i]);
  Report::line(line);
}

void print_head() {
  Report::line("#");
  Report::line(fmt::format("# {:>8} {:>36} {:>7} {:>7} {:>13} {:>9} {:>11} {:>6} {:>6} {:>5} {:>11} {:>7}", "size",
                           "topology", "period", "degree", "contraction", "+-", "gap", "exact", "from", "sym-",
                           "plan p50", "#wrong"));
  Report::line(fmt::format("# {:>8} {:>36} {:>7} {:>7} {:>13} {:>9} {:>11} {:>6} {:>6} {:>5} {:>11}", "", "", "", "",
                           "", "", "", "after", "any", "metr", "(us)"));
}

// What is known of a topology that says which ranks share a machine.
void add_traffic(const kith::MachineTraffic& traffic, nlohmann::ordered_json& result) {
  const auto text = [](const kith::LinkTraffic& link) {
    return fmt::format("{} messages, {:.4g} models", link.messages, link.models);
  };
  Report::line(fmt::format("#   {} machines; sent by a rank in a round, at most: between machines {}; inside {}",
                           traffic.machines, text(traffic.slow), text(traffic.fast)));
  result["machines"] = traffic.machines;
  result["slow_messages"] = traffic.slow.messages;
  result["slow_models"] = traffic.slow.models;
  result["fast_messages"] = traffic.fast.messages;
  result["fast_models"] = traffic.fast.models;
  if (!traffic.sharded_slow || !traffic.sharded_fast) return;
  Report::line(fmt::format("#   sharded: between machines {}; inside {}{}", text(*traffic.sharded_slow),
                           text(*traffic.sharded_fast),
                           traffic.shards_match ? "" : "; machines of unequal sizes exchange parts of shards"));
  result["sharded_slow_messages"] = traffic.sharded_slow->messages;
  result["sharded_slow_models"] = traffic.sharded_slow->models;
  result["sharded_fast_messages"] = traffic.sharded_fast->messages;
  result["sharded_fast_models"] = traffic.sharded_fast->models;
  result["shards_match"] = traffic.shards_match;
}

std::size_t add_line(Report& report, const AnyTopology& topology, Rank size) {
  const std::string name = topology_name(topology);
  kith::TopologyReport analysis;
  try {
    analysis = kith::analyze(topology, size);
  } catch (const kith::UsageError&) {  // it does not exist for this size
    print_line(size, name, std::vector<std::string>(10, "-"));
    return 0;
  }
  const Planning planning = plan_samples(topology, size);
  print_line(size, name,
             {analysis.randomized ? "random" : std::to_string(analysis.period), std::to_string(analysis.max_degree),
              fmt::format("{:.10f}", analysis.contraction), fmt::format("{:.1e}", analysis.contraction_error),
              fmt::format("{:.4e}", analysis.spectral_gap), rounds_or_never(analysis.exact_after),
              rounds_or_never(analysis.exact_after_any_phase), yes_no(analysis.symmetric),
              fmt::format("{:.3f}", planning.us.p50), std::to_string(planning.wrong)});
  nlohmann::ordered_json result;
  result["name"] = "topologies";
  result["engine"] = "none";
  result["ranks"] = size;
  result["topology"] = name;
  result["dtype"] = "none";
  result["bytes"] = 0;
  result["time_us_p25"] = planning.us.p25;
  result["time_us_p50"] = planning.us.p50;
  result["time_us_p75"] = planning.us.p75;
  result["algbw_GBps"] = 0;
  result["busbw_GBps"] = 0;
  result["wrong"] = planning.wrong;
  result["period"] = analysis.period;
  result["max_degree"] = analysis.max_degree;
  result["doubly_stochastic"] = analysis.doubly_stochastic;
  result["symmetric"] = analysis.symmetric;
  result["connected"] = analysis.connected;
  result["randomized"] = analysis.randomized;
  result["contraction"] = analysis.contraction;
  result["contraction_error"] = analysis.contraction_error;
  result["spectral_gap"] = analysis.spectral_gap;
  result["exact_after"] = number_or_null(analysis.exact_after);
  result["exact_after_any_phase"] = number_or_null(analysis.exact_after_any_phase);
  if (analysis.traffic) add_traffic(*analysis.traffic, result);
  report.add(std::move(result));
  return planning.wrong;
}

int run(const TopologiesOptions& options, const Invocation& invocation) {
  const std::vector<Rank> sizes = parse_ranks(options.sizes);
  const std::vector<AnyTopology> topologies = parse_topologies(options.topologies);
  Report report{invocation, options.json};
  print_head();
  std::size_t wrong = 0;
  for (const Rank size : sizes)
    for (const AnyTopology& topology : topologies) wrong += add_line(report, topology, size);
  return report.finish(wrong);
}

}  // namespace

void add_topologies(CLI::App& app, Invocation& invocation) {
  auto* const command = app.add_subcommand("topologies", "what kith::analyze says of topologies, as a table");
  const auto options = std::make_shared<TopologiesOptions>();
  for (const std::string& name : kith::topology_names())
    options->topologies += (options->topologies.empty() ? "" : ",") + name;
  command->add_option("--sizes,--ranks", options->sizes, "sizes of the group")
      ->type_name("LIST")
      ->capture_default_str();
  command->add_option("--topology", options->topologies, "topologies: " + kith::topology_spellings())
      ->type_name("LIST")
      ->capture_default_str();
  add_json_option(*command, options->json);
  command->callback([options, &invocation] { invocation.status = run(*options, invocation); });
}

}  // namespace bench
