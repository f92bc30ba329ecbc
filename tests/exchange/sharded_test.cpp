// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/sharded.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <kith/averager.hpp>
#include <kith/testing/message_passing.hpp>
#include <kith/topology/analysis.hpp>
#include <kith/topology/any.hpp>
#include <kith/topology/hierarchical.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace exchange_sharded_test {

using kith::AnyTopology;
using kith::DType;
using kith::Rank;
using kith::Round;

namespace {

// A group, its machines written out, and the topology that says the same.
struct Case {
  std::vector<Rank> machine_of;
  std::string inter;
  [[nodiscard]] Rank size() const { return static_cast<Rank>(machine_of.size()); }
  [[nodiscard]] kith::Hierarchical<AnyTopology> topology() const {
    return kith::Hierarchical{machine_of, kith::parse_topology(inter)};
  }
  [[nodiscard]] std::vector<std::vector<std::size_t>> machines() const {
    std::vector<std::vector<std::size_t>> machines;
    for (std::size_t r = 0; r < machine_of.size(); ++r) {
      machines.resize(std::max(machines.size(), static_cast<std::size_t>(machine_of[r]) + 1));
      machines[static_cast<std::size_t>(machine_of[r])].push_back(r);
    }
    return machines;
  }
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {{{0, 0, 0, 0, 1, 1, 1, 1}, "one-peer-exponential"},
                                        {{0, 1, 0, 2, 1, 2, 2}, "ring"},  // machines of 2, 2 and 3 ranks
                                        {{0, 0, 0, 0, 0, 1, 2, 2, 2, 3}, "static-exponential"},  // of 5, 1, 3 and 1
                                        {{0, 0, 0}, "ring"},                                     // a single one
                                        {{0, 1, 2, 3}, "complete"},                  // of a single rank each
                                        {{0, 0, 1, 1, 2, 2}, "random-matching:3"}};  // one machine is idle
  return all;
}

const std::vector<reference::Shape>& shapes() {
  static const std::vector<reference::Shape> all = {{DType::f32, 1003, 1},  {DType::f64, 77}, {DType::f16, 5, 1},
                                                    {DType::bf16, 2000, 3}, {DType::f32, 0},  {DType::f64, 1},
                                                    {DType::f16, 301},      {DType::f32, 1}};
  return all;
}

// The step of one element in T, from the old values of all ranks.
template <class T>
void update(std::vector<reference::Model>& models, const Case& c, const kith::MixingMatrix& w, double a, std::size_t b,
            std::size_t i) {
  const auto machines = c.machines();
  std::vector<T> means;
  for (const auto& members : machines) {
    std::vector<std::pair<T, T>> others;
    for (std::size_t k = 1; k < members.size(); ++k)
      others.emplace_back(static_cast<T>(1.0 / static_cast<double>(members.size())),
                          static_cast<T>(models[members[k]].get(b, i)));
    means.push_back(reference::step<T>(static_cast<T>(models[members[0]].get(b, i)), others, T{1}));
  }
  for (std::size_t m = 0; m < machines.size(); ++m) {
    std::vector<std::pair<T, T>> heard;
    for (std::size_t o = 0; o < machines.size(); ++o) {
      const double weight = w(static_cast<Rank>(machines[m][0]), static_cast<Rank>(machines[o][0]));
      if (o != m && weight > 0)
        heard.emplace_back(static_cast<T>(weight * static_cast<double>(machines[o].size())), means[o]);
    }
    const T merged = reference::step<T>(means[m], heard, T{1});
    for (const std::size_t rank : machines[m]) {
      const T x = static_cast<T>(models[rank].get(b, i));
      const T next = a == 1 ? merged : reference::step<T>(x, {{T{1}, merged}}, static_cast<T>(a));
      models[rank].set(b, i, static_cast<double>(next));
    }
  }
}

void sharded_round(std::vector<reference::Model>& models, const Case& c, Round round, double a) {
  const kith::MixingMatrix w = kith::mixing_matrix(c.topology(), c.size(), round);
  for (std::size_t b = 0; b < models[0].buffers(); ++b)
    for (std::size_t i = 0; i < models[0].shape(b).count; ++i)
      if (models[0].shape(b).dtype == DType::f64)
        update<double>(models, c, w, a, b, i);
      else
        update<float>(models, c, w, a, b, i);
}

// Passes messages on, and counts them, or fails in the middle.
class Counting {
public:
  Counting(kith::thread::Communicator& communicator, std::vector<Rank> machine_of, int fails_in = -1)
      : messages_(communicator), machine_of_(std::move(machine_of)), fails_in_(fails_in) {}
  [[nodiscard]] Rank rank() const noexcept { return messages_.rank(); }
  [[nodiscard]] Rank size() const noexcept { return messages_.size(); }
  [[nodiscard]] std::uint32_t open_channel() { return messages_.open_channel(); }
  kith::Seconds exchange(const kith::Call& call, std::span<const kith::Outgoing> outgoing,
                         std::span<const kith::Incoming> incoming) {
    if (fails_in_-- == 0) throw kith::PeerError("the test pulls the plug", 0, kith::PeerError::Reason::lost);
    for (const kith::Outgoing& out : outgoing) {
      const bool here = machine_of_[static_cast<std::size_t>(out.to)] == machine_of_[static_cast<std::size_t>(rank())];
      ++(here ? fast : slow);
      (here ? fast_bytes : slow_bytes) += out.bytes;
    }
    for (const kith::Incoming& in : incoming) received += in.bytes;
    return messages_.exchange(call, outgoing, incoming);
  }
  kith::Seconds all_gather(const kith::Call& call, std::span<const std::byte> mine, std::span<std::byte> all) {
    return messages_.all_gather(call, mine, all);
  }
  std::uint64_t fast = 0, slow = 0, fast_bytes = 0, slow_bytes = 0, received = 0;

private:
  kith::testing::MessagePassing<kith::thread::Communicator> messages_;
  std::vector<Rank> machine_of_;
  int fails_in_;
};

}  // namespace

