// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <kith/averager/agreement.hpp>
#include <kith/averager/checks.hpp>
#include <kith/averager/options.hpp>
#include <kith/averager/state.hpp>
#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/finite.hpp>
#include <kith/exchange/full_precision.hpp>
#include <kith/exchange/global_mean.hpp>
#include <kith/exchange/layout.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

/// @brief Averages a model with the peers that a topology names, round by round: what a trainer calls after its
/// optimizer step.
///
/// A round is x_i <- x_i + a sum_j w_ij (x_j - x_i): combine-after-adapt D-PSGD. It commits or it does not: on every
/// rank where a call throws, every parameter holds its value from before the call, bit for bit.
///
/// All ranks of the communicator construct their averagers in the same order and make the same calls in the same
/// order; each of the calls marked *collective* waits for the others, up to the deadline. Several averagers may live on
/// one communicator. The communicator and the buffers outlive the averager.
///
/// After PeerError or BackendError the communicator has failed and every later collective call throws. After UsageError
/// and NonFiniteError everything goes on. A collective call whose arguments this rank refuses (UsageError) has not
/// begun: the others wait for it until their deadline.
///
/// @tparam C a Communicator: kith::thread::Communicator, ...
/// @tparam T a Topology: OnePeerExponential, Ring, AnyTopology, ...
/// @tparam E an Exchange: FullPrecision, ...
/// @par Cost          Of a round: as the topology and the exchange say. No allocation, and no wait but for peers.
/// @par Thread safety One thread at a time uses an averager, and the communicator that it shares with others.
template <Communicator C, Topology T, Exchange E = FullPrecision>
class DecentralizedAverager {
public:
  /// @brief Collective. Checks what this rank was given, and compares it with what the others were given.
  ///
  /// @param buffers any number of buffers, of any counts and dtypes; the same on every rank, in the same order.
  /// @throws UsageError on every rank if the topology does not exist for this size, an option is out of range, buffers
  ///         overlap (also between ranks of one process), or ranks differ in topology, buffers, exchange, options or
  ///         library version: names the first rank and field that differ.
  /// @throws PeerError if a rank does not come by the deadline.
  DecentralizedAverager(C& communicator, T topology, std::vector<BufferView> buffers, E exchange,
                        AveragerOptions options = {})
      : communicator_(communicator),
        topology_(std::move(topology)),
        exchange_(std::move(exchange)),
        options_(options),
        channel_(communicator.open_channel()),
        buffers_(agreed(std::move(buffers))),
        layout_(std::make_unique<detail::Layout>(buffers_)),
        digest_of_layout_(detail::digest_of_layout(buffers_)),
        max_degree_(topology_.max_degree(communicator.size())),
        plan_(max_degree_),
        session_(communicator_, exchange_, *layout_,
                 detail::SessionOptions{
                     static_cast<std::size_t>(max_degree_), options_.bucket_bytes, buffers_, options_.deadline,
                     options_.encode_from_bytes,
                     detail::period_for(exchange_, topology_, communicator_.rank(), communicator_.size())}),
        global_(make_global()),
        finite_(communicator_, static_cast<std::size_t>(max_degree_)) {
    schedule_.mixing = options_.mixing;
    if constexpr (encodes)
      message_bytes_ = session_.message_bytes();
    else
      for (const BufferView& buffer : buffers_) message_bytes_ += exchange_.wire_bytes(buffer.count, buffer.dtype);
    meet_peers();
  }

  DecentralizedAverager(C& communicator, T topology, std::vector<BufferView> buffers,
                        AveragerOptions options = {}) requires std::default_initializable<E>
      : DecentralizedAverager(communicator, std::move(topology), std::move(buffers), E{}, options) {}

  /// @brief One call of the schedule: a gossip round, an exact global mean, or nothing (see AveragerOptions).
  /// Collective where it is due.
  ///
  /// The topology's round counts the gossip rounds performed, not the calls, so that `every` and the period of the
  /// topology can never lock into a schedule that does not mix.
  /// @throws PeerError, NonFiniteError; the parameters are then as they were. A round in which some rank threw
  ///         NonFiniteError is spent on all ranks, so that they stay in step; those that heard nothing of it commit.
  ///         Exchanges that encode do not send such a value in any case: with check_finite all ranks throw, and nobody
  ///         commits; without it the rank that holds the value throws, and its round has not begun. It mends the value
  ///         and calls again, while the others wait for it up to their deadline.
  /// @par Cost One message of the model's size to each out-neighbour, or what average_globally() costs.
  void average() requires(!StreamOrdered<C>) { perform_due({}); }

