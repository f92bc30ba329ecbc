// SPDX-License-Identifier: Apache-2.0
// train_digits with the model on GPUs: the same network, data and training, in CUDA kernels. The calls to Kith are in
// training.hpp; launch.hpp brings the ranks together. One GPU for each rank:
//
//   train_digits_cuda                                                       threads of one process, one per GPU
//   mpirun -n 4 train_digits_cuda --mpi                                     processes of mpirun, also on many machines
//   for r in 0 1 2 3; do train_digits_cuda --rank $r --ranks 4 --id-file nccl_id & done; wait         plain processes
//
// Processes, unlike threads, can also share a GPU, for a try.

#include <cstddef>
#include <cstdio>
#include <exception>
#include <optional>
#include <string>

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <kith/nccl.hpp>

#include "launch.hpp"
#include "train_digits/dataset.hpp"
#include "train_digits/options.hpp"
#include "training.hpp"

namespace {

using namespace digits;

/// How this process becomes one rank or several.
struct Start {
  kith::Rank ranks = 0;  // 0: one for each GPU
  std::optional<kith::Rank> rank;
  std::string id_file;
  bool mpi = false;
};

/// Fills both from the command line; returns the exit status if there is nothing else to do.
std::optional<int> parse_command_line(int argc, const char* const* argv, Options& options, Start& start) {
  CLI::App app{
      "Workers with a GPU each learn handwritten digits, each from its own shard of the data,\n"
      "and average their models with the peers that a topology names after every step.\n"};
  app.footer("\nTopologies:\n" + topologies_as_lines());
  app.get_formatter()->column_width(40);
  std::string topology = kith::topology_name(options.topology);
  std::string split = to_string(options.split);
  CLI::Option* const ranks = app.add_option("--ranks", start.ranks, "Number of workers; without it one for each GPU")
                                 ->check(CLI::Range(1, 1000));
  CLI::Option* const rank = app.add_option("--rank", start.rank, "This process is that one of the workers")
                                ->check(CLI::Range(0, 999))
                                ->needs(ranks);
  CLI::Option* const id_file =
      app.add_option("--id-file", start.id_file, "Where the processes meet: a file that is not there yet")
          ->type_name("FILE")
          ->needs(rank);
  rank->needs(id_file);
#ifdef KITH_EXAMPLES_MPI
  app.add_flag("--mpi", start.mpi, "mpirun starts the workers")->excludes(ranks);
#endif
  app.add_option("--topology", topology, "Who averages with whom: see below")->type_name("NAME")->capture_default_str();
  app.add_option("--steps", options.steps, "Optimizer steps")->check(CLI::Range(1, 100000))->capture_default_str();
  app.add_option("--split", split, "Shards: all alike, or a few of the digits for each worker")
      ->check(CLI::IsMember({"iid", "by-label"}))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Of the initial model, the shards and the mini-batches")
      ->capture_default_str();
  app.add_option("--data", options.data, "The data file, examples/data/digits.csv of Kith's source tree")
      ->type_name("FILE");
  try {
    app.parse(argc, argv);
    options.split = split == "iid" ? Split::iid : Split::by_label;
    options.topology = kith::parse_topology(topology);
    if (start.rank && *start.rank >= start.ranks) throw CLI::ValidationError("--rank", "must be less than --ranks");
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return std::nullopt;
}

bool run(const Start& start, const RankBody& body) {
#ifdef KITH_EXAMPLES_MPI
  if (start.mpi) return run_under_mpi(body);
#endif
  if (start.rank) return run_as_process(*start.rank, start.ranks, start.id_file, body);
  return run_as_threads(start.ranks > 0 ? start.ranks : gpus(), body);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options;
    Start start;
    if (const auto status = parse_command_line(argc, argv, options, start)) return *status;
    const Dataset data = load(options.data);
    const bool good = run(start, [&](kith::nccl::Communicator& communicator) {
      if (communicator.rank() == 0)
        fmt::print("{} workers, {}, {} split, {} steps of {} rows, seed {}\n", communicator.size(),
                   kith::topology_name(options.topology), to_string(options.split), options.steps, options.batch,
                   options.seed);
      return train(communicator, options, data);
    });
    return good ? 0 : 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "train_digits_cuda: {}\n", error.what());
    return 1;
  }
}
