// SPDX-License-Identifier: Apache-2.0
#include "report.hpp"

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <thread>

#include <fmt/core.h>
#include <sys/utsname.h>

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
  host["cores"] = std::thread::hardware_concurrency();
  host["memory"] = first_value("/proc/meminfo", "MemTotal");
  host["system"] = std::string{name.sysname} + ' ' + name.release + ' ' + name.machine;
  return host;
}

// How busy the machine was: mean number of runnable threads in the last minute.
double load() {
  double average = 0;
  return getloadavg(&average, 1) == 1 ? average : -1;
}

// Only variables that change what is measured; the rest of the environment is nobody's business.
Json environment() {
  Json variables = Json::object();
  for (const char* name : {"GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"})
    if (const char* value = std::getenv(name)) variables[name] = value;  // NOLINT(concurrency-mt-unsafe): one thread
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

Report::Report(const Invocation& invocation, std::string json) : json_(std::move(json)) {
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
  context_["load_at_start"] = load();
  const Json& host = context_["host"];
  line(fmt::format("# kith_bench, Kith {}", version));
  line(fmt::format("# compiler  {}, {}", compiler(), KITH_BENCH_FLAGS));
  line(fmt::format("# host      {}, {} cores, {} of memory, {}", host["cpu"].get<std::string>(),
                   host["cores"].get<unsigned>(), host["memory"].get<std::string>(),
                   host["system"].get<std::string>()));
  line(fmt::format("# load      {:.2f} threads were running before this began", load()));
  line(fmt::format("# command   {}", command));
}

int Report::finish(std::size_t wrong) {
  context_["load_at_end"] = load();
  line(fmt::format("# Wrong elements: {} {}", wrong, wrong == 0 ? "OK" : "FAILED"));
  if (!json_.empty()) {
    std::ofstream file{json_};
    file << Json{{"context", context_}, {"results", results_}}.dump(2) << '\n';
    if (!file.flush()) throw kith::UsageError("cannot write the file " + json_);
    line(fmt::format("# JSON      {}", json_));
  }
  return wrong == 0 ? 0 : 1;
}

}  // namespace bench
