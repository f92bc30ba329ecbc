// SPDX-License-Identifier: Apache-2.0
// kith_bench mix: how many rounds, messages and bytes it takes until the models agree.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <kith/averager.hpp>
#include <kith/error.hpp>
#include <kith/topology/any.hpp>

#include "commands.hpp"
#include "report.hpp"
#include "statistics.hpp"
#include "thread_group.hpp"
#include "values.hpp"

namespace bench {
namespace {

using kith::AnyTopology;
using kith::Rank;
using kith::Round;

struct MixOptions {
  std::string engine = "thread";
  std::string ranks = "8,24,64";
  std::string topologies =
      "one-peer-exponential,base-graph,hyper-cuboid,one-peer-hypercube,random-matching,equi-dynamic,"
      "static-exponential,torus,ring,complete";
  std::size_t count = 256;
  double factor = 1e-3;
  Round max_rounds = 5000;
  std::uint64_t seed = 1;
  std::string json;
};

// A point of the curve: where the busiest rank and the models stand after a round.
struct Point {
  Round round;
  double bytes;
  double distance;  // relative to the first
};

struct Mixing {
  std::vector<Point> curve;
  bool reached = false;
  double messages = 0;  // of the busiest rank
  std::vector<double> round_us;
  double wrong = 0;
};

template <class Group>
double largest(Group& group, std::uint64_t value) {
  const std::vector<double> values = group.gather(static_cast<double>(value));
  return *std::max_element(values.begin(), values.end());
}

// The same rounds by plain scalar arithmetic on a second set of models, which every rank publishes.
template <class Group>
class Shadow {
public:
  Shadow(Group& group, const std::vector<double>& model)
      : group_(group), now_(model), next_(model.size()), models_(static_cast<std::size_t>(group.size())) {}

  void round(const AnyTopology& topology, Round round) {
    kith::Neighborhood neighborhood;
    plan_round(topology, group_.rank(), group_.size(), round, neighborhood);
    const std::vector<kith::Neighborhood::Source> sources(neighborhood.sources().begin(), neighborhood.sources().end());
    group_.publish(now_.data());
    for (Rank r = 0; r < group_.size(); ++r)
      models_[static_cast<std::size_t>(r)] = static_cast<const double*>(group_.peer(r));
    for (std::size_t i = 0; i < now_.size(); ++i)
      next_[i] = sources.empty() ? now_[i] : average_of(now_[i], sources, models_, i);
    group_.barrier();  // everybody has read: what was published may change
    now_.swap(next_);
  }