TEST_CASE("sharded: the arithmetic is pinned, on engines that share memory and on those that pass messages") {
  for (const Case& c : cases())
    for (const double a : {1.0, 0.3}) {
      CAPTURE(c.inter);
      CAPTURE(a);
      auto expected = reference::random_models(c.size(), shapes(), 5);
      const auto initial = expected;
      for (Round t = 0; t < 3; ++t) sharded_round(expected, c, t, a);
      std::atomic<int> wrong{0};
      kith::testing::run_both_ways(c.size(), [&](auto& communicator) {
        const auto rank = static_cast<std::size_t>(communicator.rank());
        reference::Model model = initial[rank];
        kith::AveragerOptions options;
        options.mixing = a;
        kith::DecentralizedAverager averager{communicator, c.topology(), model.views(), kith::Sharded{}, options};
        for (Round t = 0; t < 3; ++t) averager.average();
        if (!(model == expected[rank])) ++wrong;
      });
      CHECK(wrong == 0);
    }
}

TEST_CASE("sharded: it computes what the mixing matrix says, and keeps the mean") {
  for (const Case& c : cases()) {
    CAPTURE(c.inter);
    const auto initial = reference::random_models(c.size(), {{DType::f64, 100}}, 9);
    std::vector<reference::Model> models = initial;
    kith::thread::run(c.size(), [&](kith::thread::Communicator& communicator) {
      auto& model = models[static_cast<std::size_t>(communicator.rank())];
      kith::DecentralizedAverager averager{communicator, c.topology(), model.views(), kith::Sharded{}};
      averager.average();
    });
    const kith::MixingMatrix w = kith::mixing_matrix(c.topology(), c.size(), 0);
    double worst = 0;
    for (std::size_t i = 0; i < 100; ++i)
      for (Rank r = 0; r < c.size(); ++r) {
        double sum = 0;
        double scale = 0;
        for (Rank s = 0; s < c.size(); ++s) {
          sum += w(r, s) * initial[static_cast<std::size_t>(s)].get(0, i);
          scale += std::abs(initial[static_cast<std::size_t>(s)].get(0, i));
        }
        worst = std::max(worst, std::abs(models[static_cast<std::size_t>(r)].get(0, i) - sum) / scale);
      }
    CHECK(worst < 1e-15);
  }
  // Machines of 3 ranks and 1: all end at the mean of the four.
  kith::testing::run_both_ways(4, [](auto& communicator) {
    std::vector<float> x(1000, communicator.rank() == 3 ? 8.0F : static_cast<float>(4 * communicator.rank()));
    kith::DecentralizedAverager averager{communicator, kith::Hierarchical{3}, {kith::view(x)}, kith::Sharded{}};
    averager.average();  // machine means 4 and 8: (3 * 4 + 8) / 4
    CHECK(x == std::vector<float>(1000, 5.0F));
  });
}

