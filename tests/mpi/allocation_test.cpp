// SPDX-License-Identifier: Apache-2.0
// No allocation in a round over MPI. What MPI itself allocates is its own business; it does so by malloc.
#include "../averager/allocation_counter.hpp"

#ifndef KITH_TEST_SANITIZED

#include <string>
#include <vector>

#include <kith/codec/int8_block.hpp>
#include <kith/exchange/choco.hpp>
#include <kith/exchange/sharded.hpp>
#include <kith/mpi.hpp>

#include <doctest/doctest.h>

TEST_CASE("mpi allocation: none in a round, from the first one on, on any way to the others") {
  for (const bool shared : {true, false}) {
    for (const bool in_place : {false, true}) {
      kith::mpi::Communicator communicator{MPI_COMM_WORLD, {.shared_memory = shared, .in_place_from_bytes = 0}};
      std::vector<float> own(50000);
      auto memory = communicator.allocate<float>(own.size());
      std::vector<double> second(70);
      for (const char* name : {"ring", "random-matching"}) {
        CAPTURE(name);
        CAPTURE(shared);
        std::vector<kith::BufferView> model = {in_place ? kith::view(memory) : kith::view(own)};
        if (!in_place) model.push_back(kith::view(second));
        kith::AveragerOptions options;
        options.check_finite = true;
        options.global_every = 5;
        options.bucket_bytes = 16384;
        kith::DecentralizedAverager averager{communicator, kith::parse_topology(name), model, options};
        CHECK(allocations_of([&] {
                for (int t = 0; t < 12; ++t) averager.average();
              }) == 0);
        CHECK(allocations_of([&] {
                averager.average_globally();
                averager.broadcast(0);
                (void)averager.consensus_distance();
              }) == 0);
      }
    }
  }
}

TEST_CASE("mpi allocation: none in an encoded round, or a sharded one") {
  for (const bool shared : {true, false}) {
    kith::mpi::Communicator communicator{MPI_COMM_WORLD, {.shared_memory = shared}};
    std::vector<float> values(50000);
    kith::DecentralizedAverager sharded{
        communicator, kith::parse_topology("hierarchical:2,ring"), {kith::view(values)}, kith::Sharded{}};
    CHECK(allocations_of([&] {
            for (int t = 0; t < 4; ++t) sharded.average();
          }) == 0);
    for (const char* topology : {"ring", "cycle:[ring,one-peer-exponential]"}) {
      kith::DecentralizedAverager averager{communicator,
                                           kith::parse_topology(topology),
                                           {kith::view(values)},
                                           kith::Choco{kith::Int8Block{}},
                                           kith::AveragerOptions{.bucket_bytes = 8192}};
      CHECK(allocations_of([&] {
              for (int t = 0; t < 8; ++t) averager.average();
            }) == 0);
    }
  }
}

#endif
