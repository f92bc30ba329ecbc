// SPDX-License-Identifier: Apache-2.0
// kith_bench round: one gossip round, beside the limit of the machine and beside what a user would write.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <kith/averager.hpp>
#include <kith/error.hpp>
#include <kith/topology/any.hpp>

#include "by_hand.hpp"
#include "commands.hpp"
#include "sweep.hpp"
#include "thread_group.hpp"

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
};

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

// One line: a topology, and models of so many elements.
template <class Group>
Line measure_round(Group& group, const Plan& plan, const AnyTopology& topology, const kith::BufferView& model,
                   void* second) {
  kith::AveragerOptions averaging;
  averaging.bucket_bytes = parse_bytes(plan.options.bucket_bytes);
  kith::DecentralizedAverager averager{group.communicator(), topology, {model}, averaging};
  kith::Neighborhood neighborhood{topology.max_degree(group.size())};
  const auto sources = [&] {
    plan_round(topology, group.rank(), group.size(), averager.metrics().rounds, neighborhood);
    return std::vector<kith::Neighborhood::Source>(neighborhood.sources().begin(), neighborhood.sources().end());
  };
  Expectation expected{plan.options.seed, group.rank(), {}};
  Contest contest;
  contest.model = model;
  contest.kith = [&] { averager.average(); };
  contest.expected = [&] {
    expected.sources = sources();  // before the round: the loop by hand repeats it afterwards
    return expected;
  };
  contest.bytes_sent = [&] { return averager.metrics().bytes_sent; };
  const auto by_hand = [&]<class T>(T) {
    contest.by_hand = [&] {
      by_hand::round(group, expected.sources, static_cast<T*>(model.data), static_cast<T*>(second), model.count);
    };
  };
  if (model.dtype == DType::f32) by_hand(float{});
  if (model.dtype == DType::f64) by_hand(double{});
  return measure(group, plan.options, contest);
}

template <class Group>
void sweep(const Plan& plan, Report& report, std::size_t& wrong) {
  for (const Rank ranks : plan.ranks) {
    const std::vector<AnyTopology> topologies = existing(plan.topologies, ranks);
    if (topologies.empty()) continue;
    for (const DType dtype : plan.dtypes) {
      Group::run(ranks, [&](Group& group) {
        const Memory first{plan.sizes.back()};
        const Memory second{plan.sizes.back()};
        group.publish(first.data());
        for (const AnyTopology& topology : topologies) {
          for (const std::size_t size : plan.sizes) {
            const kith::BufferView model{first.data(), size / size_of(dtype), dtype};
            const Line line = measure_round(group, plan, topology, model, second.data());
            if (group.rank() != 0) continue;
            wrong += line.wrong;
            add_line(report, {"round", plan.options.engine, ranks, topology_name(topology), dtype, model.bytes()},
                     line);
          }
        }
      });
    }
  }
}

int run(const SweepOptions& options, const Invocation& invocation) {
  const Plan plan{options, sizes_of(options), parse_ranks(options.ranks), parse_dtypes(options.dtypes),
                  parse_topologies(options.topologies)};
  Report report{invocation, options.json};
  print_head();
  std::size_t wrong = 0;
  sweep<ThreadGroup>(plan, report, wrong);
  if (report.empty()) throw kith::UsageError("none of these topologies exists for any of these numbers of ranks");
  return report.finish(wrong);
}

}  // namespace

void add_round(CLI::App& app, Invocation& invocation) {
  auto* const command = app.add_subcommand("round", "one gossip round: time, beside the limit and a loop by hand");
  const auto options = std::make_shared<SweepOptions>();
  add_sweep_options(*command, *options);
  command->add_option("--topology", options->topologies, "topologies: " + kith::topology_spellings())
      ->type_name("LIST")
      ->capture_default_str();
  command->callback([options, &invocation] { invocation.status = run(*options, invocation); });
}

}  // namespace bench