  /// @brief The same for models on a device: enqueued behind what `stream` holds and before what it is given next. Does
  /// not wait for the device (unless a thousand rounds are enqueued already). The buffers stay in place until the
  /// stream has passed.
  ///
  /// What goes wrong in a round is known when the device has come to it: it is thrown by a later call, at the latest by
  /// synchronize(), and the parameters are then as they were before that round. A call that throws NonFiniteError,
  /// about an earlier round, has enqueued its own; of several such rounds since the last call, the first is reported.
  /// (One thing only can leave a model half averaged: that CUDA accepts the first kernel of a commit and refuses the
  /// next, as it does when it has lost the context and the memory with it.)
  ///
  /// While `stream` is being captured, the call is recorded: always a gossip round, the next one after those recorded
  /// since the last round that was performed. So the rounds of a period become as many graphs; see advance(). Replays
  /// and calls go to one stream. In a replay no deadline holds, and synchronize() and the destructor do not see it:
  /// synchronize the stream first. Graphs are destroyed before the averager and NCCL's communicator, which would wait
  /// for that for ever, and recorded anew after rebind().
  /// @throws BackendError, PeerError, NonFiniteError about an earlier round. UsageError for a capture where the
  /// schedule
  ///         has more than gossip rounds.
  void average(detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    if (!session_.staging().capturing(stream)) return perform_due(stream);
    if (options_.every != 1 || options_.warmup_rounds != 0 || options_.global_every != 0)
      throw UsageError(
          "a graph can record gossip rounds only: capture with every = 1, warmup_rounds = 0 and "
          "global_every = 0, and call average_globally() where it is due");
    enqueue_round(schedule_.round + captured_, stream);
    ++captured_;
  }

  /// @brief `rounds` captured rounds have been replayed: the schedule and the counters go on behind them. Local.
  void advance(Round rounds) requires StreamOrdered<C> {
    for (Round t = 0; t < rounds; ++t) {
      plan(schedule_.round);
      ++schedule_.calls;
      ++schedule_.due;
      ++schedule_.round;
      count_round();
    }
    captured_ = 0;
  }

  /// @brief Waits until the device has done everything that this averager's communicator was given, and throws what has
  /// gone wrong. Local.
  /// @throws BackendError, PeerError, NonFiniteError.
  void synchronize() requires StreamOrdered<C> {
    session_.staging().engine().drain(call("synchronize", 0));
    session_.staging().engine().watch().require_in_step();
    throw_refusal();
  }

  /// @brief Collective. Sets every rank's parameters to the exact mean over ranks, outside the schedule.
  ///
  /// The sum runs in ascending rank: x_0 + sum_j (x_j - x_0)/n, in f32 (f64 for f64 buffers), rounded to f16 or bf16
  /// once. The same bits on every rank.
  /// @throws PeerError, NonFiniteError; the parameters are then as they were.
  /// @par Cost 2 (n-1) messages and 2 (n-1)/n models per rank (reduce-scatter, then all-gather).
  void average_globally() requires(!StreamOrdered<C>) { global_round("average_globally", ++calls_of_global_, {}); }
  /// The same for models on a device, as average(stream). NCCL computes the mean: the same bits on every rank, but not
  /// those of the other engines.
  void average_globally(detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    require_not_capturing(stream);
    global_round("average_globally", ++calls_of_global_, stream);
    throw_refusal();
  }

  /// @brief Collective. Writes the exact mean over ranks, the merged model, into `targets` and leaves every rank's own
  /// parameters alone: for evaluation and checkpoints.
  ///
  /// @param targets buffers of the same counts and dtypes as the averager's; none overlaps those or another.
  /// @throws UsageError for other targets. @throws PeerError; nothing has been written then.
  /// @par Cost As average_globally().
  void mean_into(const std::vector<BufferView>& targets) requires(!StreamOrdered<C>) {
    require_targets(targets);
    global_.mean(call("mean_into", ++calls_of_global_), buffers_, targets, true);
  }
  /// The same for models on a device, as average(stream).
  void mean_into(const std::vector<BufferView>& targets, detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    require_not_capturing(stream);
    require_targets(targets);
    global_.mean_into(call("mean_into", ++calls_of_global_), buffers_, targets, stream);
  }

