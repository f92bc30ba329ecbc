// SPDX-License-Identifier: Apache-2.0
// Rounds on machines that are only pretended: what travels inside them, and what between them.
#include "machines_round.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include <fmt/core.h>
#include <kith/averager.hpp>
#include <kith/exchange/sharded.hpp>

namespace bench {
namespace {

using kith::AnyTopology;
using kith::DType;
using kith::Rank;

// Passes messages on, whatever else the engine can do, and counts them.
template <kith::Communicator C>
class Counting {
public:
  Counting(C& communicator, Rank machine_ranks) : communicator_(communicator), machine_ranks_(machine_ranks) {}

  [[nodiscard]] Rank rank() const noexcept { return communicator_.rank(); }
  [[nodiscard]] Rank size() const noexcept { return communicator_.size(); }
  [[nodiscard]] std::uint32_t open_channel() { return communicator_.open_channel(); }
  kith::Seconds exchange(const kith::Call& call, std::span<const kith::Outgoing> outgoing,
                         std::span<const kith::Incoming> incoming) {
    for (const kith::Outgoing& out : outgoing)
      (out.to / machine_ranks_ == rank() / machine_ranks_ ? fast_bytes_ : slow_bytes_) += out.bytes;
    return communicator_.exchange(call, outgoing, incoming);
  }
  kith::Seconds all_gather(const kith::Call& call, std::span<const std::byte> mine, std::span<std::byte> all) {
    return communicator_.all_gather(call, mine, all);
  }
  void reserve(std::size_t outgoing, std::size_t incoming, std::size_t bytes) {
    if constexpr (requires { communicator_.reserve(outgoing, incoming, bytes); })
      communicator_.reserve(outgoing, incoming, bytes);
  }

