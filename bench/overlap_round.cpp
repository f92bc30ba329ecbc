// SPDX-License-Identifier: Apache-2.0
// How much of a round is hidden behind what the host computes meanwhile.
#include "overlap_round.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <optional>
#include <thread>

#include <fmt/core.h>
#include <kith/error.hpp>

namespace bench {
namespace {

// Arithmetic on a few numbers in registers: it competes with a round for the processor, not for memory.
class Compute {
public:
  explicit Compute(bool idle) : idle_(idle) {}

  // Passes that take so many microseconds where nothing else is to be done. A processor that has just woken up, or has
  // few of them to do, is slower: the estimate is corrected by runs of the full length.
  void calibrate(double us) {
    us_ = us;
    passes_ = 1000;
    for (int repeat = 0; repeat < 6; ++repeat) {
      const auto begin = std::chrono::steady_clock::now();
      work(passes_);
      const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - begin;
      const double factor = std::min(us / spent.count(), 100.0);
      passes_ = std::max<std::uint64_t>(static_cast<std::uint64_t>(factor * static_cast<double>(passes_)), 1);
    }
  }

  void operator()() {
    if (idle_)
      std::this_thread::sleep_for(std::chrono::duration<double, std::micro>{us_});
    else
      work(passes_);
  }

private:
  void work(std::uint64_t passes) {
    double values[] = {0.1, 0.2, 0.3, 0.4};  // independent of one another
    for (std::uint64_t p = 0; p < passes; ++p)
      for (double& value : values) value = value * 0.75 + 0.25;
    sink_ = values[0] + values[1] + values[2] + values[3];
  }

  volatile double sink_ = 0;
  std::uint64_t passes_ = 1;
  double us_ = 0;
  bool idle_;
};

template <class Group>
OverlapLine measure(Group& group, const SweepOptions& options, const kith::BufferView& model, const HiddenCalls& calls,
                    const ComputeTime& wanted) {
  const auto largest = [&](double value) {
    const std::vector<double> values = group.gather(value);
    return *std::max_element(values.begin(), values.end());
  };
  unsigned turn = 0;
  const auto timed = [&](const std::function<void()>& call) {
    touch_once(model, turn++);
    return group.time_us(call);
  };
  fill(model, options.seed, group.rank());
  std::vector<double> first;
  for (std::size_t i = 0; i < options.warmup + 9; ++i) {
    const double us = timed(calls.average);
    if (i >= options.warmup) first.push_back(us);
  }
  calls.begin();  // allocates
  calls.finish();
  Compute compute{wanted.idle};
  compute.calibrate(wanted.us.value_or(1.5 * quartiles(first).p50));

  std::vector<double> round_us;
  std::vector<double> compute_us;
  std::vector<double> together_us;
  double spent_s = 0;
  const auto iterate = [&] {
    const auto begin = std::chrono::steady_clock::now();
    round_us.push_back(timed(calls.average));
    compute_us.push_back(timed([&] { compute(); }));
    together_us.push_back(timed([&] {
      calls.begin();
      compute();
      calls.finish();
    }));
    spent_s = largest(std::chrono::duration<double>{std::chrono::steady_clock::now() - begin}.count());
  };
  iterate();
  const std::size_t iterations =
      options.iterations > 0 ? options.iterations : fitting_iterations(options.seconds, spent_s);
  for (std::vector<double>* samples : {&round_us, &compute_us, &together_us}) samples->clear();
  for (std::size_t i = 0; i < iterations; ++i) iterate();
  return {wanted.idle, iterations, quartiles(round_us), quartiles(compute_us), quartiles(together_us)};
}

}  // namespace

std::vector<ComputeTime> parse_overlaps(const std::string& list) {
  std::vector<ComputeTime> found;
  for (const std::string& part : split(list)) {
    double us = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), us);
    if (part == "auto" || part == "idle")
      found.push_back({std::nullopt, part == "idle"});
    else if (error == std::errc{} && end == part.data() + part.size() && us > 0 && us <= 1e8)
      found.push_back({us, false});
    else
      throw kith::UsageError("--overlap takes microseconds, more than 0, auto or idle; not \"" + part + "\"");
  }
  return found;
}

double OverlapLine::hidden() const { return std::clamp(1 - (together.p50 - compute.p50) / round.p50, 0.0, 1.0); }

OverlapLine measure_overlap(ThreadGroup& group, const SweepOptions& options, const kith::BufferView& model,
                            const HiddenCalls& calls, const ComputeTime& compute) {
  return measure(group, options, model, calls, compute);
}

#if defined(KITH_BENCH_MPI)
OverlapLine measure_overlap(MpiGroup& group, const SweepOptions& options, const kith::BufferView& model,
                            const HiddenCalls& calls, const ComputeTime& compute) {
  return measure(group, options, model, calls, compute);
}
#endif

void add_overlap(Report& report, const Subject& subject, const OverlapLine& line) {
  if (report.empty())
    Report::line(fmt::format("#\n# {:>10} {:>5} {:>5} {:>22} {:>27} {:>9} {:>11} {:>11} {:>11} {:>9} {:>7}", "size (B)",
                             "type", "ranks", "topology", "exchange", "memory", "round (us)", "compute", "together",
                             "exposed", "hidden"));
  Report::line(
      fmt::format("  {:>10} {:>5} {:>5} {:>22} {:>27} {:>9} {:>11.2f} {:>11.2f} {:>11.2f} {:>9.2f} {:>6.0f}%{}",
                  subject.bytes, to_string(subject.dtype), subject.ranks, subject.topology, subject.exchange,
                  subject.memory, line.round.p50, line.compute.p50, line.together.p50,
                  line.together.p50 - line.compute.p50, 100 * line.hidden(), line.idle ? " (idle)" : ""));
  nlohmann::ordered_json result;
  result["name"] = subject.command;
  result["launch"] = "hidden";
  result["host"] = line.idle ? "waits" : "computes";
  result["engine"] = subject.engine;
  result["ranks"] = subject.ranks;
  result["topology"] = subject.topology;
  result["exchange"] = subject.exchange;
  result["dtype"] = to_string(subject.dtype);
  if (subject.engine != "thread") {
    result["memory"] = subject.memory;
    result["shared_memory"] = subject.shared_memory;
  }
  result["bytes"] = subject.bytes;
  result["count"] = subject.bytes / size_of(subject.dtype);
  result["iterations"] = line.iterations;
  add_quartiles(result, "time", line.round);
  add_quartiles(result, "compute", line.compute);
  add_quartiles(result, "together", line.together);
  result["exposed_us"] = line.together.p50 - line.compute.p50;
  result["hidden"] = line.hidden();
  report.add(std::move(result));
}

}  // namespace bench
