// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/thread/parking.hpp>
#include <kith/types.hpp>

namespace kith::thread {

class Communicator;

/// @brief The meeting place of a group of threads, each of which is one rank.
///
/// kith::thread::run makes one and starts the threads. A trainer with worker threads of its own makes a World that
/// outlives them and gives each a Communicator{world, rank}.
///
/// A meeting goes through three states: ranks arrive; the last one opens it, and whoever is awake takes claims of the
/// work; the one that finishes the last claim closes it. The wait for arrivals is the only one that another rank's
/// behaviour can prolong, so it has the deadline. Arrival and failure are settled by one atomic word: either all
/// ranks are in, and the work is done on all of them, or the meeting fails for every one of them.
///
/// @par Thread safety Each rank is used by one thread at a time; everything else is safe.
class World {
public:
  /// @throws UsageError for a size below 1.
  explicit World(Rank size)
      : size_(size), parts_(std::clamp(static_cast<Rank>(std::thread::hardware_concurrency()), 1, std::max(size, 1))) {
    if (size < 1) throw UsageError("a group of threads has at least 1 rank, not " + std::to_string(size));
    const auto count = static_cast<std::size_t>(size);
    seats_ = std::make_unique<Seat[]>(count);
    all_parts_ = std::make_unique<Part[]>(static_cast<std::size_t>(parts_));
    publications_.assign(count, nullptr);
  }

  World(const World&) = delete;
  World& operator=(const World&) = delete;
  ~World() = default;

  [[nodiscard]] Rank size() const noexcept { return size_; }

  /// How many of the ranks can run at once: all, or as many as there are cores.
  [[nodiscard]] Rank workers() const noexcept { return parts_; }

private:
  friend class Communicator;
  template <class Body>
  friend void run(Rank size, Body&& body);

  using Clock = detail::Parking::Clock;

  // Two cache lines for each rank: others look at it and wake it while its neighbours are busy.
  struct alignas(128) Seat {
    const Call* call = nullptr;
    std::size_t claims = 0;
    std::uint64_t meeting = 0;              // meetings this rank has come to; for its own thread
    std::atomic<std::uint64_t> arrived{0};  // the same for others: tells who is missing
    std::atomic<int> core{-1};              // where it ran when it came to the latest one
    std::atomic<bool> taken{false};         // a Communicator exists, or has existed, for this rank
    std::atomic<bool> gone{false};          // and has ended
    detail::Parking parking;
  };

  struct alignas(128) Part {
    std::atomic<std::size_t> next{0};  // the next claim of this part
  };

  struct Failure {
    Rank peer;
    Rank reporter;
    PeerError::Reason reason;
    std::string text;
  };

  // The gate, one word: bit 63 = failed; above bit 32 = meetings opened so far; below = arrivals for the next one.
  static constexpr std::uint64_t failed_bit = std::uint64_t{1} << 63;
  static constexpr std::uint64_t one_meeting = std::uint64_t{1} << 32;
  static constexpr std::uint64_t arrivals(std::uint64_t gate) noexcept { return gate % one_meeting; }
  static constexpr std::uint64_t meetings(std::uint64_t gate) noexcept { return (gate & ~failed_bit) / one_meeting; }

  [[nodiscard]] Seat& seat(Rank rank) noexcept { return seats_[static_cast<std::size_t>(rank)]; }

  // Spinning pays while every rank has a core of its own; otherwise it keeps the one waited for from running.
  [[nodiscard]] int spins() const noexcept { return size_ == parts_ ? 4000 : 0; }

  template <class P, class Work, class Epilogue>
  Seconds meet(Rank rank, const Call& call, P& publication, std::size_t claims, const Work& work,
               const Epilogue& epilogue) {
    Seat& mine = seat(rank);
    const std::uint64_t meeting = ++mine.meeting;
    mine.call = &call;
    mine.claims = claims;
    mine.core.store(detail::current_core(), std::memory_order_relaxed);
    publications_[static_cast<std::size_t>(rank)] = &publication;
    mine.arrived.store(meeting);
    const Clock::time_point start = Clock::now();
    const std::uint64_t before = gate_.fetch_add(1);
    if ((before & failed_bit) != 0) throw_failure(rank, call);
    const bool last = arrivals(before) + 1 == static_cast<std::uint64_t>(size_);
    if (last)
      open(rank, call, meeting, claims);
    else
      await_opening(rank, call, meeting, start);
    take_claims(rank, meeting, claims, Published<P>{publications_}, work, epilogue);
    // Without a deadline: what is left is arithmetic that threads which are running have already claimed.
    (void)mine.parking.wait(spins(), Clock::time_point::max(), [&] { return closed_.load() >= meeting; });
    return last ? Seconds{0} : std::max(Seconds{0}, Seconds{opened_at_ - start});
  }

