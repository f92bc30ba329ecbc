// SPDX-License-Identifier: Apache-2.0
// Messages that go in pieces, and are not there any more when the next piece has come: as between machines.
#include <kith/exchange/encoded_stream.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <kith/codec/cast.hpp>
#include <kith/codec/cyclic_mask.hpp>
#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/exchange/choco.hpp>
#include <kith/exchange/difference.hpp>
#include <kith/exchange/direct.hpp>
#include <kith/exchange/masked_mean.hpp>

#include "encoded.hpp"

namespace exchange_encoded_stream_test {

using namespace encoded;

namespace {

using Threads = kith::thread::Communicator;

// What is sent is what a piece holds when it is published.
class InPieces : public kith::testing::MessagePassing<Threads> {
public:
  using MessagePassing::MessagePassing;
  std::atomic<int>* late = nullptr;  // counts first pieces that were published before the last was encoded

  class Stream {
  public:
    Stream(InPieces& owner, const kith::detail::StreamShape& shape)
        : owner_(owner), copy_(shape.bytes), sent_(shape.bytes), slots_(shape.max_degree * piece_bytes()) {
      outgoing_.reserve(shape.max_degree);
      incoming_.reserve(shape.max_degree);
    }
    [[nodiscard]] std::size_t staging_bytes() const noexcept { return 0; }
    [[nodiscard]] std::size_t pieces() const noexcept { return (copy_.size() + piece_bytes() - 1) / piece_bytes(); }
    [[nodiscard]] static std::size_t piece_bytes() noexcept { return 1000; }
    [[nodiscard]] static std::size_t lead() noexcept { return 1; }
    void open(const kith::Call& call, const kith::Neighborhood& plan, std::span<const kith::BufferView>) {
      call_ = &call;
      plan_ = &plan;
      std::fill(copy_.begin(), copy_.end(), std::byte{0xEE});
    }
    [[nodiscard]] static bool travels(const kith::Neighborhood&) noexcept { return true; }
    void abandon() noexcept { call_ = nullptr; }
    [[nodiscard]] std::byte* room(std::size_t p) noexcept { return copy_.data() + p * piece_bytes(); }
    void publish(std::size_t p) {
      const bool open = std::all_of(copy_.end() - 20, copy_.end(), [](std::byte b) { return b == std::byte{0xEE}; });
      if (p == 0 && open && owner_.late != nullptr) ++*owner_.late;
      std::memcpy(sent_.data() + p * piece_bytes(), room(p), length(p));
    }
    void await(std::size_t p) {
      outgoing_.clear();
      incoming_.clear();
      for (const Rank to : plan_->targets()) outgoing_.push_back({to, sent_.data() + p * piece_bytes(), length(p)});
      for (const auto& source : plan_->sources())
        incoming_.push_back({source.rank, slots_.data() + incoming_.size() * piece_bytes(), length(p)});
      owner_.exchange(*call_, outgoing_, incoming_);
      awaited_ = p;
    }
    [[nodiscard]] const std::byte* source(std::size_t k, std::size_t, std::size_t, std::size_t offset) const noexcept {
      return slots_.data() + k * piece_bytes() + (offset - awaited_ * piece_bytes());
    }
    [[nodiscard]] static const std::byte* message(std::size_t) noexcept { return nullptr; }
    [[nodiscard]] static bool keeps_messages() noexcept { return false; }
    void consumed(std::size_t) { std::fill(slots_.begin(), slots_.end(), std::byte{0xEE}); }
    void settle() noexcept {}
    kith::Seconds close() noexcept { return {}; }
    [[nodiscard]] std::byte* copy() noexcept { return copy_.data(); }

  private:
    [[nodiscard]] std::size_t length(std::size_t p) const noexcept {
      return std::min(piece_bytes(), copy_.size() - p * piece_bytes());
    }

