// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <kith/background.hpp>
#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/mpi/native.hpp>
#include <kith/thread/parking.hpp>
#include <kith/types.hpp>

namespace kith::mpi::detail {

using Clock = std::chrono::steady_clock;

/// A call under way on this rank: until when it may wait, and how long it has waited.
struct Meeting {
  explicit Meeting(const Call& of) : call(of), stamp(of) {
    constexpr Seconds a_year{365.0 * 24 * 3600};  // beyond it the clock's own type would overflow
    deadline = start + std::chrono::duration_cast<Clock::duration>(std::min(call.deadline, a_year));
  }

  const Call& call;
  Stamp stamp;
  Clock::time_point start = Clock::now();
  Clock::time_point deadline;
  Seconds waited{0};
};

/// @brief A rank's own MPI communicator, how it waits for the others, and how it learns and tells that one has failed.
///
/// No call of MPI that could block is made after construction: whatever is waited for is asked for again and again,
/// until the deadline. A rank that gives up tells all others whom it has waited for. With that they find the rank that
/// is really missing, also where each of them only waits for one that waits itself.
class Peers {
public:
  /// Collective, and like every collective call of MPI without a deadline.
  explicit Peers(MPI_Comm parent) {
    require_usable(parent);
    require_success(MPI_Comm_dup(parent, &comm_), "MPI_Comm_dup");
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    blames_.assign(static_cast<std::size_t>(size_), nobody);
  }

  Peers(const Peers&) = delete;
  Peers& operator=(const Peers&) = delete;

  /// Where all ranks come here together, MPI's resources are given back; otherwise they are left to the end of the
  /// program, and the others learn that this rank has gone.
  ~Peers() {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized != 0) return;
    if (together_) {
      MPI_Comm_free(&comm_);
      return;
    }
    // MPI may still read and write what was given to it.
    static_cast<void>(kept_.release());
  }

  [[nodiscard]] MPI_Comm comm() const noexcept { return comm_; }
  [[nodiscard]] Rank rank() const noexcept { return rank_; }
  [[nodiscard]] Rank size() const noexcept { return size_; }
  [[nodiscard]] bool failed() const noexcept { return failure_.has_value(); }

  /// See kith::Communicator. It has a thread where MPI lets several threads call it.
  [[nodiscard]] kith::detail::Background& background() noexcept { return background_; }

  /// Whether so many ranks on this machine have to take turns on its cores.
  [[nodiscard]] static bool crowded(Rank ranks) noexcept { return ranks > sysconf(_SC_NPROCESSORS_ONLN); }
  void set_crowded(bool crowded) noexcept { crowded_ = crowded; }

  /// After a failure every call throws the same again.
  void require_alive(const Call& call) {
    if (failure_) throw_failure(call);
  }

  /// Memory that MPI may use until the program ends: what requests that never completed point to.
  void keep(std::shared_ptr<void> memory) { kept_->push_back(std::move(memory)); }

  /// @brief Waits until `ready()`, for something that `awaited` has to do; `ready` may change whom that is.
  ///
  /// `look()` is called now and then, for whatever takes too long to be asked every time.
  /// @throws PeerError at the deadline, or when another rank reports a failure. Whatever `ready` and `look` throw.
  template <class Ready, class Look>
  void wait(Meeting& meeting, const Rank& awaited, const Ready& ready, const Look& look) {
    if (ready()) return;
    if (failure_) throw_failure(meeting.call);
    const Clock::time_point start = Clock::now();
    Clock::time_point next_look = start + look_interval;
    for (int polls = 1; !ready(); polls = std::min(polls + 1, spins)) {
      rest(polls);
      if (!crowded_ && polls < spins && polls % 64 != 0) continue;
      const Clock::time_point now = Clock::now();
      if (now >= next_look) {
        next_look = now + look_interval;
        look();
        if (hear()) fail_with_others(meeting, awaited, now - start);
      }
      if (now >= meeting.deadline) expire(meeting, awaited);
    }
    meeting.waited += Clock::now() - start;
  }
  template <class Ready>
  void wait(Meeting& meeting, const Rank& awaited, const Ready& ready) {
    wait(meeting, awaited, ready, [] {});
  }

  /// Lets MPI work on what is under way.
  void progress() {
    int flag = 0;
    MPI_Iprobe(MPI_ANY_SOURCE, static_cast<int>(Tag::notice), comm_, &flag, MPI_STATUS_IGNORE);
  }

  /// Ends the group on account of a rank that did something other than this one; tells all others.
  [[noreturn]] void fail_protocol(const Meeting& meeting, Rank peer, const std::string& text) {
    tell({rank_, peer, PeerError::Reason::protocol, true}, text);
    flush(Clock::now() + settling);
    failure_ = Failure{peer, rank_, PeerError::Reason::protocol, text};
    throw_failure(meeting.call);
  }

