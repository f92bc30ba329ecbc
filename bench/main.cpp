// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <exception>
#include <string>

#include <CLI/CLI.hpp>
#include <kith/error.hpp>

#include "commands.hpp"

namespace {

// 0 = all is well, 1 = a result is wrong or a measurement has failed, 2 = the command line makes no sense.
constexpr int failed = 1;
constexpr int misused = 2;

int run(int argc, char** argv) {
  CLI::App app{"Measures Kith. Every flag, column and JSON key is defined in bench/README.md.", "kith_bench"};
  app.require_subcommand(1);
  bench::Invocation invocation;
  invocation.arguments.assign(argv + 1, argv + argc);
  invocation.arguments.insert(invocation.arguments.begin(), "kith_bench");
  bench::add_round(app, invocation);
  bench::add_allreduce(app, invocation);
  bench::add_mix(app, invocation);
  bench::add_topologies(app, invocation);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : misused;  // --help is no error
  } catch (const kith::UsageError& error) {
    std::fprintf(stderr, "kith_bench: %s\n", std::string{error.message()}.c_str());
    return misused;
  }
  return invocation.status;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kith_bench: %s\n", error.what());
  }
  return failed;
}
