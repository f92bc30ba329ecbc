// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <kith/error.hpp>
#include <kith/topology/any.hpp>
#include <kith/types.hpp>

#include "dataset.hpp"
#include "exchanges.hpp"

// Where the data file is; the build defines it. The fallback is for a compiler called by hand in the source tree.
#ifndef KITH_EXAMPLES_DATA
#define KITH_EXAMPLES_DATA "examples/data/digits.csv"
#endif

namespace digits {

/// What the ranks are: threads of this process, or processes that mpirun starts. Another engine is one more value here,
/// one name in parse(), and one line in on_every_rank().
enum class Engine : std::uint8_t { thread, mpi };

/// When a round is performed: at once, or behind the next step.
enum class Launch : std::uint8_t { now, hidden };

/// A rank that stops once, for the time of so many steps.
struct Stall {
  kith::Rank rank = 0;
  std::size_t steps = 0;
};

struct Options {
  Engine engine = Engine::thread;
  kith::Rank ranks = 8;
  kith::AnyTopology topology;  // one-peer-exponential
  kith::Rank machines = 0;     // that the ranks are dealt to; 0: nobody asks
  std::vector<NamedExchange> exchanges{digits::exchanges().front()};
  kith::Round every = 1;
  kith::Round global_every = 0;
  std::vector<Launch> launches{Launch::now};
  std::size_t steps = 600;
  Split split = Split::iid;
  std::uint64_t seed = 1;
  std::size_t batch = 32;
  std::size_t hidden = 64;
  double learning_rate = 0.1;
  double momentum = 0.9;
  double step_ms = 0;  // how long a step takes where the pace is measured; 0: it is not measured
  double jitter = 0;
  std::optional<Stall> stall;
  std::string data = KITH_EXAMPLES_DATA;
  std::string json;
};

/// How the program ends before it has begun: by --help (status 0), or since something about its options is wrong (2).
struct Ending {
  int status = 0;
  std::string text;
};

inline const char* to_string(Engine engine) { return engine == Engine::thread ? "thread" : "mpi"; }
inline const char* to_string(Launch launch) { return launch == Launch::now ? "now" : "hidden"; }
inline const char* to_string(Split split) { return split == Split::iid ? "iid" : "by-label"; }

/// "now,hidden".
inline std::string names_of(const std::vector<Launch>& launches) {
  std::string names;
  for (const Launch launch : launches) names.append(names.empty() ? "" : ",").append(to_string(launch));
  return names;
}

/// Every topology that --topology understands, one a line.
inline std::string topologies_as_lines() {
  std::string lines = "  " + kith::topology_spellings();
  for (std::size_t comma = 0; (comma = lines.find(", ", comma)) != std::string::npos;) lines.replace(comma, 2, "\n  ");
  return lines;
}

/// What the command line gives for an option, or nothing. For what must be known before MPI is initialized, and that
/// before the command line is parsed: of many ranks only one may print what is wrong with it.
inline std::string_view value_of(int argc, const char* const* argv, std::string_view option) {
  std::string_view value;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word{argv[i]};
    if (word == option && i + 1 < argc)
      value = argv[++i];
    else if (word.starts_with(option) && word.substr(option.size()).starts_with('='))
      value = word.substr(option.size() + 1);
  }
  return value;  // the last one counts, as in parse()
}

inline bool asks_for_mpi(int argc, const char* const* argv) {
  return value_of(argc, argv, "--engine") == to_string(Engine::mpi);
}

/// Rounds that go on by themselves need a thread, and an MPI that lets more than one call it.
inline bool asks_for_hidden_rounds(int argc, const char* const* argv) {
  return value_of(argc, argv, "--launch").find(to_string(Launch::hidden)) != std::string_view::npos;
}

