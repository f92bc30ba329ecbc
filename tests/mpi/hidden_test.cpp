// SPDX-License-Identifier: Apache-2.0
// Hidden rounds over MPI, on every way to the others. What they are to give is tested with threads.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <kith/codec/int8_block.hpp>
#include <kith/exchange/choco.hpp>
#include <kith/mpi.hpp>
#include <kith/topology/analysis.hpp>

#include <mpi.h>

#include <doctest/doctest.h>

namespace mpi_hidden_test {

using kith::Rank;
using kith::Round;
using kith::mpi::Communicator;

namespace {

double value_of(Rank rank, std::size_t i) { return std::sin(static_cast<double>(100 * rank) + static_cast<double>(i)); }
double step_of(Rank rank, Round t, std::size_t i) {
  return std::cos(static_cast<double>(31 * rank) + static_cast<double>(7 * t + i));
}

// X <- W X + U of element i, on all ranks, in double.
std::vector<double> combine_then_adapt(const kith::AnyTopology& topology, Rank size, Round rounds, std::size_t i) {
  std::vector<double> x;
  for (Rank r = 0; r < size; ++r) x.push_back(value_of(r, i));
  for (Round t = 0; t < rounds; ++t) {
    const kith::MixingMatrix w = kith::mixing_matrix(topology, size, t);
    std::vector<double> next;
    for (Rank r = 0; r < size; ++r) {
      next.push_back(step_of(r, t, i));
      for (Rank j = 0; j < size; ++j) next.back() += w(r, j) * x[static_cast<std::size_t>(j)];
    }
    x = next;
  }
  return x;
}

}  // namespace

TEST_CASE("mpi hidden: combine-then-adapt, by messages, in shared memory, and for models that are read in place") {
  constexpr std::size_t count = 20011;
  constexpr Round rounds = 5;
  struct Way {
    bool shared;
    bool allocated;
  };
  for (const Way way : {Way{false, false}, Way{true, false}, Way{true, true}})
    for (const char* name : {"ring", "one-peer-exponential"}) {
      Communicator communicator{MPI_COMM_WORLD, {.shared_memory = way.shared, .in_place_from_bytes = 0}};
      const Rank rank = communicator.rank();
      const kith::AnyTopology topology = kith::parse_topology(name);
      auto memory = communicator.allocate<double>(way.allocated ? count : 1);
      std::vector<double> vector(way.allocated ? 1 : count);
      double* const model = way.allocated ? memory.data() : vector.data();
      for (std::size_t i = 0; i < count; ++i) model[i] = value_of(rank, i);
      kith::DecentralizedAverager averager{
          communicator, topology, {kith::view(model, count)}, kith::AveragerOptions{.bucket_bytes = 16384}};
      for (Round t = 0; t < rounds; ++t) {
        averager.begin();
        CHECK_THROWS_AS(averager.average(), kith::UsageError);
        for (std::size_t i = 0; i < count; ++i) model[i] += step_of(rank, t, i);
        if (t % 2 == 0) MPI_Barrier(MPI_COMM_WORLD);  // the host's own calls, meanwhile
        averager.finish();
      }
      double worst = 0;
      for (std::size_t i = 0; i < count; i += 89) {
        const auto expected = combine_then_adapt(topology, communicator.size(), rounds, i);
        worst = std::max(worst, std::abs(model[i] - expected[static_cast<std::size_t>(rank)]));
      }
      CAPTURE(name);
      CAPTURE(way.shared);
      CAPTURE(way.allocated);
      CHECK(worst < 1e-12);
      averager.average();  // in place again, where that is possible
      CHECK(averager.metrics().rounds == rounds + 1);
    }
}

TEST_CASE("mpi hidden: replicas go on with hidden rounds, also while another averager is at work") {
  for (const bool shared : {true, false}) {
    Communicator communicator{MPI_COMM_WORLD, {.shared_memory = shared}};
    std::vector<float> hidden(30001);
    for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i] = static_cast<float>(value_of(communicator.rank(), i));
    std::vector<float> open = hidden;
    const kith::Choco exchange{kith::Int8Block{}};
    const kith::AveragerOptions options{.warmup_rounds = 1, .global_every = 4};
    kith::DecentralizedAverager a{communicator, kith::OnePeerExponential{}, {kith::view(hidden)}, exchange, options};
    kith::DecentralizedAverager b{communicator, kith::OnePeerExponential{}, {kith::view(open)}, exchange, options};
    for (Round t = 0; t < 6; ++t) {
      const std::vector<float> snapshot = hidden;
      open = snapshot;
      a.begin();
      for (std::size_t i = 0; i < hidden.size(); ++i)
        hidden[i] += static_cast<float>(step_of(communicator.rank(), t, i));
      std::vector<float> expected = hidden;
      b.average();
      a.finish();
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < hidden.size(); ++i) {
        const float difference = open[i] - snapshot[i];
        expected[i] += difference;
        wrong += expected[i] == hidden[i] ? 0 : 1;
      }
      CHECK(wrong == 0);
    }
    CHECK(a.metrics().replica_distance == b.metrics().replica_distance);
  }
}

}  // namespace mpi_hidden_test