  /// Throws for an error of MPI; the group has failed.
  void require_success(int code, std::string_view what) {
    if (code == MPI_SUCCESS) return;
    if (!failure_) {
      failure_ = Failure{rank_, rank_, PeerError::Reason::lost, "an MPI call of this rank has failed"};
      tell({rank_, rank_, PeerError::Reason::lost, true}, "a call to MPI has failed on this rank");
      flush();
    }
    detail::require_success(code, what);
  }

  /// To be called once, before the destructor: meets all others for the last time. False where not all come within the
  /// time, or where this rank leaves for an exception; the others are told so.
  bool leave(bool unwinding, Seconds patience) noexcept {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized != 0 || failure_) return false;
    try {
      // Twice: a rank that comes when others have given up would find the first barrier complete. Nobody comes to the
      // second one who has not seen the first, so where it completes nobody has given up.
      together_ = !unwinding && meets_all(patience) && meets_all(patience);
      if (!together_) {
        const std::string why = unwinding ? "it was unwound by an exception"
                                          : "not all ranks have come to the end of their communicator within " +
                                                kith::detail::to_text(patience);
        tell({rank_, rank_, PeerError::Reason::lost, true},
             "rank " + std::to_string(rank_) + " has left the group: " + why);
        flush(Clock::now() + settling);
      }
    } catch (...) {  // a destructor calls this, and there is nobody left to tell
    }
    return together_;
  }

  /// Whether a request has completed; it is MPI_REQUEST_NULL then.
  [[nodiscard]] bool done(MPI_Request& request) {
    int flag = 0;
    require_success(MPI_Test(&request, &flag, MPI_STATUS_IGNORE), "MPI_Test");
    return flag != 0;
  }