  /// @brief Collective. Copies the parameters of rank `root` to every rank: the same initial model everywhere.
  /// @throws UsageError for a rank that does not exist. @throws PeerError; the parameters are then as they were.
  /// @par Cost One model to each other rank.
  void broadcast(Rank root = 0) requires(!StreamOrdered<C>) {
    global_.broadcast(broadcast_from(root), buffers_, root);
    set_replicas();
  }
  /// The same for models on a device, as average(stream).
  void broadcast(Rank root, detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    require_not_capturing(stream);
    global_.broadcast(broadcast_from(root), buffers_, root, stream);
  }

  /// @brief Collective. Whether all ranks hold the same bits. (Compares 64-bit digests: two models that differ agree
  /// by accident with probability 2^-64.)
  /// @throws PeerError.
  [[nodiscard]] bool buffers_agree() requires(!StreamOrdered<C>) {
    detail::Digest digest;
    for (const BufferView& buffer : buffers_) digest.add(buffer.data, buffer.bytes());
    const std::uint64_t mine = digest.value();
    std::vector<std::uint64_t> all(static_cast<std::size_t>(communicator_.size()));
    communicator_.all_gather(call("buffers_agree", ++calls_of_global_), std::as_bytes(std::span{&mine, 1}),
                             std::as_writable_bytes(std::span{all}));
    return std::all_of(all.begin(), all.end(), [&](std::uint64_t other) { return other == mine; });
  }
  /// The same for models on a device, as they are behind what `stream` holds. Waits for the device.
  [[nodiscard]] bool buffers_agree(detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    require_not_capturing(stream);
    return global_.agree(call("buffers_agree", ++calls_of_global_), buffers_, stream);
  }

  /// @brief Collective. How far apart the models are: sqrt((1/n) sum_i norm(x_i - mean)^2) over all elements, with the
  /// mean as mean_into() gives it, added up in f64. The same bits on every rank.
  /// @throws PeerError.
  [[nodiscard]] double consensus_distance() requires(!StreamOrdered<C>) {
    return global_.distance(call("consensus_distance", ++calls_of_global_), buffers_);
  }
  /// The same for models on a device, as they are behind what `stream` holds. Waits for the device.
  [[nodiscard]] double consensus_distance(detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    require_not_capturing(stream);
    return global_.distance(call("consensus_distance", ++calls_of_global_), buffers_, stream);
  }

  /// Changes the factor a from the next round on; all ranks give the same value. Local.
  /// @throws UsageError outside [0, 2].
  void set_mixing(double mixing) {
    detail::require_mixing(mixing);
    schedule_.mixing = mixing;
  }

  [[nodiscard]] const Metrics& metrics() const noexcept { return metrics_; }

  /// Bytes of memory that Kith holds for this averager besides the parameters. Allocated at construction.
  [[nodiscard]] std::size_t staging_bytes() const noexcept {
    return session_.staging_bytes() + global_.staging_bytes();
  }

  /// @brief Everything but the parameters that the next rounds depend on, for a checkpoint. Local; between rounds.
  [[nodiscard]] std::vector<std::byte> state() const {
    std::span<const std::byte> replicas;
    if constexpr (has_replicas) replicas = session_.rule().replicas().bytes();
    return detail::to_blob(identity(), schedule_, metrics_, replicas);
  }

  /// @brief Continues from a state() of an averager with the same size, topology, exchange and buffers. The
  /// continuation is bit-identical if the parameters are restored too. Local; on all ranks.
  /// @throws UsageError if the blob is not one or comes from another kind of averager; nothing has changed then.
  void restore(std::span<const std::byte> blob) {
    std::span<std::byte> replicas;
    if constexpr (has_replicas) replicas = session_.rule().replicas().bytes();
    const detail::State state = detail::from_blob(identity(), blob, replicas.size());
    schedule_ = state.schedule;
    metrics_ = state.metrics;
    if constexpr (has_replicas) std::copy(state.replicas.begin(), state.replicas.end(), replicas.begin());
    captured_ = 0;
  }

  /// @brief The parameters have moved: the same counts and dtypes at new places. Local.
  /// @throws UsageError for other counts or dtypes, overlapping buffers, or memory that the engine cannot change to
  /// (see
  ///         kith::mpi::Communicator::allocate); the old places stay in force then.
  void rebind(std::vector<BufferView> buffers) {
    detail::require_same_layout(buffers_, buffers, "rebind");
    detail::require_distinct(buffers);
    require_readable(buffers);
    if constexpr (requires { session_.require_place(buffers); }) session_.require_place(buffers);
    if constexpr (StreamOrdered<C>) session_.staging().rebind(buffers, call("rebind", 0));
    buffers_ = std::move(buffers);
  }

private:
  using Session = typename E::template Session<C>;
  // Whether messages are encoded: every rank of a round has to send one then, and its sizes are the session's to know.
  static constexpr bool encodes = requires(const Session& session) { session.message_bytes(); };
  static constexpr bool has_replicas = requires(Session & session) { session.rule().replicas(); };

