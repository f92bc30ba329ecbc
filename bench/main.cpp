// SPDX-License-Identifier: Apache-2.0
#include <exception>
#include <iostream>
#include <sstream>
#include <string>

#include <CLI/CLI.hpp>
#include <kith/error.hpp>

#include "commands.hpp"
#include "launch.hpp"

namespace {

// 0 = all is well, 1 = a result is wrong or a measurement has failed, 2 = the command line makes no sense.
constexpr int failed = 1;
constexpr int misused = 2;

// Runs the sub-command: the exit status. `message`: what went wrong.
int run(int argc, char** argv, const bench::Launch& launch, std::string& message) {
  CLI::App app{"Measures Kith. Every flag, column and JSON key is defined in bench/README.md.", "kith_bench"};
  app.require_subcommand(1);
  bench::Invocation invocation;
  invocation.arguments.assign(argv + 1, argv + argc);
  invocation.arguments.insert(invocation.arguments.begin(), "kith_bench");
  launch.describe(invocation);
  bench::add_round(app, invocation);
  bench::add_allreduce(app, invocation);
  bench::add_mix(app, invocation);
  bench::add_codec(app, invocation);
  bench::add_topologies(app, invocation);
  bench::add_plan(app, invocation);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream said;
    const int status = app.exit(error, std::cout, said);
    message = said.str();
    return status == 0 ? 0 : misused;  // --help is no error
  } catch (const kith::UsageError& error) {
    message = "kith_bench: " + std::string{error.message()} + '\n';
    return misused;
  } catch (const std::exception& error) {
    message = std::string{"kith_bench: "} + error.what() + '\n';
    return failed;
  }
  return invocation.status;
}

}  // namespace

int main(int argc, char** argv) {
  bench::Launch launch{argc, argv};
  std::string message;
  const int status = run(argc, argv, launch, message);
  return launch.end(status, message);
}