  [[nodiscard]] double differences(const std::vector<double>& model) const {
    double count = 0;
    for (std::size_t i = 0; i < model.size(); ++i)
      count += std::bit_cast<std::uint64_t>(model[i]) == std::bit_cast<std::uint64_t>(now_[i]) ? 0 : 1;
    return count;
  }

private:
  Group& group_;
  std::vector<double> now_;
  std::vector<double> next_;
  std::vector<const double*> models_;
};

// Averages until the consensus distance has fallen far enough. The figures are the same on every rank.
template <class Group>
Mixing mix(Group& group, const MixOptions& options, const AnyTopology& topology) {
  std::vector<double> model(options.count);
  fill(kith::view(model), options.seed, group.rank());
  Shadow<Group> shadow{group, model};
  kith::DecentralizedAverager averager{group.communicator(), topology, {kith::view(model)}};
  const double first = averager.consensus_distance();
  Mixing mixing;
  mixing.curve.push_back({0, 0, 1});
  if (!(first > 0)) throw kith::UsageError("the models agree already: give at least 2 ranks and --count 1");
  for (Round round = 1; round <= options.max_rounds && !mixing.reached; ++round) {
    mixing.round_us.push_back(group.time_us([&] { averager.average(); }));
    shadow.round(topology, round - 1);
    const double distance = averager.consensus_distance() / first;
    mixing.reached = distance <= options.factor;
    // Some 15 points for each tenfold number of rounds are enough for a picture.
    const bool shown =
        round < 32 || static_cast<double>(round) >= 1.15 * static_cast<double>(mixing.curve.back().round);
    if (shown || mixing.reached || round == options.max_rounds)
      mixing.curve.push_back({round, largest(group, averager.metrics().bytes_sent), distance});
  }
  mixing.messages = largest(group, averager.metrics().messages_sent);
  for (const double wrong : group.gather(shadow.differences(model))) mixing.wrong += wrong;
  return mixing;
}

void add_line(Report& report, const MixOptions& options, Rank ranks, const std::string& topology,
              const Mixing& mixing) {
  const Point& last = mixing.curve.back();
  const double bytes = static_cast<double>(options.count * sizeof(double));
  const Quartiles time = quartiles(mixing.round_us);
  const double rounds = static_cast<double>(last.round);
  // With models of any size: how many models a rank has sent.
  Report::line(fmt::format("  {:>5} {:>28} {:>8} {:>10.0f} {:>12.0f} {:>10.3f} {:>12.3e} {:>10.2f} {:>7.0f}", ranks,
                           topology, (mixing.reached ? "" : ">") + std::to_string(last.round), mixing.messages,
                           last.bytes, last.bytes / bytes, last.distance, time.p50, mixing.wrong));
  nlohmann::ordered_json result;
  result["name"] = "mix";
  result["engine"] = options.engine;
  result["ranks"] = ranks;
  result["topology"] = topology;
  result["dtype"] = "f64";
  result["bytes"] = bytes;
  result["count"] = options.count;
  result["time_us_p25"] = time.p25;
  result["time_us_p50"] = time.p50;
  result["time_us_p75"] = time.p75;
  result["algbw_GBps"] = bytes / time.p50 / 1e3;
  result["busbw_GBps"] = last.bytes / rounds / time.p50 / 1e3;
  result["wrong"] = mixing.wrong;
  result["factor"] = options.factor;
  result["reached"] = mixing.reached;
  result["rounds"] = last.round;
  result["messages_sent"] = mixing.messages;
  result["bytes_sent"] = last.bytes;
  result["relative_distance"] = last.distance;
  auto& curve = result["curve"] = nlohmann::ordered_json::array();
  for (const Point& point : mixing.curve)
    curve.push_back({{"round", point.round}, {"bytes_sent", point.bytes}, {"relative_distance", point.distance}});
  report.add(std::move(result));
}

template <class Group>
std::size_t sweep(const MixOptions& options, Report& report) {
  const std::vector<Rank> numbers = parse_ranks(options.ranks);
  const std::vector<AnyTopology> topologies = parse_topologies(options.topologies);
  double wrong = 0;
  Report::line("#");
  Report::line(fmt::format("# {:>5} {:>28} {:>8} {:>10} {:>12} {:>10} {:>12} {:>10} {:>7}", "ranks", "topology",
                           "rounds", "messages", "sent", "sent", "distance", "round p50", "#wrong"));
  Report::line(fmt::format("# {:>5} {:>28} {:>8} {:>10} {:>12} {:>10} {:>12} {:>10}", "", "", "", "", "(B)", "(models)",
                           "(relative)", "(us)"));
  for (const Rank ranks : numbers) {
    for (const AnyTopology& topology : topologies) {
      const std::string name = topology_name(topology);
      try {
        require_size(topology, ranks);
      } catch (const kith::UsageError& error) {
        Report::line("# left out: " + std::string{error.message()});
        continue;
      }
      Group::run(ranks, [&](Group& group) {
        const Mixing mixing = mix(group, options, topology);
        if (group.rank() != 0) return;
        wrong += mixing.wrong;
        add_line(report, options, ranks, name, mixing);
      });
    }
  }
  return static_cast<std::size_t>(wrong);
}

int run(const MixOptions& options, const Invocation& invocation) {
  Report report{invocation, options.json};
  const std::size_t wrong = sweep<ThreadGroup>(options, report);
  if (report.empty()) throw kith::UsageError("none of these topologies exists for any of these numbers of ranks");
  return report.finish(wrong);
}

}  // namespace

void add_mix(CLI::App& app, Invocation& invocation) {
  auto* const command = app.add_subcommand("mix", "rounds, messages and bytes until the models agree");
  const auto options = std::make_shared<MixOptions>();
  command->add_option("--ranks", options->ranks, "numbers of ranks")->type_name("LIST")->capture_default_str();
  command->add_option("--topology", options->topologies, "topologies: " + kith::topology_spellings())
      ->type_name("LIST")
      ->capture_default_str();
  command->add_option("--factor", options->factor, "stop when the consensus distance is so many times the first")
      ->check(CLI::Range(0.0, 1.0))
      ->type_name("NUMBER")
      ->capture_default_str();
  command->add_option("--max-rounds", options->max_rounds, "or after so many rounds")
      ->check(CLI::PositiveNumber)
      ->type_name("COUNT")
      ->capture_default_str();
  command->add_option("--count", options->count, "elements of a model, f64")
      ->check(CLI::PositiveNumber)
      ->type_name("COUNT")
      ->capture_default_str();
  command->add_option("--seed", options->seed, "of the models' values")->type_name("NUMBER")->capture_default_str();
  add_engine_option(*command, options->engine, {"thread"});
  add_json_option(*command, options->json);
  command->callback([options, &invocation] { invocation.status = run(*options, invocation); });
}

}  // namespace bench
