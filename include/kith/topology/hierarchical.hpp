// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <kith/error.hpp>
#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>
#include <kith/topology/machines.hpp>
#include <kith/topology/one_peer_exponential.hpp>

namespace kith {

/// @brief Machines average as one: inside a machine the exact mean, between machines the round of another topology. For
/// fast links inside machines and slow ones between them.
///
/// @code
/// kith::Hierarchical{8, kith::OnePeerExponential{}}  // ranks 0..7 share a machine, 8..15 another, ...
/// kith::Hierarchical{kith::mpi::machines(MPI_COMM_WORLD), kith::BaseGraph{1}}  // ranks with equal numbers do
/// @endcode
///
/// W(i, j) = W_M(a, b) / L_b, with a and b the machines of i and j and L the numbers of their ranks. So all ranks of a
/// machine end a round with the same model, sum_b W_M(a, b) m_b, where m_b is the mean of machine b before it.
///
/// **The machines' matrix.** Let w be the inter topology's matrix of the round, F(a, b) = L_a W_M(a, b) what flows from
/// b to a, and L the smallest number of ranks. For a not equal to b
///
/// 1. where a and all that it hears form a clique N in which every weight is 1/|N|: F(a, b) = L_a L_b / (sum of L over
///    N). They all end at the mean of their ranks: a pair at (L_a x_a + L_b x_b) / (L_a + L_b);
/// 2. else, where w(a, b) = w(b, a): F(a, b) = w(a, b) min(L_a, L_b);
/// 3. else F(a, b) = w(a, b) L,
///
/// and F(a, a) = L_a - sum of F(a, b) over b. W is doubly stochastic if F >= 0 has row sums L_a, which it has, and
/// column sums L_b: then sum_i W(i, j) = sum_a L_a W_M(a, b) / L_b = 1. All members of a clique agree that they are
/// one, and w has no other weight in their rows and columns: what flows in from the others of N is L_a (1 - L_a / sum
/// L), as much as flows out, and less than L_a. Any other machine's edges are of kinds 2 and 3. Those of kind 2 are
/// symmetric: as much flows in as out. What is left of row a of w then sums to the same as what is left of column a,
/// and kind 3 multiplies both by L. So columns sum to L_a as rows do; and as no edge of kinds 2 and 3 carries more than
/// w(a, b) L_a into a, F(a, a) >= w(a, a) L_a >= 0. Machines of equal sizes have W_M = w, exactly.
///
/// With equal sizes P - J of a period has the norm of the inter topology's among machines, and is exact when that is.
/// With unequal sizes a schedule that is exact for the inter topology is not, in general; Complete is (W = J).
///
/// @par Cost          With FullPrecision a message of the model's size to each rank of the own machine and of those
///                    that it tells: L times the inter topology's over the slow links. The exchange Sharded sends
///                    1/L of a model there. Planning: the inter topology's, O(degree) ranks, and where sizes differ the
///                    plans of the inter topology's peers.
/// @par Thread safety A value; every member is a pure function. Copies share the map.
/// @par Source        Hierarchical gossip as in Bagua's hierarchical mode and Decent-DP's alternating exponential ring,
///                    with exact means inside machines; weights 2 after Metropolis, as in Custom::from_edges.
template <class Inter = OnePeerExponential>
class Hierarchical {
public:
  static constexpr std::string_view name = "hierarchical";

  /// `intra_size` consecutive ranks share a machine; the last one may have fewer. @throws UsageError below 1.
  explicit Hierarchical(Rank intra_size, Inter inter = {}) : machines_(intra_size), inter_(std::move(inter)) {
    static_assert(Topology<Inter>);
  }
  /// The machine of each rank, as any numbers: ranks with equal ones share a machine. It serves groups of that size
  /// only. @throws UsageError for an empty map.
  explicit Hierarchical(const std::vector<Rank>& machine_of, Inter inter = {})
      : machines_(std::span<const Rank>{machine_of}), inter_(std::move(inter)) {}

  /// The inter topology's among machines.
  [[nodiscard]] Round period(Rank size) const { return size < 2 ? 1 : Round{inter_.period(machines_.count(size))}; }

  [[nodiscard]] Rank max_degree(Rank size) const {
    if (size < 2) return 0;
    const Rank machines = machines_.count(size);
    return machines_.ranks_of_largest(1 + std::min(inter_.max_degree(machines), machines - 1), size) - 1;
  }

