// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <kith/types.hpp>
#include <kith/view.hpp>

#include "command_line.hpp"
#include "limit.hpp"
#include "report.hpp"
#include "statistics.hpp"
#include "values.hpp"

namespace bench {

/// Ordinary memory, on cache lines, every page of it touched by the thread that makes it.
[[nodiscard]] inline std::shared_ptr<void> own_memory(std::size_t bytes) {
  constexpr std::align_val_t alignment{64};
  std::shared_ptr<void> memory{::operator new(bytes, alignment),
                               [](void* data) { ::operator delete(data, alignment); }};
  std::memset(memory.get(), 0, bytes);
  return memory;
}

/// @brief A rank's models of one element type, in each kind of memory that `--memory` names, and in ordinary memory.
///
/// Collective. A group whose engine hands out memory has an allocate(dtype, bytes); else all of it is ordinary.
template <class Group>
class Models {
public:
  Models(Group& group, const std::vector<std::string>& kinds, kith::DType dtype, std::size_t bytes) : dtype_(dtype) {
    memory_["own"] = own_memory(bytes);
    if constexpr (requires { group.allocate(dtype, bytes); })
      if (std::find(kinds.begin(), kinds.end(), "allocated") != kinds.end())
        memory_["allocated"] = group.allocate(dtype, bytes);
  }

