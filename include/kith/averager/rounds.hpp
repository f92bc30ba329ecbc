// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <kith/averager/agreement.hpp>
#include <kith/averager/checks.hpp>
#include <kith/averager/options.hpp>
#include <kith/averager/state.hpp>
#include <kith/background.hpp>
#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/finite.hpp>
#include <kith/exchange/global_mean.hpp>
#include <kith/exchange/hidden.hpp>
#include <kith/exchange/layout.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

template <Communicator C, Topology T, Exchange E>
class DecentralizedAverager;

namespace detail {

/// What is behind the calls of an averager: its parts, and how a round is planned, performed and counted.
template <Communicator C, Topology T, Exchange E>
class Rounds {
  // nvcc takes no using-declaration for leave to call what is protected and has a requires-clause.
  friend class DecentralizedAverager<C, T, E>;

protected:
  using Session = typename E::template Session<C>;
  using Hidden = HiddenRound<C, Session>;
  // Whether messages are encoded: every rank of a round has to send one then, and its sizes are the session's to know.
  static constexpr bool encodes = requires(const Session& session) { session.message_bytes(); };
  static constexpr bool has_replicas = requires(Session & session) { session.rule().replicas(); };
  static constexpr bool has_device_replicas = [] {
    if constexpr (requires { Session::keeps_replicas; }) return Session::keeps_replicas;
    return false;
  }();

  Rounds(C& communicator, T topology, std::vector<BufferView> buffers, E exchange, const AveragerOptions& options)
      : before_(communicator),
        communicator_(communicator),
        topology_(std::move(topology)),
        exchange_(std::move(exchange)),
        options_(options),
        channel_(communicator.open_channel()),
        buffers_(agreed(std::move(buffers))),
        layout_(std::make_unique<Layout>(buffers_)),
        digest_of_layout_(digest_of_layout(buffers_)),
        max_degree_(topology_.max_degree(communicator.size())),
        plan_(max_degree_),
        session_(communicator_, exchange_, *layout_, session_options(buffers_)),
        global_(make_global()),
        finite_(communicator_, static_cast<std::size_t>(max_degree_)),
        after_(communicator_) {
    schedule_.mixing = options_.mixing;
    if constexpr (encodes)
      message_bytes_ = session_.message_bytes();
    else
      for (const BufferView& buffer : buffers_) message_bytes_ += exchange_.wire_bytes(buffer.count, buffer.dtype);
    meet_peers();
  }

  // Runs before any member that allocates or communicates by what it returns: validates, then agrees with the others.
  std::vector<BufferView> agreed(std::vector<BufferView> buffers) {
    std::string refusal;
    try {
      require_options(options_);
      require_size(topology_, communicator_.size());
      require_plans(topology_, communicator_.rank(), communicator_.size());
      require_distinct(buffers);
      require_readable(buffers);
      require_exchange(exchange_, buffers, options_.encode_from_bytes);
      (void)period_for(exchange_, topology_, communicator_.rank(), communicator_.size());
    } catch (const UsageError& error) {
      refusal = error.message();
    }
    Call here;
    here.channel = channel_;
    if (options_.deadline.count() > 0) here.deadline = options_.deadline;
    agree(communicator_, here, propose(topology_name(topology_), exchange_name(exchange_), buffers, options_), refusal,
          buffers);
    return buffers;
  }

  // All ranks hold the same parameters now.
  void set_replicas(std::span<const BufferView> buffers) noexcept {
    if constexpr (has_replicas) session_.rule().replicas().agree(buffers);
  }
  // The same behind what has just been enqueued.
  void set_replicas(const Call& here, std::span<const BufferView> buffers,
                    DeviceStream<C> stream) requires StreamOrdered<C> {
    if constexpr (has_device_replicas) session_.agree(here, buffers, stream);
  }
  // A global mean of models on a device, enqueued.
  void enqueue_mean(const Call& here, std::span<const BufferView> buffers,
                    DeviceStream<C> stream) requires StreamOrdered<C> {
    global_.mean(here, buffers, options_.check_finite.value_or(false), stream);
    set_replicas(here, buffers, stream);
  }

  SessionOptions session_options(std::span<const BufferView> buffers) const {
    return {static_cast<std::size_t>(max_degree_),
            options_.bucket_bytes,
            buffers,
            options_.deadline,
            options_.encode_from_bytes,
            period_for(exchange_, topology_, communicator_.rank(), communicator_.size())};
  }

  GlobalMean<C> make_global() {
    if constexpr (StreamOrdered<C>)
      return {communicator_, session_.staging()};
    else
      return {communicator_, *layout_};
  }

  void meet_peers() {
    if constexpr (requires(const Call& here) { session_.meet(here, plan_); })
      detail::meet_peers(session_, topology_, communicator_.rank(), communicator_.size(), plan_,
                         call("first contact", 0));
  }

