// SPDX-License-Identifier: Apache-2.0
// Workers learn handwritten digits and average their models with their peers: see the call to Kith in training.hpp.

#include <cstddef>
#include <exception>
#include <optional>
#include <variant>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <kith/kith.hpp>

#include "dataset.hpp"
#include "mpi_job.hpp"
#include "options.hpp"
#include "pace.hpp"
#include "report.hpp"
#include "training.hpp"

namespace {

using namespace digits;

/// Calls body(communicator) on every rank of the engine that was chosen: one line for each engine.
template <class Body>
void on_every_rank(const Options& options, const std::optional<MpiJob>& mpi_job, const Body& body) {
  switch (options.engine) {
    case Engine::thread:
      return kith::thread::run(options.ranks, body);
    case Engine::mpi:
      return mpi_job->run(body);
  }
}

/// Everything before the training. Returns why there will be none, if so.
std::optional<Ending> prepare(int argc, const char* const* argv, std::optional<kith::Rank> started, Options& options,
                              Dataset& data) {
  if (std::optional<Ending> ending = parse(argc, argv, started, options)) return ending;
  try {
    data = load(options.data);
  } catch (const DataError& error) {
    return Ending{2, fmt::format("train_digits: {}\n", error.what())};
  }
  if (static_cast<std::size_t>(options.ranks) > data.training.size())
    return Ending{2, fmt::format("--ranks: there are only {} rows to deal to the workers\n", data.training.size())};
  return std::nullopt;
}

/// The whole comparison: the same on every rank, rank 0 tells.
template <kith::Communicator C>
void compare(C& communicator, const Options& options, const Dataset& data) {
  const bool tells = communicator.rank() == 0;
  if (tells) print_heading(options, data);
  std::vector<Result> results;
  for (const Method& method : methods_to_compare(options)) {
    Progress progress{method.name, options};
    const Watcher watch = [&](const Standing& standing) { progress.show(standing); };
    results.push_back(
        std::visit([&](const auto& exchange) { return train(communicator, method, exchange, options, data, watch); },
                   method.exchange));
  }
  if (tells) {
    print_table(results);
    print_conclusion(results);
  }
  std::vector<Pace> paces;
  if (options.step_ms > 0) paces = measure_paces(communicator, options, data);
  if (!tells) return;
  if (!paces.empty()) print_paces(options, paces);
  if (options.json.empty()) return;
  nlohmann::ordered_json json = to_json(options, data, results);
  if (!paces.empty()) json["pace"] = to_json(options, paces);
  write_json(options.json, json);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::optional<MpiJob> mpi_job;
    if (asks_for_mpi(argc, argv)) mpi_job.emplace(argc, argv, asks_for_hidden_rounds(argc, argv));
    Options options;
    Dataset data;
    std::optional<Ending> ending =
        prepare(argc, argv, mpi_job ? std::optional{mpi_job->ranks()} : std::nullopt, options, data);
    if (mpi_job) ending = mpi_job->agree(ending);
    if (ending) {
      fmt::print(ending->status == 0 ? stdout : stderr, "{}", ending->text);
      return ending->status;
    }
    try {
      on_every_rank(options, mpi_job, [&](auto& communicator) { compare(communicator, options, data); });
    } catch (const kith::UsageError& error) {  // an exchange that cannot serve the topology
      if (!mpi_job || mpi_job->speaks()) fmt::print(stderr, "train_digits: {}\n", error.message());
      return 2;
    }
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "train_digits: {}\n", error.what());
    return 1;
  }
}
