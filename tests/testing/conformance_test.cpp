// SPDX-License-Identifier: Apache-2.0
#include <kith/testing/conformance.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <kith/thread/run.hpp>

#include <doctest/doctest.h>

namespace testing_conformance_test {

using kith::Call;
using kith::Incoming;
using kith::Outgoing;
using kith::PeerError;
using kith::Rank;
using kith::Seconds;
using kith::testing::CallPart;
using kith::testing::Failure;

namespace {

enum class Fault {
  none,
  rank_out_of_range,
  size_zero,
  channels_repeat,
  channels_differ_between_ranks,
  byte_flipped,
  last_byte_missing,
  nothing_delivered,
  messages_swapped,
  writes_behind_the_room,
  changes_what_was_sent,
  negative_wait,
  gathers_in_wrong_order,
  gathers_without_itself,
  writes_behind_the_gather,
  negative_wait_of_gather,
  // collaborate
  no_workers,
  workers_differ,
  claim_left_out,
  claim_done_twice,
  no_epilogue,
  epilogue_twice,
  epilogue_too_early,
  publications_in_wrong_order,
  // deadlines
  does_not_wait,
  waits_too_short,
  names_the_wrong_peer,
  says_lost,
  throws_another_type,
  text_without_the_rank,
  recovers,
  // protocol
  ignores_what,
  ignores_channel,
  ignores_sequence,
  ignores_agreement,
  blames_itself,
};

// A communicator with one fault, on every rank.
class Broken {
public:
  Broken(kith::thread::Communicator& communicator, Fault what) : inner_(communicator), fault_(what) {}

  [[nodiscard]] Rank rank() const noexcept {
    return inner_.rank() + (fault_ == Fault::rank_out_of_range ? inner_.size() : 0);
  }
  [[nodiscard]] Rank size() const noexcept { return fault_ == Fault::size_zero ? 0 : inner_.size(); }
  std::uint32_t open_channel() {
    if (fault_ == Fault::channels_repeat) return 0;
    return inner_.open_channel() +
           (fault_ == Fault::channels_differ_between_ranks ? 10 * static_cast<std::uint32_t>(rank()) : 0);
  }

  Seconds exchange(const Call& call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming) {
    if (fault_ == Fault::does_not_wait && outgoing.empty() && incoming.empty()) return Seconds{0};
    std::vector<Incoming> in(incoming.begin(), incoming.end());
    std::vector<std::byte> elsewhere(in.empty() ? 0 : in[0].bytes);
    if (fault_ == Fault::nothing_delivered && !in.empty()) in[0].data = elsewhere.data();
    const Seconds waited = guarded(call, [&](const Call& c) { return inner_.exchange(c, outgoing, in); });
    for (const Incoming& message : incoming) {
      auto* bytes = static_cast<std::byte*>(message.data);
      if (fault_ == Fault::byte_flipped && message.bytes > 0) bytes[message.bytes / 2] ^= std::byte{1};
      if (fault_ == Fault::last_byte_missing && message.bytes > 0) bytes[message.bytes - 1] = std::byte{0xA5};
      if (fault_ == Fault::writes_behind_the_room) bytes[message.bytes] = std::byte{0};
    }
    if (fault_ == Fault::messages_swapped && in.size() > 1 && in[0].bytes > 0) {
      std::memcpy(elsewhere.data(), in[0].data, in[0].bytes);
      std::memcpy(in[0].data, in[1].data, in[0].bytes);
      std::memcpy(in[1].data, elsewhere.data(), in[0].bytes);
    }
    if (fault_ == Fault::changes_what_was_sent && !outgoing.empty() && outgoing[0].bytes > 0)
      *static_cast<std::byte*>(const_cast<void*>(outgoing[0].data)) ^= std::byte{1};
    return fault_ == Fault::negative_wait ? Seconds{-1} : waited;
  }