  void require_landed(std::string_view call) const {
    if (flight_)
      throw UsageError(std::string{call} +
                       ": a hidden round is in flight, and goes on. After begin() comes finish(), and no other call to "
                       "this averager in between");
  }

  // A round that encodes refuses to begin with a value that is not finite. Beside the host that would come too late:
  // what this rank does next on the communicator would meet the others, who wait in that round.
  void require_encodable() const {
    if (!encodes || max_degree_ == 0 || options_.check_finite.value_or(false)) return;
    if (const auto found = find_non_finite(communicator_.rank(), buffers_))
      detail::throw_non_finite(*found, gossip_call(schedule_.round), communicator_.rank(), communicator_.size());
  }

  // What begin() has begun.
  [[nodiscard]] DueCall take_flight() {
    if (!flight_) throw UsageError("finish: no hidden round is in flight: begin() comes first");
    return *std::exchange(flight_, std::nullopt);
  }

  void make_hidden() {
    require_landed("begin");
    if (hidden_) return;
    hidden_ = std::make_unique<Hidden>(communicator_, *layout_, buffers_, session_, [this] {
      return std::make_unique<Session>(communicator_, exchange_, *layout_, session_options({}));
    });
  }

  [[nodiscard]] Call hidden_call(const DueCall& now) const noexcept {
    return now.globally ? call("global mean", now.due) : gossip_call(schedule_.round);
  }

  // Of the round in flight, maybe in another thread: looks at nothing that other calls change.
  RoundOutcome perform_hidden() {
    const DueCall now = next_call(schedule_, options_);
    const std::span<const BufferView> copy = hidden_->model().views();
    return now.globally ? average_all(hidden_call(now), copy) : gossip(hidden_->session(session_), copy);
  }

  void enqueue_hidden(const DueCall& now, std::span<const BufferView> copy,
                      DeviceStream<C> stream) requires StreamOrdered<C> {
    if (now.globally)
      enqueue_mean(hidden_call(now), copy, stream);
    else
      enqueue_round(schedule_.round, copy, stream);
  }

  void count_hidden(const DueCall& now) noexcept {
    if (now.globally)
      count_global_round();
    else
      count_round();
    count_call(now);
  }

  // Asks the engine, if it has an opinion.
  void require_readable(std::span<const BufferView> buffers) const {
    if constexpr (requires { communicator_.require_readable(buffers); }) communicator_.require_readable(buffers);
  }

  [[nodiscard]] Identity identity() const {
    return {topology_name(topology_), exchange_name(exchange_), communicator_.size(), digest_of_layout_};
  }

  [[nodiscard]] Call call(std::string_view what, std::uint64_t sequence) const noexcept {
    Call here;
    here.what = what;
    here.channel = channel_;
    here.sequence = sequence;
    here.bytes = layout_->payload_bytes();
    here.deadline = options_.deadline;
    return here;
  }

  void perform_due(DeviceStream<C> stream) {
    const DueCall now = next_call(schedule_, options_);
    if (!now.is_due) return detail::count_call(schedule_, now);
    spent_ = false;
    try {
      if (now.globally)
        global_round("global mean", now.due, stream);
      else
        gossip_round(stream);
    } catch (const NonFiniteError&) {
      if (spent_) count_call(now);
      throw;
    }
    count_call(now);
    if constexpr (StreamOrdered<C>) throw_refusal();
  }

  void count_call(const DueCall& now) noexcept {
    detail::count_call(schedule_, now);
    captured_ = 0;
  }

  void plan(Round round) {
    plan_round(topology_, communicator_.rank(), communicator_.size(), round, plan_);
    require_valid(plan_, communicator_.rank(), communicator_.size(), max_degree_, T::name);
  }

  [[nodiscard]] Call gossip_call(Round round) const noexcept {
    Call here = call("gossip round", round);
    here.agreement = std::bit_cast<std::uint64_t>(schedule_.mixing);
    return here;
  }

  void gossip_round(NoStream) {
    plan(schedule_.round);
    const RoundOutcome outcome = gossip(session_, buffers_);
    metrics_.seconds_waiting += outcome.waited.count();
    if (outcome.found) throw_non_finite(*outcome.found, gossip_call(schedule_.round));
    count_round();
  }

  // The round that is planned, and nothing that the caller's thread could be looking at meanwhile.
  RoundOutcome gossip(Session& session, std::span<const BufferView> buffers) {
    const Call here = gossip_call(schedule_.round);
    const bool alone = max_degree_ == 0;  // on every rank, in every round: nobody waits for anybody
    RoundOutcome outcome;
    if (options_.check_finite.value_or(false))
      outcome.found = alone     ? find_non_finite(communicator_.rank(), buffers)
                      : encodes ? finite_.everywhere(here, buffers, outcome.waited)
                                : finite_.along(plan_, here, buffers, outcome.waited);
    if (!alone && !(encodes && outcome.found))
      outcome.waited += session.round({here, buffers, plan_, schedule_.mixing, !outcome.found});
    return outcome;
  }

