// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <kith/error.hpp>
#include <kith/numeric/counter_rng.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>

namespace kith::detail {

/// Which ranks share a machine. Machines are numbered in the order of their lowest ranks, and the ranks of a machine
/// have indices in ascending order. Copies share the table, if there is one.
class Machines {
public:
  /// `intra_size` consecutive ranks a machine; the last one may have fewer.
  explicit Machines(Rank intra_size) : intra_size_(intra_size) {
    if (intra_size < 1)
      throw UsageError("a machine has at least 1 rank, not " + std::to_string(intra_size) +
                       ": intra_size is the number of ranks that share one");
  }

  /// The machine of each rank: ranks with equal labels share one.
  explicit Machines(std::span<const Rank> labels) {
    if (labels.empty()) throw UsageError("a map of ranks to machines has at least 1 rank");
    Table table;
    std::map<Rank, Rank> numbers;  // of each label
    for (std::size_t r = 0; r < labels.size(); ++r) {
      const auto [number, is_new] = numbers.try_emplace(labels[r], static_cast<Rank>(table.members.size()));
      if (is_new) table.members.emplace_back();
      std::vector<Rank>& members = table.members[static_cast<std::size_t>(number->second)];
      table.places.push_back({number->second, static_cast<Rank>(members.size())});
      members.push_back(static_cast<Rank>(r));
    }
    for (const std::vector<Rank>& members : table.members) table.largest.push_back(static_cast<Rank>(members.size()));
    std::sort(table.largest.rbegin(), table.largest.rend());
    table_ = std::make_shared<const Table>(std::move(table));
  }

  /// Throws UsageError for a size that a map is not for.
  void require(Rank size) const {
    if (table_ && static_cast<std::size_t>(size) != table_->places.size())
      throw UsageError("this map of ranks to machines is for " + std::to_string(table_->places.size()) +
                       " ranks, not " + std::to_string(size) + "; make one for that size");
  }

  /// Number of machines among `size` ranks.
  [[nodiscard]] Rank count(Rank size) const noexcept {
    return table_ ? static_cast<Rank>(table_->members.size()) : (size - 1) / intra_size_ + 1;
  }
  [[nodiscard]] Rank of(Rank rank) const noexcept { return table_ ? place(rank).machine : rank / intra_size_; }
  /// The index of a rank among those of its machine.
  [[nodiscard]] Rank index(Rank rank) const noexcept { return table_ ? place(rank).index : rank % intra_size_; }
  /// How many ranks a machine has.
  [[nodiscard]] Rank ranks(Rank machine, Rank size) const noexcept {
    if (table_) return static_cast<Rank>(table_->members[static_cast<std::size_t>(machine)].size());
    return std::min(intra_size_, size - machine * intra_size_);
  }
  /// The rank with an index.
  [[nodiscard]] Rank member(Rank machine, Rank index) const noexcept {
    if (table_) return table_->members[static_cast<std::size_t>(machine)][static_cast<std::size_t>(index)];
    return machine * intra_size_ + index;
  }

  /// The ranks of the `machines` largest machines together.
  [[nodiscard]] Rank ranks_of_largest(Rank machines, Rank size) const noexcept {
    if (!table_) return static_cast<Rank>(std::min<std::int64_t>(size, std::int64_t{machines} * intra_size_));
    const auto last = table_->largest.begin() + std::min(machines, count(size));
    return std::accumulate(table_->largest.begin(), last, Rank{0});
  }
  [[nodiscard]] Rank smallest(Rank size) const noexcept {
    return table_ ? table_->largest.back() : ranks(count(size) - 1, size);
  }
  [[nodiscard]] bool even(Rank size) const noexcept { return smallest(size) == ranks_of_largest(1, size); }

  /// "4", or for a map 16 hex digits that stand for it.
  [[nodiscard]] std::string parameters() const {
    if (!table_) return std::to_string(intra_size_);
    std::uint64_t digest = table_->places.size();
    for (const Place& place : table_->places) digest = splitmix64(digest ^ static_cast<std::uint64_t>(place.machine));
    std::array<char, 16> text{};
    const auto written = std::to_chars(text.data(), text.data() + text.size(), digest, 16).ptr - text.data();
    const std::string digits(text.data(), static_cast<std::size_t>(written));
    return "map-" + std::string(16 - digits.size(), '0') + digits;
  }

private:
  struct Place {
    Rank machine;
    Rank index;
  };
  struct Table {
    std::vector<Place> places;               // of each rank
    std::vector<std::vector<Rank>> members;  // of each machine
    std::vector<Rank> largest;               // sizes of machines, in descending order
  };

  [[nodiscard]] const Place& place(Rank rank) const noexcept { return table_->places[static_cast<std::size_t>(rank)]; }

  Rank intra_size_ = 1;
  std::shared_ptr<const Table> table_;
};

/// The machines of a topology that says which ranks share one; none where it does not.
template <Topology T>
[[nodiscard]] std::optional<Machines> machines_of(const T& topology, Rank size) {
  std::vector<Rank> labels;
  if constexpr (requires { topology.machine_of(Rank{0}, size); }) {
    for (Rank rank = 0; rank < size; ++rank) {
      const std::optional<Rank> machine = topology.machine_of(rank, size);
      if (!machine) return std::nullopt;
      labels.push_back(*machine);
    }
  }
  if (labels.empty()) return std::nullopt;
  return Machines{std::span<const Rank>{labels}};
}

/// What one machine does in one round, where machines average as one: its row of W_M, without the diagonal.
struct MachinePlan {
  struct Source {
    Rank machine;
    double weight;
  };
  std::vector<Source> sources;  // in ascending machine
  std::vector<Rank> targets;

  MachinePlan() = default;
  explicit MachinePlan(Rank machines) {
    sources.reserve(static_cast<std::size_t>(machines));
    targets.reserve(static_cast<std::size_t>(machines));
  }

  /// From the plan of one of its ranks: W_M(a, b) = L_b W(i, j), for any i of machine a and j of machine b.
  void derive(const Machines& machines, Rank rank, Rank size, const Neighborhood& plan) {
    sources.clear();
    targets.clear();
    const Rank own = machines.of(rank);
    for (const auto& [peer, weight] : plan.sources())
      if (const Rank other = machines.of(peer); other != own && machines.index(peer) == 0)
        sources.push_back({other, weight * machines.ranks(other, size)});
    for (const Rank peer : plan.targets())
      if (const Rank other = machines.of(peer); other != own && machines.index(peer) == 0) targets.push_back(other);
  }
};

}  // namespace kith::detail