TEST_CASE("sharded: what is sent is what the metrics say, and what the formula says") {
  for (const Case& c : cases())
    for (const DType dtype : {DType::f32, DType::bf16}) {
      CAPTURE(c.inter);
      constexpr std::size_t count = 5003;
      const std::uint64_t raw = kith::size_of(dtype);
      std::atomic<int> wrong{0};
      const auto machines = c.machines();
      kith::thread::run(c.size(), [&](kith::thread::Communicator& communicator) {
        Counting counting{communicator, c.machine_of};
        reference::Model model{{{dtype, count}}};
        kith::DecentralizedAverager averager{counting, c.topology(), model.views(), kith::Sharded{}};
        kith::DecentralizedAverager shared{communicator, c.topology(), model.views(), kith::Sharded{}};
        const auto rank = static_cast<std::size_t>(communicator.rank());
        const auto& members = machines[static_cast<std::size_t>(c.machine_of[rank])];
        const std::size_t ranks = members.size();
        const auto index = static_cast<std::size_t>(std::find(members.begin(), members.end(), rank) - members.begin());
        const std::uint64_t own = count * (index + 1) / ranks - count * index / ranks;  // elements of the shard
        for (Round t = 0; t < 4; ++t) {
          const kith::MixingMatrix w = kith::mixing_matrix(c.topology(), c.size(), t);
          counting.fast = counting.slow = counting.fast_bytes = counting.slow_bytes = counting.received = 0;
          const kith::Metrics before = averager.metrics();
          averager.average();
          shared.average();
          std::uint64_t told = 0;
          for (const auto& other : machines)
            told += &other != &members && w(static_cast<Rank>(other[0]), static_cast<Rank>(rank)) > 0;
          // f32 and bf16 are computed in f32: 4 bytes a number.
          if (counting.slow_bytes != told * own * 4) ++wrong;
          if (counting.fast != 2 * (ranks - 1)) ++wrong;
          if (counting.fast_bytes != (count - own) * raw + (ranks - 1) * own * 4) ++wrong;
          if (c.inter == "one-peer-exponential" && counting.slow != told) ++wrong;  // shards match
          const kith::Metrics& now = averager.metrics();
          if (now.messages_sent - before.messages_sent != counting.fast + counting.slow) ++wrong;
          if (now.bytes_sent - before.bytes_sent != counting.fast_bytes + counting.slow_bytes) ++wrong;
          if (now.bytes_received - before.bytes_received != counting.received) ++wrong;
        }
        if (averager.metrics().bytes_sent != shared.metrics().bytes_sent ||
            averager.metrics().messages_sent != shared.metrics().messages_sent ||
            averager.metrics().bytes_received != shared.metrics().bytes_received)
          ++wrong;
      });
      CHECK(wrong == 0);
    }
}

TEST_CASE("sharded: models smaller than a machine, and none at all") {
  for (const std::size_t count : {0U, 1U, 2U, 5U}) {
    const Case c{{0, 0, 0, 1, 1, 1, 1}, "one-peer-exponential"};
    auto expected = reference::random_models(7, {{DType::f32, count}, {DType::bf16, 1}}, count);
    const auto initial = expected;
    sharded_round(expected, c, 0, 1);
    std::atomic<int> wrong{0};
    kith::testing::run_both_ways(7, [&](auto& communicator) {
      const auto rank = static_cast<std::size_t>(communicator.rank());
      reference::Model model = initial[rank];
      kith::DecentralizedAverager averager{communicator, c.topology(), model.views(), kith::Sharded{}};
      averager.average();
      if (!(model == expected[rank])) ++wrong;
      std::vector<kith::BufferView> none;
      kith::DecentralizedAverager empty{communicator, c.topology(), none, kith::Sharded{}};
      empty.average();
      if (empty.metrics().rounds != 1 || empty.metrics().bytes_sent != 0) ++wrong;
    });
    CHECK(wrong == 0);
  }
}

TEST_CASE("sharded: a round that fails in any of its steps leaves the parameters alone") {
  for (const int step : {0, 1, 2}) {
    std::atomic<int> wrong{0};
    const Case c{{0, 0, 1, 1}, "ring"};
    kith::thread::run(4, [&](kith::thread::Communicator& communicator) {
      const auto value = static_cast<float>(communicator.rank());
      std::vector<float> x(100, value);
      bool threw = false;
      try {
        Counting failing{communicator, c.machine_of, communicator.rank() == 1 ? step : -1};
        kith::DecentralizedAverager averager{failing, c.topology(), {kith::view(x)}, kith::Sharded{}};
        averager.average();
      } catch (const kith::PeerError&) {
        threw = true;  // rank 1 leaves, and the others learn of it
      }
      if (!threw || x != std::vector<float>(100, value)) ++wrong;
    });
    CHECK(wrong == 0);
  }
}

