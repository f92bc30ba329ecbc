// SPDX-License-Identifier: Apache-2.0
// What a round of the NCCL engine costs: the host's time for a call, beside that of enqueuing the same messages by
// hand; the round itself, beside NCCL's all-reduce; and how much of it a kernel on another stream hides, and one on the
// caller's own stream between begin() and finish(). Ranks are processes with a GPU each; where there are fewer GPUs,
// several ranks share one, and their messages go by way of sockets of the host: then only the first of the three says
// anything.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <kith/nccl.hpp>

#include "../tests/nccl/gpu_ranks.hpp"
#include "gpu_spin.hpp"

namespace {

using gpu_ranks::Stream;
using kith::cuda::check;
using kith::cuda::DeviceMemory;
using kith::nccl::Communicator;
using Clock = std::chrono::steady_clock;

constexpr double target_us = 20;  // of the host's time for a call, besides NCCL's own

struct Setup {
  kith::Rank ranks = 2;
  std::vector<std::size_t> counts{1024, 1 << 20, 16 << 20};
  std::size_t repetitions = 50;
  std::string json;
};

double us_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

/// Medians of the host's time for `call` and of the time until the stream is through.
template <class F>
std::pair<double, double> time_us(const Setup& setup, const Stream& stream, const F& call) {
  std::vector<double> host;
  std::vector<double> whole;
  for (std::size_t i = 0; i < setup.repetitions + 3; ++i) {
    stream.synchronize();
    const Clock::time_point begin = Clock::now();
    call();
    const double called = us_since(begin);
    stream.synchronize();
    if (i < 3) continue;  // warms up
    host.push_back(called);
    whole.push_back(us_since(begin));
  }
  return {median(host), median(whole)};
}

// The share of the shorter of two works that is hidden behind the other.
double hidden(double a_us, double b_us, double both_us) { return (a_us + b_us - both_us) / std::min(a_us, b_us); }

nlohmann::ordered_json measure(const Setup& setup, Communicator& communicator, ncclComm_t comm, std::size_t count) {
  const Stream stream;
  const Stream other;
  const DeviceMemory values{count * sizeof(float)};
  const DeviceMemory received{count * sizeof(float)};
  check(cudaMemsetAsync(values.data(), 0, values.bytes(), stream), "clear memory");
  kith::DecentralizedAverager averager{
      communicator, kith::OnePeerExponential{}, {kith::view(values.as<float>(), count)}};
  const auto [call_us, round_us] = time_us(setup, stream, [&] { averager.average(stream); });

  kith::Neighborhood plan;
  kith::Round round = 0;
  const auto [nccl_us, exchange_us] = time_us(setup, stream, [&] {
    kith::plan_round(kith::OnePeerExponential{}, communicator.rank(), communicator.size(), round++, plan);
    kith::nccl::check(ncclGroupStart(), "start a group");
    for (const kith::Rank to : plan.targets())
      kith::nccl::check(ncclSend(values.data(), values.bytes(), ncclUint8, to, comm, stream), "send");
    for (const auto& source : plan.sources())
      kith::nccl::check(ncclRecv(received.data(), values.bytes(), ncclUint8, source.rank, comm, stream), "receive");
    kith::nccl::check(ncclGroupEnd(), "end a group");
  });
  const auto [enqueue_us, all_reduce_us] = time_us(setup, stream, [&] {
    kith::nccl::check(ncclAllReduce(values.data(), received.data(), count, ncclFloat32, ncclAvg, comm, stream),
                      "compute a mean");
  });

  int kilohertz = 1'000'000;
  (void)cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, communicator.device());
  const auto ticks = static_cast<long long>(1.5 * round_us * kilohertz / 1e3);
  const auto compute = [&] { bench::spin(ticks, other); };
  const double compute_us = time_us(setup, other, compute).second;
  const double both_us = time_us(setup, stream, [&] {
                           compute();
                           averager.average(stream);
                           other.synchronize();
                         }).second;
  const auto compute_here = [&] { bench::spin(ticks, stream); };
  const double compute_here_us = time_us(setup, stream, compute_here).second;
  const double between_us = time_us(setup, stream, [&] {
                              averager.begin(stream);
                              compute_here();
                              averager.finish(stream);
                            }).second;
  averager.synchronize();
  return {{"count", count},
          {"call_host_us", call_us},
          {"nccl_host_us", nccl_us},
          {"round_us", round_us},
          {"exchange_by_hand_us", exchange_us},
          {"all_reduce_us", all_reduce_us},
          {"all_reduce_host_us", enqueue_us},
          {"compute_us", compute_us},
          {"compute_and_round_us", both_us},
          {"hidden", hidden(compute_us, round_us, both_us)},
          {"begin_compute_finish_us", between_us},
          {"hidden_by_begin", 1 - (between_us - compute_here_us) / round_us}};
}

