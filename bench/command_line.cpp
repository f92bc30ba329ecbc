// SPDX-License-Identifier: Apache-2.0
#include "command_line.hpp"

#include <algorithm>
#include <charconv>
#include <limits>

#include <kith/error.hpp>

namespace bench {

std::vector<std::string> split(std::string_view list) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : list) {
    depth += c == '[' ? 1 : (c == ']' ? -1 : 0);
    if (c == ',' && depth == 0)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

std::size_t parse_bytes(const std::string& text) {
  constexpr std::string_view units = "KMG";
  std::size_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  std::size_t power = 0;
  if (rest + 1 == end) power = units.find(static_cast<char>(*rest & ~0x20)) + 1;  // lower case will do
  if (error != std::errc{} || (rest != end && power == 0) ||
      number > (std::numeric_limits<std::size_t>::max() >> 10 * power))
    throw kith::UsageError("\"" + text + "\" is not a size: write bytes, as in 4096, 4K, 32M or 1G");
  return number << 10 * power;
}

std::vector<kith::Rank> parse_ranks(std::string_view list) {
  std::vector<kith::Rank> ranks;
  for (const std::string& part : split(list)) {
    kith::Rank number = 0;
    const char* const end = part.data() + part.size();
    const auto [rest, error] = std::from_chars(part.data(), end, number);
    if (error != std::errc{} || rest != end || number < 1)
      throw kith::UsageError("\"" + part + "\" is not a number of ranks: write a list as in 2,4,8");
    ranks.push_back(number);
  }
  return ranks;
}

std::vector<kith::DType> parse_dtypes(std::string_view list) {
  constexpr kith::DType all[] = {kith::DType::f32, kith::DType::f64, kith::DType::f16, kith::DType::bf16};
  std::vector<kith::DType> dtypes;
  for (const std::string& part : split(list)) {
    const auto* const found =
        std::find_if(std::begin(all), std::end(all), [&](kith::DType dtype) { return to_string(dtype) == part; });
    if (found == std::end(all))
      throw kith::UsageError("\"" + part + "\" is not an element type; the types are f32, f64, f16, bf16");
    dtypes.push_back(*found);
  }
  return dtypes;
}

std::vector<kith::AnyTopology> parse_topologies(std::string_view list) {
  std::vector<kith::AnyTopology> topologies;
  for (const std::string& part : split(list)) topologies.push_back(kith::parse_topology(part));
  return topologies;
}

void add_engine_option(CLI::App& command, std::string& engine, const std::vector<std::string>& engines) {
  command.add_option("--engine", engine, "what connects the ranks")
      ->check(CLI::IsMember(engines))
      ->capture_default_str();
}

void add_json_option(CLI::App& command, std::string& json) {
  command.add_option("--json", json, "also write context and results to this file")->type_name("FILE");
}

void add_measuring_options(CLI::App& command, SweepOptions& options) {
  command
      .add_option("-b,--min-bytes,--minbytes", options.min_bytes,
                  "smallest model or buffer, in bytes: 4096, 4K, 32M, 1G")
      ->type_name("SIZE")
      ->capture_default_str();
  command.add_option("-e,--max-bytes,--maxbytes", options.max_bytes, "the largest; always measured")
      ->type_name("SIZE")
      ->capture_default_str();
  command.add_option("-f,--factor,--stepfactor", options.factor, "each size is so many times the one before")
      ->check(CLI::Range(std::size_t{2}, std::size_t{1} << 30))
      ->type_name("NUMBER")
      ->capture_default_str();
  command
      .add_option("-n,--iters", options.iterations, "timed iterations; 0: as many as fit into --seconds, 11 to 2001")
      ->type_name("COUNT")
      ->capture_default_str();
  command.add_option("--seconds", options.seconds, "time for each line of the table if -n is 0")
      ->check(CLI::PositiveNumber)
      ->type_name("SECONDS")
      ->capture_default_str();
  command.add_option("-w,--warmup,--warmup-iters", options.warmup, "iterations before those, not timed")
      ->type_name("COUNT")
      ->capture_default_str();
  command.add_option("-d,--dtype,--datatype", options.dtypes, "element types: f32, f64, f16, bf16")
      ->type_name("LIST")
      ->capture_default_str();
  command.add_option("--seed", options.seed, "of the values")->type_name("NUMBER")->capture_default_str();
  add_json_option(command, options.json);
}

void add_sweep_options(CLI::App& command, SweepOptions& options) {
  add_measuring_options(command, options);
  command.add_option("-c,--check", options.check, "1: check the first and the last iteration bit for bit; 0: do not")
      ->check(CLI::Range(0, 1))
      ->capture_default_str();
  command.add_option("--ranks", options.ranks, "numbers of ranks (default: 2,4,8; those of mpirun with --engine mpi)")
      ->type_name("LIST");
  command.add_option("--bucket-bytes", options.bucket_bytes, "AveragerOptions::bucket_bytes; 0: Kith chooses")
      ->type_name("SIZE")
      ->capture_default_str();
#if defined(KITH_BENCH_MPI)
  command.add_option("--memory", options.memories, "where Kith's model lies: own, allocated (--engine mpi)")
      ->type_name("LIST")
      ->capture_default_str();
  command.add_flag("--no-shared-memory", options.no_shared_memory,
                   "--engine mpi: send messages also between ranks of one machine");
  add_engine_option(command, options.engine, {"thread", "mpi"});
#else
  add_engine_option(command, options.engine, {"thread"});
#endif
}

std::vector<std::size_t> sizes_of(const SweepOptions& options) {
  const std::size_t first = parse_bytes(options.min_bytes);
  const std::size_t last = parse_bytes(options.max_bytes);
  if (first < 1 || first > last)
    throw kith::UsageError("the sizes run from -b " + options.min_bytes + " to -e " + options.max_bytes +
                           ": the first must be at least 1 and at most the last");
  std::vector<std::size_t> sizes{first};
  while (sizes.back() <= last / options.factor) sizes.push_back(sizes.back() * options.factor);
  if (sizes.back() != last) sizes.push_back(last);
  return sizes;
}

}  // namespace bench
