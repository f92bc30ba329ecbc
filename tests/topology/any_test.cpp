// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <kith/topology/any.hpp>
#include <kith/topology/cycle.hpp>

namespace topology_any_test {

namespace {

using kith::AnyTopology;
using kith::Neighborhood;
using kith::Rank;
using kith::Round;

// Everything that a topology says, in words: its name, and its refusal or its rounds at some sizes.
template <kith::Topology T>
std::vector<std::string> portrait(const T& topology) {
  std::vector<std::string> lines{kith::topology_name(topology)};
  Neighborhood out;
  for (Rank size = 1; size <= 20; ++size) {
    try {
      kith::require_size(topology, size);
    } catch (const kith::UsageError& error) {
      lines.emplace_back(error.what());
      continue;
    }
    lines.push_back("size " + std::to_string(size) + ": period " + std::to_string(topology.period(size)) +
                    ", max_degree " + std::to_string(topology.max_degree(size)));
    for (Rank rank = 0; rank < size; ++rank)
      for (Round round = 0; round < 7; ++round) {
        kith::plan_round(topology, rank, size, round, out);
        std::string line = std::to_string(rank) + " in " + std::to_string(round) + " hears";
        for (const auto& [peer, weight] : out.sources())
          line += ' ' + std::to_string(peer) + " (" + std::to_string(weight) + ')';
        line += " tells";
        for (const Rank peer : out.targets()) line += ' ' + std::to_string(peer);
        lines.push_back(std::move(line));
      }
  }
  return lines;
}

void check_same(const std::vector<std::string>& expected, const std::vector<std::string>& found) {
  CAPTURE(expected.front());
  REQUIRE(expected.size() == found.size());
  for (std::size_t i = 0; i < expected.size(); ++i)
    if (expected[i] != found[i]) FAIL_CHECK(expected[i] << ", not " << found[i]);
}

// Whether both plan the same, and say the same of themselves.
template <kith::Topology T>
void check_alike(const T& typed, const AnyTopology& any) {
  check_same(portrait(typed), portrait(any));
}

std::string refusal_of(const std::string& full_name) {
  try {
    (void)kith::parse_topology(full_name);
  } catch (const kith::UsageError& error) {
    return error.what();
  }
  return {};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST_CASE("any: each name makes the topology of that name, with its defaults") {
  check_alike(kith::OnePeerExponential{}, kith::parse_topology("one-peer-exponential"));
  check_alike(kith::StaticExponential{}, kith::parse_topology("static-exponential"));
  check_alike(kith::BaseGraph{}, kith::parse_topology("base-graph"));
  check_alike(kith::HyperCuboid{}, kith::parse_topology("hyper-cuboid"));
  check_alike(kith::OnePeerHypercube{}, kith::parse_topology("one-peer-hypercube"));
  check_alike(kith::Hypercube{}, kith::parse_topology("hypercube"));
  check_alike(kith::HalvingShift{}, kith::parse_topology("halving-shift"));
  check_alike(kith::ShiftOne{}, kith::parse_topology("shift-one"));
  check_alike(kith::RandomMatching{}, kith::parse_topology("random-matching"));
  check_alike(kith::EquiDynamic{}, kith::parse_topology("equi-dynamic"));
  check_alike(kith::Ring{}, kith::parse_topology("ring"));
  check_alike(kith::Torus{}, kith::parse_topology("torus"));
  check_alike(kith::Star{}, kith::parse_topology("star"));
  check_alike(kith::Complete{}, kith::parse_topology("complete"));
  check_alike(kith::Isolated{}, kith::parse_topology("isolated"));
  CHECK(kith::topology_names().size() == 15);  // all of the above
}

TEST_CASE("any: parameters stand after a colon") {
  check_alike(kith::BaseGraph{2}, kith::parse_topology("base-graph:2"));
  check_alike(kith::Torus{4, 2}, kith::parse_topology("torus:4x2"));
  check_alike(kith::RandomMatching{7}, kith::parse_topology("random-matching:7"));
  check_alike(kith::EquiDynamic{7}, kith::parse_topology("equi-dynamic:7"));
  CHECK(kith::parse_topology("torus:4x2").parameters() == "4x2");
  CHECK(kith::parse_topology("ring").parameters().empty());
  CHECK(kith::topology_name(kith::parse_topology("torus:4x2")) == "torus:4x2");
}

TEST_CASE("any: a full name leads back to the same topology") {
  for (const std::string& name : kith::topology_names()) {
    CAPTURE(name);
    const AnyTopology topology = kith::parse_topology(name);
    CHECK(kith::parse_topology(kith::topology_name(topology)) == topology);
    CHECK(kith::topology_name(topology).substr(0, name.size()) == name);
  }
  CHECK(kith::parse_topology("base-graph:2") == AnyTopology{kith::BaseGraph{2}});
  CHECK(kith::parse_topology("base-graph:2") != kith::parse_topology("base-graph:3"));
  CHECK(kith::parse_topology("ring") != kith::parse_topology("star"));
}

TEST_CASE("any: by default it is the default topology, and a custom one can be held") {
  CHECK(AnyTopology{} == kith::parse_topology("one-peer-exponential"));
  const auto path = kith::Custom::from_edges(4, {{0, 1}, {1, 2}, {2, 3}});
  check_alike(path, AnyTopology{path});
  AnyTopology topology = kith::Ring{};
  topology = path;
  CHECK(topology.full_name() == kith::topology_name(path));
}

TEST_CASE("any: the report of the topology held, where it has one") {
  const std::optional<kith::TopologyReport> ring = kith::parse_topology("ring").report(8);
  REQUIRE(ring);
  CHECK(ring->contraction == kith::Ring::report(8).contraction);
  CHECK_FALSE(kith::parse_topology("cycle:[ring,star]").report(8));
}

TEST_CASE("any: cycles by name are cycles by type") {
  const kith::Cycle typed{kith::OnePeerExponential{}, kith::Torus{4, 2}, kith::Cycle{kith::Ring{}, kith::Star{}}};
  const std::string name = "cycle:[one-peer-exponential,torus:4x2,cycle:[ring,star]]";
  check_alike(typed, kith::parse_topology(name));
  CHECK(kith::parse_topology(name).full_name() == name);
  check_alike(kith::Cycle{kith::RandomMatching{3}, kith::Complete{}},
              kith::parse_topology("cycle:[random-matching:3,complete]"));
  check_alike(kith::Cycle{kith::BaseGraph{2}}, kith::parse_topology("cycle:[base-graph:2]"));
}

TEST_CASE("any: a name that does not exist is answered with all that do") {
  const std::string message = refusal_of("rign");
  CHECK(contains(message, "\"rign\" is not a topology"));
  for (const std::string& name : kith::topology_names()) CHECK(contains(message, name));
  for (const char* spelling : {"base-graph:DEGREE", "torus:ROWSxCOLUMNS", "random-matching:SEED", "equi-dynamic:SEED",
                               "cycle:[NAME,NAME,...]"})
    CHECK(contains(message, spelling));
  for (const char* name : {"", ":", "Ring", "ring ", "custom", "custom:0123456789abcdef", "any", "torus4x2"}) {
    CAPTURE(name);
    CHECK(contains(refusal_of(name), kith::topology_spellings()));
  }
}

TEST_CASE("any: wrong parameters are refused in words that help") {
  CHECK(contains(refusal_of("ring:4"), "ring has no parameters"));
  CHECK(contains(refusal_of("ring:"), "ring has no parameters"));
  CHECK(contains(refusal_of("torus:"), "ROWSxCOLUMNS"));
  CHECK(contains(refusal_of("torus:4"), "torus:4x2"));
  CHECK_FALSE(refusal_of("base-graph:0").empty());
  CHECK_FALSE(refusal_of("base-graph:two").empty());
  CHECK_FALSE(refusal_of("random-matching:-1").empty());
  for (const char* name : {"cycle", "cycle:", "cycle:ring", "cycle:[]", "cycle:[ring", "cycle:ring]"}) {
    CAPTURE(name);
    CHECK(contains(refusal_of(name), "in brackets"));
  }
  for (const char* name : {"cycle:[ring,]", "cycle:[,ring]", "cycle:[ring,rign]", "cycle:[ring]]", "cycle:[[ring]",
                           "cycle:[cycle:[ring,star]", "cycle:[ring],[star]", "cycle:[ring]x"}) {
    CAPTURE(name);
    CHECK(contains(refusal_of(name), "is not a topology"));
  }
}

}  // namespace

}  // namespace topology_any_test
