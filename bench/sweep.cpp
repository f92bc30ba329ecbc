// SPDX-License-Identifier: Apache-2.0
#include "sweep.hpp"

#include <fmt/core.h>

namespace bench {
namespace {

// "-" where nothing was measured.
std::string figure(double value) { return value < 0 ? "-" : fmt::format("{:.{}f}", value, value < 99.995 ? 2 : 1); }

}  // namespace

void print_head() {
  Report::line("#");
  Report::line(
      fmt::format("# {:>10} {:>10} {:>5} {:>5} {:>22} {:>10} {:>10} {:>10} {:>10} {:>7} {:>10} {:>7} {:>7} {:>7} {:>7}",
                  "", "", "", "", "", "", "time", "", "limit", "time", "by hand", "time", "algbw", "busbw", "#wrong"));
  Report::line(fmt::format(
      "# {:>10} {:>10} {:>5} {:>5} {:>22} {:>10} {:>10} {:>10} {:>10} {:>7} {:>10} {:>7} {:>7} {:>7}", "size", "count",
      "type", "ranks", "topology", "p25", "p50", "p75", "p50", "/limit", "p50", "/hand", "", ""));
  Report::line(
      fmt::format("# {:>10} {:>10} {:>5} {:>5} {:>22} {:>10} {:>10} {:>10} {:>10} {:>7} {:>10} {:>7} {:>7} {:>7}",
                  "(B)", "(elements)", "", "", "", "(us)", "(us)", "(us)", "(us)", "", "(us)", "", "(GB/s)", "(GB/s)"));
}

void add_line(Report& report, const Subject& subject, const Line& line) {
  const std::size_t count = subject.bytes / size_of(subject.dtype);
  const double us = line.kith.p50;
  const double by_hand = line.by_hand ? line.by_hand->p50 : -1;
  const double algbw = static_cast<double>(subject.bytes) / us / 1e3;
  const double busbw = line.bytes_sent / us / 1e3;
  Report::line(fmt::format(
      "  {:>10} {:>10} {:>5} {:>5} {:>22} {:>10} {:>10} {:>10} {:>10} {:>7} {:>10} {:>7} {:>7} {:>7} {:>7}",
      subject.bytes, count, to_string(subject.dtype), subject.ranks, subject.topology, figure(line.kith.p25),
      figure(us), figure(line.kith.p75), figure(line.limit.p50), figure(us / line.limit.p50), figure(by_hand),
      figure(by_hand < 0 ? -1 : us / by_hand), figure(algbw), figure(busbw), line.wrong));
  nlohmann::ordered_json result;
  result["name"] = subject.command;
  result["engine"] = subject.engine;
  result["ranks"] = subject.ranks;
  result["topology"] = subject.topology;
  result["dtype"] = to_string(subject.dtype);
  result["bytes"] = subject.bytes;
  result["count"] = count;
  result["iterations"] = line.iterations;
  result["time_us_p25"] = line.kith.p25;
  result["time_us_p50"] = line.kith.p50;
  result["time_us_p75"] = line.kith.p75;
  result["limit_us_p25"] = line.limit.p25;
  result["limit_us_p50"] = line.limit.p50;
  result["limit_us_p75"] = line.limit.p75;
  if (line.by_hand) {
    result["by_hand_us_p25"] = line.by_hand->p25;
    result["by_hand_us_p50"] = line.by_hand->p50;
    result["by_hand_us_p75"] = line.by_hand->p75;
  }
  result["algbw_GBps"] = algbw;
  result["busbw_GBps"] = busbw;
  result["bytes_sent"] = line.bytes_sent;
  result["wrong"] = line.wrong;
  report.add(std::move(result));
}

}  // namespace bench
