// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/masked_mean.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <kith/codec/cyclic_mask.hpp>
#include <kith/codec/random_k.hpp>

#include "encoded.hpp"

namespace exchange_masked_mean_test {

using namespace encoded;

namespace {

// A round of full values of which only the mask's elements are taken, bit for bit.
template <class M>
void check_masked(const M& mask, const Case& c, std::uint64_t seed) {
  const std::string topology = c.topology.full_name();
  CAPTURE(topology);
  CAPTURE(c.size);
  const auto initial = reference::random_models(c.size, c.shapes, seed);
  auto expected = initial;
  const Round period = std::max<Round>(c.topology.period(c.size), 1);
  for (Round t = 0; t < c.rounds && c.size > 1; ++t) {
    auto next = expected;
    reference::round(next, c.topology, t, c.mixing);
    for (std::size_t b = 0; b < c.shapes.size(); ++b) {
      const bool encodes = c.shapes[b].count * kith::size_of(c.shapes[b].dtype) >= c.encode_from_bytes;
      std::vector<bool> taken(c.shapes[b].count, !encodes);
      if (encodes) mask.for_each_index(c.shapes[b].count, t / period, [&](std::size_t i) { taken[i] = true; });
      for (std::size_t r = 0; r < next.size(); ++r)
        for (std::size_t i = 0; i < taken.size(); ++i)
          if (taken[i]) expected[r].set(b, i, next[r].get(b, i));
    }
  }
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(c.size, [&](auto& communicator) {
    const auto r = static_cast<std::size_t>(communicator.rank());
    reference::Model model = initial[r];
    kith::DecentralizedAverager averager{
        communicator, c.topology, model.views(), kith::MaskedMean{mask},
        kith::AveragerOptions{.mixing = c.mixing, .encode_from_bytes = c.encode_from_bytes}};
    for (Round t = 0; t < c.rounds; ++t) averager.average();
    if (!(model == expected[r])) ++wrong;
  });
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("masked mean: full precision on a slice, for every topology, and nothing elsewhere") {
  for (const Rank size : {1, 2, 5, 8})
    for (const char* name : {"ring", "one-peer-exponential", "static-exponential", "random-matching:3"}) {
      check_masked(kith::CyclicMask{.fraction = 0.2, .seed = 1}, {kith::parse_topology(name), size, every_dtype()}, 1);
      check_masked(kith::RandomK{.fraction = 0.1, .seed = 2}, {kith::parse_topology(name), size, every_dtype()}, 2);
    }
  check_masked(kith::CyclicMask{.fraction = 0.25}, {directed(), 4, every_dtype(), 0.6, 9}, 3);
  check_masked(kith::CyclicMask{.fraction = 0.25}, {kith::Ring{}, 3, every_dtype(), 1.5, 9, 300}, 4);
}

TEST_CASE("masked mean: every element meets every phase of the topology") {
  // 16 ranks meet in 4 phases, and there are 4 slices: if both changed with the round, each slice would meet one phase.
  constexpr Rank size = 16;
  kith::testing::run_both_ways(size, [](auto& communicator) {
    std::vector<float> values(64, static_cast<float>(communicator.rank()));
    kith::DecentralizedAverager averager{communicator,
                                         kith::OnePeerExponential{},
                                         {kith::view(values)},
                                         kith::MaskedMean{kith::CyclicMask{.fraction = 0.25}},
                                         kith::AveragerOptions{.encode_from_bytes = 0}};
    for (int t = 0; t < 16; ++t) averager.average();
    CHECK(values == std::vector<float>(64, 7.5F));  // the exact mean of 0 to 15
    CHECK(averager.metrics().bytes_sent == 16 * 16 * sizeof(float));
  });
}

TEST_CASE("masked mean: a value that is not finite is seen when its turn comes") {
  kith::testing::run_both_ways(2, [](auto& communicator) {
    std::vector<float> values(100, 1);
    values[37] = communicator.rank() == 1 ? std::numeric_limits<float>::infinity() : 1.0F;
    kith::DecentralizedAverager averager{communicator,
                                         kith::Ring{},
                                         {kith::view(values)},
                                         kith::MaskedMean{kith::CyclicMask{.fraction = 0.1}},
                                         kith::AveragerOptions{.encode_from_bytes = 0}};
    int refused = 0;
    for (int t = 0; t < 10; ++t) {
      try {
        averager.average();
      } catch (const kith::NonFiniteError& error) {
        CHECK(error.rank() == 1);
        CHECK(error.index() == 37);
        ++refused;
        values[37] = 1;
        averager.average();  // the round has not begun: the other rank is still waiting in it
      }
    }
    CHECK(refused == (communicator.rank() == 1 ? 1 : 0));
    CHECK(averager.metrics().rounds == 10);
  });
}

TEST_CASE("masked mean: impossible parameters are refused") {
  check_all_say(refusals(2, kith::Ring{}, kith::MaskedMean{kith::CyclicMask{.fraction = 0}}), "a fraction of 0");
}

}  // namespace exchange_masked_mean_test
