// SPDX-License-Identifier: Apache-2.0
#include <kith/testing/message_passing.hpp>

#include <atomic>
#include <cstddef>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include <kith/averager.hpp>
#include <kith/testing/conformance.hpp>
#include <kith/topology/ring.hpp>

#include <doctest/doctest.h>

namespace testing_message_passing_test {

using Messages = kith::testing::MessagePassing<kith::thread::Communicator>;

static_assert(kith::Communicator<Messages> && !kith::SharedAddressSpace<Messages>);

TEST_CASE("message passing: is a conforming communicator itself") {
  for (const kith::Rank size : {1, 3}) {
    CHECK_NOTHROW(kith::thread::run(size, [](kith::thread::Communicator& communicator) {
      Messages messages{communicator};
      kith::testing::check_communicator(messages);
    }));
  }
  CHECK_NOTHROW(kith::thread::run(2, [](kith::thread::Communicator& communicator) {
    Messages messages{communicator};
    kith::testing::check_protocol(messages, 1);
  }));
}

TEST_CASE("message passing: both ways are run, once on each rank, the one with shared memory first") {
  std::atomic<int> shared{0};
  std::atomic<int> messages{0};
  std::atomic<int> out_of_order{0};
  kith::testing::run_both_ways(3, [&](auto& communicator) {
    if constexpr (kith::SharedAddressSpace<std::remove_reference_t<decltype(communicator)>>) {
      out_of_order += messages > 0;
      ++shared;
    } else {
      ++messages;
    }
    CHECK(communicator.size() == 3);
  });
  CHECK(shared == 3);
  CHECK(messages == 3);
  CHECK(out_of_order == 0);
}

TEST_CASE("message passing: a failure comes out of either way") {
  for (const bool in_shared : {true, false}) {
    CHECK_THROWS_AS(kith::testing::run_both_ways(2,
                                                 [&](auto& communicator) {
                                                   using C = std::remove_reference_t<decltype(communicator)>;
                                                   if (kith::SharedAddressSpace<C> == in_shared)
                                                     throw std::domain_error("here");
                                                 }),
                    std::domain_error);
  }
}

// By messages a model needs room for what its neighbours send; in shared memory it needs next to none.
TEST_CASE("message passing: the averager takes the path of messages") {
  constexpr std::size_t bytes = 400000;
  kith::testing::run_both_ways(3, [](auto& communicator) {
    std::vector<float> model(bytes / 4);
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(model)}};
    const bool shared = kith::SharedAddressSpace<std::remove_reference_t<decltype(communicator)>>;
    CHECK((averager.staging_bytes() < bytes) == shared);
    CHECK((averager.staging_bytes() >= 2 * bytes) == !shared);
  });
}

}  // namespace testing_message_passing_test
