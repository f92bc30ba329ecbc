// SPDX-License-Identifier: Apache-2.0
#include "sweep.hpp"

#include <array>

#include <fmt/core.h>

namespace bench {
namespace {

// A column: the three lines of its head, and what stands in it.
struct Column {
  std::array<std::string, 3> head;
  std::string value;
  std::size_t width;
};

// "-" where nothing was measured.
std::string figure(std::optional<double> value) {
  return value ? fmt::format("{:.{}f}", *value, *value < 99.995 ? 2 : 1) : "-";
}

std::vector<Column> columns_of(const Subject& subject, const Line& line, double algbw, double busbw) {
  const double us = line.kith.p50;
  std::vector<Column> columns{
      {{"", "size", "(B)"}, std::to_string(subject.bytes), 10},
      {{"", "count", "(elements)"}, std::to_string(subject.bytes / size_of(subject.dtype)), 10},
      {{"", "type", ""}, std::string{to_string(subject.dtype)}, 5},
      {{"", "ranks", ""}, std::to_string(subject.ranks), 5},
      {{"", "topology", ""}, subject.topology, 22},
  };
  if (!subject.exchange.empty()) columns.push_back({{"", "exchange", ""}, subject.exchange, 27});
  if (subject.engine != "thread") columns.push_back({{"", "memory", ""}, subject.memory, 9});
  columns.insert(columns.end(), {{{"", "p25", "(us)"}, figure(line.kith.p25), 10},
                                 {{"time", "p50", "(us)"}, figure(us), 10},
                                 {{"", "p75", "(us)"}, figure(line.kith.p75), 10},
                                 {{"limit", "p50", "(us)"}, figure(line.limit.p50), 10},
                                 {{"time", "/limit", ""}, figure(us / line.limit.p50), 7}});
  for (const Line::Rival& rival : line.rivals) {
    std::optional<double> time;
    if (rival.time) time = rival.time->p50;
    const std::string ratio = "/" + rival.title.substr(rival.title.rfind(' ') + 1);
    columns.push_back({{rival.title, "p50", "(us)"}, figure(time), 10});
    if (!rival.averages) continue;
    columns.push_back(
        {{"time", ratio, ""}, time ? figure(us / *time) : figure({}), std::max<std::size_t>(ratio.size(), 7)});
  }
  if (line.wire_us) columns.push_back({{"wire", "p50", "(us)"}, figure(line.wire_us), 10});
  columns.insert(columns.end(), {{{"algbw", "", "(GB/s)"}, figure(algbw), 7},
                                 {{"busbw", "", "(GB/s)"}, figure(busbw), 7},
                                 {{"#wrong", "", ""}, std::to_string(line.wrong), 7}});
  return columns;
}

}  // namespace

void add_quartiles(nlohmann::ordered_json& result, const std::string& key, const Quartiles& time) {
  result[key + "_us_p25"] = time.p25;
  result[key + "_us_p50"] = time.p50;
  result[key + "_us_p75"] = time.p75;
}

void Table::add(const Subject& subject, const Line& line, const nlohmann::ordered_json& more) {
  const double algbw = static_cast<double>(subject.bytes) / line.kith.p50 / 1e3;
  const double busbw = line.bytes_sent / line.kith.p50 / 1e3;
  const std::vector<Column> columns = columns_of(subject, line, algbw, busbw);
  if (!begun_) Report::line("#");
  for (std::size_t row = 0; row < 3 && !begun_; ++row) {
    std::string head = "#";
    for (const Column& column : columns) head += fmt::format(" {:>{}}", column.head[row], column.width);
    Report::line(head.substr(0, head.find_last_not_of(' ') + 1));
  }
  begun_ = true;
  std::string values = " ";
  for (const Column& column : columns) values += fmt::format(" {:>{}}", column.value, column.width);
  Report::line(values);

  nlohmann::ordered_json result;
  result["name"] = subject.command;
  result["engine"] = subject.engine;
  result["ranks"] = subject.ranks;
  result["topology"] = subject.topology;
  if (!subject.exchange.empty()) result["exchange"] = subject.exchange;
  result["dtype"] = to_string(subject.dtype);
  if (subject.engine != "thread") {
    result["memory"] = subject.memory;
    result["shared_memory"] = subject.shared_memory;
  }
  result["bytes"] = subject.bytes;
  result["count"] = subject.bytes / size_of(subject.dtype);
  result["iterations"] = line.iterations;
  add_quartiles(result, "time", line.kith);
  add_quartiles(result, "limit", line.limit);
  for (const Line::Rival& rival : line.rivals)
    if (rival.time) add_quartiles(result, rival.key, *rival.time);
  if (line.wire_us) result["wire_us_p50"] = *line.wire_us;
  result["algbw_GBps"] = algbw;
  result["busbw_GBps"] = busbw;
  result["bytes_sent"] = line.bytes_sent;
  result["wrong"] = line.wrong;
  if (!more.is_null()) result.update(more);
  report_.add(std::move(result));
}

}  // namespace bench
