// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include <kith/topology.hpp>

namespace kith {

/// @brief Topologies in turn: round t is round floor(t / m) of member t mod m, for m members.
///
/// `Cycle{OnePeerExponential{}, Isolated{}}` talks in every other round; `Cycle{a, b}` goes through both schedules in
/// full, side by side. Symmetric, or exact, as the members make it. Members may be cycles themselves.
///
/// @par Cost          That of the member whose turn it is.
/// @par Thread safety As its members: a value; every member function is pure.
template <Topology... Members>
requires(sizeof...(Members) > 0) class Cycle {
public:
  static constexpr std::string_view name = "cycle";

  explicit constexpr Cycle(Members... members) : members_(std::move(members)...) {}

  /// m times the least common multiple of the members' periods; 0 if the schedule of any of them is randomised.
  [[nodiscard]] constexpr Round period(Rank size) const noexcept {
    if (size < 2) return 1;
    return sizeof...(Members) * with_members([&](const auto&... member) {
             Round common = 1;
             ((common = std::lcm(common, member.period(size))), ...);  // lcm(x, 0) is 0
             return common;
           });
  }

  /// The largest of the members' degrees.
  [[nodiscard]] constexpr Rank max_degree(Rank size) const noexcept {
    return with_members([&](const auto&... member) { return std::max({member.max_degree(size)...}); });
  }

  /// Appends what the member whose turn it is says. Requires 0 <= rank < size and a size that all members accept.
  void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const {
    if (size < 2) return;
    with_members([&](const auto&... member) {
      std::size_t turn = static_cast<std::size_t>(round % sizeof...(Members));
      ((turn-- == 0 ? member.neighbors(rank, size, round / sizeof...(Members), out) : void()), ...);
    });
  }

  /// Throws UsageError for a size that a member refuses.
  void require(Rank size) const {
    with_members([&](const auto&... member) { (require_size(member, size), ...); });
  }

  /// The members' full names in square brackets: "[ring,base-graph:2]".
  [[nodiscard]] std::string parameters() const {
    return with_members([](const auto&... member) {
      std::string names;
      ((names += (names.empty() ? "[" : ",") + topology_name(member)), ...);
      return names + ']';
    });
  }

  friend bool operator==(const Cycle&, const Cycle&) = default;

private:
  template <class Body>
  constexpr decltype(auto) with_members(Body&& body) const {
    return std::apply(std::forward<Body>(body), members_);
  }

  std::tuple<Members...> members_;
};

}  // namespace kith
