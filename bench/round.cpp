// SPDX-License-Identifier: Apache-2.0
// kith_bench round: one gossip round, beside the limit of the machine and beside what a user would write.
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <kith/averager.hpp>
#include <kith/error.hpp>
#include <kith/topology/any.hpp>

#include "commands.hpp"
#include "engines.hpp"
#include "exchange_round.hpp"
#include "machines_round.hpp"
#include "overlap_round.hpp"
#include "sweep.hpp"

namespace bench {
namespace {

using kith::AnyTopology;
using kith::DType;
using kith::Rank;

// All that is measured, parsed.
struct Plan {
  SweepOptions options;
  std::vector<std::size_t> sizes;
  std::vector<Rank> ranks;
  std::vector<DType> dtypes;
  std::vector<AnyTopology> topologies;
  std::vector<std::string> memories;
  std::vector<digits::NamedExchange> exchanges;  // that encode; empty: a round as it is
  std::vector<ComputeTime> overlaps;             // beside hidden rounds; empty: none are measured
};

// FullPrecision stands beside every other exchange, and need not be asked for.
std::vector<digits::NamedExchange> parse_encoding(const std::string& list) {
  std::vector<digits::NamedExchange> exchanges = digits::parse_exchanges(list);
  std::erase_if(exchanges, [](const digits::NamedExchange& one) {
    return std::holds_alternative<kith::FullPrecision>(one.exchange);
  });
  return exchanges;
}

template <class Group>
Plan parse(const SweepOptions& options) {
  return {options,
          sizes_of(options),
          Group::numbers_of_ranks(options.ranks),
          parse_dtypes(options.dtypes),
          parse_topologies(!options.topologies.empty() ? options.topologies
                           : options.machines > 0      ? "one-peer-exponential"
                                                       : Group::topologies),
          parse_memories<Group>(options),
          options.overlap.empty() ? parse_encoding(options.exchanges) : digits::parse_exchanges(options.exchanges),
          options.overlap.empty() ? std::vector<ComputeTime>{} : parse_overlaps(options.overlap)};
}

// The topologies that exist for so many ranks; a remark about each of the others.
std::vector<AnyTopology> existing(const std::vector<AnyTopology>& topologies, Rank ranks) {
  std::vector<AnyTopology> found;
  for (const AnyTopology& topology : topologies) {
    try {
      require_size(topology, ranks);
      found.push_back(topology);
    } catch (const kith::UsageError& error) {
      Report::line("# left out: " + std::string{error.message()});
    }
  }
  return found;
}

// One line: a topology, Kith's model, and the one of those beside it.
template <class Group>
Line measure_round(Group& group, const SweepOptions& options, const AnyTopology& topology,
                   const kith::BufferView& model, const kith::BufferView& plain) {
  kith::AveragerOptions averaging;
  averaging.bucket_bytes = parse_bytes(options.bucket_bytes);
  kith::DecentralizedAverager averager{group.communicator(), topology, {model}, averaging};
  kith::Neighborhood now{topology.max_degree(group.size())};
  const auto plan_next = [&] { plan_round(topology, group.rank(), group.size(), averager.metrics().rounds, now); };
  plan_next();
  Contest contest;
  contest.model = model;
  contest.kith = [&] { averager.average(); };
  contest.expected = [&] {
    plan_next();  // the others repeat the round that Kith makes
    return Expectation{options.seed, group.rank(), {now.sources().begin(), now.sources().end()}};
  };
  contest.bytes_sent = [&] { return averager.metrics().bytes_sent; };
  contest.rivals = by_hand::rivals_of_round(group, {plain, topology, now, options.seed});
  return measure(group, options, contest);
}

// The lines of the exchanges that encode.
template <class Group>
void add_exchanges(Group& group, const Plan& plan, const Subject& subject, const AnyTopology& topology,
                   const kith::BufferView& model, Table& table, std::size_t& wrong) {
  for (const digits::NamedExchange& exchange : plan.exchanges) {
    try {
      const ExchangeLine measured = measure_exchange(group, plan.options, topology, exchange.exchange, model);
      if (group.rank() != 0) continue;
      wrong += measured.line.wrong;
      Subject mine = subject;
      mine.exchange = exchange.name;
      const double below = measured.pays_below();
      table.add(
          mine, measured.line,
          {{"full_precision_bytes_sent", measured.full_precision_bytes_sent},
           {"pays_below_GBps", std::isinf(below) ? nlohmann::ordered_json{} : nlohmann::ordered_json(below / 1e9)}});
      Report::line(measured.verdict());
    } catch (const kith::UsageError& error) {  // on every rank
      if (group.rank() == 0) Report::line("# left out: " + exchange.name + ": " + std::string{error.message()});
    }
  }
}

// The lines of hidden rounds.
template <class Group>
void add_overlaps(Group& group, const Plan& plan, const Subject& subject, const AnyTopology& topology,
                  const kith::BufferView& model, Report& report) {
  for (const digits::NamedExchange& exchange : plan.exchanges)
    for (const ComputeTime& compute : plan.overlaps) {
      try {
        const OverlapLine line = measure_hidden(group, plan.options, topology, exchange.exchange, model, compute);
        Subject mine = subject;
        mine.exchange = exchange.name;
        if (group.rank() == 0) add_overlap(report, mine, line);
      } catch (const kith::UsageError& error) {  // on every rank
        if (group.rank() == 0) Report::line("# left out: " + exchange.name + ": " + std::string{error.message()});
      }
    }
}

// Every line of one number of ranks and one element type.
template <class Group>
void sweep(Group& group, const Plan& plan, const std::vector<AnyTopology>& topologies, DType dtype, Report& report,
           Table& table, std::size_t& wrong) {
  const SweepOptions& options = plan.options;
  const Models<Group> models{group, plan.memories, dtype, plan.sizes.back()};
  for (const AnyTopology& topology : topologies) {
    for (const std::string& memory : plan.memories) {
      for (const std::size_t size : plan.sizes) {
        const kith::BufferView model = models.view(memory, size);
        const Subject subject{"round", options.engine, group.size(), topology_name(topology),  "",
                              dtype,   model.bytes(),  memory,       !options.no_shared_memory};
        if (!plan.overlaps.empty()) {
          add_overlaps(group, plan, subject, topology, model, report);
          continue;
        }
        if (!plan.exchanges.empty()) {
          add_exchanges(group, plan, subject, topology, model, table, wrong);
          continue;
        }
        const Line line = measure_round(group, options, topology, model, models.view("own", size));
        if (group.rank() != 0) continue;
        wrong += line.wrong;
        table.add(subject, line);
      }
    }
  }
}

// The lines of --machines: each topology flat, and between machines with whole models and with shards.
template <class Group>
void sweep_machines(Group& group, const Plan& plan, const std::vector<AnyTopology>& topologies, DType dtype,
                    Report& report, std::size_t& wrong) {
  const Rank machines = plan.options.machines;
  const Rank machine_ranks = (group.size() - 1) / machines + 1;
  const Models<Group> models{group, {"own"}, dtype, plan.sizes.back()};
  const auto add = [&](const AnyTopology& topology, bool sharded) {
    for (const std::size_t size : plan.sizes) {
      const kith::BufferView model = models.view("own", size);
      const MachinesLine measured = measure_machines(group, plan.options, topology, sharded, machine_ranks, model);
      if (group.rank() != 0) continue;
      wrong += measured.line.wrong;
      const Subject subject{"round",
                            plan.options.engine,
                            group.size(),
                            topology_name(topology),
                            sharded ? "sharded" : "full-precision",
                            dtype,
                            model.bytes(),
                            "own",
                            false};
      add_machines_line(report, subject, machines, measured);
    }
  };
  for (const AnyTopology& topology : topologies) {
    add(topology, false);
    try {
      const AnyTopology between =
          kith::parse_topology("hierarchical:" + std::to_string(machine_ranks) + ',' + topology_name(topology));
      require_size(between, group.size());
      for (const bool sharded : {false, true}) add(between, sharded);
    } catch (const kith::UsageError& error) {  // on every rank
      if (group.rank() == 0) Report::line("# left out: " + std::string{error.message()});
    }
  }
}

// Whether the ranks fill that many machines, the last one perhaps not to the end; a remark if not.
bool fills_machines(Rank ranks, Rank machines) {
  if (machines == 0 || (ranks - 1) / ((ranks - 1) / machines + 1) + 1 == machines) return true;
  Report::line("# left out: " + std::to_string(ranks) + " ranks do not fill " + std::to_string(machines) +
               " machines of as many ranks each, or fewer on the last");
  return false;
}

template <class Group>
int run(const SweepOptions& options, const Invocation& invocation) {
  const Plan plan = parse<Group>(options);
  Report report{invocation, options.json};
  Table table{report};
  std::size_t wrong = 0;
  bool measured = false;
  for (const Rank ranks : plan.ranks) {
    if (!fills_machines(ranks, options.machines)) continue;
    const std::vector<AnyTopology> topologies = existing(plan.topologies, ranks);
    measured = measured || !topologies.empty();
    for (const DType dtype : plan.dtypes)
      if (!topologies.empty())
        Group::run(ranks, options, [&](Group& group) {
          if (options.machines > 0)
            sweep_machines(group, plan, topologies, dtype, report, wrong);
          else
            sweep(group, plan, topologies, dtype, report, table, wrong);
        });
  }
  if (!measured) throw kith::UsageError("none of these topologies exists for any of these numbers of ranks");
  return report.finish(wrong);
}

}  // namespace

void add_round(CLI::App& app, Invocation& invocation) {
  auto* const command = app.add_subcommand("round", "one gossip round: time, beside the limit and a loop by hand");
  const auto options = std::make_shared<SweepOptions>();
  add_sweep_options(*command, *options);
  command
      ->add_option("--topology", options->topologies,
                   "topologies: " + kith::topology_spellings() +
                       " (default: ring,one-peer-exponential,static-exponential; with --engine mpi the first two)")
      ->type_name("LIST");
  command
      ->add_option("--exchange", options->exchanges,
                   "measure these beside full precision: " + digits::names_of(digits::exchanges(), ", "))
      ->type_name("LIST")
      ->capture_default_str();
  command
      ->add_option("--overlap", options->overlap,
                   "how much of a round is hidden behind so many microseconds of computing; auto: 1.5 times the round; "
                   "idle: the host waits so long, as for a GPU")
      ->type_name("LIST");
  command
      ->add_option(
          "--machines", options->machines,
          "pretend so many machines of consecutive ranks, and count the bytes between them: each topology flat, "
          "and between machines with whole models and sharded")
      ->check(CLI::Range(1, 1 << 20))
      ->excludes("--overlap")
      ->type_name("NUMBER");
  command->callback([options, &invocation] {
    with_engine(options->engine,
                [&]<class Group>(std::type_identity<Group>) { invocation.status = run<Group>(*options, invocation); });
  });
}

}  // namespace bench
