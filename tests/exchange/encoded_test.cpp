// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/encoded.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <kith/codec/cyclic_mask.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/top_k.hpp>
#include <kith/exchange/choco.hpp>
#include <kith/exchange/difference.hpp>
#include <kith/exchange/direct.hpp>
#include <kith/exchange/masked_mean.hpp>

#include "encoded.hpp"

namespace exchange_encoded_test {

using namespace encoded;

namespace {

// Int8Block with as little as a codec needs: neither check() nor parameters().
struct Plain {
  static constexpr std::string_view name = "plain";
  kith::Int8Block codec{};

  [[nodiscard]] std::size_t wire_bytes(std::size_t count, DType dtype) const { return codec.wire_bytes(count, dtype); }
  void encode(kith::BufferView values, std::span<std::byte> wire, kith::CodecContext context) const {
    codec.encode(values, wire, context);
  }
  void decode(std::span<const std::byte> wire, kith::BufferView values, kith::CodecContext context) const {
    codec.decode(wire, values, context);
  }
  void decode_add(double weight, std::span<const std::byte> wire, kith::BufferView values,
                  kith::CodecContext context) const {
    codec.decode_add(weight, wire, values, context);
  }
};
static_assert(kith::Codec<Plain>);

// Int8Block whose message is damaged on rank 1 in round 2, in the second encoded buffer.
template <class Base>
struct Damaged : Base {
  void encode(kith::BufferView values, std::span<std::byte> wire, kith::CodecContext context) const {
    Base::encode(values, wire, context);
    if (context.rank == 1 && context.round == 2 && context.buffer == 2) wire.back() = std::byte{0x80};  // -128
  }
};
static_assert(kith::Codec<Damaged<Plain>> && kith::Codec<Damaged<kith::Int8Block>>);

const std::vector<reference::Shape>& shapes() {
  static const std::vector<reference::Shape> all = {
      {DType::f32, 300}, {DType::bf16, 3}, {DType::f32, 500}, {DType::f64, 70}};
  return all;
}

// So that the bf16 buffer alone travels as it is.
constexpr std::size_t threshold = 100;

template <class C>
constexpr bool passes_messages = !kith::SharedAddressSpace<std::remove_reference_t<C>>;

template <class F>
void for_each_exchange(const F& f) {
  const kith::Int8Block codec;
  f(kith::Direct{codec}, AnyTopology{kith::OnePeerExponential{}});
  f(kith::Difference{codec}, AnyTopology{kith::Ring{}});
  f(kith::Choco{codec}, AnyTopology{kith::Ring{}});
  f(kith::Choco{codec}, AnyTopology{kith::OnePeerExponential{}});
  f(kith::MaskedMean{kith::CyclicMask{.fraction = 0.5}}, AnyTopology{kith::Ring{}});
}

}  // namespace

TEST_CASE("encoded: NaN and Inf are refused before the round has begun, and the round can be made up for") {
  constexpr Rank size = 4;
  const auto initial = normal_models(size, shapes(), 1);
  for_each_exchange([&](const auto& exchange, const AnyTopology& topology) {
    const std::string name = exchange_name(exchange);
    CAPTURE(name);
    std::atomic<int> wrong{0};
    kith::testing::run_both_ways(size, [&](auto& communicator) {
      const auto r = static_cast<std::size_t>(communicator.rank());
      const auto rounds = [&](bool disturbed) {
        reference::Model model = initial[r];
        kith::DecentralizedAverager averager{communicator, topology, model.views(), exchange,
                                             kith::AveragerOptions{.encode_from_bytes = threshold}};
        for (int t = 0; t < 6; ++t) {
          if (disturbed && r == 2 && (t == 1 || t == 4)) {
            const std::size_t buffer = t == 1 ? 1 : 3;  // one that is not encoded, one that is
            const std::size_t index = t == 1 ? 2 : 66;
            const double kept = model.get(buffer, index);
            auto* const data = static_cast<std::byte*>(model.views()[buffer].data);
            if (t == 1)
              data[2 * index + 1] = std::byte{0x7F}, data[2 * index] = std::byte{0xC0};  // a NaN
            else
              model.set(buffer, index, std::numeric_limits<double>::infinity());
            const std::vector<std::byte> before = averager.state();
            const reference::Model bad = model;
            int refused = 0;
            // With a mask only the elements whose turn it is are looked at: index 66 comes in round 4 or in 5.
            try {
              averager.average();
            } catch (const kith::NonFiniteError& error) {
              ++refused;
              if (error.rank() != 2 || error.buffer() != buffer || error.index() != index) ++wrong;
              if (averager.state() != before || !(model == bad)) ++wrong;
            }
            model.set(buffer, index, kept);
            if (refused == 0 && name.find("masked") == std::string::npos) ++wrong;
            if (refused == 0) continue;
          }
          averager.average();
        }
        return model;
      };
      const reference::Model expected = rounds(false);
      if (!(rounds(true) == expected)) ++wrong;
    });
    CHECK(wrong == 0);
  });
}

TEST_CASE("encoded: with check_finite all ranks spend the round together and change nothing") {
  constexpr Rank size = 5;
  const auto initial = normal_models(size, shapes(), 2);
  for_each_exchange([&](const auto& exchange, const AnyTopology& topology) {
    const std::string name = exchange_name(exchange);
    CAPTURE(name);
    std::atomic<int> wrong{0};
    kith::testing::run_both_ways(size, [&](auto& communicator) {
      const auto r = static_cast<std::size_t>(communicator.rank());
      reference::Model model = initial[r];
      kith::AveragerOptions options;
      options.encode_from_bytes = threshold;
      options.check_finite = true;
      kith::DecentralizedAverager averager{communicator, topology, model.views(), exchange, options};
      for (int t = 0; t < 5; ++t) {
        const double kept = model.get(0, 7);
        if (t == 2 && r == 1) model.set(0, 7, std::numeric_limits<double>::infinity());
        const reference::Model before = model;
        bool refused = false;
        try {
          averager.average();
        } catch (const kith::NonFiniteError& error) {
          refused = error.rank() == 1 && error.buffer() == 0 && error.index() == 7;
        }
        if (refused != (t == 2)) ++wrong;
        if (refused && !(model == before)) ++wrong;
        if (t == 2 && r == 1) model.set(0, 7, kept);
      }
      if (averager.metrics().rounds != 4) ++wrong;
    });
    CHECK(wrong == 0);
  });
}

namespace {

// Rounds on a ring of 6 until rank 1 sends what cannot be decoded. It and both neighbours throw and have changed
// nothing; the others have committed; afterwards nobody can go on.
template <class E>
void check_damaged(const E& exchange) {
  const std::string name = exchange_name(exchange);
  CAPTURE(name);
  constexpr Rank size = 6;
  const auto initial = normal_models(size, shapes(), 3);
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    const Rank rank = communicator.rank();
    reference::Model model = initial[static_cast<std::size_t>(rank)];
    kith::DecentralizedAverager averager{
        communicator, kith::Ring{}, model.views(), exchange,
        kith::AveragerOptions{.deadline = std::chrono::seconds{20}, .encode_from_bytes = threshold}};
    averager.average();
    averager.average();
    const reference::Model before = model;
    const std::vector<std::byte> state = averager.state();
    bool refused = false;
    try {
      averager.average();
    } catch (const kith::PeerError& error) {
      refused = true;
      if (rank <= 2 && (error.peer() != 1 || error.reason() != kith::PeerError::protocol)) ++wrong;
      if (rank <= 2 && std::string_view{error.what()}.find("rank 1 cannot be used") == std::string_view::npos) ++wrong;
      if (!(model == before) || averager.state() != state) ++wrong;
    }
    if (rank <= 2 && !refused) ++wrong;
    if (rank > 2 && !refused && model == before) ++wrong;
    if (refused) {
      bool again = false;
      try {
        averager.average();
      } catch (const kith::PeerError&) {
        again = true;
      }
      if (!again || !(model == before) || averager.state() != state) ++wrong;
    }
  });
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("encoded: a message that cannot be decoded is a breach of protocol, and nothing has changed") {
  check_damaged(kith::Direct{Damaged<kith::Int8Block>{}});
  check_damaged(kith::Difference{Damaged<kith::Int8Block>{}});
  check_damaged(kith::Choco{Damaged<kith::Int8Block>{}});
  check_damaged(kith::Direct{Damaged<Plain>{}});
  check_damaged(kith::Choco{Damaged<Plain>{}});
}

TEST_CASE("encoded: whoever waits in vain has changed nothing") {
  for_each_exchange([&](const auto& exchange, const AnyTopology& topology) {
    const std::string name = exchange_name(exchange);
    CAPTURE(name);
    constexpr Rank size = 4;
    const auto initial = normal_models(size, shapes(), 4);
    std::atomic<int> wrong{0};
    kith::testing::run_both_ways(size, [&](auto& communicator) {
      const auto r = static_cast<std::size_t>(communicator.rank());
      reference::Model model = initial[r];
      kith::DecentralizedAverager averager{
          communicator, topology, model.views(), exchange,
          kith::AveragerOptions{.deadline = std::chrono::milliseconds{150}, .encode_from_bytes = threshold}};
      averager.average();
      const reference::Model before = model;
      const std::vector<std::byte> state = averager.state();
      if (r == 3) return;  // leaves
      try {
        averager.average();
        ++wrong;
      } catch (const kith::PeerError&) {
        if (!(model == before) || averager.state() != state) ++wrong;
      }
    });
    CHECK(wrong == 0);
  });
}

TEST_CASE("encoded: a codec needs neither check() nor parameters()") {
  constexpr Rank size = 4;
  const auto initial = normal_models(size, shapes(), 5);
  std::atomic<int> wrong{0};
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    const auto r = static_cast<std::size_t>(communicator.rank());
    const auto rounds = [&](const auto& exchange) {
      reference::Model model = initial[r];
      kith::DecentralizedAverager averager{communicator, kith::OnePeerExponential{}, model.views(), exchange,
                                           kith::AveragerOptions{.encode_from_bytes = 0}};
      for (int t = 0; t < 5; ++t) averager.average();
      return model;
    };
    if (!(rounds(kith::Choco{Plain{}}) == rounds(kith::Choco{kith::Int8Block{}}))) ++wrong;
    if (!(rounds(kith::Direct{Plain{}}) == rounds(kith::Direct{kith::Int8Block{}}))) ++wrong;
  });
  CHECK(wrong == 0);
  CHECK(exchange_name(kith::Direct{Plain{}}) == "direct:plain");
}

