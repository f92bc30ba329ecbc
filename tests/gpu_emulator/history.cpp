// SPDX-License-Identifier: Apache-2.0
#include "history.hpp"

#include <utility>

#include "core.hpp"

namespace kith::gpu_emulator::detail {

void History::add(const Access& access, const Moment& moment, const Clock& host) {
  const char* const begin = access.begin;
  const char* const end = begin + access.bytes;
  const std::string what = moment.where + ": " + access.what;
  std::vector<Record> kept;
  kept.reserve(records_.size() + 2);
  for (Record& record : records_) {
    if (record.number <= at(host, record.stream)) continue;
    if (record.end <= begin || end <= record.begin) {
      kept.push_back(std::move(record));
      continue;
    }
    const bool together = record.stream == moment.stream && record.number == moment.number;
    const bool unordered = together ? record.part != access.part : record.number > at(moment.before, record.stream);
    if (unordered && (access.write || record.write))
      report("RACE", what + (together ? " overlaps, in the same group, " : " is not ordered after ") + record.what);
    if (together || unordered || (record.write && !access.write)) {
      kept.push_back(std::move(record));
      continue;
    }
    if (record.begin < begin) {
      kept.push_back(record);
      kept.back().end = begin;
    }
    if (record.end > end) {
      kept.push_back(std::move(record));
      kept.back().begin = end;
    }
  }
  kept.push_back({begin, end, moment.stream, moment.number, access.write, access.part, what});
  records_ = std::move(kept);
}

}  // namespace kith::gpu_emulator::detail
