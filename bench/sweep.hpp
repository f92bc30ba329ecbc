// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
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

/// Memory for a rank's model, on cache lines, every page of it touched by the thread that makes it.
class Memory {
public:
  explicit Memory(std::size_t bytes)
      : data_(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{alignment}))) {
    std::memset(data_.get(), 0, bytes);
  }
  [[nodiscard]] void* data() const noexcept { return data_.get(); }

private:
  static constexpr std::size_t alignment = 64;
  struct Release {
    void operator()(std::byte* data) const noexcept { ::operator delete (data, std::align_val_t{alignment}); }
  };
  std::unique_ptr<std::byte, Release> data_;
};

/// What is measured in a line of the table, for one rank. Every call is made by all ranks together.
struct Contest {
  kith::BufferView model;
  /// Kith's way.
  std::function<void()> kith;
  /// What the user would write; empty where there is no such loop for the element type.
  std::function<void()> by_hand;
  /// What the next call of either leaves in a model filled by fill().
  std::function<Expectation()> expected;
  /// Bytes that this rank has sent so far, as Kith counts them.
  std::function<std::uint64_t()> bytes_sent;
};

/// The figures of a line.
struct Line {
  std::size_t iterations = 0;
  Quartiles kith;
  Quartiles limit;
  std::optional<Quartiles> by_hand;
  /// By the busiest rank in one call.
  double bytes_sent = 0;
  std::size_t wrong = 0;
};

/// @brief Collective. Measures the contest: limit, Kith and the loop by hand take turns, so that whatever else the
/// machine does meets all three alike. Each starts from models that every rank has just written itself, as an
/// optimizer step leaves them.
template <class Group>
Line measure(Group& group, const SweepOptions& options, const Contest& contest) {
  std::vector<double> kith_us;
  std::vector<double> limit_us;
  std::vector<double> by_hand_us;
  double wrong = 0;
  unsigned turn = 0;
  const auto largest = [&](double value) {
    const std::vector<double> values = group.gather(value);
    return *std::max_element(values.begin(), values.end());
  };
  const auto refill = [&] { fill(contest.model, options.seed, group.rank()); };
  const auto timed = [&](bool filled, const std::function<void()>& call) {
    if (filled)
      refill();
    else
      touch_once(contest.model, turn++);
    return group.time_us(call);
  };
  const auto iterate = [&](bool check) {
    limit_us.push_back(timed(false, [&] { touch_once(contest.model, turn++); }));
    const Expectation expected = contest.expected();
    kith_us.push_back(timed(check, contest.kith));
    if (check) wrong += static_cast<double>(count_wrong(contest.model, expected));
    if (!contest.by_hand) return;
    by_hand_us.push_back(timed(check, contest.by_hand));
    // A comparison with a loop that does something else would be worth nothing.
    if (check && largest(static_cast<double>(count_wrong(contest.model, expected, 1e-5))) > 0)
      throw std::logic_error("the loop by hand does not compute the same average");
  };

  refill();
  double spent_us = 0;
  for (std::size_t i = 0; i < std::max<std::size_t>(options.warmup, options.iterations == 0 ? 1 : 0); ++i) {
    iterate(false);
    spent_us = kith_us.back() + limit_us.back() + (by_hand_us.empty() ? 0 : by_hand_us.back());
  }
  std::size_t iterations = options.iterations;
  if (iterations == 0) {
    const double fitting = options.seconds * 1e6 / spent_us;  // the same on every rank, because the times are
    iterations = static_cast<std::size_t>(std::clamp(fitting, 11.0, 2001.0));
  }
  for (std::vector<double>* samples : {&kith_us, &limit_us, &by_hand_us}) {
    samples->clear();
    samples->reserve(iterations);
  }
  const double sent_before = static_cast<double>(contest.bytes_sent());
  for (std::size_t i = 0; i < iterations; ++i) iterate(options.check != 0 && (i == 0 || i + 1 == iterations));

  Line line;
  line.iterations = iterations;
  line.kith = quartiles(kith_us);
  line.limit = quartiles(limit_us);
  if (!by_hand_us.empty()) line.by_hand = quartiles(by_hand_us);
  line.bytes_sent = largest(static_cast<double>(contest.bytes_sent()) - sent_before) / static_cast<double>(iterations);
  const std::vector<double> all_wrong = group.gather(wrong);
  line.wrong = static_cast<std::size_t>(std::accumulate(all_wrong.begin(), all_wrong.end(), 0.0));
  return line;
}

/// What a line is about.
struct Subject {
  std::string command;
  std::string engine;
  kith::Rank ranks = 0;
  std::string topology;
  kith::DType dtype = kith::DType::f32;
  std::size_t bytes = 0;
};

/// Prints the head of the table that print_line() fills.
void print_head();

/// Prints a line, and adds it to the report.
void add_line(Report& report, const Subject& subject, const Line& line);

}  // namespace bench