  Seconds all_gather(const Call& call, std::span<const std::byte> mine, std::span<std::byte> all) {
    const Seconds waited = guarded(call, [&](const Call& c) { return inner_.all_gather(c, mine, all); });
    if (fault_ == Fault::gathers_in_wrong_order && mine.size() > 1)
      for (std::size_t i = 0; i < mine.size(); ++i) std::swap(all[i], all[all.size() - mine.size() + i]);
    if (fault_ == Fault::gathers_without_itself && !mine.empty())
      std::memset(all.data() + static_cast<std::size_t>(rank()) * mine.size(), 0, mine.size());
    if (fault_ == Fault::writes_behind_the_gather) *(all.data() + all.size()) = std::byte{0};
    return fault_ == Fault::negative_wait_of_gather ? Seconds{-1} : waited;
  }

  [[nodiscard]] Rank workers() const noexcept {
    if (fault_ == Fault::no_workers) return 0;
    return fault_ == Fault::workers_differ ? 1 + rank() % 2 : inner_.workers();
  }

  template <class P, class Work, class Epilogue>
  Seconds collaborate(const Call& call, P& publication, std::size_t claims, const Work& work,
                      const Epilogue& epilogue) {
    const auto reversed = [](kith::Published<P> ranks) {
      std::vector<void*> slots;
      for (Rank r = ranks.size() - 1; r >= 0; --r) slots.push_back(&ranks[r]);
      return slots;
    };
    return inner_.collaborate(
        call, publication, claims,
        [&](kith::Published<P> ranks, std::size_t claim) noexcept {
          if (fault_ == Fault::claim_left_out && claim == 1) return;
          if (fault_ == Fault::epilogue_too_early && claim == 0) epilogue(ranks);
          work(ranks, claim);
          if (fault_ == Fault::claim_done_twice && claim == claims / 2) work(ranks, claim);
        },
        [&](kith::Published<P> ranks) noexcept {
          if (fault_ == Fault::no_epilogue || (fault_ == Fault::epilogue_too_early && claims > 0)) return;
          if (fault_ == Fault::publications_in_wrong_order) {
            const std::vector<void*> slots = reversed(ranks);
            return epilogue(kith::Published<P>{slots});
          }
          epilogue(ranks);
          if (fault_ == Fault::epilogue_twice) epilogue(ranks);
        });
  }

private:
  template <class F>
  Seconds guarded(const Call& original, const F& f) {
    Call call = original;
    if (fault_ == Fault::ignores_what) call.what = "call";
    if (fault_ == Fault::ignores_channel) call.channel = 0;
    if (fault_ == Fault::ignores_sequence) call.sequence = 0;
    if (fault_ == Fault::ignores_agreement) call.agreement = 0;
    if (fault_ == Fault::waits_too_short) call.deadline = call.deadline / 10;
    if (fault_ == Fault::recovers && failed_) return Seconds{0};
    try {
      return f(call);
    } catch (const PeerError& error) {
      failed_ = true;
      const Rank wrong = (error.peer() + 1) % size();
      if (fault_ == Fault::names_the_wrong_peer) throw PeerError(std::string{error.message()}, wrong, error.reason());
      if (fault_ == Fault::says_lost) throw PeerError(std::string{error.message()}, error.peer(), PeerError::lost);
      if (fault_ == Fault::throws_another_type) throw std::runtime_error(error.what());
      if (fault_ == Fault::text_without_the_rank) throw PeerError("failed", error.peer(), error.reason());
      if (fault_ == Fault::blames_itself) throw PeerError(std::string{error.message()}, rank(), error.reason());
      throw;
    }
  }