/// The launches of a list such as "now,hidden". Throws UsageError for other names.
inline std::vector<Launch> parse_launches(std::string_view list) {
  std::vector<Launch> found;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const std::string_view name = list.substr(begin, end - begin);
    if (name != to_string(Launch::now) && name != to_string(Launch::hidden))
      throw kith::UsageError("\"" + std::string{name} + "\" is not a launch; there are now, hidden");
    found.push_back(name == to_string(Launch::now) ? Launch::now : Launch::hidden);
    begin = end + 1;
  }
  return found;
}

/// Ranks dealt to machines in order, with the topology `between` among the machines. Throws UsageError where they do
/// not fill so many.
inline kith::AnyTopology on_machines(const kith::AnyTopology& between, kith::Rank machines, kith::Rank ranks) {
  const kith::Rank each = (ranks + machines - 1) / machines;
  const kith::Rank filled = (ranks + each - 1) / each;
  if (filled != machines)
    throw kith::UsageError(
        fmt::format("{} ranks do not fill {} machines: {} on each fill {}", ranks, machines, each, filled));
  return kith::parse_topology(fmt::format("hierarchical:[{},{}]", each, kith::topology_name(between)));
}

/// The stall that "3:5" stands for: rank 3, 5 steps. Throws UsageError.
inline Stall parse_stall(std::string_view text, kith::Rank ranks) {
  Stall stall;
  const char* const end = text.data() + text.size();
  const auto [colon, bad_rank] = std::from_chars(text.data(), end, stall.rank);
  const bool has_steps = bad_rank == std::errc{} && colon != end && *colon == ':';
  const auto [rest, bad_steps] = std::from_chars(has_steps ? colon + 1 : end, end, stall.steps);
  if (!has_steps || bad_steps != std::errc{} || rest != end || stall.steps < 1 || stall.steps > 100000)
    throw kith::UsageError("\"" + std::string{text} +
                           "\" is not RANK:STEPS, as in 3:5, with 1 to 100000 steps: rank 3 stops once for the time of "
                           "5 steps");
  if (stall.rank < 0 || stall.rank >= ranks)
    throw kith::UsageError("there is no rank " + std::to_string(stall.rank) + ": ranks are 0 to " +
                           std::to_string(ranks - 1));
  return stall;
}

/// The options that say when the workers average.
inline void add_schedule(CLI::App& app, Options& options, std::string& launch) {
  app.add_option("--launch", launch,
                 "Average now, or hidden behind the next step; with both (now,hidden) each is trained")
      ->type_name("LIST")
      ->capture_default_str();
  app.add_option("--every", options.every, "Average in every so many-th step only (local SGD between them)")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--global-every", options.global_every,
                 "Every so many-th average is an exact global mean (Gossip-PGA); 0: none")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
}

/// The options of what pace.hpp measures.
inline void add_pace(CLI::App& app, Options& options, std::optional<std::string>& stall) {
  constexpr double most_ms = 60000;
  app.add_option("--step-ms", options.step_ms,
                 "Pace: measure that, too, with steps that take so long; 5 if the next are given")
      ->type_name("MS")
      ->check(CLI::Range(0.1, most_ms));
  app.add_option("--jitter", options.jitter, "Pace: each step takes a random time longer, this share of it in the mean")
      ->type_name("FRACTION")
      ->check(CLI::Range(0.0, 100.0));
  app.add_option("--stall", stall, "Pace: rank R stops once, for the time of so many steps")->type_name("R:STEPS");
}

