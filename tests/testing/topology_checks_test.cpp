// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <doctest/doctest.h>

#include <kith/testing/topology_checks.hpp>
#include <kith/topology/one_peer_exponential.hpp>
#include <kith/topology/random_matching.hpp>
#include <kith/topology/ring.hpp>
#include <kith/topology/torus.hpp>

namespace testing_topology_checks_test {

namespace {

using kith::Neighborhood;
using kith::Rank;
using kith::Round;

// A correct topology, directed and with a period of 2, and what can be broken about it.
enum class Defect {
  none,
  deaf,             // somebody tells a rank that does not hear it
  mute,             // somebody is heard who does not tell
  hears_twice,      //
  tells_twice,      //
  hears_itself,     //
  tells_itself,     //
  hears_nobody,     // a rank that does not exist
  tells_nobody,     //
  zero_weight,      //
  heavy,            // a weight above 1
  not_a_number,     //
  row,              // weights that are fine one by one, and above 1 together
  column,           // one rank gives less than all others: the mean drifts
  slight_column,    // the same, by a little
  degree,           // max_degree says too little
  period,           // it takes longer to repeat
  late_period,      // rounds are counted in 32 bits
  impure,           // it answers otherwise from the ninth question on
  ordered,          // the answer depends on who asked before
  copied,           // a copy is another topology
  clears,           // neighbors() does not append
  alone_busy,       // somebody to talk to in a group of one
  alone_degree,     //
  alone_period,     //
  report_period,    //
  report_degree,    //
  parameters,       // from_parameters() is not the inverse
  parameters_plan,  // it seems to be, but plans differently
};

template <Defect D>
struct Broken {
  static constexpr std::string_view name = "broken";

  Broken() = default;
  Broken(const Broken&) : is_copy(true) {}
  Broken& operator=(const Broken&) = default;

  static Round period(Rank size) { return size < 2 ? (D == Defect::alone_period ? 2 : 1) : 2; }
  static Rank max_degree(Rank size) {
    if (size < 2) return D == Defect::alone_degree ? 1 : 0;
    return D == Defect::degree ? 1 : 2;
  }

  // Round 0: everybody hears the two before it. Round 1: only the one before it.
  void neighbors(Rank rank, Rank size, Round round, Neighborhood& out) const {
    if (size < 2) {
      if (D == Defect::alone_busy) out.tell(0);
      return;
    }
    if (D == Defect::clears) out.clear();
    const std::uint64_t asked = (*questions)++;
    const Rank last_asked = *last;
    *last = rank;
    Rank step = 1;
    if (D == Defect::period && round % 4 == 3) step = 2;
    if (D == Defect::late_period && round != static_cast<std::uint32_t>(round)) step = 2;
    if (D == Defect::impure && asked > 7) step = 2;
    if (D == Defect::ordered && last_asked == rank + 1) step = 2;
    if (D == Defect::copied && is_copy) step = 2;
    if (D == Defect::parameters_plan && other) step = 2;
    const Rank before = (rank + size - step) % size;
    const Rank after = (rank + step) % size;
    const bool odd_one = rank == 1;  // the defect shows at one rank only
    double weight = 0.25;
    if (D == Defect::zero_weight && odd_one) weight = 0;
    if (D == Defect::heavy && odd_one) weight = 1.25;
    if (D == Defect::not_a_number && odd_one) weight = std::numeric_limits<double>::quiet_NaN();
    if (D == Defect::column && odd_one) weight = 0.125;
    if (D == Defect::slight_column && odd_one) weight += 1e-11;
    if (D == Defect::row) weight = 0.75;
    if (!(D == Defect::deaf && odd_one)) out.hear(before, weight);
    if (!(D == Defect::mute && odd_one)) out.tell(after);
    if (round % 2 == 0) {
      out.hear((rank + size - 3) % size, D == Defect::row ? 0.75 : 0.25);
      out.tell((rank + 3) % size);
    }
    if (!odd_one || round % 2 == 0) return;
    if (D == Defect::hears_twice) out.hear(before, 0.25);
    if (D == Defect::tells_twice) out.tell(after);
    if (D == Defect::hears_itself) out.hear(rank, 0.25);
    if (D == Defect::tells_itself) out.tell(rank);
    if (D == Defect::hears_nobody) out.hear(size, 0.25);
    if (D == Defect::tells_nobody) out.tell(-1);
  }

  static std::optional<kith::TopologyReport> report(Rank size) {
    if (size < 2) return std::nullopt;
    kith::TopologyReport report;
    report.period = D == Defect::report_period ? 3 : 2;
    report.max_degree = D == Defect::report_degree ? 3 : 2;
    return report;
  }

  [[nodiscard]] std::string parameters() const { return D == Defect::parameters && other ? "other" : "own"; }
  static Broken from_parameters(std::string_view) {
    Broken result;
    result.other = true;
    return result;
  }

