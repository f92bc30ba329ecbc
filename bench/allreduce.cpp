// SPDX-License-Identifier: Apache-2.0
// kith_bench allreduce: the exact mean of all ranks, beside the limit of the machine and what a user would write.
#include <memory>
#include <string>
#include <vector>

#include <kith/averager.hpp>
#include <kith/topology/complete.hpp>

#include "commands.hpp"
#include "engines.hpp"
#include "sweep.hpp"

namespace bench {
namespace {

using kith::DType;
using kith::Rank;

template <class Group>
Line measure_all_reduce(Group& group, const SweepOptions& options, const kith::BufferView& model,
                        const kith::BufferView& plain) {
  kith::AveragerOptions averaging;
  averaging.bucket_bytes = parse_bytes(options.bucket_bytes);
  kith::DecentralizedAverager averager{group.communicator(), kith::Complete{}, {model}, averaging};
  Contest contest;
  contest.model = model;
  contest.kith = [&] { averager.average_globally(); };
  contest.expected = [&] { return global_mean(options.seed, group.size()); };
  contest.bytes_sent = [&] { return averager.metrics().bytes_sent; };
  contest.rivals = by_hand::rivals_of_all_reduce(group, plain, options.seed);
  return measure(group, options, contest);
}

template <class Group>
int run(const SweepOptions& options, const Invocation& invocation) {
  const std::vector<std::size_t> sizes = sizes_of(options);
  const std::vector<Rank> numbers = Group::numbers_of_ranks(options.ranks);
  const std::vector<DType> dtypes = parse_dtypes(options.dtypes);
  const std::vector<std::string> memories = parse_memories<Group>(options);
  Report report{invocation, options.json};
  Table table{report};
  std::size_t wrong = 0;
  const auto sweep = [&](Group& group, DType dtype) {
    const Models<Group> models{group, memories, dtype, sizes.back()};
    for (const std::string& memory : memories) {
      for (const std::size_t size : sizes) {
        const kith::BufferView model = models.view(memory, size);
        const Line line = measure_all_reduce(group, options, model, models.view("own", size));
        if (group.rank() != 0) continue;
        wrong += line.wrong;
        table.add({"allreduce", options.engine, group.size(), "complete", "", dtype, model.bytes(), memory,
                   !options.no_shared_memory},
                  line);
      }
    }
  };
  for (const Rank ranks : numbers)
    for (const DType dtype : dtypes) Group::run(ranks, options, [&](Group& group) { sweep(group, dtype); });
  return report.finish(wrong);
}

}  // namespace

void add_allreduce(CLI::App& app, Invocation& invocation) {
  auto* const command = app.add_subcommand("allreduce", "the exact mean of all ranks, as `round` measures a round");
  const auto options = std::make_shared<SweepOptions>();
  add_sweep_options(*command, *options);
  command->callback([options, &invocation] {
    with_engine(options->engine,
                [&]<class Group>(std::type_identity<Group>) { invocation.status = run<Group>(*options, invocation); });
  });
}

}  // namespace bench
