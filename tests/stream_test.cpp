// SPDX-License-Identifier: Apache-2.0
// What a round of full values does with a stream, on a stream that follows a script: it can fail at any piece, and do
// whatever an engine does that reads its peers' memory in place.
#include <kith/stream.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <set>
#include <span>
#include <type_traits>
#include <vector>

#include <kith/exchange/full_precision.hpp>
#include <kith/exchange/layout.hpp>
#include <kith/thread/communicator.hpp>

#include <doctest/doctest.h>

namespace stream_test {

namespace {

constexpr std::size_t piece = 256;

// What shall happen in the next round.
struct Script {
  const std::byte* peer = nullptr;  // what the one neighbour holds, laid out as a message
  std::optional<std::size_t> fails_at{};
  bool in_place = false;                          // the neighbour reads this rank's buffers
  std::set<std::size_t> never_read{};             // pieces that it does not come to read
  bool peer_in_place = false;                     // this rank reads the neighbour's
  std::optional<std::size_t> peer_retreats_at{};  // while that piece is read for the first time
};
struct Recording {
  std::vector<std::size_t> published;
  std::vector<std::size_t> consumed;
  std::optional<std::size_t> retreated;
  std::vector<std::byte> copy;
};

// One rank that takes itself for two.
struct Scripted {
  class Stream {
  public:
    Stream(Scripted& owner, const kith::detail::StreamShape& shape) : owner_(owner), bytes_(shape.bytes) {}
    [[nodiscard]] std::size_t staging_bytes() const noexcept { return 0; }
    [[nodiscard]] std::size_t pieces() const noexcept { return std::max<std::size_t>((bytes_ + piece - 1) / piece, 1); }
    [[nodiscard]] std::size_t piece_bytes() const noexcept { return piece; }
    [[nodiscard]] std::size_t lead() const noexcept { return 2; }
    void open(const kith::Call&, const kith::Neighborhood&, std::span<const kith::BufferView>) {
      owner_.recording = {{}, {}, {}, std::vector<std::byte>(bytes_, std::byte{0xEE})};
      reads_.assign(pieces(), 0);
    }
    [[nodiscard]] std::byte* room(std::size_t c) {
      return owner_.script.in_place ? nullptr : owner_.recording.copy.data() + c * piece;
    }
    void publish(std::size_t c) { owner_.recording.published.push_back(c); }
    void await(std::size_t c) {
      awaited_ = c;
      if (owner_.script.fails_at == c) throw kith::PeerError("as the script says", 1, kith::PeerError::timeout);
    }
    [[nodiscard]] const std::byte* source(std::size_t, std::size_t, std::size_t, std::size_t offset) const {
      const bool torn = owner_.script.peer_retreats_at == awaited_ && reads_[awaited_] == 0;
      return (torn ? owner_.garbage.data() : owner_.script.peer) + offset;
    }
    void consumed(std::size_t c) { owner_.recording.consumed.push_back(c); }
    void settle() noexcept {}
    kith::Seconds close() noexcept { return {}; }
    [[nodiscard]] std::byte* copy() noexcept { return owner_.recording.copy.data(); }
    [[nodiscard]] bool ever_in_place() const noexcept { return true; }
    [[nodiscard]] bool in_place() const noexcept { return owner_.script.in_place && !owner_.recording.retreated; }
    [[nodiscard]] bool released(std::size_t c) noexcept { return owner_.script.never_read.count(c) == 0; }
    void retreat(std::size_t c) noexcept { owner_.recording.retreated = c; }
    [[nodiscard]] bool may_move() const noexcept { return owner_.script.peer_in_place; }
    [[nodiscard]] bool moved(std::size_t c) noexcept { return reads_[c]++ == 0 && owner_.script.peer_retreats_at == c; }

  private:
    Scripted& owner_;
    std::size_t bytes_;
    std::size_t awaited_ = 0;
    std::vector<int> reads_;
  };

  [[nodiscard]] kith::Rank rank() const noexcept { return 0; }
  [[nodiscard]] kith::Rank size() const noexcept { return 2; }
  std::uint32_t open_channel() { return 0; }
  kith::Seconds exchange(const kith::Call&, std::span<const kith::Outgoing>, std::span<const kith::Incoming>) {
    return {};
  }
  kith::Seconds all_gather(const kith::Call&, std::span<const std::byte>, std::span<std::byte>) { return {}; }

  Script script;
  Recording recording;
  std::vector<std::byte> garbage = std::vector<std::byte>(1 << 16, std::byte{0x77});
};
static_assert(kith::Communicator<Scripted>);

// A model of two buffers and ten pieces, and a round with a neighbour whose every value is 3: (1 + 3) / 2 = 2.
struct Fixture {
  std::vector<float> first = std::vector<float>(500, 1.0F);
  std::vector<double> second = std::vector<double>(70, 1.0);
  std::vector<kith::BufferView> buffers = {kith::view(first), kith::view(second)};
  kith::detail::Layout layout{buffers};
  std::vector<float> peer_first = std::vector<float>(500, 3.0F);
  std::vector<double> peer_second = std::vector<double>(70, 3.0);
  std::vector<std::byte> peer = std::vector<std::byte>(layout.bytes());
  Scripted communicator;
  kith::detail::StreamFullPrecision<Scripted> session{communicator, kith::FullPrecision{}, layout, {1, 0, buffers}};
  kith::Neighborhood plan{1};