  // The last one in: no other thread touches the gate or the claims now.
  void open(Rank rank, const Call& call, std::uint64_t meeting, std::size_t claims) {
    check_calls(rank, call);
    opened_at_ = Clock::now();
    for (Rank p = 0; p < parts_; ++p) part(p).next.store(first_claim(p, tickets(claims)), std::memory_order_relaxed);
    unfinished_.store(tickets(claims), std::memory_order_relaxed);
    gate_.store(meeting * one_meeting);
    if (claims <= 1) return;  // a single piece of work: nobody need wake before it is done
    opened_.store(meeting);
    // As many helpers as there are cores and claims for them: more would only take turns on the same cores.
    std::size_t helpers = std::min(static_cast<std::size_t>(parts_), claims) - 1;
    // Those who last ran elsewhere come first: a thread wakes where it slept, and this core is busy.
    const int here = seat(rank).core.load(std::memory_order_relaxed);
    for (const bool elsewhere : {true, false})
      for (Rank i = 1; i < size_ && helpers > 0; ++i) {
        Seat& other = seat((rank + i) % size_);
        if ((other.core.load(std::memory_order_relaxed) != here) == elsewhere && other.parking.wake()) --helpers;
      }
  }

  void await_opening(Rank rank, const Call& call, std::uint64_t meeting, Clock::time_point start) {
    // A rank that has left never comes. It marks itself, then looks at the gate; this thread did the reverse, so at
    // least one of the two sees the other.
    if (departures_.load() > 0) report_departure(meeting);
    const auto under_way = [&] { return opened_.load() >= meeting || closed_.load() >= meeting; };
    const auto settled = [&] { return under_way() || (gate_.load() & failed_bit) != 0; };
    if (!seat(rank).parking.wait(spins(), deadline_of(call, start), settled)) {
      const Rank missing = first_missing(meeting);
      fail(meeting, {missing, rank, PeerError::Reason::timeout,
                     "waited " + kith::detail::to_text(call.deadline) + " for rank " + std::to_string(missing) +
                         ", which has not come. It may hang, be slower than the deadline allows (see "
                         "AveragerOptions::deadline) or have skipped this call"});
      (void)seat(rank).parking.wait(0, Clock::time_point::max(), settled);
    }
    if (!under_way()) throw_failure(rank, call);
  }

  // Without work there is still the epilogue to be run by somebody.
  static std::size_t tickets(std::size_t claims) noexcept { return std::max<std::size_t>(claims, 1); }

  // The claims are dealt out in contiguous parts, one for each rank that has a core. A rank starts with the same part
  // in every round, whose memory its core may still have in its cache, and then helps with the others.
  [[nodiscard]] std::size_t first_claim(Rank part, std::size_t claims) const noexcept {
    return claims * static_cast<std::size_t>(part) / static_cast<std::size_t>(parts_);
  }
  [[nodiscard]] Part& part(Rank index) noexcept { return all_parts_[static_cast<std::size_t>(index)]; }

  template <class P, class Work, class Epilogue>
  void take_claims(Rank rank, std::uint64_t meeting, std::size_t claims, Published<P> published, const Work& work,
                   const Epilogue& epilogue) {
    for (Rank i = 0; i < parts_; ++i) {
      const Rank mine = (rank + i) % parts_;
      std::atomic<std::size_t>& next = part(mine).next;
      const std::size_t end = first_claim(mine + 1, tickets(claims));
      while (next.load(std::memory_order_relaxed) < end) {
        const std::size_t claim = next.fetch_add(1, std::memory_order_relaxed);
        if (claim >= end) break;
        if (claims > 0) work(published, claim);
        if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
          epilogue(published);
          closed_.store(meeting);
          for (Rank r = 1; r < size_; ++r) seat((rank + r) % size_).parking.wake();
          return;
        }
      }
    }
  }

  static Clock::time_point deadline_of(const Call& call, Clock::time_point start) {
    constexpr Seconds a_year{365.0 * 24 * 3600};  // beyond it the clock's own type would overflow
    return start + std::chrono::duration_cast<Clock::duration>(std::min(call.deadline, a_year));
  }

  [[nodiscard]] Rank first_missing(std::uint64_t meeting) noexcept {
    for (Rank r = 0; r < size_; ++r)
      if (seat(r).arrived.load() < meeting) return r;
    return size_ - 1;  // it has come this very moment
  }