/// Fills `options` from the command line; `started` is the number of ranks if it is not the program that starts them.
/// Prints nothing: what is to be printed is in the Ending, if there is one.
inline std::optional<Ending> parse(int argc, const char* const* argv, std::optional<kith::Rank> started,
                                   Options& options) {
  CLI::App app{
      "Workers learn handwritten digits, each from its own shard of the data, and average\n"
      "their models with the peers that a topology names after every step. For comparison\n"
      "the same training runs twice more: with an exact global mean in every step (what\n"
      "all-reduce gives), and without any communication.\n"};
  app.name("train_digits");
  app.footer("\nTopologies:\n" + topologies_as_lines() + "\n\nExchanges:\n  " + names_of(exchanges(), "\n  "));
  app.get_formatter()->column_width(44);
  app.option_defaults()->take_last();

  std::string engine = to_string(options.engine);
  std::string topology = kith::topology_name(options.topology);
  std::string exchange = names_of(options.exchanges, ",");
  std::string split = to_string(options.split);
  std::string launch = names_of(options.launches);
  std::optional<std::string> stall;
  app.add_option("--engine", engine, "What a rank is: a thread, or a process that mpirun starts")
      ->check(CLI::IsMember({"thread", "mpi"}))
      ->capture_default_str();
  CLI::Option* const ranks =
      app.add_option("--ranks", options.ranks, "Number of workers; with --engine mpi it is mpirun's to say")
          ->check(CLI::Range(1, 1000))
          ->capture_default_str();
  app.add_option("--topology", topology, "Who averages with whom: see below")->type_name("NAME")->capture_default_str();
  app.add_option("--machines", options.machines,
                 "Deal the workers to so many machines: the exact mean within, the topology between them")
      ->check(CLI::Range(1, 1000));
  app.add_option("--exchange", exchange, "What travels, see below; of several (a,b,c) each is trained with")
      ->type_name("LIST")
      ->capture_default_str();
  add_schedule(app, options, launch);
  app.add_option("--steps", options.steps, "Optimizer steps")->check(CLI::Range(1, 1000000))->capture_default_str();
  app.add_option("--split", split, "Shards: all alike, or a few of the digits for each worker")
      ->check(CLI::IsMember({"iid", "by-label"}))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Seed of the initial model, the shards and the mini-batches")
      ->capture_default_str();
  app.add_option("--batch", options.batch, "Rows in a worker's mini-batch")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  app.add_option("--hidden", options.hidden, "Neurons of the hidden layer")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  app.add_option("--lr", options.learning_rate, "Learning rate at the start; it falls to a tenth of that")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--momentum", options.momentum, "Momentum")->check(CLI::Range(0.0, 0.999))->capture_default_str();
  add_pace(app, options, stall);
  app.add_option("--data", options.data, "The data file, examples/data/digits.csv of Kith's source tree")
      ->type_name("FILE");
  app.add_option("--json", options.json, "Write the results to this file as JSON")->type_name("FILE");

  const char* refused = "";
  try {
    app.parse(argc, argv);
    if (started && ranks->count() > 0 && options.ranks != *started)
      return Ending{
          2, fmt::format("--ranks {0}: mpirun starts the ranks, and the number of them is {1}; try mpirun -n {0}\n",
                         options.ranks, *started)};
    options.ranks = started.value_or(options.ranks);
    options.engine = engine == "mpi" ? Engine::mpi : Engine::thread;
    options.split = split == "iid" ? Split::iid : Split::by_label;
    refused = "--topology";
    options.topology = kith::parse_topology(topology);
    if (options.machines > 0) {
      kith::require_size(options.topology, options.machines);
      refused = "--machines";
      options.topology = on_machines(options.topology, options.machines, options.ranks);
    }
    kith::require_size(options.topology, options.ranks);  // the averager says the same, only later
    refused = "--exchange";
    options.exchanges = parse_exchanges(exchange);
    refused = "--launch";
    options.launches = parse_launches(launch);
    refused = "--stall";
    if (stall) options.stall = parse_stall(*stall, options.ranks);
    if (options.step_ms == 0 && (options.jitter > 0 || options.stall)) options.step_ms = 5;
  } catch (const CLI::ParseError& error) {
    std::ostringstream text;
    return Ending{app.exit(error, text, text) == 0 ? 0 : 2, text.str()};
  } catch (const kith::UsageError& error) {
    return Ending{2, fmt::format("{}: {}\n", refused, error.message())};
  }
  return std::nullopt;
}

}  // namespace digits
