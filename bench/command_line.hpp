// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <kith/topology/any.hpp>
#include <kith/types.hpp>

namespace bench {

/// What the program was called with, for the records, and the status that it will end with.
struct Invocation {
  std::vector<std::string> arguments;
  int status = 0;
  /// Of all the processes that run this together, one prints and writes files.
  bool speaks = true;
  /// The MPI library that this was started with, and the number of processes; empty and 1 without.
  std::string mpi_library;
  kith::Rank processes = 1;
};

/// The parts between the commas of a list; a comma inside brackets parts nothing: "ring,cycle:[ring,torus]".
[[nodiscard]] std::vector<std::string> split(std::string_view list);

/// "4096", "4K", "32M", "1G", with K = 1024. Throws kith::UsageError for anything else.
[[nodiscard]] std::size_t parse_bytes(const std::string& text);

/// The numbers of a list, each at least 1.
[[nodiscard]] std::vector<kith::Rank> parse_ranks(std::string_view list);

[[nodiscard]] std::vector<kith::DType> parse_dtypes(std::string_view list);

[[nodiscard]] std::vector<kith::AnyTopology> parse_topologies(std::string_view list);

/// The options that `round` and `allreduce` share, as typed; `codec` has some of them.
struct SweepOptions {
  std::string min_bytes = "4K";
  std::string max_bytes = "100M";
  std::size_t factor = 4;
  std::size_t iterations = 0;
  std::size_t warmup = 2;
  int check = 1;
  double seconds = 2;
  std::string engine = "thread";
  /// Empty: what the engine's group says.
  std::string ranks;
  std::string topologies;
  std::string exchanges = "full-precision";
  std::string dtypes = "f32";
  std::string memories = "own";
  bool no_shared_memory = false;
  /// Of `round`: so many machines are pretended; 0: none.
  kith::Rank machines = 0;
  std::string bucket_bytes = "0";
  std::uint64_t seed = 1;
  /// Of `round`: how long to compute beside a hidden round; empty: none is measured.
  std::string overlap;
  std::string json;
};

/// Adds those that say what is measured and how often, and --json.
void add_measuring_options(CLI::App& command, SweepOptions& options);

/// Adds all of them.
void add_sweep_options(CLI::App& command, SweepOptions& options);

/// Adds --engine, with these to choose from.
void add_engine_option(CLI::App& command, std::string& engine, const std::vector<std::string>& engines);

void add_json_option(CLI::App& command, std::string& json);

/// The sizes that -b, -e and -f ask for: b, b*f, ... up to e, and e itself.
[[nodiscard]] std::vector<std::size_t> sizes_of(const SweepOptions& options);

}  // namespace bench
