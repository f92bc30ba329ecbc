// SPDX-License-Identifier: Apache-2.0
#include <kith/averager/agreement.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <kith/averager.hpp>
#include <kith/testing/message_passing.hpp>
#include <kith/topology/any.hpp>

#include <doctest/doctest.h>

namespace averager_agreement_test {

using kith::AnyTopology;
using kith::AveragerOptions;
using kith::Rank;
using kith::UsageError;

namespace {

struct RenamedExchange : kith::FullPrecision {
  static constexpr std::string_view name = "renamed";
};

// A ring whose author has made a mistake on rank 2.
enum class Mistake { none, beyond_the_last, below_the_first, itself, twice, too_many };
struct MistakenRing {
  static constexpr std::string_view name = "mistaken-ring";
  Mistake mistake = Mistake::none;

  [[nodiscard]] static kith::Round period(Rank) { return 1; }
  [[nodiscard]] static Rank max_degree(Rank) { return 2; }
  void neighbors(Rank rank, Rank size, kith::Round round, kith::Neighborhood& out) const {
    kith::Ring{}.neighbors(rank, size, round, out);
    if (rank != 2) return;
    switch (mistake) {
      case Mistake::none:
        return;
      case Mistake::beyond_the_last:
        return out.hear(size, 0.1);
      case Mistake::below_the_first:
        return out.tell(-1);
      case Mistake::itself:
        return out.hear(2, 0.1);
      case Mistake::twice:
        return out.tell(3);
      case Mistake::too_many:
        return out.hear(0, 0.1);
    }
  }
};
static_assert(kith::Topology<MistakenRing>);

// What one rank is given.
struct Given {
  AnyTopology topology = kith::Ring{};
  std::vector<kith::BufferView> buffers;
  AveragerOptions options;
  bool other_exchange = false;
};

// Constructs an averager from what a rank is given, and says what it was told.
template <class C>
std::string refusal_of(C& communicator, const Given& given) {
  try {
    if (given.other_exchange) {
      kith::DecentralizedAverager averager{communicator, given.topology, given.buffers, RenamedExchange{},
                                           given.options};
    } else {
      kith::DecentralizedAverager averager{communicator, given.topology, given.buffers, given.options};
    }
  } catch (const UsageError& error) {
    return error.what();
  }
  return {};
}

// Runs a construction in which rank `odd_one` is given something else. Every rank has to say so, naming the rank and
// the field, and the group has to work after that.
template <class Change>
void check_refused(Rank size, Rank odd_one, const std::string& named_rank, const std::string& field,
                   const Change& change) {
  CAPTURE(size);
  CAPTURE(odd_one);
  CAPTURE(field);
  std::vector<std::string> refusals(2 * static_cast<std::size_t>(size));
  const auto start = std::chrono::steady_clock::now();
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    std::vector<float> a(10, static_cast<float>(communicator.rank()));
    std::vector<double> b(20);
    Given given;
    given.buffers = {kith::view(a), kith::view(b)};
    if (communicator.rank() == odd_one) change(given);
    if (communicator.rank() == size - 1) std::this_thread::sleep_for(std::chrono::milliseconds{20});  // looks later
    const auto r = static_cast<std::size_t>(communicator.rank());
    refusals[2 * r + !kith::SharedAddressSpace<std::remove_reference_t<decltype(communicator)>>] =
        refusal_of(communicator, given);
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Complete{}}, {kith::view(a)}};
    averager.average();
    CHECK(averager.consensus_distance() < 1e-5);
  });
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds{30});  // the deadline is 60
  for (const std::string& refusal : refusals) {
    CAPTURE(refusal);
    CHECK(refusal.find(named_rank) != std::string::npos);
    CHECK(refusal.find(field) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("agreement: ranks that are given the same are satisfied") {
  kith::testing::run_both_ways(3, [](auto& communicator) {
    std::vector<float> a(10);
    Given given;
    given.buffers = {kith::view(a), {nullptr, 0, kith::DType::f64}};
    CHECK(refusal_of(communicator, given).empty());
    given.buffers.clear();
    CHECK(refusal_of(communicator, given).empty());
  });
}

TEST_CASE("agreement: buffers that differ") {
  for (const auto& [size, odd] : {std::pair<Rank, Rank>{4, 2}, {2, 1}}) {
    const std::string rank = "rank " + std::to_string(odd);
    check_refused(size, odd, rank, "number of buffers", [](Given& g) { g.buffers.pop_back(); });
    check_refused(size, odd, rank, "number of buffers: 0 against 2", [](Given& g) { g.buffers.clear(); });
    check_refused(size, odd, rank, "buffer 1", [](Given& g) { g.buffers[1].count = 19; });
    check_refused(size, odd, rank, "20 elements of f32 against 20 elements of f64",
                  [](Given& g) { g.buffers[1].dtype = kith::DType::f32; });
    check_refused(size, odd, rank, "buffer 0", [](Given& g) { std::swap(g.buffers[0], g.buffers[1]); });
  }
}

TEST_CASE("agreement: rank 0 differs from all others") {
  check_refused(3, 0, "rank 1 differs from rank 0", "buffer 0", [](Given& g) { g.buffers[0].count = 9; });
  check_refused(3, 0, "rank 1 differs from rank 0", "topology: ring against star",
                [](Given& g) { g.topology = kith::Star{}; });
}

TEST_CASE("agreement: topologies that differ, in kind or in a parameter") {
  check_refused(4, 3, "rank 3", "topology: complete against ring", [](Given& g) { g.topology = kith::Complete{}; });
  const auto differ = [](const AnyTopology& left, const AnyTopology& right, const std::string& field) {
    kith::testing::run_both_ways(8, [&](auto& communicator) {
      Given given;
      given.topology = communicator.rank() == 5 ? left : right;
      const std::string refusal = refusal_of(communicator, given);
      CAPTURE(refusal);
      CHECK(refusal.find("rank 5 differs from rank 0 in topology: " + field) != std::string::npos);
    });
  };
  differ(kith::Torus{4, 2}, kith::Torus{2, 4}, "torus:4x2 against torus:2x4");
  differ(kith::EquiDynamic{8}, kith::EquiDynamic{7}, "equi-dynamic:8 against equi-dynamic:7");
  differ(kith::RandomMatching{1}, kith::RandomMatching{2}, "random-matching:1 against random-matching:2");
  differ(kith::BaseGraph{1}, kith::BaseGraph{2}, "base-graph:1 against base-graph:2");
  differ(kith::Custom::from_edges(8, {{0, 1}}), kith::Custom::from_edges(8, {{0, 2}}), "custom:");
}

TEST_CASE("agreement: topologies that differ only in their type's own parameters") {
  // Long lists differ behind what a message has room for: the comparison must see it all the same.
  const AnyTopology a =
      kith::parse_topology("cycle:[ring,star,complete,one-peer-exponential,hypercube,torus:2x2,ring]");
  const AnyTopology b =
      kith::parse_topology("cycle:[ring,star,complete,one-peer-exponential,hypercube,torus:2x2,star]");
  kith::testing::run_both_ways(4, [&](auto& communicator) {
    Given given;
    given.topology = communicator.rank() == 1 ? a : b;
    CHECK(refusal_of(communicator, given).find("rank 1 differs from rank 0 in topology") != std::string::npos);
  });
}

TEST_CASE("agreement: exchanges that differ") {
  check_refused(3, 1, "rank 1", "exchange: renamed against full-precision", [](Given& g) { g.other_exchange = true; });
}

TEST_CASE("agreement: options that differ, one by one") {
  const auto differ = [](const std::string& field, auto change) {
    check_refused(3, 2, "rank 2", field, [&](Given& g) { change(g.options); });
  };
  differ("mixing", [](AveragerOptions& o) { o.mixing = 0.5; });
  differ("every: 2 against 1", [](AveragerOptions& o) { o.every = 2; });
  differ("warmup_rounds", [](AveragerOptions& o) { o.warmup_rounds = 3; });
  differ("global_every", [](AveragerOptions& o) { o.global_every = 3; });
  differ("deadline", [](AveragerOptions& o) { o.deadline = kith::Seconds{59}; });
  differ("bucket_bytes", [](AveragerOptions& o) { o.bucket_bytes = 8192; });
  differ("encode_from_bytes", [](AveragerOptions& o) { o.encode_from_bytes = 1; });
  differ("check_finite", [](AveragerOptions& o) { o.check_finite = true; });
  differ("check_finite", [](AveragerOptions& o) { o.check_finite = false; });  // said, against unsaid
}

TEST_CASE("agreement: one rank's buffers are no model: overlapping, tied, nowhere or impossible") {
  std::vector<float> memory(100);
  const auto refused = [&](const std::string& why, std::vector<kith::BufferView> buffers) {
    kith::testing::run_both_ways(3, [&](auto& communicator) {
      std::vector<float> a(10), b(10);
      Given given;
      given.buffers = {kith::view(a), kith::view(b)};
      if (communicator.rank() == 1) given.buffers = buffers;
      const std::string refusal = refusal_of(communicator, given);
      CAPTURE(refusal);
      CHECK(refusal.find(why) != std::string::npos);
      if (communicator.rank() != 1) CHECK(refusal.find("rank 1 ") != std::string::npos);
    });
  };
  float* data = memory.data();
  refused("overlap", {kith::view(data, 10), kith::view(data, 10)});
  refused("overlap", {kith::view(data, 10), kith::view(data + 9, 10)});
  refused("overlap", {kith::view(data + 50, 10), kith::view(data, 51)});
  refused("overlap", {kith::view(data, 100), kith::view(data + 50, 1)});
  refused("null pointer", {kith::view(data, 10), kith::view(static_cast<float*>(nullptr), 10)});
  refused("more than there is memory", {kith::view(data, SIZE_MAX / 2), {}});
  refused("dtype", {kith::view(data, 10), kith::view(data + 10, 10, static_cast<kith::DType>(17))});
}

TEST_CASE("agreement: buffers side by side do not overlap, nor do empty ones") {
  kith::testing::run_both_ways(2, [](auto& communicator) {
    std::vector<float> memory(20);
    Given given;
    given.buffers = {kith::view(memory.data(), 10), kith::view(memory.data() + 10, 10),
                     kith::view(memory.data() + 5, 0)};
    CHECK(refusal_of(communicator, given).empty());
  });
}

TEST_CASE("agreement: a topology that does not exist for the size") {
  kith::testing::run_both_ways(6, [](auto& communicator) {
    Given given;
    given.topology = kith::Hypercube{};
    const std::string refusal = refusal_of(communicator, given);
    CAPTURE(refusal);
    CHECK(refusal.find("hypercube") != std::string::npos);
    CHECK(refusal.find("power of two") != std::string::npos);
    given.topology = communicator.rank() == 4 ? AnyTopology{kith::Torus{2, 2}} : AnyTopology{kith::Ring{}};
    CHECK(refusal_of(communicator, given).find("torus:2x2") != std::string::npos);
  });
}

TEST_CASE("agreement: a topology whose author has made a mistake is refused on every rank before it is used") {
  for (const Mistake mistake : {Mistake::none, Mistake::beyond_the_last, Mistake::below_the_first, Mistake::itself,
                                Mistake::twice, Mistake::too_many}) {
    CAPTURE(static_cast<int>(mistake));
    kith::testing::run_both_ways(5, [&](auto& communicator) {
      std::vector<float> model(10, static_cast<float>(communicator.rank()));
      std::string told;
      try {
        kith::DecentralizedAverager averager{communicator, MistakenRing{mistake}, {kith::view(model)}};
        averager.average();
      } catch (const UsageError& error) {
        told = error.what();
      }
      CHECK((told.find("rank 2 cannot take part: topology mistaken-ring") != std::string::npos) ==
            (mistake != Mistake::none));
      CHECK(told.empty() == (mistake == Mistake::none));
    });
  }
}

TEST_CASE("agreement: two ranks of one process that name the same memory") {
  std::vector<float> shared(64);
  for (const std::size_t offset : {std::size_t{0}, std::size_t{31}}) {
    kith::thread::run(4, [&](kith::thread::Communicator& communicator) {
      std::vector<float> own(32), other(8);
      Given given;
      given.buffers = {kith::view(own), kith::view(other)};
      if (communicator.rank() == 1) given.buffers[0] = kith::view(shared.data(), 32);
      if (communicator.rank() == 3) given.buffers[0] = kith::view(shared.data() + offset, 32);
      const std::string refusal = refusal_of(communicator, given);
      CAPTURE(refusal);
      CHECK(refusal.find("ranks 1 and 3") != std::string::npos);
      CHECK(refusal.find("overlap") != std::string::npos);
    });
  }
  kith::thread::run(2, [&](kith::thread::Communicator& communicator) {  // halves of one allocation are fine
    Given given;
    given.buffers = {kith::view(shared.data() + 32 * communicator.rank(), 32)};
    CHECK(refusal_of(communicator, given).empty());
  });
}

TEST_CASE("agreement: a rank that never constructs its averager") {
  kith::testing::run_both_ways(3, [](auto& communicator) {
    if (communicator.rank() == 1) return;
    CHECK_THROWS_AS((void)refusal_of(communicator, Given{}), kith::PeerError);
  });
}

TEST_CASE("agreement: digests tell contents, lengths and order apart") {
  const auto digest = [](std::initializer_list<std::string> texts) {
    kith::detail::Digest d;
    for (const std::string& text : texts) d.add(std::string_view{text});
    return d.value();
  };
  CHECK(digest({"ring"}) == digest({"ring"}));
  CHECK(digest({"ring"}) != digest({"rinh"}));
  CHECK(digest({"ab", "c"}) != digest({"a", "bc"}));
  CHECK(digest({"ab", "c"}) != digest({"c", "ab"}));
  CHECK(digest({std::string(8, '\0')}) != digest({std::string(9, '\0')}));
  CHECK(digest({""}) != digest({}));
}

}  // namespace averager_agreement_test
