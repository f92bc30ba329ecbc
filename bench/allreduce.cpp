// SPDX-License-Identifier: Apache-2.0
// kith_bench allreduce: the exact mean of all ranks, beside the limit of the machine and what a user would write.
#include <memory>
#include <string>
#include <vector>

#include <kith/averager.hpp>
#include <kith/topology/complete.hpp>

#include "by_hand.hpp"
#include "commands.hpp"
#include "sweep.hpp"
#include "thread_group.hpp"

namespace bench {
namespace {

using kith::DType;
using kith::Rank;

// x_0 + sum_j (x_j - x_0) / n on every rank.
Expectation global_mean(std::uint64_t seed, Rank size) {
  Expectation expected{seed, 0, {}};
  for (Rank r = 1; r < size; ++r) expected.sources.push_back({r, 1.0 / static_cast<double>(size)});
  return expected;
}

template <class Group>
Line measure_all_reduce(Group& group, const SweepOptions& options, const kith::BufferView& model) {
  kith::AveragerOptions averaging;
  averaging.bucket_bytes = parse_bytes(options.bucket_bytes);
  kith::DecentralizedAverager averager{group.communicator(), kith::Complete{}, {model}, averaging};
  Contest contest;
  contest.model = model;
  contest.kith = [&] { averager.average_globally(); };
  contest.expected = [&] { return global_mean(options.seed, group.size()); };
  contest.bytes_sent = [&] { return averager.metrics().bytes_sent; };
  const auto by_hand = [&]<class T>(T) {
    contest.by_hand = [&] { by_hand::all_reduce(group, static_cast<T*>(model.data), model.count); };
  };
  if (model.dtype == DType::f32) by_hand(float{});
  if (model.dtype == DType::f64) by_hand(double{});
  return measure(group, options, contest);
}

template <class Group>
std::size_t sweep(const SweepOptions& options, Report& report) {
  const std::vector<std::size_t> sizes = sizes_of(options);
  const std::vector<Rank> numbers = parse_ranks(options.ranks);
  const std::vector<DType> dtypes = parse_dtypes(options.dtypes);
  std::size_t wrong = 0;
  print_head();
  for (const Rank ranks : numbers) {
    for (const DType dtype : dtypes) {
      Group::run(ranks, [&](Group& group) {
        const Memory memory{sizes.back()};
        group.publish(memory.data());
        for (const std::size_t size : sizes) {
          const kith::BufferView model{memory.data(), size / size_of(dtype), dtype};
          const Line line = measure_all_reduce(group, options, model);
          if (group.rank() != 0) continue;
          wrong += line.wrong;
          add_line(report, {"allreduce", options.engine, ranks, "complete", dtype, model.bytes()}, line);
        }
      });
    }
  }
  return wrong;
}

int run(const SweepOptions& options, const Invocation& invocation) {
  Report report{invocation, options.json};
  return report.finish(sweep<ThreadGroup>(options, report));
}

}  // namespace

void add_allreduce(CLI::App& app, Invocation& invocation) {
  auto* const command = app.add_subcommand("allreduce", "the exact mean of all ranks, as `round` measures a round");
  const auto options = std::make_shared<SweepOptions>();
  add_sweep_options(*command, *options);
  command->callback([options, &invocation] { invocation.status = run(*options, invocation); });
}

}  // namespace bench