  Fixture() {
    const std::vector<kith::BufferView> views = {kith::view(peer_first), kith::view(peer_second)};
    pack(layout, views, 0, layout.bytes(), peer.data());
    communicator.script.peer = peer.data();
    plan.tell(1);
    plan.hear(1, 0.5);
  }
  void round(bool commit = true) {
    kith::Call call;
    session.round({call, buffers, plan, 1.0, commit});
  }
  [[nodiscard]] bool holds(float value) const {
    return std::all_of(first.begin(), first.end(), [&](float x) { return x == value; }) &&
           std::all_of(second.begin(), second.end(), [&](double x) { return x == static_cast<double>(value); });
  }
  // The message that others can read holds the old values from this piece on.
  [[nodiscard]] bool copy_is_old_from(std::size_t c) {
    std::vector<float> f(500);
    std::vector<double> s(70);
    const std::vector<kith::BufferView> views = {kith::view(f), kith::view(s)};
    unpack(layout, views, c * piece, layout.bytes(), communicator.recording.copy.data() + c * piece);
    std::size_t ones = 0;
    layout.for_each(views, c * piece, layout.bytes(),
                    [&](std::size_t, std::size_t, std::size_t count, std::size_t) { ones += count; });
    const auto is_one = [](auto x) { return x == 1; };
    return static_cast<std::size_t>(std::count_if(f.begin(), f.end(), is_one) +
                                    std::count_if(s.begin(), s.end(), is_one)) == ones;
  }
};

const std::vector<std::size_t> all_pieces = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};

}  // namespace

TEST_CASE("stream: every piece is published and consumed once, in order, and the round is computed") {
  for (const bool in_place : {false, true}) {
    for (const bool peer_in_place : {false, true}) {
      Fixture f;
      f.communicator.script.in_place = in_place;
      f.communicator.script.peer_in_place = peer_in_place;
      f.round();
      CHECK(f.holds(2.0F));
      CHECK(f.communicator.recording.published == all_pieces);
      CHECK(f.communicator.recording.consumed == all_pieces);
      CHECK(!f.communicator.recording.retreated);
      if (!in_place) CHECK(f.copy_is_old_from(0));
    }
  }
}

TEST_CASE("stream: whichever piece fails to come, the parameters are as they were") {
  for (const bool peer_in_place : {false, true}) {
    for (const std::size_t at : all_pieces) {
      Fixture f;
      f.communicator.script.fails_at = at;
      f.communicator.script.peer_in_place = peer_in_place;
      CHECK_THROWS_AS(f.round(), kith::PeerError);
      CHECK(f.holds(1.0F));
      f.communicator.script.fails_at.reset();
      CHECK_NOTHROW(f.round());
      CHECK(f.holds(2.0F));
    }
  }
}

TEST_CASE("stream: a rank that must not commit takes part and keeps its values") {
  for (const bool in_place : {false, true}) {
    Fixture f;
    f.communicator.script.in_place = in_place;
    f.round(false);
    CHECK(f.holds(1.0F));
    CHECK(f.communicator.recording.published == all_pieces);
    CHECK(f.communicator.recording.consumed == all_pieces);
  }
}

TEST_CASE("stream: for a reader that does not read on, the old values are kept where it finds them") {
  for (const std::size_t at : all_pieces) {
    Fixture f;
    f.communicator.script.in_place = true;
    for (std::size_t c = at; c < all_pieces.size(); ++c) f.communicator.script.never_read.insert(c);
    f.round();
    CHECK(f.holds(2.0F));
    REQUIRE(f.communicator.recording.retreated == at);
    CHECK(f.copy_is_old_from(at));
  }
}

TEST_CASE("stream: a round in place that fails at its first piece leaves the readers what they came for") {
  Fixture f;
  f.communicator.script.in_place = true;
  f.communicator.script.fails_at = 0;
  CHECK_THROWS_AS(f.round(), kith::PeerError);
  CHECK(f.holds(1.0F));
  CHECK(f.communicator.recording.retreated == 0);
  CHECK(f.copy_is_old_from(0));
}

TEST_CASE("stream: a piece that moves while it is read is read again") {
  for (const std::size_t at : all_pieces) {
    Fixture f;
    f.communicator.script.peer_in_place = true;
    f.communicator.script.peer_retreats_at = at;
    f.round();
    CHECK(f.holds(2.0F));
  }
}

TEST_CASE("stream: engines without one of their own get the whole message at once") {
  static_assert(std::is_same_v<kith::detail::Stream<Scripted>, Scripted::Stream>);
  static_assert(std::is_same_v<kith::detail::Stream<kith::thread::Communicator>,
                               kith::detail::ExchangeStream<kith::thread::Communicator>>);
}

}  // namespace stream_test
