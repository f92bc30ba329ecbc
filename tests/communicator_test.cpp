// SPDX-License-Identifier: Apache-2.0
#include <kith/communicator.hpp>

#include <cstddef>
#include <span>
#include <string>

#include <doctest/doctest.h>

namespace communicator_test {

namespace {

// The least that an engine offers: a group of one.
struct Alone {
  [[nodiscard]] kith::Rank rank() const noexcept { return 0; }
  [[nodiscard]] kith::Rank size() const noexcept { return 1; }
  std::uint32_t open_channel() { return 0; }
  kith::Seconds exchange(const kith::Call&, std::span<const kith::Outgoing>, std::span<const kith::Incoming>) {
    return {};
  }
  kith::Seconds all_gather(const kith::Call&, std::span<const std::byte>, std::span<std::byte>) { return {}; }
};

struct AloneInMemory : Alone {
  [[nodiscard]] static kith::Rank workers() { return 1; }
  template <class P, class Work, class Epilogue>
  kith::Seconds collaborate(const kith::Call&, P&, std::size_t, const Work&, const Epilogue&) {
    return {};
  }
};

struct WithoutGather : Alone {
  void all_gather(const kith::Call&, std::span<const std::byte>, std::span<std::byte>) = delete;
};

struct ThrowingRank : Alone {
  [[nodiscard]] kith::Rank rank() const { return 0; }
};

}  // namespace

static_assert(kith::Communicator<Alone> && !kith::SharedAddressSpace<Alone>);
static_assert(kith::Communicator<AloneInMemory> && kith::SharedAddressSpace<AloneInMemory>);
static_assert(!kith::Communicator<WithoutGather> && !kith::Communicator<ThrowingRank> && !kith::Communicator<int>);

TEST_CASE("communicator: a call waits for a minute unless told otherwise") {
  CHECK(kith::Call{}.deadline == kith::Seconds{60});
}

TEST_CASE("communicator: errors say what the call was about") {
  kith::Call call;
  call.what = "gossip round";
  call.channel = 2;
  call.sequence = 12;
  call.bytes = 4096;
  CHECK(kith::detail::describe(call) == "gossip round 12 of averager 2 (4096 bytes)");
}

TEST_CASE("communicator: times in messages have no trailing zeros") {
  CHECK(kith::detail::to_text(kith::Seconds{60}) == "60 s");
  CHECK(kith::detail::to_text(kith::Seconds{0.25}) == "0.25 s");
  CHECK(kith::detail::to_text(kith::Seconds{100}) == "100 s");
}

TEST_CASE("communicator: published objects are found by rank") {
  int values[3] = {10, 11, 12};
  void* slots[3] = {&values[0], &values[1], &values[2]};
  const kith::Published<int> published{slots};
  CHECK(published.size() == 3);
  CHECK(published[2] == 12);
  published[0] = 7;
  CHECK(values[0] == 7);
}

}  // namespace communicator_test
