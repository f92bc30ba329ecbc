// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <kith/error.hpp>
#include <kith/types.hpp>

namespace kith {

/// @brief What one rank does in one round: whom it hears, with which weight, and whom it tells.
///
/// One row of the round's mixing matrix W: `hear(j, w)` says W(rank, j) = w. What is left, 1 - sum of the weights, is
/// the weight of the rank's own value. A value to be filled again and again: after the first rounds nothing is
/// allocated, and never if it was made for the topology's largest degree.
///
/// @par Thread safety Distinct objects: safe. One object: one thread at a time.
class Neighborhood {
public:
  /// A peer that is heard, and the weight of its value, 0 < weight <= 1.
  struct Source {
    Rank rank;
    double weight;
    friend bool operator==(const Source&, const Source&) = default;
  };

  Neighborhood() = default;
  explicit Neighborhood(Rank max_degree) {
    const std::size_t room = 3 * static_cast<std::size_t>(max_degree);  // also for what is dropped again
    sources_.reserve(room);
    targets_.reserve(room);
  }

  void clear() noexcept {
    sources_.clear();
    targets_.clear();
  }

  /// This rank receives the value of `peer` and gives it `weight`. At most once a peer.
  void hear(Rank peer, double weight) { sources_.push_back({peer, weight}); }
  /// This rank sends its value to `peer`. At most once a peer.
  void tell(Rank peer) { targets_.push_back(peer); }
  /// An undirected edge: hear and tell.
  void swap_with(Rank peer, double weight) {
    hear(peer, weight);
    tell(peer);
  }

  /// Whom this rank hears; in ascending rank after plan_round().
  [[nodiscard]] std::span<const Source> sources() const noexcept { return sources_; }
  /// Whom this rank tells; in ascending rank after plan_round().
  [[nodiscard]] std::span<const Rank> targets() const noexcept { return targets_; }

  /// @brief A place in both lists. For topologies that are made of another one, which they ask for its plan in the same
  /// memory: they remember where that begins, read it, and take it away again.
  struct Mark {
    std::size_t sources;
    std::size_t targets;
  };
  [[nodiscard]] Mark mark() const noexcept { return {sources_.size(), targets_.size()}; }
  /// Takes away what stands between two marks.
  void drop(Mark from, Mark to) noexcept {
    const auto erase = [](auto& list, std::size_t first, std::size_t last) {
      list.erase(list.begin() + static_cast<std::ptrdiff_t>(first), list.begin() + static_cast<std::ptrdiff_t>(last));
    };
    erase(sources_, from.sources, to.sources);
    erase(targets_, from.targets, to.targets);
  }