  bool is_copy = false;
  bool other = false;
  std::shared_ptr<std::uint64_t> questions = std::make_shared<std::uint64_t>(0);
  std::shared_ptr<Rank> last = std::make_shared<Rank>(-1);
};

// What check_topology() says, or nothing.
template <kith::Topology T>
std::string verdict(const T& topology, Rank size, Round rounds = kith::testing::default_rounds) {
  try {
    kith::testing::check_topology(topology, size, rounds);
  } catch (const kith::testing::Failure& failure) {
    return failure.what();
  }
  return "";
}

template <Defect D>
std::string verdict_on() {
  return verdict(Broken<D>{}, 7);
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST_CASE("topology checks: topologies that are right pass") {
  CHECK(verdict_on<Defect::none>() == "");
  for (Rank size = 1; size <= 20; ++size) {
    CAPTURE(size);
    CHECK(verdict(kith::Ring{}, size) == "");
    CHECK(verdict(kith::OnePeerExponential{}, size) == "");
    CHECK(verdict(kith::RandomMatching{7}, size) == "");
    CHECK(verdict(kith::Torus{}, size) == "");
  }
}

TEST_CASE("topology checks: a size that the topology refuses is the caller's error") {
  CHECK_THROWS_AS(kith::testing::check_topology(kith::Torus{4, 2}, 7), kith::UsageError);
  CHECK_THROWS_AS(kith::testing::check_topology(kith::Ring{}, 0), kith::UsageError);
}

TEST_CASE("topology checks: two sides that do not agree") {
  CHECK(verdict_on<Defect::deaf>() == "broken:own, size 7, round 0: rank 0 tells rank 1, who does not hear it");
  CHECK(verdict_on<Defect::mute>() == "broken:own, size 7, round 0: rank 2 hears rank 1, who does not tell it");
}

TEST_CASE("topology checks: peers that cannot be") {
  CHECK(verdict_on<Defect::hears_twice>() == "broken:own, size 7, round 1: rank 1 hears rank 0 twice");
  CHECK(verdict_on<Defect::tells_twice>() == "broken:own, size 7, round 1: rank 1 tells rank 2 twice");
  CHECK(verdict_on<Defect::hears_itself>() == "broken:own, size 7, round 1: rank 1 hears itself");
  CHECK(verdict_on<Defect::tells_itself>() == "broken:own, size 7, round 1: rank 1 tells itself");
  CHECK(contains(verdict_on<Defect::hears_nobody>(), "rank 1 hears rank 7, who does not exist"));
  CHECK(contains(verdict_on<Defect::tells_nobody>(), "rank 1 tells rank -1, who does not exist"));
}

TEST_CASE("topology checks: weights, rows and columns") {
  CHECK(contains(verdict_on<Defect::zero_weight>(), "rank 1 gives rank 0 a weight outside (0, 1]: 0.0"));
  CHECK(contains(verdict_on<Defect::heavy>(), "rank 1 gives rank 0 a weight outside (0, 1]: 1.25"));
  CHECK(contains(verdict_on<Defect::not_a_number>(), "rank 1 gives rank 0 a weight outside (0, 1]: nan"));
  CHECK(contains(verdict_on<Defect::row>(), "rank 0 gives its peers more than 1 together (the row sum): 1.5"));
  CHECK(contains(verdict_on<Defect::column>(), "rank 0 has a column of the mixing matrix that sums to 0.875"));
  CHECK(contains(verdict_on<Defect::slight_column>(), "rank 0 has a column of the mixing matrix"));
}

TEST_CASE("topology checks: degree and period") {
  CHECK(contains(verdict_on<Defect::degree>(), "rank 0 has 2 peers, but max_degree is 1"));
  CHECK(contains(verdict_on<Defect::period>(), "round 1: rank 0 does something else 1 periods of 2 rounds later"));
  CHECK(contains(verdict_on<Defect::late_period>(), "the period does not repeat"));
  CHECK(verdict(Broken<Defect::period>{}, 7, 1) == "");  // round 0 alone does not show it
}

TEST_CASE("topology checks: answers that change") {
  CHECK(contains(verdict_on<Defect::impure>(), "asked again, it answers differently"));
  CHECK(contains(verdict_on<Defect::ordered>(), "asked again, it answers differently"));
  CHECK(contains(verdict_on<Defect::copied>(), "a copy of the topology answers differently"));
  CHECK(contains(verdict_on<Defect::clears>(), "neighbors does not append"));
}

TEST_CASE("topology checks: a group of one") {
  CHECK(verdict_on<Defect::alone_busy>() == "broken:own, size 1: somebody is named, but there is nobody");
  CHECK(verdict_on<Defect::alone_degree>() == "broken:own, size 1: max_degree is 1, not 0");
  CHECK(verdict_on<Defect::alone_period>() == "broken:own, size 1: the period is 2, not 1");
}

TEST_CASE("topology checks: what a topology may have besides") {
  CHECK(contains(verdict_on<Defect::report_period>(), "report and topology have different periods"));
  CHECK(contains(verdict_on<Defect::report_degree>(), "report has a larger max_degree"));
  CHECK(contains(verdict_on<Defect::parameters>(), R"("own" comes back as "other")"));
  CHECK(contains(verdict_on<Defect::parameters_plan>(), "what it makes plans round 0 differently"));
}

struct Shouting : kith::Ring {
  static constexpr std::string_view name = "Ring";
};

TEST_CASE("topology checks: names are in kebab case") {
  CHECK(verdict(Shouting{}, 4) == "the name \"Ring\" is not in kebab case (a-z, 0-9 and -)");
}

}  // namespace

}  // namespace testing_topology_checks_test