  // Runs before any member that allocates or communicates by what it returns: validates, then agrees with the others.
  std::vector<BufferView> agreed(std::vector<BufferView> buffers) {
    std::string refusal;
    try {
      detail::require_options(options_);
      require_size(topology_, communicator_.size());
      detail::require_plans(topology_, communicator_.rank(), communicator_.size());
      detail::require_distinct(buffers);
      require_readable(buffers);
      detail::require_exchange(exchange_, buffers, options_.encode_from_bytes);
      (void)detail::period_for(exchange_, topology_, communicator_.rank(), communicator_.size());
    } catch (const UsageError& error) {
      refusal = error.message();
    }
    Call here;
    here.channel = channel_;
    if (options_.deadline.count() > 0) here.deadline = options_.deadline;
    detail::agree(communicator_, here,
                  detail::propose(topology_name(topology_), exchange_name(exchange_), buffers, options_), refusal,
                  buffers);
    return buffers;
  }

  // All ranks hold the same parameters now.
  void set_replicas() noexcept {
    if constexpr (has_replicas) session_.rule().replicas().agree(buffers_);
  }

  detail::GlobalMean<C> make_global() {
    if constexpr (StreamOrdered<C>)
      return {communicator_, session_.staging()};
    else
      return {communicator_, *layout_};
  }

  // NCCL connects two ranks when they first meet, on the host, and that takes its time: better here than in a round.
  // All edges of a period, in the order in which they come; all pairs, if the schedule is drawn at random and they are
  // few.
  void meet_peers() {
    if constexpr (requires(const Call& here) { session_.meet(here, plan_); }) {
      constexpr Round rounds = 4096;
      constexpr Rank most_pairwise = 64;
      const Rank rank = communicator_.rank();
      const Rank size = communicator_.size();
      const Round period = topology_.period(size);
      if (max_degree_ == 0) return;
      const Call here = call("first contact", 0);
      for (Round t = 0; t < std::min(period, rounds); ++t) {
        plan(t);
        session_.meet(here, plan_);
      }
      for (Rank d = 1; period == 0 && size <= most_pairwise && d < size; ++d) {
        plan_.clear();
        plan_.tell((rank + d) % size);
        plan_.hear((rank + size - d) % size, 1);
        session_.meet(here, plan_);
      }
      session_.staging().engine().finish(here);
    }
  }

  // Asks the engine, if it has an opinion.
  void require_readable(std::span<const BufferView> buffers) const {
    if constexpr (requires { communicator_.require_readable(buffers); }) communicator_.require_readable(buffers);
  }