TEST_CASE("sharded: with check_finite a NaN stays where it is, and those that hear nothing of it commit") {
  const Case c{{0, 0, 1, 1, 2, 2, 3, 3}, "one-peer-exponential"};
  kith::testing::run_both_ways(8, [&](auto& communicator) {
    std::vector<float> x(50, 1.0F + static_cast<float>(communicator.rank() / 2));
    if (communicator.rank() == 1) x[7] = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> before = x;
    kith::AveragerOptions options;
    options.check_finite = true;
    kith::DecentralizedAverager averager{communicator, c.topology(), {kith::view(x)}, kith::Sharded{}, options};
    const Rank machine = communicator.rank() / 2;
    if (machine < 2) {  // machine 1 hears machine 0
      CHECK_THROWS_AS(averager.average(), kith::NonFiniteError);
      CHECK(std::equal(x.begin(), x.begin() + 7, before.begin()));
    } else {
      averager.average();
      CHECK(x == std::vector<float>(50, 0.5F + static_cast<float>(machine)));
    }
  });
}

TEST_CASE("sharded: a topology that knows no machines is refused on every rank") {
  kith::testing::run_both_ways(2, [](auto& communicator) {
    std::vector<float> x(10);
    const auto refusal = [&](const AnyTopology& topology) -> std::string {
      try {
        kith::DecentralizedAverager averager{communicator, topology, {kith::view(x)}, kith::Sharded{}};
      } catch (const kith::UsageError& error) {
        return error.what();
      }
      return {};
    };
    CHECK(refusal(kith::Ring{}).find("ring does not say which ranks share") != std::string::npos);
    CHECK(refusal(kith::parse_topology("hierarchical:2,ring")).empty());
  });
}

TEST_CASE("sharded: the report counts both exchanges over both kinds of links") {
  // nccl.md's comparison: 8 GPUs a machine, one model over the slow links of each with flat gossip.
  std::vector<Rank> map;
  for (Rank r = 0; r < 64; ++r) map.push_back(r / 8);
  const kith::MachineTraffic flat = kith::machine_traffic(kith::OnePeerExponential{}, 64, map);
  CHECK(flat.slow.models == 1);
  CHECK_FALSE(flat.sharded_slow);
  const auto report = kith::analyze(kith::Hierarchical{8}, 64);
  REQUIRE(report.traffic);
  CHECK(report.traffic->machines == 8);
  CHECK(report.traffic->slow.messages == 8);
  CHECK(report.traffic->slow.models == 8);
  CHECK(report.traffic->fast.messages == 7);
  CHECK(report.traffic->sharded_slow->messages == 1);
  CHECK(report.traffic->sharded_slow->models == 1.0 / 8);
  CHECK(report.traffic->sharded_fast->messages == 14);
  CHECK(report.traffic->sharded_fast->models == 2 * 7.0 / 8);
  CHECK(report.traffic->shards_match);
  // Machines of 3, 3 and 1 ranks: the last one's shard is the whole model, and overlaps with all three of the others.
  const auto uneven = kith::analyze(kith::parse_topology("hierarchical:3,ring"), 7);
  CHECK_FALSE(uneven.traffic->shards_match);
  CHECK(uneven.traffic->sharded_slow->messages == 6);
  CHECK(uneven.traffic->sharded_slow->models == 2);
  CHECK_FALSE(kith::analyze(kith::Ring{}, 7).traffic);
}

TEST_CASE("ZeRO-1: averaging shards among the ranks that own them is averaging the whole model") {
  // Three machines of 2 ranks; each holds half of the masters of its machine's model.
  constexpr std::size_t half = 500;
  const auto models = reference::random_models(3, {{DType::f32, 2 * half}}, 21);
  std::vector<reference::Model> whole = models;
  for (Round t = 0; t < 4; ++t) reference::round(whole, kith::OnePeerExponential{}, t);
  std::atomic<int> wrong{0};
  kith::thread::World first_half{3};
  kith::thread::World second_half{3};
  kith::thread::run(6, [&](kith::thread::Communicator& everybody) {
    const Rank machine = everybody.rank() / 2;
    const std::size_t shard = static_cast<std::size_t>(everybody.rank() % 2);
    kith::thread::Communicator owners{shard == 0 ? first_half : second_half, machine};
    std::vector<float> masters(half);
    for (std::size_t i = 0; i < half; ++i)
      masters[i] = static_cast<float>(models[static_cast<std::size_t>(machine)].get(0, shard * half + i));
    kith::DecentralizedAverager averager{owners, kith::OnePeerExponential{}, {kith::view(masters)}};
    for (Round t = 0; t < 4; ++t) averager.average();
    for (std::size_t i = 0; i < half; ++i)
      if (static_cast<double>(masters[i]) != whole[static_cast<std::size_t>(machine)].get(0, shard * half + i)) ++wrong;
    if (averager.metrics().bytes_sent != 4 * half * sizeof(float)) ++wrong;  // over the slow links, a shard a round
  });
  CHECK(wrong == 0);
}

}  // namespace exchange_sharded_test
