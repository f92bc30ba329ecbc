// SPDX-License-Identifier: Apache-2.0
// Workers learn handwritten digits and average their models with their peers: see the call to Kith in training.hpp.

#include <cstddef>
#include <exception>
#include <optional>
#include <vector>

#include <fmt/core.h>

#include <kith/kith.hpp>

#include "dataset.hpp"
#include "options.hpp"
#include "report.hpp"
#include "training.hpp"

namespace {

using namespace digits;

/// Calls body(communicator) on every rank of the engine that was chosen: one line for each engine.
template <class Body>
void on_every_rank(const Options& options, const Body& body) {
  switch (options.engine) {
    case Engine::thread:
      return kith::thread::run(options.ranks, body);
  }
}

/// The whole comparison: the same on every rank, rank 0 tells.
template <kith::Communicator C>
void compare(C& communicator, const Options& options, const Dataset& data) {
  const bool tells = communicator.rank() == 0;
  if (tells) print_heading(options, data);
  std::vector<Result> results;
  for (const Method& method : methods_to_compare(options.topology)) {
    Progress progress{method.name, options.steps};
    results.push_back(
        train(communicator, method, options, data, [&](const Standing& standing) { progress.show(standing); }));
  }
  if (!tells) return;
  print_table(results);
  print_conclusion(results);
  if (!options.json.empty()) write_json(options.json, to_json(options, data, results));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options;
    if (const std::optional<int> status = parse(argc, argv, options)) return *status;
    const Dataset data = load(options.data);
    if (static_cast<std::size_t>(options.ranks) > data.training.size()) {
      fmt::print(stderr, "--ranks: there are only {} rows to deal to the workers\n", data.training.size());
      return 2;
    }
    on_every_rank(options, [&](auto& communicator) { compare(communicator, options, data); });
    return 0;
  } catch (const DataError& error) {
    fmt::print(stderr, "train_digits: {}\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "train_digits: {}\n", error.what());
    return 1;
  }
}
