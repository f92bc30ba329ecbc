// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <kith/error.hpp>
#include <kith/topology.hpp>
#include <kith/topology/base_graph.hpp>
#include <kith/topology/complete.hpp>
#include <kith/topology/custom.hpp>
#include <kith/topology/equi_dynamic.hpp>
#include <kith/topology/halving_shift.hpp>
#include <kith/topology/hierarchical.hpp>
#include <kith/topology/hyper_cuboid.hpp>
#include <kith/topology/hypercube.hpp>
#include <kith/topology/isolated.hpp>
#include <kith/topology/one_peer_exponential.hpp>
#include <kith/topology/one_peer_hypercube.hpp>
#include <kith/topology/random_matching.hpp>
#include <kith/topology/ring.hpp>
#include <kith/topology/shift_one.hpp>
#include <kith/topology/star.hpp>
#include <kith/topology/static_exponential.hpp>
#include <kith/topology/torus.hpp>

namespace kith {

class AnyTopology;

namespace detail {

/// A string as a template argument, so that the list of topologies says how their parameters are spelled.
template <std::size_t N>
struct Spelling {
  char text[N] = {};
  constexpr Spelling(const char (&literal)[N]) { std::copy_n(literal, N, text); }
  [[nodiscard]] constexpr std::string_view view() const noexcept { return {text, N - 1}; }
};

/// A line in the list of topologies: a type, and what stands after the colon if it has parameters.
template <class T, Spelling Parameters = "">
struct Listed {
  using type = T;
  /// A type that cannot be made from nothing (Custom) can be held, but has no name to be chosen by.
  static constexpr bool has_name = std::default_initializable<T>;
  static constexpr std::string_view parameters = Parameters.view();
  static_assert(
      parameters.empty() != requires { T::from_parameters(parameters); },
      "say how the parameters are spelled exactly where there is a from_parameters");
};

/// Cycle with members that are known at run time only.
class AnyCycle {
public:
  static constexpr std::string_view name = "cycle";

  explicit AnyCycle(std::vector<AnyTopology> members);

  [[nodiscard]] Round period(Rank size) const noexcept;
  [[nodiscard]] Rank max_degree(Rank size) const noexcept;
  void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const;
  void require(Rank size) const;
  [[nodiscard]] std::string parameters() const;

private:
  std::vector<AnyTopology> members_;  // at least one
};

/// Hierarchical with an inter topology that is known at run time only. AnyTopology is not complete yet: a pointer.
class AnyHierarchical {
public:
  static constexpr std::string_view name = "hierarchical";

  explicit AnyHierarchical(std::shared_ptr<const Hierarchical<AnyTopology>> held);

  [[nodiscard]] Round period(Rank size) const;
  [[nodiscard]] Rank max_degree(Rank size) const;
  void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const;
  [[nodiscard]] Rank machine_of(Rank rank, Rank size) const;
  void require(Rank size) const;
  [[nodiscard]] std::string parameters() const;
  [[nodiscard]] std::optional<TopologyReport> report(Rank size) const;

private:
  std::shared_ptr<const Hierarchical<AnyTopology>> held_;
};

/// What AnyTopology does with the list.
template <class... Lines>
struct TopologyList {
  template <class T>
  static constexpr bool contains = (std::is_same_v<T, typename Lines::type> || ...) || std::is_same_v<T, AnyCycle> ||
                                   std::is_same_v<T, AnyHierarchical>;

