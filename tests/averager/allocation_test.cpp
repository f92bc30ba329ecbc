// SPDX-License-Identifier: Apache-2.0
// No allocation in a round.
#include "allocation_counter.hpp"

#ifndef KITH_TEST_SANITIZED

#include <kith/averager.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <kith/codec/cast.hpp>
#include <kith/codec/cyclic_mask.hpp>
#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/min_max_uint8.hpp>
#include <kith/codec/top_k.hpp>
#include <kith/exchange/choco.hpp>
#include <kith/exchange/difference.hpp>
#include <kith/exchange/direct.hpp>
#include <kith/exchange/masked_mean.hpp>
#include <kith/exchange/sharded.hpp>
#include <kith/testing/message_passing.hpp>
#include <kith/topology/any.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

TEST_CASE("allocation: the counter counts") {
  std::vector<int> values;
  CHECK(allocations_of([&] { values.resize(100); }) == 1);
  CHECK(allocations_of([] { delete new int; }) <= 1);  // a compiler may leave such a pair out
  struct alignas(128) Wide {
    char c[128];
  };
  std::vector<Wide> wide;
  CHECK(allocations_of([&] { wide.resize(2); }) == 1);
  CHECK(allocations_of([] {}) == 0);
}

TEST_CASE("allocation: none in a round, from the first one on, on either path") {
  const std::vector<reference::Shape> shapes = {
      {kith::DType::f32, 40000}, {kith::DType::f64, 300}, {kith::DType::bf16, 5000, 1}, {kith::DType::f16, 77}};
  for (const std::string& name : kith::topology_names()) {
    for (const kith::Rank size : {1, 4}) {
      CAPTURE(name);
      CAPTURE(size);
      std::atomic<std::uint64_t> in_rounds{0};
      std::atomic<std::uint64_t> in_means{0};
      std::atomic<std::uint64_t> in_others{0};
      kith::testing::run_both_ways(size, [&](auto& communicator) {
        reference::Model model{shapes};
        kith::AveragerOptions options;
        options.check_finite = communicator.size() == 4;
        options.global_every = 5;
        kith::DecentralizedAverager averager{communicator, kith::parse_topology(name), model.views(), options};
        in_rounds += allocations_of([&] {
          for (int t = 0; t < 12; ++t) averager.average();
        });
        in_means += allocations_of([&] {
          for (int t = 0; t < 3; ++t) averager.average_globally();
        });
        in_others += allocations_of([&] {
          averager.broadcast(0);
          averager.set_mixing(0.5);
          (void)averager.consensus_distance();
        });
      });
      CHECK(in_rounds == 0);
      CHECK(in_means == 0);
      CHECK(in_others == 0);
    }
  }
}

namespace {

// An engine that has no more than it must: hidden rounds go on in begin() there, where allocations are counted.
class Plain {
public:
  explicit Plain(kith::thread::Communicator& communicator) : communicator_(communicator) {}
  [[nodiscard]] kith::Rank rank() const noexcept { return communicator_.rank(); }
  [[nodiscard]] kith::Rank size() const noexcept { return communicator_.size(); }
  [[nodiscard]] std::uint32_t open_channel() { return communicator_.open_channel(); }
  kith::Seconds exchange(const kith::Call& call, std::span<const kith::Outgoing> outgoing,
                         std::span<const kith::Incoming> incoming) {
    return communicator_.exchange(call, outgoing, incoming);
  }
  kith::Seconds all_gather(const kith::Call& call, std::span<const std::byte> mine, std::span<std::byte> all) {
    return communicator_.all_gather(call, mine, all);
  }

private:
  kith::thread::Communicator& communicator_;
};

}  // namespace

TEST_CASE("allocation: none in a hidden round after the first, in the caller's thread and in that of the round") {
  const std::vector<reference::Shape> shapes = {{kith::DType::f32, 4000}, {kith::DType::bf16, 5000, 1}};
  std::atomic<std::uint64_t> in_rounds{0};
  const auto body = [&](auto& communicator) {
    reference::Model model{shapes};
    kith::AveragerOptions options;
    options.check_finite = true;
    options.global_every = 3;
    kith::DecentralizedAverager averager{communicator, kith::parse_topology("ring"), model.views(), options};
    const auto round = [&] {
      averager.begin();
      averager.finish();
    };
    const std::size_t before = averager.staging_bytes();
    round();
    if (averager.staging_bytes() < before + 2 * model.bytes()) ++in_rounds;
    in_rounds += allocations_of([&] {
      for (int t = 0; t < 6; ++t) round();
    });
    if (averager.metrics().rounds != 5 || averager.metrics().global_rounds != 2) ++in_rounds;
  };
  kith::testing::run_both_ways(3, body);
  kith::thread::run(3, [&](kith::thread::Communicator& communicator) {
    Plain plain{communicator};
    body(plain);
  });
  CHECK(in_rounds == 0);
}

TEST_CASE("allocation: none in a round of any encoding exchange, on either path") {
  const std::vector<reference::Shape> shapes = {
      {kith::DType::f32, 4000}, {kith::DType::f64, 300}, {kith::DType::bf16, 5000, 1}, {kith::DType::f16, 77}};
  const auto check = [&](const auto& exchange, const char* topology) {
    CAPTURE(topology);
    std::atomic<std::uint64_t> in_rounds{0};
    kith::testing::run_both_ways(4, [&](auto& communicator) {
      reference::Model model{shapes};
      kith::AveragerOptions options;
      options.encode_from_bytes = 1000;
      options.check_finite = true;
      options.global_every = 5;
      kith::DecentralizedAverager averager{communicator, kith::parse_topology(topology), model.views(), exchange,
                                           options};
      in_rounds += allocations_of([&] {
        for (int t = 0; t < 12; ++t) averager.average();
        averager.broadcast(0);
      });
    });
    CHECK(in_rounds == 0);
  };
  for (const char* topology : {"ring", "one-peer-exponential", "cycle:[ring,one-peer-exponential]"}) {
    check(kith::Direct{kith::Int8Block{}}, topology);
    check(kith::Choco{kith::Int4Block{}}, topology);
    check(kith::Choco{kith::TopK{}}, topology);
    check(kith::MaskedMean{kith::CyclicMask{}}, topology);
  }
  check(kith::Difference{kith::MinMaxUInt8{}}, "ring");
  check(kith::Direct{kith::Cast<kith::bfloat16>{}}, "random-matching:1");
  for (const char* topology :
       {"hierarchical:2,ring", "hierarchical:3,static-exponential"})  // machines of 2, of 3 and 1
    check(kith::Sharded{}, topology);
}

#endif