  void gossip_round(DeviceStream<C> stream) requires StreamOrdered<C> {
    enqueue_round(schedule_.round, buffers_, stream);
    count_round();
  }

  void enqueue_round(Round round, std::span<const BufferView> buffers,
                     DeviceStream<C> stream) requires StreamOrdered<C> {
    plan(round);
    const Call here = gossip_call(round);
    const bool check_finite = options_.check_finite.value_or(false);
    if (max_degree_ > 0 || check_finite)
      session_.round({here, buffers, plan_, schedule_.mixing, true}, check_finite, stream);
  }

  void count_round() noexcept {
    ++metrics_.rounds;
    if constexpr (has_replicas) metrics_.replica_distance = session_.rule().replica_distance();
    if constexpr (requires { session_.traffic(plan_); }) {  // it sends something else than a message along each edge
      const auto& [messages_sent, bytes_sent, bytes_received] = session_.traffic(plan_);
      metrics_.messages_sent += messages_sent;
      metrics_.bytes_sent += bytes_sent;
      metrics_.bytes_received += bytes_received;
      return;
    }
    metrics_.messages_sent += plan_.targets().size();
    metrics_.bytes_sent += plan_.targets().size() * message_bytes_;
    metrics_.bytes_received += plan_.sources().size() * message_bytes_;
  }

  void global_round(std::string_view what, std::uint64_t sequence, NoStream) {
    const Call here = call(what, sequence);
    const RoundOutcome outcome = average_all(here, buffers_);
    metrics_.seconds_waiting += outcome.waited.count();
    if (outcome.found) throw_non_finite(*outcome.found, here);
    count_global_round();
  }

  RoundOutcome average_all(const Call& here, std::span<const BufferView> buffers) {
    RoundOutcome outcome;
    if (options_.check_finite.value_or(false)) outcome.found = finite_.everywhere(here, buffers, outcome.waited);
    outcome.waited += global_.mean(here, buffers, buffers, !outcome.found);
    if (!outcome.found) set_replicas(buffers);
    return outcome;
  }

  void global_round(std::string_view what, std::uint64_t sequence, DeviceStream<C> stream) requires StreamOrdered<C> {
    enqueue_mean(call(what, sequence), buffers_, stream);
    count_global_round();
  }

  void count_global_round() noexcept {
    detail::count_global_round(metrics_, communicator_.rank(), communicator_.size(), layout_->payload_bytes());
  }

  void require_not_capturing(DeviceStream<C> stream) requires StreamOrdered<C> {
    if (session_.staging().capturing(stream)) throw UsageError("a graph can record average(stream), and nothing else");
  }

  // What a round on the device has found meanwhile.
  void throw_refusal() requires StreamOrdered<C> {
    if (const auto refusal = session_.staging().verdict())
      throw_non_finite(refusal->where, call("round", refusal->sequence));
  }

  [[noreturn]] void throw_non_finite(const NonFinite& found, const Call& here) {
    spent_ = true;
    detail::throw_non_finite(found, here, communicator_.rank(), communicator_.size());
  }

  void require_targets(const std::vector<BufferView>& targets) const {
    require_same_layout(buffers_, targets, "mean_into");
    std::vector<BufferView> together = buffers_;
    together.insert(together.end(), targets.begin(), targets.end());
    require_distinct(together, "parameter or target");
    require_readable(targets);
  }

  [[nodiscard]] Call broadcast_from(Rank root) {
    if (root < 0 || root >= communicator_.size())
      throw UsageError("broadcast from rank " + std::to_string(root) + ": ranks are 0 to " +
                       std::to_string(communicator_.size() - 1));
    Call here = call("broadcast", ++calls_of_global_);
    here.agreement = static_cast<std::uint64_t>(root);
    return here;
  }

  Settled<C> before_;
  C& communicator_;
  T topology_;
  E exchange_;
  AveragerOptions options_;
  std::uint32_t channel_;
  std::vector<BufferView> buffers_;
  std::unique_ptr<Layout> layout_;  // on the heap: the members below refer to it when the averager moves
  std::uint64_t digest_of_layout_;
  Rank max_degree_;
  std::size_t message_bytes_ = 0;
  Neighborhood plan_;
  Session session_;
  GlobalMean<C> global_;
  FiniteCheck<C> finite_;
  Schedule schedule_;
  Round captured_ = 0;  // rounds recorded in graphs since the last one performed
  std::uint64_t calls_of_global_ = 0;
  bool spent_ = false;  // the round in which NonFiniteError was thrown has begun, and is over
  Metrics metrics_;
  std::unique_ptr<Hidden> hidden_;  // from the first begin() on
  std::optional<DueCall> flight_;   // between begin() and finish()
  Settled<C> after_;
};

}  // namespace detail
}  // namespace kith
