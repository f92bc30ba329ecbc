// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>

#include "command_line.hpp"

namespace bench {

// Each sub-command is one file, one of these, and one line in main.cpp. It adds itself to the program and, when it is
// chosen, runs and sets invocation.status.
void add_round(CLI::App& app, Invocation& invocation);
void add_allreduce(CLI::App& app, Invocation& invocation);
void add_mix(CLI::App& app, Invocation& invocation);
void add_codec(CLI::App& app, Invocation& invocation);
void add_topologies(CLI::App& app, Invocation& invocation);
void add_plan(CLI::App& app, Invocation& invocation);

}  // namespace bench