  /// Calls visit(line) for every line that has a name, with an object of type Listed<...>, until one returns true.
  template <class Visit>
  static constexpr bool any_named(const Visit& visit) {
    return ([&] {
      if constexpr (Lines::has_name) return visit(Lines{});
      return false;
    }() || ...);
  }
};

/// The library's topologies, in the order in which they are shown. A new one is one line here.
using Topologies = TopologyList<     //
    Listed<OnePeerExponential>,      //
    Listed<StaticExponential>,       //
    Listed<BaseGraph, "DEGREE">,     //
    Listed<HyperCuboid>,             //
    Listed<OnePeerHypercube>,        //
    Listed<Hypercube>,               //
    Listed<HalvingShift>,            //
    Listed<ShiftOne>,                //
    Listed<RandomMatching, "SEED">,  //
    Listed<EquiDynamic, "SEED">,     //
    Listed<Ring>,                    //
    Listed<Torus, "ROWSxCOLUMNS">,   //
    Listed<Star>,                    //
    Listed<Complete>,                //
    Listed<Isolated>,                //
    Listed<Custom>>;

}  // namespace detail

/// @brief Any one of the library's topologies: a topology that is chosen at run time, so that a program needs one
/// averager for all of them.
///
/// @code
/// kith::DecentralizedAverager averager{communicator, kith::parse_topology("torus:4x2"), {kith::view(weights)}};
/// @endcode
///
/// It plans, and is named by topology_name(), exactly as the topology that it holds.
///
/// @par Cost          One indirect call more than the topology held; one allocation when it is made from a topology,
///                    none when it is copied (copies share what they hold) or asked.
/// @par Thread safety A value; every member is a pure function.
class AnyTopology {
public:
  static constexpr std::string_view name = "any";

  /// Holds OnePeerExponential, the default.
  AnyTopology() : AnyTopology(OnePeerExponential{}) {}

  /// Holds `topology`, one of the library's.
  template <class T>
  requires(detail::Topologies::contains<T>) AnyTopology(T topology)
      : held_(std::make_shared<const HeldAs<T>>(std::move(topology))) {}

  // Moving copies: an object that was moved from goes on planning as before.
  AnyTopology(const AnyTopology&) = default;
  AnyTopology& operator=(const AnyTopology&) = default;
  ~AnyTopology() = default;

  /// @brief The topology with this full name: "ring", "torus:4x2", "base-graph:2", "cycle:[ring,base-graph:2]",
  /// "hierarchical:[8,one-peer-exponential]" (the brackets may be left out where no list is around it).
  ///
  /// A name alone stands for the default parameters. Throws UsageError for anything else; the message lists every name
  /// there is, or says what is wrong with the parameters. For every topology `t` that has a name,
  /// parse(topology_name(t)) == t.
  [[nodiscard]] static AnyTopology parse(std::string_view full_name);

  [[nodiscard]] Round period(Rank size) const noexcept { return held_->period(size); }

  [[nodiscard]] Rank max_degree(Rank size) const noexcept { return held_->max_degree(size); }

  /// Appends what the topology held says. Requires 0 <= rank < size and a size that it accepts.
  void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const {
    held_->neighbors(rank, size, round, out);
  }

  /// Throws UsageError for a size that the topology held refuses.
  void require(Rank size) const { held_->require(size); }

  /// The full name of the topology held.
  [[nodiscard]] std::string full_name() const { return held_->full_name(); }

  /// The parameters of the topology held; empty where it has none.
  [[nodiscard]] std::string parameters() const { return held_->parameters(); }

  /// What the topology held reports in closed form, if it does.
  [[nodiscard]] std::optional<TopologyReport> report(Rank size) const { return held_->report(size); }

  /// The machine of a rank, if the topology held says which ranks share one: see Topology.
  [[nodiscard]] std::optional<Rank> machine_of(Rank rank, Rank size) const { return held_->machine_of(rank, size); }

  /// Whether both plan alike: a full name says all that matters.
  friend bool operator==(const AnyTopology& a, const AnyTopology& b) { return a.full_name() == b.full_name(); }

private:
  /// What can be asked of a topology held.
  struct Held {
    Held() = default;
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    virtual ~Held() = default;
    [[nodiscard]] virtual Round period(Rank size) const noexcept = 0;
    [[nodiscard]] virtual Rank max_degree(Rank size) const noexcept = 0;
    virtual void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const = 0;
    virtual void require(Rank size) const = 0;
    [[nodiscard]] virtual std::string full_name() const = 0;
    [[nodiscard]] virtual std::string parameters() const = 0;
    [[nodiscard]] virtual std::optional<TopologyReport> report(Rank size) const = 0;
    [[nodiscard]] virtual std::optional<Rank> machine_of(Rank rank, Rank size) const = 0;
  };

