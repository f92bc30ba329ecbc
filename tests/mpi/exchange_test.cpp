// SPDX-License-Identifier: Apache-2.0
// Encoded exchanges over MPI give the bits of the thread engine, which its own tests compare with other computations.
#include <kith/exchange/choco.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <kith/codec/cyclic_mask.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/qsgd.hpp>
#include <kith/exchange/difference.hpp>
#include <kith/exchange/direct.hpp>
#include <kith/exchange/masked_mean.hpp>
#include <kith/exchange/sharded.hpp>
#include <kith/mpi.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace mpi_exchange_test {

using kith::DType;
using kith::Rank;
using kith::mpi::Communicator;

namespace {

struct End {
  reference::Model model;
  std::uint64_t bytes_sent = 0;
  double replica_distance = 0;
};

template <class E>
void check_against_threads(Communicator& communicator, const E& exchange, const std::string& topology) {
  const std::string name = exchange_name(exchange) + " on " + topology;
  CAPTURE(name);
  const auto initial =
      reference::random_models(communicator.size(), {{DType::f32, 30001, 1}, {DType::bf16, 77}, {DType::f64, 700}}, 4);
  const auto train = [&](auto& group) {
    End end{initial[static_cast<std::size_t>(group.rank())], 0, 0};
    kith::DecentralizedAverager averager{
        group, kith::parse_topology(topology), end.model.views(), exchange,
        kith::AveragerOptions{.mixing = 0.9, .bucket_bytes = 4096, .encode_from_bytes = 1000}};
    for (int step = 0; step < 7; ++step) {
      averager.average();
      if (step == 2) averager.broadcast(group.size() - 1);
      end.model.set(0, 5, end.model.get(0, 5) + group.rank());
    }
    end.bytes_sent = averager.metrics().bytes_sent;
    end.replica_distance = averager.metrics().replica_distance;
    return end;
  };
  std::vector<End> expected(static_cast<std::size_t>(communicator.size()), End{initial[0], 0, 0});
  kith::thread::run(communicator.size(), [&](kith::thread::Communicator& threads) {
    expected[static_cast<std::size_t>(threads.rank())] = train(threads);
  });
  const End& mine = expected[static_cast<std::size_t>(communicator.rank())];
  const End end = train(communicator);
  CHECK(end.model == mine.model);
  CHECK(end.bytes_sent == mine.bytes_sent);
  CHECK(end.replica_distance == mine.replica_distance);
}

// Int8Block whose messages rank 0 damages in round 1.
struct Damaged : kith::Int8Block {
  void encode(kith::BufferView values, std::span<std::byte> wire, kith::CodecContext context) const {
    Int8Block::encode(values, wire, context);
    if (context.rank == 0 && context.round == 1) wire.back() = std::byte{0x80};
  }
};

}  // namespace

TEST_CASE("mpi exchange: encoded rounds give the bits of the thread engine") {
  for (const bool shared : {true, false}) {
    Communicator communicator{MPI_COMM_WORLD, {.shared_memory = shared, .in_place_from_bytes = 0}};
    for (const char* topology : {"ring", "one-peer-exponential", "base-graph:2"}) {
      check_against_threads(communicator, kith::Choco{kith::Int8Block{}}, topology);
      check_against_threads(communicator, kith::Direct{kith::QSGD{.seed = 3}}, topology);
      check_against_threads(communicator, kith::MaskedMean{kith::CyclicMask{.fraction = 0.2}}, topology);
    }
    check_against_threads(communicator, kith::Difference{kith::Int8Block{}}, "ring");
  }
}

TEST_CASE("mpi exchange: sharded rounds give the bits of the thread engine") {
  for (const bool shared : {true, false}) {
    Communicator communicator{MPI_COMM_WORLD, {.shared_memory = shared}};
    for (const char* topology : {"hierarchical:2,ring", "hierarchical:3,one-peer-exponential", "hierarchical:8,ring"})
      check_against_threads(communicator, kith::Sharded{}, topology);
  }
}

TEST_CASE("mpi exchange: the machines that MPI knows are those of a hierarchical topology") {
  Communicator communicator{MPI_COMM_WORLD};
  const std::vector<Rank> machines = kith::mpi::machines(MPI_COMM_WORLD);
  const char* pretended = std::getenv("KITH_TEST_RANKS_PER_MACHINE");
  const Rank ranks_here = pretended == nullptr ? communicator.size() : std::atoi(pretended);
  std::vector<Rank> expected;
  for (Rank r = 0; r < communicator.size(); ++r) expected.push_back(r / ranks_here * ranks_here);
  CHECK(machines == expected);
  std::vector<float> values(1000, static_cast<float>(communicator.rank()));
  kith::DecentralizedAverager averager{
      communicator, kith::Hierarchical{machines, kith::Complete{}}, {kith::view(values)}, kith::Sharded{}};
  averager.average();
  const float mean = static_cast<float>(communicator.size() - 1) / 2;  // of all ranks: Complete between machines
  float furthest = 0;
  for (const float value : values) furthest = std::max(furthest, std::abs(value - mean));
  CHECK(furthest < 1e-6F);
}

// Before the round begins: on one machine nothing has been published then, between machines nothing opened.
TEST_CASE("mpi exchange: a NaN is refused before the round, which is then made up for") {
  for (const bool shared : {true, false}) {
    Communicator communicator{MPI_COMM_WORLD, {.shared_memory = shared}};
    if (communicator.size() == 1) return;
    const auto rounds = [&](bool disturbed) {
      std::vector<float> values(30000, 1 + static_cast<float>(communicator.rank()));
      kith::DecentralizedAverager averager{communicator,
                                           kith::Ring{},
                                           {kith::view(values)},
                                           kith::Direct{kith::Int8Block{}},
                                           kith::AveragerOptions{.bucket_bytes = 4096}};
      for (int t = 0; t < 6; ++t) {
        if (disturbed && t % 2 == 1 && communicator.rank() == 0) {
          const float kept = std::exchange(values[29000], std::numeric_limits<float>::quiet_NaN());
          CHECK_THROWS_AS(averager.average(), kith::NonFiniteError);
          values[29000] = kept;
        }
        averager.average();
      }
      return values;
    };
    const std::vector<float> expected = rounds(false);
    CHECK(rounds(true) == expected);
  }
}

TEST_CASE("mpi exchange: a message that cannot be decoded is a breach of protocol, and nothing has changed") {
  Communicator communicator{MPI_COMM_WORLD};
  if (communicator.size() == 1) return;
  std::vector<float> values(3000, static_cast<float>(communicator.rank()));
  kith::DecentralizedAverager averager{communicator,
                                       kith::Complete{},
                                       {kith::view(values)},
                                       kith::Choco{Damaged{}},
                                       kith::AveragerOptions{.deadline = std::chrono::seconds{30}}};
  averager.average();
  const std::vector<float> before = values;
  const std::vector<std::byte> state = averager.state();
  for (int repeat = 0; repeat < 2; ++repeat) {
    CHECK_THROWS_AS(averager.average(), kith::PeerError);
    CHECK(values == before);
    CHECK(averager.state() == state);
  }
}

}  // namespace mpi_exchange_test