  /// The model of so many bytes at the beginning of that memory.
  [[nodiscard]] kith::BufferView view(const std::string& kind, std::size_t bytes) const {
    return {memory_.at(kind).get(), bytes / size_of(dtype_), dtype_};
  }

private:
  kith::DType dtype_;
  std::map<std::string, std::shared_ptr<void>> memory_;
};

/// @brief One of those whose times stand beside each other in a line of the table.
///
/// A new one is an entry in the list that the engine's by-hand header returns: the table and the JSON follow.
struct Contestant {
  /// Begins the names of its figures in the JSON: "by_hand" gives by_hand_us_p50.
  std::string key;
  /// Heads its column.
  std::string title;
  /// The model that it works on, in ordinary memory.
  kith::BufferView model;
  /// What is timed, called by all ranks together; empty where it does not exist in this line.
  std::function<void()> call;
  /// What the next call leaves in a model filled by fill(); empty: what Kith leaves.
  std::function<Expectation()> expected;
  /// False for a part of the work: there is no result to compare.
  bool averages = true;
};

/// What is measured in a line of the table, for one rank.
struct Contest {
  kith::BufferView model;
  std::function<void()> kith;
  /// What the next call of Kith leaves in a model filled by fill(); called once before each iteration.
  std::function<Expectation()> expected;
  /// Where that is found, and how exactly: in the model, bit for bit, unless something is set here.
  std::function<kith::BufferView()> outcome;
  double tolerance = 0;
  /// Bytes that this rank has sent so far, as Kith counts them.
  std::function<std::uint64_t()> bytes_sent;
  /// What a user would write instead.
  std::vector<Contestant> rivals;
};

/// The figures of a line.
struct Line {
  struct Rival {
    std::string key;
    std::string title;
    std::optional<Quartiles> time;
    bool averages = true;
  };
  std::size_t iterations = 0;
  Quartiles kith;
  Quartiles limit;
  std::vector<Rival> rivals;
  /// What is left of Kith's time without encoding and decoding.
  std::optional<double> wire_us;
  /// By the busiest rank in one call.
  double bytes_sent = 0;
  std::size_t wrong = 0;
};

/// As many iterations as fit into `seconds`, 11 to 2001; but not for longer than five times `seconds` where that
/// leaves 3: MPICH with more ranks than cores takes a second for what others do in a millisecond.
[[nodiscard]] inline std::size_t fitting_iterations(double seconds, double iteration_seconds) {
  const double fitting = std::clamp(seconds / iteration_seconds, 11.0, 2001.0);
  return static_cast<std::size_t>(std::min(fitting, std::max(5 * seconds / iteration_seconds, 3.0)));
}

/// @brief Collective. Measures the contest: limit, Kith and its rivals take turns, so that whatever else the machine
/// does meets all of them alike, and each iteration begins with another one. Each starts from models that every rank
/// has just written itself, as an optimizer step leaves them.
template <class Group>
Line measure(Group& group, const SweepOptions& options, const Contest& contest) {
  const auto largest = [&](double value) {
    const std::vector<double> values = group.gather(value);
    return *std::max_element(values.begin(), values.end());
  };
  unsigned limit_turn = 0;
  std::vector<Contestant> all{{"limit", "limit", contest.model, [&] { touch_once(contest.model, limit_turn++); }, {}},
                              {"kith", "Kith", contest.model, contest.kith, {}}};
  for (const Contestant& rival : contest.rivals)
    if (rival.call) all.push_back(rival);
  std::vector<std::vector<double>> times_us(all.size());
  std::vector<double> wrong(all.size());
  std::vector<unsigned> turns(all.size());
  std::size_t first = 0;
  const auto iterate = [&](bool check) {
    const Expectation expected = contest.expected();
    for (std::size_t k = 0; k < all.size(); ++k) {
      const std::size_t who = (first + k) % all.size();
      const Contestant& contestant = all[who];
      const bool checked = check && who != 0 && contestant.averages;
      if (checked)
        fill(contestant.model, options.seed, group.rank());
      else
        touch_once(contestant.model, turns[who]++);
      times_us[who].push_back(group.time_us(contestant.call));
      if (checked)
        wrong[who] += static_cast<double>(
            count_wrong(who == 1 && contest.outcome ? contest.outcome() : contestant.model,
                        contestant.expected ? contestant.expected() : expected, who == 1 ? contest.tolerance : 1e-5));
    }
    ++first;
  };

  for (const Contestant& contestant : all) fill(contestant.model, options.seed, group.rank());
  double spent_s = 0;
  for (std::size_t i = 0; i < std::max<std::size_t>(options.warmup, options.iterations == 0 ? 1 : 0); ++i) {
    const auto begin = std::chrono::steady_clock::now();
    iterate(false);
    spent_s = largest(std::chrono::duration<double>{std::chrono::steady_clock::now() - begin}.count());
  }
  const std::size_t iterations =
      options.iterations > 0 ? options.iterations : fitting_iterations(options.seconds, spent_s);
  for (std::vector<double>& samples : times_us) {
    samples.clear();
    samples.reserve(iterations);
  }
  const double sent_before = static_cast<double>(contest.bytes_sent());
  for (std::size_t i = 0; i < iterations; ++i) iterate(options.check != 0 && (i == 0 || i + 1 == iterations));

  Line line;
  line.iterations = iterations;
  line.limit = quartiles(times_us[0]);
  line.kith = quartiles(times_us[1]);
  std::size_t who = 2;
  for (const Contestant& rival : contest.rivals) {
    line.rivals.push_back({rival.key, rival.title, {}, rival.averages});
    if (!rival.call) continue;
    line.rivals.back().time = quartiles(times_us[who]);
    // A comparison with something else would be worth nothing.
    if (largest(wrong[who++]) > 0) throw std::logic_error(rival.title + " does not compute the same average");
  }
  line.bytes_sent = largest(static_cast<double>(contest.bytes_sent()) - sent_before) / static_cast<double>(iterations);
  const std::vector<double> all_wrong = group.gather(wrong[1]);
  line.wrong = static_cast<std::size_t>(std::accumulate(all_wrong.begin(), all_wrong.end(), 0.0));
  return line;
}

/// Adds the three under `key`_us_p25 and so on.
void add_quartiles(nlohmann::ordered_json& result, const std::string& key, const Quartiles& time);

/// What a line is about.
struct Subject {
  std::string command;
  std::string engine;
  kith::Rank ranks = 0;
  std::string topology;
  /// Empty for FullPrecision.
  std::string exchange;
  kith::DType dtype = kith::DType::f32;
  std::size_t bytes = 0;
  /// Where Kith's model lies.
  std::string memory;
  bool shared_memory = true;
};

/// The table of a sweep; its lines also go to the report.
class Table {
public:
  explicit Table(Report& report) noexcept : report_(report) {}

  /// Prints a line, after the table's head if it is the first, and adds it to the report, with what `more` says.
  void add(const Subject& subject, const Line& line, const nlohmann::ordered_json& more = {});

private:
  Report& report_;
  bool begun_ = false;
};

}  // namespace bench