private:
  static constexpr Rank nobody = -1;
  static constexpr int spins = 2000;  // where each rank has a core: about 50 us
  static constexpr int background_spins = 200;
  static constexpr std::chrono::microseconds background_nap{20};
  static constexpr std::chrono::milliseconds look_interval{1};
  static constexpr std::chrono::milliseconds settling{40};  // for reports of others to come in before one is blamed

  // Who is to blame, in the eyes of one rank. Not `final`: only a hint for others, whom this rank was waiting for.
  struct Blame {
    Rank reporter;
    Rank culprit;
    PeerError::Reason reason;
    bool final;
  };
  struct Notice {
    Blame blame;
    std::array<char, 320> text{};
  };
  struct Report {
    Blame blame;
    std::string text;
  };
  struct Failure {
    Rank peer;
    Rank reporter;
    PeerError::Reason reason;
    std::string text;
  };

  static void require_usable(MPI_Comm parent) {
    int flag = 0;
    MPI_Initialized(&flag);
    if (flag == 0) throw UsageError("MPI is not initialized: call MPI_Init or MPI_Init_thread before this");
    MPI_Finalized(&flag);
    if (flag != 0) throw UsageError("MPI has been finalized: kith::mpi::Communicator must end before MPI_Finalize");
    if (parent == MPI_COMM_NULL) throw UsageError("this rank is not in the group: its communicator is MPI_COMM_NULL");
    MPI_Comm_test_inter(parent, &flag);
    if (flag != 0)
      throw UsageError("an inter-communicator connects two groups; Kith needs one: see MPI_Intercomm_merge");
    int level = MPI_THREAD_SINGLE;
    int is_main = 0;
    MPI_Query_thread(&level);
    MPI_Is_thread_main(&is_main);
    if (level < MPI_THREAD_SERIALIZED && is_main == 0)
      throw UsageError(
          "this thread may not call MPI: use the thread that initialized it, or ask MPI_Init_thread for "
          "MPI_THREAD_SERIALIZED");
  }

  [[nodiscard]] static bool lets_threads_in() noexcept {
    int running = 0;
    int ended = 0;
    int level = MPI_THREAD_SINGLE;
    MPI_Initialized(&running);
    MPI_Finalized(&ended);
    if (running != 0 && ended == 0) MPI_Query_thread(&level);  // if not, the constructor refuses
    return level == MPI_THREAD_MULTIPLE;
  }

  void rest(int polls) const noexcept {
    // The host computes meanwhile, maybe on this core: a thread that yields gets it back when a time slice is over, one
    // that sleeps at once.
    if (background_.is_here() && (crowded_ || polls >= background_spins))
      std::this_thread::sleep_for(background_nap);
    else if (crowded_ || polls >= spins)
      sched_yield();
    else
      thread::detail::relax();
  }

  // Takes in what other ranks report. True if there was anything.
  bool hear() {
    bool heard = false;
    for (;;) {
      int flag = 0;
      Notice notice{};
      require_success(MPI_Iprobe(MPI_ANY_SOURCE, static_cast<int>(Tag::notice), comm_, &flag, MPI_STATUS_IGNORE),
                      "MPI_Iprobe");
      if (flag == 0) return heard;
      require_success(MPI_Recv(&notice, sizeof notice, MPI_BYTE, MPI_ANY_SOURCE, static_cast<int>(Tag::notice), comm_,
                               MPI_STATUS_IGNORE),  // has arrived: does not block
                      "MPI_Recv");
      heard = true;
      blames_[static_cast<std::size_t>(notice.blame.reporter)] = notice.blame.culprit;
      if (notice.blame.final && !report_) report_ = Report{notice.blame, notice.text.data()};
    }
  }

  void tell(const Blame& blame, const std::string& text) {
    blames_[static_cast<std::size_t>(rank_)] = blame.culprit;
    const auto notice = std::make_shared<Notice>();
    notice->blame = blame;
    std::copy_n(text.begin(), std::min(text.size(), notice->text.size() - 1), notice->text.begin());
    keep(notice);
    for (Rank r = 0; r < size_; ++r)
      if (r != rank_)
        MPI_Isend(notice.get(), sizeof *notice, MPI_BYTE, r, static_cast<int>(Tag::notice), comm_,
                  &told_.emplace_back(MPI_REQUEST_NULL));
  }

  // Lets this rank's notices go out.
  bool flush() {
    int all = 0;
    MPI_Testall(static_cast<int>(told_.size()), told_.data(), &all, MPI_STATUSES_IGNORE);
    return all != 0;
  }
  void flush(Clock::time_point until) {
    while (!flush() && Clock::now() < until) std::this_thread::sleep_for(std::chrono::microseconds{100});
  }
  // The same, and lets others come in. All of the time is used: nobody knows how many will come.
  void settle() {
    const Clock::time_point until = Clock::now() + settling;
    while (Clock::now() < until) {
      flush();
      hear();
      std::this_thread::sleep_for(std::chrono::microseconds{100});
    }
  }

  // Whether all ranks come here within the time.
  bool meets_all(Seconds patience) {
    Call call;
    call.what = "end of the communicator";
    call.deadline = patience;
    Meeting meeting{call};
    const Clock::time_point until = std::exchange(meeting.deadline, Clock::time_point::max());
    MPI_Request request = MPI_REQUEST_NULL;
    require_success(MPI_Ibarrier(comm_, &request), "MPI_Ibarrier");
    bool complete = false;
    wait(meeting, nobody, [&] {
      complete = done(request);
      return complete || Clock::now() >= until;
    });
    return complete;
  }

  [[noreturn]] void expire(const Meeting& meeting, Rank missing) {
    const std::string text = "waited " + kith::detail::to_text(meeting.call.deadline) + " for rank " +
                             std::to_string(missing) +
                             ", which has not come. It may hang, be slower than the deadline allows (see "
                             "AveragerOptions::deadline) or have skipped this call";
    const Blame blame{rank_, missing, PeerError::Reason::timeout, true};
    tell(blame, text);
    settle();
    fail(meeting, Report{blame, text});
  }

  // Somebody else has given up. One that has itself waited for long says for whom: it is not the one to blame.
  [[noreturn]] void fail_with_others(const Meeting& meeting, Rank awaited, Seconds waited) {
    if (awaited != nobody && waited > meeting.call.deadline / 2)
      tell({rank_, awaited, PeerError::Reason::timeout, false}, {});
    settle();
    fail(meeting, report_ ? *report_ : Report{{rank_, awaited, PeerError::Reason::lost, true}, "a rank has failed"});
  }

  // One that waits for another is not to blame: follows the blame to a rank that has reported nobody.
  [[noreturn]] void fail(const Meeting& meeting, const Report& report) {
    Failure failure{report.blame.culprit, report.blame.reporter, report.blame.reason, report.text};
    if (failure.reason == PeerError::Reason::timeout) {
      std::vector<bool> seen(blames_.size());
      Rank culprit = failure.peer;
      while (blames_[static_cast<std::size_t>(culprit)] != nobody && !seen[static_cast<std::size_t>(culprit)]) {
        seen[static_cast<std::size_t>(culprit)] = true;
        failure.reporter = culprit;
        culprit = blames_[static_cast<std::size_t>(culprit)];
      }
      if (culprit != failure.peer) {
        failure.peer = culprit;
        failure.text = "rank " + std::to_string(culprit) + " has not come, and rank " +
                       std::to_string(failure.reporter) + " has waited for it";
      }
    }
    failure_ = std::move(failure);
    throw_failure(meeting.call);
  }

  [[noreturn]] void throw_failure(const Call& call) {
    const Failure& failure = *failure_;
    const std::string who =
        "rank " + std::to_string(rank_) + "/" + std::to_string(size_) + ": " + kith::detail::describe(call) + ": ";
    if (failure.peer == rank_)  // the one at fault, seen from its own side
      throw PeerError(who + "the group has failed on account of this rank: " + failure.text, failure.reporter,
                      failure.reason);
    throw PeerError(who + failure.text, failure.peer, failure.reason);
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  bool crowded_ = false;
  bool together_ = false;
  std::vector<Rank> blames_;  // whom each rank says that it has waited for
  std::optional<Report> report_;
  std::optional<Failure> failure_;
  std::vector<MPI_Request> told_;
  std::unique_ptr<std::list<std::shared_ptr<void>>> kept_ = std::make_unique<std::list<std::shared_ptr<void>>>();
  kith::detail::Background background_{lets_threads_in()};
};

}  // namespace kith::mpi::detail
