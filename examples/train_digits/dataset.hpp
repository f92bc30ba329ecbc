// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace digits {

inline constexpr std::size_t pixels = 64;
inline constexpr std::size_t classes = 10;

/// Random numbers that depend on nothing but the arguments: on no thread, no clock and no library's distributions.
class Random {
public:
  enum class Purpose : std::uint32_t { model, shards, batches, delays };

  Random(std::uint64_t seed, Purpose purpose, std::uint32_t rank = 0) {
    std::seed_seq sequence{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32),
                           static_cast<std::uint32_t>(purpose), rank};
    engine_.seed(sequence);
  }

  /// An integer in [0, end). The bias of the remainder is far below anything that could matter here.
  std::size_t below(std::size_t end) { return static_cast<std::size_t>(engine_() % end); }

  /// A number in [-bound, bound).
  float symmetric(float bound) { return bound * (static_cast<float>(engine_() >> 40) * 0x1p-23F - 1); }

  /// A number from the exponential distribution of mean 1.
  double exponential() { return -std::log((static_cast<double>(engine_() >> 11) + 0.5) * 0x1p-53); }

  void shuffle(std::vector<std::size_t>& values) {
    for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
  }

private:
  std::mt19937_64 engine_;
};

/// A handwritten digit: 8 x 8 grey values in [0, 1], row by row, and which digit it is.
struct Sample {
  std::array<float, pixels> image;
  std::size_t label;
};

/// Every fifth row of the file is held out; nobody trains on it. The same rows whatever the seed.
struct Dataset {
  std::vector<Sample> training;
  std::vector<Sample> held_out;
};

/// The rows of the data file are not where they should be, or not what they should be.
class DataError : public std::runtime_error {
public:
  using std::runtime_error::runtime_error;
};

namespace detail {

inline Sample parse(const std::string& line, const std::string& where) {
  std::array<std::size_t, pixels + 1> values{};
  const char* at = line.data();
  const char* const end = at + line.size();
  for (std::size_t i = 0; i < values.size(); ++i) {
    const char* const begin = at;
    for (; at != end && *at >= '0' && *at <= '9' && at - begin < 3; ++at)
      values[i] = 10 * values[i] + static_cast<std::size_t>(*at - '0');
    const bool last = i == pixels;
    if (at == begin || values[i] > (last ? classes - 1 : 16) || (last ? at != end : at == end || *at++ != ','))
      throw DataError(fmt::format("{}: expected 64 grey values 0..16 and a digit 0..9, comma separated", where));
  }
  Sample sample{};
  for (std::size_t i = 0; i < pixels; ++i) sample.image[i] = static_cast<float>(values[i]) / 16;
  sample.label = values[pixels];
  return sample;
}

}  // namespace detail

inline Dataset load(const std::string& path) {
  std::ifstream file{path};
  if (!file)
    throw DataError(fmt::format(
        "cannot open the data file {}\nIt is examples/data/digits.csv of Kith's source tree; say where it is with "
        "--data FILE.",
        path));
  Dataset data;
  std::string line;
  for (std::size_t row = 1; std::getline(file, line); ++row) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    (row % 5 == 0 ? data.held_out : data.training).push_back(detail::parse(line, fmt::format("{}:{}", path, row)));
  }
  if (data.held_out.empty()) throw DataError(fmt::format("{} has fewer than 5 rows", path));
  return data;
}

/// How the training rows are dealt to the workers.
enum class Split : std::uint8_t {
  iid,       // at random: every shard looks like the whole
  by_label,  // in order of the digit: a worker sees two or three of the ten digits, or even fewer
};

/// The rows of `training` that the worker `rank` of `size` has for itself. The shards of all ranks together are
/// `training`, and differ by one row at most.
inline std::vector<std::size_t> shard_of(const std::vector<Sample>& training, Split split, std::size_t rank,
                                         std::size_t size, std::uint64_t seed) {
  std::vector<std::size_t> rows(training.size());
  std::iota(rows.begin(), rows.end(), std::size_t{0});
  Random{seed, Random::Purpose::shards}.shuffle(rows);
  if (split == Split::by_label)
    std::stable_sort(rows.begin(), rows.end(),
                     [&](std::size_t a, std::size_t b) { return training[a].label < training[b].label; });
  const auto edge = [&](std::size_t r) { return static_cast<std::ptrdiff_t>(rows.size() * r / size); };
  return {rows.begin() + edge(rank), rows.begin() + edge(rank + 1)};
}

/// Mini-batches of a shard: goes through it in random order, again and again.
class Batches {
public:
  Batches(std::vector<std::size_t> shard, std::size_t batch, Random random)
      : shard_(std::move(shard)), batch_(std::min(batch, shard_.size())), random_(random), next_(shard_.size()) {}

  /// The rows of the next mini-batch.
  const std::vector<std::size_t>& next() {
    rows_.clear();
    while (rows_.size() < batch_) {
      if (next_ == shard_.size()) {
        random_.shuffle(shard_);
        next_ = 0;
      }
      rows_.push_back(shard_[next_++]);
    }
    return rows_;
  }

private:
  std::vector<std::size_t> shard_;
  std::size_t batch_;
  Random random_;
  std::size_t next_;
  std::vector<std::size_t> rows_;
};

}  // namespace digits
