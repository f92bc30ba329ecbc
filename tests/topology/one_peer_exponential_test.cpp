// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <kith/topology/one_peer_exponential.hpp>

namespace topology_one_peer_exponential_test {

using kith::OnePeerExponential;
using kith::Rank;
using kith::Round;

namespace {

// The norm of a product of t rounds off J: each round is circulant, so its eigenvalues (1 + z^(k 2^j)) / 2 have the
// moduli |cos(pi k 2^j / n)|, and those of the product are their products.
double norm_after(Rank size, Round rounds) {
  double largest = 0;
  for (Rank k = 1; k < size; ++k) {
    double modulus = 1;
    for (Round round = 0; round < rounds; ++round) {
      const auto turns = (std::int64_t{k} << (round % OnePeerExponential::period(size))) % (2 * std::int64_t{size});
      modulus *= std::abs(std::cos(std::numbers::pi * static_cast<double>(turns) / size));
    }
    largest = std::max(largest, modulus);
  }
  return largest;
}

}  // namespace

TEST_CASE("one-peer-exponential: every size, every rank") { dense::check_family(OnePeerExponential{}, 40); }

TEST_CASE("one-peer-exponential: rank i hears i - 2^j and tells i + 2^j") {
  for (const Rank size : {2, 3, 8, 13, 64}) {
    const auto tau = static_cast<Round>(std::ceil(std::log2(size)));  // no size here is near a power of two
    CHECK(OnePeerExponential::period(size) == tau);
    for (Round round = 0; round < 2 * tau; ++round) {
      const dense::Plan plan = dense::plan(OnePeerExponential{}, size, round);
      const Rank distance = 1 << (round % tau);
      for (Rank rank = 0; rank < size; ++rank) {
        const kith::Neighborhood& row = plan[static_cast<std::size_t>(rank)];
        REQUIRE(row.sources().size() == 1);
        REQUIRE(row.targets().size() == 1);
        CHECK(row.sources()[0] == kith::Neighborhood::Source{((rank - distance) % size + size) % size, 0.5});
        CHECK(row.targets()[0] == (rank + distance) % size);
      }
    }
  }
}

// Ying et al., Exponential Graph is Provably Efficient for Decentralized Deep Training, NeurIPS 2021, Lemma 1: the
// product of tau consecutive rounds is J if the size is a power of two.
TEST_CASE("one-peer-exponential: exact after tau rounds from any phase, for powers of two only") {
  for (const Rank size : {2, 4, 16, 1024, 1 << 30}) {
    const kith::TopologyReport report = OnePeerExponential::report(size);
    CHECK(report.exact_after == report.period);
    CHECK(report.exact_after_any_phase == report.period);
    CHECK(report.contraction == 0);
  }
  for (const Rank size : {3, 6, 100, 1'000'000, (1 << 20) + 1})
    CHECK_FALSE(OnePeerExponential::report(size).exact_after_any_phase);
}

TEST_CASE("one-peer-exponential: 25 ranks contract by 0.1921 in 5 rounds") {
  CHECK(std::abs(OnePeerExponential::report(25).contraction - 0.1921) < 5e-5);
  const auto rounds_to_a_millionth = [](Rank size) {
    Round rounds = 0;
    while (norm_after(size, rounds) > 1e-6) ++rounds;
    return rounds;
  };
  CHECK(rounds_to_a_millionth(25) == 44);
  CHECK(rounds_to_a_millionth(100) == 62);
}

TEST_CASE("one-peer-exponential: the contraction is the product of the rounds' eigenvalues") {
  for (const Rank size : {3, 5, 48, 100, 333, 997, 1000, 1023, 1025, 30'000}) {
    CAPTURE(size);
    const kith::TopologyReport report = OnePeerExponential::report(size);
    CHECK(std::abs(report.contraction - norm_after(size, report.period)) < 1e-12);
  }
}

}  // namespace topology_one_peer_exponential_test