  [[nodiscard]] std::uint64_t fast_bytes() const noexcept { return fast_bytes_; }
  [[nodiscard]] std::uint64_t slow_bytes() const noexcept { return slow_bytes_; }
  void reset() noexcept { fast_bytes_ = slow_bytes_ = 0; }

private:
  C& communicator_;
  Rank machine_ranks_;
  std::uint64_t fast_bytes_ = 0;
  std::uint64_t slow_bytes_ = 0;
};

// What a rank has to send to other machines in a round, by the formula: with full precision a model to each rank there
// that it tells, sharded its own shard, in the type that is computed in, to each machine that it tells.
std::uint64_t slow_bytes_of(const kith::Neighborhood& plan, Rank rank, Rank size, Rank machine_ranks, bool sharded,
                            const kith::BufferView& model) {
  std::uint64_t ranks_told = 0;
  std::vector<Rank> machines_told;
  for (const Rank target : plan.targets()) {
    if (target / machine_ranks == rank / machine_ranks) continue;
    ++ranks_told;
    machines_told.push_back(target / machine_ranks);
  }
  if (!sharded) return ranks_told * model.bytes();
  machines_told.erase(std::unique(machines_told.begin(), machines_told.end()), machines_told.end());
  const Rank first = rank / machine_ranks * machine_ranks;
  const auto ranks_here = static_cast<std::size_t>(std::min(machine_ranks, size - first));
  const auto index = static_cast<std::size_t>(rank - first);
  const std::uint64_t shard = model.count * (index + 1) / ranks_here - model.count * index / ranks_here;
  return machines_told.size() * shard * (model.dtype == DType::f64 ? 8 : 4);
}

double tolerance_of(DType dtype, bool sharded) {
  if (!sharded) return 0;
  return dtype == DType::bf16 ? 0x1p-6 : (dtype == DType::f16 ? 0x1p-9 : 1e-5);
}

template <class Group, class E>
MachinesLine measure_one(Group& group, const SweepOptions& options, const AnyTopology& topology, const E& exchange,
                         Rank machine_ranks, const kith::BufferView& model) {
  constexpr bool sharded = std::is_same_v<E, kith::Sharded>;
  Counting counting{group.communicator(), machine_ranks};
  kith::DecentralizedAverager averager{counting, topology, {model}, exchange, kith::AveragerOptions{}};
  counting.reset();
  kith::Neighborhood now{topology.max_degree(group.size())};
  std::uint64_t formula = 0;
  std::size_t rounds = 0;
  Contest contest;
  contest.model = model;
  contest.kith = [&] { averager.average(); };
  contest.expected = [&] {
    plan_round(topology, group.rank(), group.size(), averager.metrics().rounds, now);
    formula += slow_bytes_of(now, group.rank(), group.size(), machine_ranks, sharded, model);
    ++rounds;
    return Expectation{options.seed, group.rank(), {now.sources().begin(), now.sources().end()}};
  };
  contest.tolerance = tolerance_of(model.dtype, sharded);
  contest.bytes_sent = [&] { return counting.slow_bytes(); };

  MachinesLine measured;
  measured.line = measure(group, options, contest);
  const auto per_round = [&](std::uint64_t bytes) {
    return group.gather(static_cast<double>(bytes) / static_cast<double>(std::max<std::size_t>(rounds, 1)));
  };
  const std::vector<double> slow = per_round(counting.slow_bytes());
  const std::vector<double> fast = per_round(counting.fast_bytes());
  measured.slow_bytes = *std::max_element(slow.begin(), slow.end());
  measured.fast_bytes = *std::max_element(fast.begin(), fast.end());
  std::vector<double> of_machines(slow.size());
  for (std::size_t r = 0; r < slow.size(); ++r) of_machines[r / static_cast<std::size_t>(machine_ranks)] += slow[r];
  measured.slow_bytes_of_machine = *std::max_element(of_machines.begin(), of_machines.end());
  const bool counted = counting.slow_bytes() == formula &&
                       averager.metrics().bytes_sent == counting.slow_bytes() + counting.fast_bytes();
  for (const double wrong : group.gather(counted ? 0 : 1)) measured.line.wrong += static_cast<std::size_t>(wrong);
  return measured;
}

template <class Group>
MachinesLine measure_any(Group& group, const SweepOptions& options, const AnyTopology& topology, bool sharded,
                         Rank machine_ranks, const kith::BufferView& model) {
  if (sharded) return measure_one(group, options, topology, kith::Sharded{}, machine_ranks, model);
  return measure_one(group, options, topology, kith::FullPrecision{}, machine_ranks, model);
}

}  // namespace

MachinesLine measure_machines(ThreadGroup& group, const SweepOptions& options, const AnyTopology& topology,
                              bool sharded, Rank machine_ranks, const kith::BufferView& model) {
  return measure_any(group, options, topology, sharded, machine_ranks, model);
}

#if defined(KITH_BENCH_MPI)
MachinesLine measure_machines(MpiGroup& group, const SweepOptions& options, const AnyTopology& topology, bool sharded,
                              Rank machine_ranks, const kith::BufferView& model) {
  return measure_any(group, options, topology, sharded, machine_ranks, model);
}
#endif

void add_machines_line(Report& report, const Subject& subject, Rank machines, const MachinesLine& measured) {
  const double model = static_cast<double>(subject.bytes);
  if (report.empty()) {
    Report::line("#");
    Report::line(fmt::format("# {:>10} {:>5} {:>6} {:>8} {:>40} {:>14} {:>11} {:>12} {:>9} {:>12} {:>9} {:>7}", "size",
                             "type", "ranks", "machines", "topology", "exchange", "time p50", "slow/rank", "slow/",
                             "fast/rank", "slow/rank", "#wrong"));
    Report::line(fmt::format("# {:>10} {:>5} {:>6} {:>8} {:>40} {:>14} {:>11} {:>12} {:>9} {:>12} {:>9}", "(B)", "", "",
                             "", "", "", "(us)", "(B)", "machine", "(B)", "(models)"));
  }
  Report::line(
      fmt::format("  {:>10} {:>5} {:>6} {:>8} {:>40} {:>14} {:>11.2f} {:>12.0f} {:>9.0f} {:>12.0f} {:>9.3f} {:>7}",
                  subject.bytes, to_string(subject.dtype), subject.ranks, machines, subject.topology, subject.exchange,
                  measured.line.kith.p50, measured.slow_bytes, measured.slow_bytes_of_machine, measured.fast_bytes,
                  measured.slow_bytes / model, measured.line.wrong));
  nlohmann::ordered_json result;
  result["name"] = subject.command;
  result["engine"] = subject.engine;
  result["ranks"] = subject.ranks;
  result["machines"] = machines;
  result["topology"] = subject.topology;
  result["exchange"] = subject.exchange;
  result["dtype"] = to_string(subject.dtype);
  result["bytes"] = subject.bytes;
  result["iterations"] = measured.line.iterations;
  add_quartiles(result, "time", measured.line.kith);
  add_quartiles(result, "limit", measured.line.limit);
  result["algbw_GBps"] = model / measured.line.kith.p50 / 1e3;
  result["busbw_GBps"] = (measured.slow_bytes + measured.fast_bytes) / measured.line.kith.p50 / 1e3;
  result["slow_bytes_sent"] = measured.slow_bytes;
  result["slow_bytes_sent_by_machine"] = measured.slow_bytes_of_machine;
  result["fast_bytes_sent"] = measured.fast_bytes;
  result["wrong"] = measured.line.wrong;
  report.add(std::move(result));
}

}  // namespace bench