  /// Appends the others of the machine, and all ranks of the machines that it hears and tells. Requires 0 <= rank <
  /// size and a size that it accepts.
  void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const {
    if (size < 2) return;
    const Rank own = machines_.of(rank);
    const Neighborhood::Mark begin = out.mark();
    if (machines_.count(size) > 1) inter_.neighbors(own, machines_.count(size), round, out);
    const Neighborhood::Mark end = out.mark();
    const bool even = machines_.even(size);
    const Rank clique = even ? 0 : ranks_of_clique(own, size, round, begin, out);
    double self = 1;
    for (std::size_t k = begin.sources; k < end.sources; ++k) {
      const auto [other, weight] = out.sources()[k];
      const Rank ranks = machines_.ranks(other, size);
      double between = weight;
      if (clique > 0)
        between = static_cast<double>(ranks) / clique;
      else if (!even)
        between = weight * share(own, {other, weight}, size, round, out);
      self -= between;
      for (Rank index = 0; index < ranks; ++index) out.hear(machines_.member(other, index), between / ranks);
    }
    for (std::size_t k = begin.targets; k < end.targets; ++k) {
      const Rank other = out.targets()[k];
      for (Rank index = 0; index < machines_.ranks(other, size); ++index) out.tell(machines_.member(other, index));
    }
    out.drop(begin, end);
    if (self < nothing) return;
    const Rank ranks = machines_.ranks(own, size);
    for (Rank index = 0; index < ranks; ++index)
      if (const Rank other = machines_.member(own, index); other != rank) out.swap_with(other, self / ranks);
  }

  /// The machine of a rank: see Topology. Machines are numbered in the order of their lowest ranks.
  [[nodiscard]] Rank machine_of(Rank rank, Rank /*size*/) const noexcept { return machines_.of(rank); }

  /// Throws UsageError for a size that is not the map's, and for a number of machines that the inter topology refuses.
  void require(Rank size) const {
    if (size < 2) return;
    machines_.require(size);
    require_size(inter_, machines_.count(size));
  }

  /// "[4,one-peer-exponential]"; with a map 16 hex digits stand for it: "[map-0123456789abcdef,ring]".
  [[nodiscard]] std::string parameters() const {
    return '[' + machines_.parameters() + ',' + topology_name(inter_) + ']';
  }

  /// The inter topology's, where machines have equal sizes and it has one.
  [[nodiscard]] std::optional<TopologyReport> report(Rank size) const {
    if (size < 2) return detail::report_of_one();
    const Rank machines = machines_.count(size);
    if (machines == 1) return detail::report_of_exact(1, size - 1, 1);
    if (!machines_.even(size)) return std::nullopt;
    std::optional<TopologyReport> report;
    if constexpr (requires { inter_.report(machines); }) report = inter_.report(machines);
    if (report) report->max_degree = machines_.ranks_of_largest(1 + report->max_degree, size) - 1;
    return report;
  }

private:
  // A machine's own weight that is nothing but rounding.
  static constexpr double nothing = 1e-12;

  // F(a, b) / (L_a w(a, b)) of an edge outside of cliques.
  [[nodiscard]] double share(Rank own, Neighborhood::Source edge, Rank size, Round round, Neighborhood& out) const {
    const Neighborhood::Mark before = out.mark();
    inter_.neighbors(edge.rank, machines_.count(size), round, out);
    bool symmetric = false;
    for (const auto& back : out.sources().subspan(before.sources))
      symmetric = symmetric || back == Neighborhood::Source{own, edge.weight};
    out.drop(before, out.mark());
    const Rank mine = machines_.ranks(own, size);
    const Rank most = symmetric ? machines_.ranks(edge.rank, size) : machines_.smallest(size);
    return static_cast<double>(std::min(mine, most)) / mine;
  }

  // If a machine and all that it hears (in `out`, from `begin` on) form a clique of equal weights, the ranks of all of
  // them; otherwise 0.
  [[nodiscard]] Rank ranks_of_clique(Rank own, Rank size, Round round, Neighborhood::Mark begin,
                                     Neighborhood& out) const {
    const std::size_t count = out.sources().size() - begin.sources;
    if (count == 0) return 0;
    const double weight = 1.0 / static_cast<double>(count + 1);
    Rank ranks = machines_.ranks(own, size);
    const Neighborhood::Mark end = out.mark();
    bool clique = true;
    for (std::size_t k = 0; clique && k < count; ++k) {
      const auto [member, given] = out.sources()[begin.sources + k];
      ranks += machines_.ranks(member, size);
      inter_.neighbors(member, machines_.count(size), round, out);
      const auto mine = out.sources().subspan(begin.sources, count);
      const auto theirs = out.sources().subspan(end.sources);
      const auto is_member = [&](const Neighborhood::Source& source) {
        return source.weight == weight &&
               (source.rank == own || std::any_of(mine.begin(), mine.end(), [&](const Neighborhood::Source& other) {
                  return other.rank == source.rank;
                }));
      };
      clique = given == weight && theirs.size() == count && std::all_of(theirs.begin(), theirs.end(), is_member);
      out.drop(end, out.mark());
    }
    return clique ? ranks : 0;
  }

  detail::Machines machines_;
  Inter inter_;
};

template <class Inter>
Hierarchical(Rank, Inter) -> Hierarchical<Inter>;
template <class Inter>
Hierarchical(std::vector<Rank>, Inter) -> Hierarchical<Inter>;

static_assert(Topology<Hierarchical<>>);

}  // namespace kith