  template <class T>
  struct HeldAs;

  std::shared_ptr<const Held> held_;
};

template <class T>
struct AnyTopology::HeldAs final : AnyTopology::Held {
  explicit HeldAs(T it) : topology(std::move(it)) {}

  [[nodiscard]] Round period(Rank size) const noexcept override { return topology.period(size); }
  [[nodiscard]] Rank max_degree(Rank size) const noexcept override { return topology.max_degree(size); }
  void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const override {
    topology.neighbors(rank, size, round, out);
  }
  void require(Rank size) const override { require_size(topology, size); }
  [[nodiscard]] std::string full_name() const override { return topology_name(topology); }
  [[nodiscard]] std::string parameters() const override {
    if constexpr (requires { topology.parameters(); }) return topology.parameters();
    return {};
  }
  [[nodiscard]] std::optional<TopologyReport> report([[maybe_unused]] Rank size) const override {
    if constexpr (requires { topology.report(size); }) return topology.report(size);
    return std::nullopt;
  }
  [[nodiscard]] std::optional<Rank> machine_of([[maybe_unused]] Rank rank, [[maybe_unused]] Rank size) const override {
    if constexpr (requires { topology.machine_of(rank, size); }) return topology.machine_of(rank, size);
    return std::nullopt;
  }

  T topology;
};

static_assert(Topology<AnyTopology>);

/// @brief The names that parse_topology() knows, without parameters: each stands for a topology with its defaults.
[[nodiscard]] inline std::vector<std::string> topology_names() {
  std::vector<std::string> names;
  detail::Topologies::any_named([&](auto line) {
    names.emplace_back(decltype(line)::type::name);
    return false;
  });
  return names;
}

/// @brief Everything that parse_topology() understands, in one line for a help text or an error: "ring, torus or
/// torus:ROWSxCOLUMNS, ...".
[[nodiscard]] inline std::string topology_spellings() {
  std::string all;
  detail::Topologies::any_named([&](auto line) {
    const std::string name{decltype(line)::type::name};
    all += name;
    if (!line.parameters.empty()) all += " or " + name + ':' + std::string{line.parameters};
    all += ", ";
    return false;
  });
  return all + "cycle:[NAME,NAME,...], hierarchical:[RANKS,NAME]";
}

namespace detail {

/// The members between the brackets of a cycle: commas inside the brackets of a member do not part them.
[[nodiscard]] inline std::vector<AnyTopology> parse_members(std::string_view list) {
  std::vector<AnyTopology> members;
  int depth = 0;
  for (std::size_t begin = 0, i = 0; i <= list.size(); ++i) {
    if (i < list.size() && list[i] == '[') ++depth;
    if (i < list.size() && list[i] == ']') --depth;
    if (i < list.size() && (list[i] != ',' || depth != 0)) continue;
    members.push_back(AnyTopology::parse(list.substr(begin, i - begin)));
    begin = i + 1;
  }
  return members;
}

/// The number of ranks of a machine, a comma, and the topology between machines: "[8,ring]" or "8,ring".
[[nodiscard]] inline AnyHierarchical parse_hierarchical(const std::string& quoted, std::string_view parameters) {
  if (parameters.size() > 1 && parameters.front() == '[' && parameters.back() == ']')
    parameters = parameters.substr(1, parameters.size() - 2);
  const std::size_t comma = parameters.find(',');
  Rank intra_size = 0;
  if (comma == std::string_view::npos || !parse_number<Rank>(parameters.substr(0, comma), 1, intra_size))
    throw UsageError(quoted +
                     " is not a topology: hierarchical takes the number of ranks that share a machine and the topology "
                     "between machines, as in hierarchical:[8,one-peer-exponential]");
  return AnyHierarchical{
      std::make_shared<const Hierarchical<AnyTopology>>(intra_size, AnyTopology::parse(parameters.substr(comma + 1)))};
}

}  // namespace detail

inline AnyTopology AnyTopology::parse(std::string_view full_name) {
  const std::size_t colon = full_name.find(':');
  const bool has_parameters = colon != std::string_view::npos;
  const std::string_view family = full_name.substr(0, colon);
  const std::string_view parameters = has_parameters ? full_name.substr(colon + 1) : std::string_view{};
  const std::string quoted = '"' + std::string{full_name} + '"';
  if (family == detail::AnyCycle::name) {
    if (parameters.size() < 3 || parameters.front() != '[' || parameters.back() != ']')
      throw UsageError(quoted +
                       " is not a topology: the members of a cycle stand in brackets, as in "
                       "cycle:[one-peer-exponential,ring]");
    return detail::AnyCycle{detail::parse_members(parameters.substr(1, parameters.size() - 2))};
  }
  if (family == detail::AnyHierarchical::name) return detail::parse_hierarchical(quoted, parameters);
  AnyTopology result;
  const bool found = detail::Topologies::any_named([&](auto line) {
    using T = typename decltype(line)::type;
    if (family != T::name) return false;
    if (!has_parameters) {
      result = T{};
    } else if constexpr (line.parameters.empty()) {
      throw UsageError(quoted + " is not a topology: " + std::string{family} + " has no parameters");
    } else {
      if (parameters.empty())
        throw UsageError(quoted + " is not a topology: after the colon stands " + std::string{line.parameters});
      result = T::from_parameters(parameters);
    }
    return true;
  });
  if (!found) throw UsageError(quoted + " is not a topology; the topologies are " + topology_spellings());
  return result;
}

/// @brief The topology with this full name, for programs that take it from a command line: see AnyTopology::parse.
[[nodiscard]] inline AnyTopology parse_topology(std::string_view full_name) { return AnyTopology::parse(full_name); }

namespace detail {

inline AnyCycle::AnyCycle(std::vector<AnyTopology> members) : members_(std::move(members)) {}

inline Round AnyCycle::period(Rank size) const noexcept {
  if (size < 2) return 1;
  Round common = 1;
  for (const AnyTopology& member : members_) common = std::lcm(common, member.period(size));  // lcm(x, 0) is 0
  return members_.size() * common;
}

inline Rank AnyCycle::max_degree(Rank size) const noexcept {
  Rank most = 0;
  for (const AnyTopology& member : members_) most = std::max(most, member.max_degree(size));
  return most;
}

inline void AnyCycle::neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const {
  if (size < 2) return;
  members_[round % members_.size()].neighbors(rank, size, round / members_.size(), out);
}

inline void AnyCycle::require(Rank size) const {
  for (const AnyTopology& member : members_) require_size(member, size);
}

inline std::string AnyCycle::parameters() const {
  std::string names;
  for (const AnyTopology& member : members_) names += (names.empty() ? '[' : ',') + member.full_name();
  return names + ']';
}

inline AnyHierarchical::AnyHierarchical(std::shared_ptr<const Hierarchical<AnyTopology>> held)
    : held_(std::move(held)) {}

inline Round AnyHierarchical::period(Rank size) const { return held_->period(size); }

inline Rank AnyHierarchical::max_degree(Rank size) const { return held_->max_degree(size); }

inline void AnyHierarchical::neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const {
  held_->neighbors(rank, size, round, out);
}

inline Rank AnyHierarchical::machine_of(Rank rank, Rank size) const { return held_->machine_of(rank, size); }

inline void AnyHierarchical::require(Rank size) const { held_->require(size); }

inline std::string AnyHierarchical::parameters() const { return held_->parameters(); }

inline std::optional<TopologyReport> AnyHierarchical::report(Rank size) const { return held_->report(size); }

}  // namespace detail
}  // namespace kith