void report(const Setup& setup, int devices, const nlohmann::ordered_json& rounds) {
  std::printf("# %d ranks on %d GPUs%s\n", setup.ranks, std::min(devices, setup.ranks),
              devices < setup.ranks ? " (times of rounds say nothing)" : "");
  std::printf("     count  host/us  by hand  round/us  by hand  all-reduce  hidden  begin..finish\n");
  for (const auto& r : rounds)
    std::printf("%10zu %8.1f %8.1f %9.1f %8.1f %11.1f %6.0f %% %13.0f %%  %s\n", r["count"].get<std::size_t>(),
                r["call_host_us"].get<double>(), r["nccl_host_us"].get<double>(), r["round_us"].get<double>(),
                r["exchange_by_hand_us"].get<double>(), r["all_reduce_us"].get<double>(),
                100 * r["hidden"].get<double>(), 100 * r["hidden_by_begin"].get<double>(),
                r["call_host_us"].get<double>() - r["nccl_host_us"].get<double>() < target_us ? "" : "target missed");
  if (setup.json.empty()) return;
  nlohmann::ordered_json all = nlohmann::ordered_json::object();
  if (std::ifstream old{setup.json}) all = nlohmann::ordered_json::parse(old);
  all["rounds_" + std::to_string(setup.ranks)] = {{"ranks", setup.ranks},
                                                  {"gpus", std::min(devices, setup.ranks)},
                                                  {"nccl", NCCL_VERSION_CODE},
                                                  {"target_host_us", target_us},
                                                  {"results", rounds}};
  std::ofstream{setup.json} << all.dump(2) << '\n';
}

void run(const Setup& setup) {
  bench::bind_spin();
  gpu_ranks::run(setup.ranks, [&](kith::Rank rank, const ncclUniqueId& id) {
    ncclComm_t comm = nullptr;
    kith::nccl::check(ncclCommInitRank(&comm, setup.ranks, id, rank), "make a communicator");
    ncclComm_t own = nullptr;  // Kith's: nothing else may use it
    kith::nccl::check(ncclCommSplit(comm, 0, rank, &own, nullptr), "make another communicator");
    {
      Communicator communicator{own};
      nlohmann::ordered_json rounds = nlohmann::ordered_json::array();
      for (const std::size_t count : setup.counts) rounds.push_back(measure(setup, communicator, comm, count));
      int devices = 0;
      check(cudaGetDeviceCount(&devices), "count the devices");
      if (rank == 0) report(setup, devices, rounds);
    }
    kith::nccl::check(ncclCommDestroy(own), "destroy a communicator");
    kith::nccl::check(ncclCommDestroy(comm), "destroy a communicator");
  });
}

}  // namespace

int main(int argc, char** argv) {
  Setup setup;
  CLI::App app{"Rounds of the NCCL engine: the host's time for a call, the time of a round, what a kernel hides of it"};
  app.add_option("--ranks", setup.ranks, "processes, each with a GPU or a share of one")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--counts", setup.counts, "elements of the model")->delimiter(',');
  app.add_option("--repetitions", setup.repetitions, "of which the median is taken")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--json", setup.json, "a file whose entry \"rounds_RANKS\" becomes the results");
  CLI11_PARSE(app, argc, argv);
  try {
    run(setup);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