  // Everybody has to make the same call. The last one in compares, before any work is done; the first rank that is not
  // with the most is named.
  void check_calls(Rank rank, const Call& call) {
    const auto same = [this](Rank a, Rank b) {
      const Call& x = *seat(a).call;
      const Call& y = *seat(b).call;
      return x.what == y.what && x.channel == y.channel && x.sequence == y.sequence && x.agreement == y.agreement &&
             seat(a).claims == seat(b).claims;
    };
    Rank agreeing = 1;
    while (agreeing < size_ && same(0, agreeing)) ++agreeing;
    if (agreeing == size_) return;
    Rank usual = 0;
    Rank most = 0;
    for (Rank r = 0; r < size_; ++r) {
      Rank count = 0;
      for (Rank other = 0; other < size_; ++other) count += same(r, other) ? 1 : 0;
      if (count > most) usual = r, most = count;
    }
    Rank odd = 0;
    while (same(usual, odd)) ++odd;
    {
      const std::lock_guard lock{failure_mutex_};
      failure_ = {odd, usual, PeerError::Reason::protocol,
                  "rank " + std::to_string(odd) + " called " + kith::detail::describe(*seat(odd).call) +
                      " while rank " + std::to_string(usual) + " called " + kith::detail::describe(*seat(usual).call) +
                      ". All ranks make the same calls in the same order, with equal settings"};
      gate_.fetch_or(failed_bit);
    }
    wake_all();
    throw_failure(rank, call);
  }

  // Fails `meeting` unless it is already open or the world has failed before. Wakes everybody who waits.
  void fail(std::uint64_t meeting, const Failure& failure) {
    {
      const std::lock_guard lock{failure_mutex_};
      std::uint64_t gate = gate_.load();
      do {
        const bool open = meetings(gate) >= meeting || arrivals(gate) == static_cast<std::uint64_t>(size_);
        if ((gate & failed_bit) != 0 || open) return;
        failure_ = failure;  // before the bit: whoever sees the bit reads this under the lock
      } while (!gate_.compare_exchange_weak(gate, gate | failed_bit));
    }
    wake_all();
  }

  void wake_all() {
    for (Rank r = 0; r < size_; ++r) seat(r).parking.wake();
  }

  [[noreturn]] void throw_failure(Rank rank, const Call& call) {
    const std::lock_guard lock{failure_mutex_};
    const std::string who =
        "rank " + std::to_string(rank) + "/" + std::to_string(size_) + ": " + kith::detail::describe(call) + ": ";
    if (failure_.peer == rank)  // the one at fault, seen from its own side
      throw PeerError(who + "the group has failed on account of this rank: " + failure_.text, failure_.reporter,
                      failure_.reason);
    throw PeerError(who + failure_.text, failure_.peer, failure_.reason);
  }

  void report_departure(std::uint64_t meeting) {
    const std::lock_guard lock{departure_mutex_};
    fail(meeting, {departed_, departed_ == 0 ? size_ - 1 : 0, PeerError::Reason::lost, departure_});
  }

  // `rank` will come to no further meeting. Whoever waits for it, now or later, learns why.
  void leave(Rank rank, const std::string& why) {
    if (seat(rank).gone.exchange(true)) return;
    {
      const std::lock_guard lock{departure_mutex_};
      if (departure_.empty()) {
        departed_ = rank;
        departure_ = "rank " + std::to_string(rank) + " has left the group: " + why;
      }
    }
    departures_.fetch_add(1);
    const std::uint64_t gate = gate_.load();
    if (arrivals(gate) > 0) report_departure(meetings(gate) + 1);
  }

  const Rank size_;
  const Rank parts_;
  std::unique_ptr<Seat[]> seats_;
  std::unique_ptr<Part[]> all_parts_;
  std::vector<void*> publications_;

  alignas(128) std::atomic<std::uint64_t> gate_{0};
  alignas(128) std::atomic<std::uint64_t> opened_{0};  // the latest meeting whose work may be claimed
  alignas(128) std::atomic<std::uint64_t> closed_{0};  // the latest meeting whose work is done
  alignas(128) std::atomic<std::size_t> unfinished_{0};
  Clock::time_point opened_at_;  // written before opened_ and closed_, read after them

  std::mutex failure_mutex_;
  Failure failure_{0, 0, PeerError::Reason::lost, {}};
  std::atomic<int> departures_{0};
  std::mutex departure_mutex_;
  Rank departed_ = 0;
  std::string departure_;
};

}  // namespace kith::thread