TEST_CASE("encoded: ranks with other parameters are refused on every rank, naming both") {
  const auto check_differ = [](const auto& mine, const auto& odd) {
    std::vector<std::string> texts(6);
    kith::testing::run_both_ways(3, [&](auto& communicator) {
      std::vector<float> values(2000);
      try {
        kith::DecentralizedAverager averager{
            communicator, kith::Ring{}, {kith::view(values)}, communicator.rank() == 1 ? odd : mine};
      } catch (const kith::UsageError& error) {
        texts[2 * static_cast<std::size_t>(communicator.rank()) + (passes_messages<decltype(communicator)> ? 1 : 0)] =
            error.what();
      }
    });
    check_all_say(texts,
                  "rank 1 differs from rank 0 in exchange: " + exchange_name(odd) + " against " + exchange_name(mine));
  };
  using kith::Int8Block;
  check_differ(kith::Choco{Int8Block{.block = 256}}, kith::Choco{Int8Block{.block = 128}});
  check_differ(kith::Choco{Int8Block{}, 1}, kith::Choco{Int8Block{}, 0.9999999999});
  check_differ(kith::Difference{Int8Block{}}, kith::Difference{Int8Block{.block = 64}});
  check_differ(kith::Direct{kith::TopK{.fraction = 0.01}}, kith::Direct{kith::TopK{.fraction = 0.010000001}});
  check_differ(kith::MaskedMean{kith::CyclicMask{.fraction = 0.1, .seed = 1}},
               kith::MaskedMean{kith::CyclicMask{.fraction = 0.1, .seed = 2}});
  CHECK(exchange_name(kith::Choco{Int8Block{.block = 128}, 0.5}) == "choco:int8-block:128,gamma=0.5");
  CHECK(exchange_name(kith::FullPrecision{}) == "full-precision");
}

}  // namespace exchange_encoded_test
