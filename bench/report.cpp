// SPDX-License-Identifier: Apache-2.0
#include "report.hpp"

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <string_view>

#include <fmt/core.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <kith/error.hpp>
#include <kith/version.hpp>

#if !defined(KITH_BENCH_FLAGS)
#define KITH_BENCH_FLAGS ""
#endif

namespace bench {
namespace {

using Json = nlohmann::ordered_json;

std::string compiler() {
#if defined(__clang__)
  return "clang++ " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

// The first "key : value" line of a file under /proc, or empty.
std::string first_value(const char* file, const std::string& key) {
  std::ifstream in{file};
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(key, 0) != 0) continue;
    const std::size_t colon = line.find(':');
    const std::size_t begin = line.find_first_not_of(" \t", colon + 1);
    if (colon != std::string::npos && begin != std::string::npos) return line.substr(begin);
  }
  return {};
}

Json host() {
  utsname name{};
  uname(&name);
  Json host;
  host["cpu"] = first_value("/proc/cpuinfo", "model name");
  host["cores"] = sysconf(_SC_NPROCESSORS_ONLN);  // of the machine: mpirun may bind a process to one of them
  host["memory"] = first_value("/proc/meminfo", "MemTotal");
  host["system"] = std::string{name.sysname} + ' ' + name.release + ' ' + name.machine;
  return host;
}

// How busy the machine was: mean number of runnable threads in the last minute.
double load() {
  double average = 0;
  return getloadavg(&average, 1) == 1 ? average : -1;
}

// Only variables that change what is measured; the rest of the environment is nobody's business. Launchers add their
// own with these prefixes: addresses, folders, process numbers.
bool is_measured(std::string_view name) {
  for (const char* exact : {"GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_",
                            "OMPI_MCA_hwloc_base_binding_policy", "OMPI_MCA_rmaps_base_oversubscribe"})
    if (name == exact) return true;
  for (const char* prefix : {"OMPI_MCA_btl", "OMPI_MCA_pml", "OMPI_MCA_mtl", "OMPI_MCA_osc", "OMPI_MCA_coll",
                             "OMPI_MCA_mpi_", "OMPI_MCA_opal_", "MPIR_CVAR_"})
    if (name.rfind(prefix, 0) == 0) return name.find("HOSTNAME") == std::string_view::npos;
  return false;
}

Json environment() {
  Json variables = Json::object();
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text = *variable;
    const std::size_t equals = text.find('=');
    if (equals != std::string_view::npos && is_measured(text.substr(0, equals)))
      variables[std::string{text.substr(0, equals)}] = text.substr(equals + 1);
  }
  return variables;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

}  // namespace

void Report::line(const std::string& text) {
  std::puts(text.c_str());
  std::fflush(stdout);
}

Report::Report(const Invocation& invocation, const std::string& json) : json_(invocation.speaks ? json : "") {
  if (!json_.empty() && !std::ofstream{json_, std::ios::app}) throw kith::UsageError("cannot write the file " + json_);
  std::string command;
  for (const std::string& argument : invocation.arguments) command += (command.empty() ? "" : " ") + argument;
  const std::string version = fmt::format("{}.{}.{}", KITH_VERSION_MAJOR, KITH_VERSION_MINOR, KITH_VERSION_PATCH);
  context_["schema_version"] = 1;
  context_["kith_version"] = version;
  context_["compiler"] = compiler();
  context_["compiler_flags"] = KITH_BENCH_FLAGS;
  context_["host"] = host();
  context_["date"] = utc_now();
  context_["command_line"] = command;
  context_["environment"] = environment();
  if (!invocation.mpi_library.empty())
    context_["mpi"] = {{"library", invocation.mpi_library}, {"ranks", invocation.processes}};
  context_["load_at_start"] = load();
  const Json& host = context_["host"];
  line(fmt::format("# kith_bench, Kith {}", version));
  line(fmt::format("# compiler  {}, {}", compiler(), KITH_BENCH_FLAGS));
  line(fmt::format("# host      {}, {} cores, {} of memory, {}", host["cpu"].get<std::string>(),
                   host["cores"].get<long>(), host["memory"].get<std::string>(), host["system"].get<std::string>()));
  line(fmt::format("# load      {:.2f} threads were running before this began", load()));
  line(fmt::format("# command   {}", command));
  if (invocation.mpi_library.empty()) return;
  line(fmt::format("# MPI       {}; {} ranks", invocation.mpi_library, invocation.processes));
  for (const auto& [name, value] : context_["environment"].items())
    line(fmt::format("# variable  {}={}", name, value.get<std::string>()));
  if (invocation.mpi_library.rfind("MPICH", 0) == 0 && invocation.processes > host["cores"].get<long>())
    line(
        "# note      MPICH keeps a core busy while it waits: with more ranks than cores, as on one machine here, each\n"
        "#           message may take some 10 ms. Measure so many ranks on more cores, or with Open MPI.");
}

int Report::finish(std::size_t wrong) {
  line(fmt::format("# Wrong elements: {} {}", wrong, wrong == 0 ? "OK" : "FAILED"));
  write();
  return wrong == 0 ? 0 : 1;
}

void Report::write() {
  if (json_.empty()) return;
  context_["load_at_end"] = load();
  std::ofstream file{json_};
  file << Json{{"context", context_}, {"results", results_}}.dump(2) << '\n';
  if (!file.flush()) throw kith::UsageError("cannot write the file " + json_);
  line(fmt::format("# JSON      {}", json_));
}

}  // namespace bench