  /// Sorts both lists by rank: the order in which values are added up.
  void sort() {
    constexpr auto by_rank = [](const Source& a, const Source& b) { return a.rank < b.rank; };
    if (!std::is_sorted(sources_.begin(), sources_.end(), by_rank))
      std::sort(sources_.begin(), sources_.end(), by_rank);
    if (!std::is_sorted(targets_.begin(), targets_.end())) std::sort(targets_.begin(), targets_.end());
  }

private:
  std::vector<Source> sources_;
  std::vector<Rank> targets_;
};

/// What a rank sends in a round over one kind of link: the most of any rank in any round.
struct LinkTraffic {
  std::uint64_t messages = 0;
  /// Models: times the bytes of one, its dtype being f32 or f64 (Sharded sends means of 16-bit types as f32).
  double models = 0;
};

/// @brief What travels inside machines, over fast links, and between them, over slow ones.
///
/// Sharded cuts the model of a machine of L ranks into L shards. Between machines of equal sizes they match, and a rank
/// sends its own in one message for each machine that is told. Elsewhere shards overlap: the bytes are the same, 1/L of
/// a model, in up to 1 + ceil(L' / L) messages to a machine of L' ranks.
struct MachineTraffic {
  Rank machines = 1;
  /// With the exchange FullPrecision.
  LinkTraffic fast;
  LinkTraffic slow;
  /// With the exchange Sharded; empty for a topology whose machines do not average as one.
  std::optional<LinkTraffic> sharded_fast;
  std::optional<LinkTraffic> sharded_slow;
  /// Whether all machines that exchange shards in some round have equal sizes.
  bool shards_match = true;
};

/// @brief What analyze() says of a topology at a size.
///
/// P is the product of the mixing matrices of one period, J the matrix of the exact mean (every entry 1/size).
struct TopologyReport {
  /// Rounds after which the schedule repeats; 0 for a randomised one.
  Round period = 1;
  /// The most messages that a rank sends in one round.
  Rank max_degree = 0;
  /// Every round keeps the mean: rows and columns sum to one.
  bool doubly_stochastic = true;
  /// Every round's matrix equals its transpose.
  bool symmetric = true;
  /// The edges of all rounds together reach every rank from every other.
  bool connected = true;
  /// The schedule is drawn from a seed; what follows is then about one round in expectation.
  bool randomized = false;
  /// Spectral norm of P - J: the factor by which the consensus distance shrinks at least in a period. For a randomised
  /// schedule the square root of the norm of E[W^T W] - J.
  double contraction = 0;
  /// How far `contraction` may be off: 0 for a closed form, a bound for one computed by iteration.
  double contraction_error = 0;
  /// 1 - contraction^(1/period): a lower bound on the asymptotic rate where P is not normal. 1 - contraction for a
  /// randomised schedule.
  double spectral_gap = 1;
  /// Rounds from round 0 after which everybody holds the exact mean; empty where two periods do not suffice.
  std::optional<Round> exact_after;
  /// The same from the worst starting round: gradients enter at every phase.
  std::optional<Round> exact_after_any_phase;
  /// Messages and bytes inside machines and between them, of a topology that says which ranks share a machine.
  std::optional<MachineTraffic> traffic;
};

/// @brief With whom, and with which weight, a rank averages in a round.
///
/// A value whose members are pure functions: the same answer on every rank, no communication, no clock. What the
/// concept cannot check (kith::testing::check_topology does): the two sides agree (i hears j exactly where j tells i),
/// nobody is named twice or names itself, every weight is in (0, 1], and the mixing matrix of every round is doubly
/// stochastic, which is what keeps the mean of the models.
///
/// - `T::name`: the family in kebab case, as users spell it on a command line: "one-peer-exponential".
/// - `period(size)`: rounds after which the schedule repeats; 0 for a randomised one; 1 for size 1.
/// - `max_degree(size)`: the most messages that a rank sends, or receives, in one round; 0 for size 1.
/// - `neighbors(rank, size, round, out)`: appends to `out`, in any order; nothing for size 1. Requires
///   0 <= rank < size and a size that the topology accepts. O(degree) work, no allocation beyond `out`.
///
/// A topology may also have
/// - `require(size)`: throws UsageError for a size >= 2 that it cannot serve, naming sizes or topologies that would do;
/// - `parameters()`: a std::string of what stands after the colon in its full name: "4x2" of "torus:4x2". Two values
///   that plan differently have different parameters: ranks compare them;
/// - `static from_parameters(std::string_view)`: the inverse, throws UsageError; see kith/topology/any.hpp;
/// - `full_name()`: a std::string, where family and parameters are known at run time only (AnyTopology);
/// - `report(size)`: the TopologyReport in closed form (see kith/topology/analysis.hpp); an std::optional of it where
///   only some sizes have one;
/// - `machine_of(rank, size)`: a number of the machine that a rank is on, for topologies whose machines average as one:
///   W(i, j) depends on nothing but the machines of i and j. Links inside a machine are fast. An std::optional of it
///   where that is known at run time only (AnyTopology). See kith/topology/hierarchical.hpp.
template <class T>
concept Topology = std::copyable<T> &&
    requires(const T& topology, Rank rank, Rank size, Round round, Neighborhood& out) {
  { T::name } -> std::convertible_to<std::string_view>;
  { topology.period(size) } -> std::same_as<Round>;
  { topology.max_degree(size) } -> std::same_as<Rank>;
  topology.neighbors(rank, size, round, out);
};

/// The full name of a topology, "torus:4x2": its family, and its parameters where it has any.
template <Topology T>
[[nodiscard]] std::string topology_name(const T& topology) {
  if constexpr (requires {
                  { topology.full_name() } -> std::convertible_to<std::string>;
                })
    return topology.full_name();
  std::string name{std::string_view{T::name}};
  if constexpr (requires {
                  { topology.parameters() } -> std::convertible_to<std::string>;
                }) {
    if (const std::string parameters = topology.parameters(); !parameters.empty()) name += ':' + parameters;
  }
  return name;
}

/// @brief Throws UsageError unless the topology exists for `size` ranks. Size 1 always does: it is a no-op.
template <Topology T>
void require_size(const T& topology, Rank size) {
  if (size < 1) throw UsageError("a group has at least 1 rank, not " + std::to_string(size));
  if constexpr (requires { topology.require(size); }) {
    if (size > 1) topology.require(size);
  }
}

/// Fills `out` with what `rank` does in `round`, in ascending rank. Requires a size that passed require_size().
template <Topology T>
void plan_round(const T& topology, Rank rank, Rank size, Round round, Neighborhood& out) {
  out.clear();
  if (size > 1) topology.neighbors(rank, size, round, out);
  out.sort();
}

namespace detail {

/// Throws UsageError for a planned round that names ranks which do not exist, the rank itself or one twice, or more of
/// them than `max_degree`: an author's mistake that would otherwise read memory that is not there.
inline void require_valid(const Neighborhood& plan, Rank rank, Rank size, Rank max_degree, std::string_view name) {
  Rank before = -1;
  const auto check = [&](Rank peer) {
    if (peer <= before || peer >= size || peer == rank)
      throw UsageError("topology " + std::string{name} + " names rank " + std::to_string(peer) + " to rank " +
                       std::to_string(rank) + " of " + std::to_string(size) +
                       ": peers exist, differ from the rank itself, and are named once a round");
    before = peer;
  };
  for (const auto& source : plan.sources()) check(source.rank);
  before = -1;
  for (const Rank target : plan.targets()) check(target);
  if (std::max(plan.sources().size(), plan.targets().size()) > static_cast<std::size_t>(max_degree))
    throw UsageError("topology " + std::string{name} + " names more peers than its max_degree, " +
                     std::to_string(max_degree));
}

}  // namespace detail

}  // namespace kith