  [[nodiscard]] detail::Identity identity() const {
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

  void perform_due(detail::DeviceStream<C> stream) {
    const Round call = schedule_.calls + 1;
    if (call % options_.every != 0) {
      schedule_.calls = call;
      return;
    }
    const Round due = schedule_.due + 1;
    spent_ = false;
    const bool globally =
        due <= options_.warmup_rounds || (options_.global_every > 0 && due % options_.global_every == 0);
    const auto performed = [&] {
      schedule_.calls = call;
      schedule_.due = due;
      if (!globally) ++schedule_.round;
      captured_ = 0;
    };
    try {
      if (globally)
        global_round("global mean", due, stream);
      else
        gossip_round(stream);
    } catch (const NonFiniteError&) {
      if (spent_) performed();
      throw;
    }
    performed();
    if constexpr (StreamOrdered<C>) throw_refusal();
  }

  void plan(Round round) {
    plan_round(topology_, communicator_.rank(), communicator_.size(), round, plan_);
    detail::require_valid(plan_, communicator_.rank(), communicator_.size(), max_degree_, T::name);
  }

  [[nodiscard]] Call gossip_call(Round round) const noexcept {
    Call here = call("gossip round", round);
    here.agreement = std::bit_cast<std::uint64_t>(schedule_.mixing);
    return here;
  }

  void gossip_round(detail::NoStream) {
    plan(schedule_.round);
    const Call here = gossip_call(schedule_.round);
    const bool alone = max_degree_ == 0;  // on every rank, in every round: nobody waits for anybody
    std::optional<detail::NonFinite> found;
    Seconds waited{0};
    if (options_.check_finite.value_or(false))
      found = alone     ? detail::find_non_finite(communicator_.rank(), buffers_)
              : encodes ? finite_.everywhere(here, buffers_, waited)
                        : finite_.along(plan_, here, buffers_, waited);
    if (!alone && !(encodes && found)) waited += session_.round({here, buffers_, plan_, schedule_.mixing, !found});
    metrics_.seconds_waiting += waited.count();
    if (found) throw_non_finite(*found, here);
    count_round();
  }

  void gossip_round(detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    enqueue_round(schedule_.round, stream);
    count_round();
  }

  void enqueue_round(Round round, detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    plan(round);
    const Call here = gossip_call(round);
    const bool check_finite = options_.check_finite.value_or(false);
    if (max_degree_ > 0 || check_finite)
      session_.round({here, buffers_, plan_, schedule_.mixing, true}, check_finite, stream);
  }

  void count_round() noexcept {
    ++metrics_.rounds;
    if constexpr (has_replicas) metrics_.replica_distance = session_.rule().replica_distance();
    metrics_.messages_sent += plan_.targets().size();
    metrics_.bytes_sent += plan_.targets().size() * message_bytes_;
    metrics_.bytes_received += plan_.sources().size() * message_bytes_;
  }

  void global_round(std::string_view what, std::uint64_t sequence, detail::NoStream) {
    const Call here = call(what, sequence);
    std::optional<detail::NonFinite> found;
    Seconds waited{0};
    if (options_.check_finite.value_or(false)) found = finite_.everywhere(here, buffers_, waited);
    waited += global_.mean(here, buffers_, buffers_, !found);
    metrics_.seconds_waiting += waited.count();
    if (found) throw_non_finite(*found, here);
    set_replicas();
    detail::count_global_round(metrics_, communicator_.rank(), communicator_.size(), layout_->payload_bytes());
  }

  void global_round(std::string_view what, std::uint64_t sequence,
                    detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    global_.mean(call(what, sequence), buffers_, options_.check_finite.value_or(false), stream);
    detail::count_global_round(metrics_, communicator_.rank(), communicator_.size(), layout_->payload_bytes());
  }

  void require_not_capturing(detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    if (session_.staging().capturing(stream)) throw UsageError("a graph can record average(stream), and nothing else");
  }

  // What a round on the device has found meanwhile.
  void throw_refusal() requires StreamOrdered<C> {
    if (const auto refusal = session_.staging().verdict())
      throw_non_finite(refusal->where, call("round", refusal->sequence));
  }

  [[noreturn]] void throw_non_finite(const detail::NonFinite& found, const Call& here) {
    spent_ = true;
    detail::throw_non_finite(found, here, communicator_.rank(), communicator_.size());
  }

  void require_targets(const std::vector<BufferView>& targets) const {
    detail::require_same_layout(buffers_, targets, "mean_into");
    std::vector<BufferView> together = buffers_;
    together.insert(together.end(), targets.begin(), targets.end());
    detail::require_distinct(together, "parameter or target");
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

  C& communicator_;
  T topology_;
  E exchange_;
  AveragerOptions options_;
  std::uint32_t channel_;
  std::vector<BufferView> buffers_;
  std::unique_ptr<detail::Layout> layout_;  // on the heap: the members below refer to it when the averager moves
  std::uint64_t digest_of_layout_;
  Rank max_degree_;
  std::size_t message_bytes_ = 0;
  Neighborhood plan_;
  Session session_;
  detail::GlobalMean<C> global_;
  detail::FiniteCheck<C> finite_;
  detail::Schedule schedule_;
  Round captured_ = 0;  // rounds recorded in graphs since the last one performed
  std::uint64_t calls_of_global_ = 0;
  bool spent_ = false;  // the round in which NonFiniteError was thrown has begun, and is over
  Metrics metrics_;
};

template <Communicator C, Topology T>
DecentralizedAverager(C&, T, std::vector<BufferView>) -> DecentralizedAverager<C, T, FullPrecision>;
template <Communicator C, Topology T>
DecentralizedAverager(C&, T, std::vector<BufferView>, AveragerOptions) -> DecentralizedAverager<C, T, FullPrecision>;
template <Communicator C, Topology T, Exchange E>
DecentralizedAverager(C&, T, std::vector<BufferView>, E) -> DecentralizedAverager<C, T, E>;
template <Communicator C, Topology T, Exchange E>
DecentralizedAverager(C&, T, std::vector<BufferView>, E, AveragerOptions) -> DecentralizedAverager<C, T, E>;

}  // namespace kith