    InPieces& owner_;
    std::vector<std::byte> copy_;
    std::vector<std::byte> sent_;
    std::vector<std::byte> slots_;
    std::vector<kith::Outgoing> outgoing_;
    std::vector<kith::Incoming> incoming_;
    const kith::Call* call_ = nullptr;
    const kith::Neighborhood* plan_ = nullptr;
    std::size_t awaited_ = 0;
  };
};

// Int8Block that has to have a buffer as a whole.
struct Whole : kith::Int8Block {
  [[nodiscard]] static std::size_t granule() noexcept { return 0; }
};

// Several segments and tails; the bf16 buffer travels as it is.
const std::vector<reference::Shape>& shapes() {
  static const std::vector<reference::Shape> all = {{DType::f32, 20001, 1}, {DType::bf16, 40}, {DType::f64, 8300}};
  return all;
}

struct End {
  reference::Model model;
  double replica_distance = 0;
};

template <class C, class T, class E>
End train(C& communicator, const T& topology, const E& exchange, const reference::Model& initial) {
  End end{initial, 0};
  kith::DecentralizedAverager averager{communicator, topology, end.model.views(), exchange,
                                       kith::AveragerOptions{.mixing = 0.9, .encode_from_bytes = 100}};
  for (int t = 0; t < 4; ++t) {
    averager.average();
    end.model.set(0, 20000, end.model.get(0, 20000) + communicator.rank());
  }
  end.replica_distance = averager.metrics().replica_distance;
  return end;
}

template <class T, class E, class F>
void check_same(const T& topology, const E& exchange, const F& other) {
  const std::string name = exchange_name(exchange);
  CAPTURE(name);
  constexpr Rank size = 4;
  const auto initial = normal_models(size, shapes(), 1);
  std::vector<End> ends(size, End{initial[0], 0});
  kith::thread::run(size, [&](Threads& threads) {
    const auto r = static_cast<std::size_t>(threads.rank());
    ends[r] = train(threads, topology, exchange, initial[r]);
  });
  std::atomic<int> wrong{0};
  std::atomic<int> late{0};
  kith::thread::run(size, [&](Threads& threads) {
    const auto r = static_cast<std::size_t>(threads.rank());
    InPieces pieces{threads};
    pieces.late = &late;
    const End end = train(pieces, topology, other, initial[r]);
    if (!(end.model == ends[r].model) || end.replica_distance != ends[r].replica_distance) ++wrong;
  });
  CHECK(wrong == 0);
  CHECK(late == 4 * size);
}

}  // namespace

TEST_CASE("encoded stream: in pieces as at once, cut into segments or not, to the bit") {
  check_same(kith::OnePeerExponential{}, kith::Choco{kith::Int8Block{}}, kith::Choco{kith::Int8Block{}});
  check_same(kith::Ring{}, kith::Choco{kith::Int8Block{}}, kith::Choco{Whole{}});
  check_same(kith::Ring{}, kith::Difference{kith::Int4Block{}}, kith::Difference{kith::Int4Block{}});
  check_same(kith::Ring{}, kith::Direct{kith::Cast<kith::float16>{}}, kith::Direct{kith::Cast<kith::float16>{}});
  check_same(kith::Ring{}, kith::MaskedMean{kith::CyclicMask{.fraction = 0.3}},
             kith::MaskedMean{kith::CyclicMask{.fraction = 0.3}});
}

namespace {

// On each of the three ways, on a ring of 3; with a model whose element 19000 is -3e38.
template <class Body>
void run_all_ways(const Body& body) {
  constexpr Rank size = 3;
  auto initial = normal_models(size, shapes(), 2);
  for (reference::Model& model : initial) model.set(0, 19000, -3e38F);
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    body(communicator, initial[static_cast<std::size_t>(communicator.rank())], false);
  });
  kith::thread::run(size, [&](Threads& threads) {
    InPieces pieces{threads};
    body(pieces, initial[static_cast<std::size_t>(threads.rank())], true);
  });
}

// Int8Block whose message is damaged on rank 1 in round 1, at its very end.
struct Damaged : kith::Int8Block {
  void encode(kith::BufferView values, std::span<std::byte> wire, kith::CodecContext context) const {
    Int8Block::encode(values, wire, context);
    if (context.rank == 1 && context.round == 1 && values.count == 8300 - 8192) wire.back() = std::byte{0x80};
  }
};

}  // namespace

TEST_CASE("encoded stream: a NaN in a late segment is found before the round begins, and named") {
  std::atomic<int> wrong{0};
  run_all_ways([&](auto& communicator, const reference::Model& initial, bool) {
    const auto rounds = [&](bool disturbed) {
      reference::Model model = initial;
      model.set(0, 19000, 1);
      kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views(), kith::Choco{kith::Int8Block{}}};
      averager.average();
      if (disturbed && communicator.rank() == 1) {
        const double kept = model.get(0, 19000);
        model.set(0, 19000, std::numeric_limits<double>::quiet_NaN());
        try {
          averager.average();
          ++wrong;
        } catch (const kith::NonFiniteError& error) {
          if (error.rank() != 1 || error.buffer() != 0 || error.index() != 19000) ++wrong;
        }
        model.set(0, 19000, kept);
      }
      averager.average();
      return model;
    };
    const reference::Model expected = rounds(false);
    if (!(rounds(true) == expected)) ++wrong;
  });
  CHECK(wrong == 0);
}

TEST_CASE("encoded stream: what fails in the middle of a message changes nothing on any rank") {
  std::atomic<int> wrong{0};
  const auto check = [&](const auto& exchange, bool overflows) {
    run_all_ways([&](auto& communicator, const reference::Model& initial, bool travels) {
      reference::Model model = initial;
      kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views(), exchange,
                                           kith::AveragerOptions{.deadline = std::chrono::seconds{20}}};
      averager.broadcast(0);
      averager.average();
      if (overflows && communicator.rank() == 1) model.set(0, 19000, 3e38F);  // 6e38 above its replica
      const reference::Model before = model;
      const std::vector<std::byte> state = averager.state();
      bool refused = false;
      try {
        averager.average();
      } catch (const kith::PeerError& error) {
        refused = communicator.rank() != 1 || error.peer() == 1;
      } catch (const kith::NonFiniteError& error) {
        refused = overflows && !travels && error.rank() == 1 && error.index() == 19000;
      }
      if (!refused || !(model == before) || averager.state() != state) ++wrong;
    });
  };
  check(kith::Choco{kith::Int8Block{}}, true);
  check(kith::Choco{Damaged{}}, false);
  CHECK(wrong == 0);
}

}  // namespace exchange_encoded_stream_test