  kith::thread::Communicator& inner_;
  const Fault fault_;
  bool failed_ = false;
};

static_assert(kith::SharedAddressSpace<Broken>, "or the sharing of work would not be checked at all");

// On how many of `size` ranks a check of a communicator with this fault fails: by Failure, or because what the engine
// throws is not what it has to throw.
template <class Check>
int failures(Fault fault, Rank size, const Check& check) {
  std::atomic<int> failed{0};
  kith::thread::run(size, [&](kith::thread::Communicator& communicator) {
    Broken broken{communicator, fault};
    try {
      check(broken);
    } catch (const Failure&) {
      ++failed;
    } catch (const PeerError&) {  // of a rank whose peers have given up the check
    } catch (const std::exception&) {
      ++failed;
    }
  });
  return failed;
}

const auto check_all = [](Broken& communicator) { kith::testing::check_communicator(communicator); };

void check_caught(std::initializer_list<Fault> faults) {
  for (const Fault fault : faults) {
    CAPTURE(static_cast<int>(fault));
    CHECK(failures(fault, 3, check_all) > 0);
  }
}

int deadline_failures(Fault fault) {
  return failures(fault, 3, [](Broken& communicator) { kith::testing::check_deadline(communicator, 1); });
}

int protocol_failures(Fault fault, CallPart part = CallPart::sequence) {
  return failures(fault, 2, [&](Broken& communicator) { kith::testing::check_protocol(communicator, 1, part); });
}

}  // namespace

TEST_CASE("conformance: a communicator without fault passes") {
  CHECK(failures(Fault::none, 1, check_all) == 0);
  CHECK(failures(Fault::none, 3, check_all) == 0);
  CHECK(deadline_failures(Fault::none) == 0);
  for (const CallPart part : {CallPart::what, CallPart::channel, CallPart::sequence, CallPart::agreement})
    CHECK(protocol_failures(Fault::none, part) == 0);
}

TEST_CASE("conformance: wrong ranks and channels are caught") {
  check_caught(
      {Fault::rank_out_of_range, Fault::size_zero, Fault::channels_repeat, Fault::channels_differ_between_ranks});
}

TEST_CASE("conformance: wrong messages are caught") {
  check_caught({Fault::byte_flipped, Fault::last_byte_missing, Fault::nothing_delivered, Fault::messages_swapped,
                Fault::writes_behind_the_room, Fault::changes_what_was_sent, Fault::negative_wait});
}

TEST_CASE("conformance: wrong gathers are caught") {
  check_caught({Fault::gathers_in_wrong_order, Fault::gathers_without_itself, Fault::writes_behind_the_gather,
                Fault::negative_wait_of_gather});
}

TEST_CASE("conformance: wrong sharing of work is caught") {
  check_caught({Fault::no_workers, Fault::workers_differ, Fault::claim_left_out, Fault::claim_done_twice,
                Fault::no_epilogue, Fault::epilogue_twice, Fault::epilogue_too_early,
                Fault::publications_in_wrong_order});
}

TEST_CASE("conformance: wrong behaviour at the deadline is caught") {
  for (const Fault fault : {Fault::does_not_wait, Fault::waits_too_short, Fault::names_the_wrong_peer, Fault::says_lost,
                            Fault::throws_another_type, Fault::text_without_the_rank, Fault::recovers}) {
    CAPTURE(static_cast<int>(fault));
    CHECK(deadline_failures(fault) > 0);
  }
}

TEST_CASE("conformance: calls that differ and are not told apart are caught") {
  CHECK(protocol_failures(Fault::ignores_what, CallPart::what) > 0);
  CHECK(protocol_failures(Fault::ignores_channel, CallPart::channel) > 0);
  CHECK(protocol_failures(Fault::ignores_sequence, CallPart::sequence) > 0);
  CHECK(protocol_failures(Fault::ignores_agreement, CallPart::agreement) > 0);
  CHECK(protocol_failures(Fault::blames_itself, CallPart::sequence) > 0);
  CHECK(protocol_failures(Fault::says_lost, CallPart::sequence) > 0);
  CHECK(protocol_failures(Fault::recovers, CallPart::sequence) > 0);
}

}  // namespace testing_conformance_test
