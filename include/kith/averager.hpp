// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <kith/averager/agreement.hpp>
#include <kith/averager/checks.hpp>
#include <kith/averager/options.hpp>
#include <kith/averager/rounds.hpp>
#include <kith/averager/state.hpp>
#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/full_precision.hpp>
#include <kith/exchange/hidden.hpp>
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
class DecentralizedAverager : detail::Rounds<C, T, E> {
  using Rounds = detail::Rounds<C, T, E>;

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
      : Rounds(communicator, std::move(topology), std::move(buffers), std::move(exchange), options) {}

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
  void average() requires(!StreamOrdered<C>) {
    require_landed("average");
    perform_due({});
  }

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
  ///
  /// Exchanges that encode look for values that are not finite in any case. With replicas (Choco, Difference) nobody
  /// commits a round in which some rank has found one, and all ranks throw: both ends of every edge keep equal
  /// replicas.
  /// @throws BackendError, PeerError, NonFiniteError about an earlier round. UsageError for a capture where the
  ///         schedule has more than gossip rounds.
  void average(detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    require_landed("average");
    if (!session_.staging().capturing(stream)) return perform_due(stream);
    if (options_.every != 1 || options_.warmup_rounds != 0 || options_.global_every != 0)
      throw UsageError(
          "a graph can record gossip rounds only: capture with every = 1, warmup_rounds = 0 and "
          "global_every = 0, and call average_globally() where it is due");
    enqueue_round(schedule_.round + captured_, buffers_, stream);
    ++captured_;
  }

  /// @brief `rounds` captured rounds have been replayed: the schedule and the counters go on behind them. Local.
  void advance(Round rounds) requires StreamOrdered<C> {
    require_landed("advance");
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
  /// gone wrong. Local. With replicas, Metrics::replica_distance is computed: one pass over them and the parameters.
  /// @throws BackendError, PeerError, NonFiniteError.
  void synchronize() requires StreamOrdered<C> {
    require_landed("synchronize");
    session_.staging().engine().drain(call("synchronize", 0));
    session_.staging().engine().watch().require_in_step();
    if constexpr (has_device_replicas)
      metrics_.replica_distance = session_.replica_distance(call("synchronize", 0), buffers_);
    throw_refusal();
  }

  /// @brief A hidden round: snapshots the parameters, and lets the next call of the schedule go on beside the host,
  /// which computes its next step meanwhile. finish() ends it. Collective together with finish(): the round waits for
  /// peers, up to the deadline after their begin(); this call does not.
  ///
  /// Between the two the parameters change as they like, and stay in place until then; every other call to this
  /// averager throws UsageError and leaves the round alone. Whatever else is to use the communicator, another
  /// averager's round or the destructor, waits until the round is over, so that all ranks do the same in the same
  /// order; another averager's begin() does not wait, unless it is its first and collective.
  ///
  /// Between threads the round goes on in a thread of Kith's, one for each communicator; over MPI too, if MPI was
  /// initialized with MPI_THREAD_MULTIPLE, and otherwise in this call. It uses the processor for what it computes, and
  /// memory: where no core is free only the waiting is hidden. It is worth it where a round mostly waits, for a network
  /// or for peers that are late; see docs/integrating.md.
  /// @throws UsageError if a round is in flight, which goes on. NonFiniteError where the exchange encodes and
  ///         check_finite is not set: no round has begun, as with average(). The first call also PeerError where peers
  ///         read the parameters in place (kith::mpi::Communicator::allocate): it is collective there.
  /// @par Cost One copy of the model, here, and one look through it where the exchange encodes. The first call
  ///           allocates two models, and where parameters are read in place what FullPrecision needs for those that are
  ///           not. Later ones allocate nothing.
  void begin() requires(!StreamOrdered<C>) {
    make_hidden();
    const detail::DueCall now = detail::next_call(schedule_, options_);
    if (now.is_due) {
      if (!now.globally) {
        plan(schedule_.round);
        require_encodable();
      }
      hidden_->start(buffers_, [this] { return perform_hidden(); });
    }
    flight_ = now;
  }

  /// @brief Ends the hidden round: waits until it is over, and adds to the parameters what it has changed in the
  /// snapshot: x <- x + (W s - s), as if the local steps since begin() had been made after the round. (Combine, then
  /// adapt: D-PSGD as it was published. The mean over ranks is kept, whatever the host has done meanwhile.)
  ///
  /// W s is what average() would have made of s, of the exchange and in its arithmetic; W s - s and the sum are
  /// computed in f32 (f64 for f64 buffers), each rounded on its own, and 16-bit values are rounded once.
  /// @throws UsageError without begin(). PeerError and NonFiniteError as average(), about the snapshot; the parameters
  ///         are then as the host has left them, and the round is over.
  /// @par Cost One pass over the model, besides the wait. Metrics::seconds_waiting counts what this call has waited.
  /// @par Source Lian et al., NeurIPS 2017, arXiv:1705.09056, Algorithm 1; BlueFog calls it AWC (adapt with combine).
  void finish() requires(!StreamOrdered<C>) {
    const detail::DueCall now = take_flight();
    if (!now.is_due) return detail::count_call(schedule_, now);
    const detail::RoundOutcome outcome = hidden_->land();
    metrics_.seconds_waiting += outcome.waited.count();
    if (outcome.found) {
      const Call here = hidden_call(now);
      count_call(now);
      throw_non_finite(*outcome.found, here);
    }
    if (max_degree_ > 0 || now.globally) hidden_->model().add_to(buffers_);
    count_hidden(now);
  }

  /// The same for models on a device: enqueues a copy of the model behind what `stream` holds, and the round behind
  /// that on Kith's own stream; what `stream` is given next does not wait for the round. Not while a graph is captured.
  /// @throws BackendError, PeerError about an earlier round; no round is in flight then.
  void begin(detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    require_not_capturing(stream);
    make_hidden();
    const detail::DueCall now = detail::next_call(schedule_, options_);
    if (now.is_due)
      hidden_->start(hidden_call(now), buffers_, stream,
                     [&](std::span<const BufferView> copy) { enqueue_hidden(now, copy, stream); });
    flight_ = now;
  }
  /// Lets `stream` wait for the round and then add what it has changed: nothing, where something has gone wrong in it.
  /// The host does not wait, and errors are reported as by average(stream).
  void finish(detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    require_not_capturing(stream);
    const detail::DueCall now = take_flight();
    if (!now.is_due) return detail::count_call(schedule_, now);
    hidden_->finish(hidden_call(now), buffers_, max_degree_ > 0 || now.globally, stream);
    count_hidden(now);
    throw_refusal();
  }

  /// @brief Collective. Sets every rank's parameters to the exact mean over ranks, outside the schedule.
  ///
  /// The sum runs in ascending rank: x_0 + sum_j (x_j - x_0)/n, in f32 (f64 for f64 buffers), rounded to f16 or bf16
  /// once. The same bits on every rank.
  /// @throws PeerError, NonFiniteError; the parameters are then as they were.
  /// @par Cost 2 (n-1) messages and 2 (n-1)/n models per rank (reduce-scatter, then all-gather).
  void average_globally() requires(!StreamOrdered<C>) {
    require_landed("average_globally");
    global_round("average_globally", ++calls_of_global_, {});
  }
  /// The same for models on a device, as average(stream). NCCL computes the mean: the same bits on every rank, but not
  /// those of the other engines.
  void average_globally(detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    require_landed("average_globally");
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
    require_landed("mean_into");
    require_targets(targets);
    global_.mean(call("mean_into", ++calls_of_global_), buffers_, targets, true);
  }
  /// The same for models on a device, as average(stream).
  void mean_into(const std::vector<BufferView>& targets, detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    require_landed("mean_into");
    require_not_capturing(stream);
    require_targets(targets);
    global_.mean_into(call("mean_into", ++calls_of_global_), buffers_, targets, stream);
  }

  /// @brief Collective. Copies the parameters of rank `root` to every rank: the same initial model everywhere.
  /// @throws UsageError for a rank that does not exist. @throws PeerError; the parameters are then as they were.
  /// @par Cost One model to each other rank.
  void broadcast(Rank root = 0) requires(!StreamOrdered<C>) {
    require_landed("broadcast");
    global_.broadcast(broadcast_from(root), buffers_, root);
    set_replicas(buffers_);
  }
  /// The same for models on a device, as average(stream).
  void broadcast(Rank root, detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    require_landed("broadcast");
    require_not_capturing(stream);
    const Call here = broadcast_from(root);
    global_.broadcast(here, buffers_, root, stream);
    set_replicas(here, buffers_, stream);
  }

  /// @brief Collective. Whether all ranks hold the same bits. (Compares 64-bit digests: two models that differ agree
  /// by accident with probability 2^-64.)
  /// @throws PeerError.
  [[nodiscard]] bool buffers_agree() requires(!StreamOrdered<C>) {
    require_landed("buffers_agree");
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
    require_landed("buffers_agree");
    require_not_capturing(stream);
    return global_.agree(call("buffers_agree", ++calls_of_global_), buffers_, stream);
  }

  /// @brief Collective. How far apart the models are: sqrt((1/n) sum_i norm(x_i - mean)^2) over all elements, with the
  /// mean as mean_into() gives it, added up in f64. The same bits on every rank.
  /// @throws PeerError.
  [[nodiscard]] double consensus_distance() requires(!StreamOrdered<C>) {
    require_landed("consensus_distance");
    return global_.distance(call("consensus_distance", ++calls_of_global_), buffers_);
  }
  /// The same for models on a device, as they are behind what `stream` holds. Waits for the device.
  [[nodiscard]] double consensus_distance(detail::DeviceStream<C> stream) requires StreamOrdered<C> {
    require_landed("consensus_distance");
    require_not_capturing(stream);
    return global_.distance(call("consensus_distance", ++calls_of_global_), buffers_, stream);
  }

  /// @brief Collective. The largest of the ranks' `local`. Once an epoch, for uneven data: all ranks average so many
  /// times, also those that have come to the end of their own, so that nobody waits in vain for one that has stopped.
  ///
  /// @param local how many steps this rank has data for; 0 is allowed.
  /// @returns the same number on every rank. No stream is needed: for models on a device the host waits, for the others
  /// and for the rounds that are enqueued; no stream is being captured meanwhile.
  /// @throws PeerError, BackendError, UsageError between begin() and finish(). Parameters and schedule stay as they are
  /// in any case.
  /// @par Cost 8 bytes to each other rank.
  [[nodiscard]] std::uint64_t agree_on_steps(std::uint64_t local) {
    require_landed("agree_on_steps");
    const std::vector<std::uint64_t> all = detail::gather(communicator_, call("agree_on_steps", ++calls_of_global_),
                                                          std::span<const std::uint64_t>{&local, 1});
    return *std::max_element(all.begin(), all.end());
  }

  /// Changes the factor a from the next round on; all ranks give the same value. Local.
  /// @throws UsageError outside [0, 2].
  void set_mixing(double mixing) {
    require_landed("set_mixing");
    detail::require_mixing(mixing);
    schedule_.mixing = mixing;
  }

  /// Local; between rounds.
  [[nodiscard]] const Metrics& metrics() const {
    require_landed("metrics");
    return metrics_;
  }

  /// Bytes of memory that Kith holds for this averager besides the parameters. Allocated at construction, and what
  /// hidden rounds need by the first begin(). Local; between rounds.
  [[nodiscard]] std::size_t staging_bytes() const {
    require_landed("staging_bytes");
    return session_.staging_bytes() + global_.staging_bytes() + (hidden_ ? hidden_->staging_bytes() : 0);
  }

  /// @brief Everything but the parameters that the next rounds depend on, for a checkpoint. Local; between rounds.
  /// Where replicas are on a device, this and restore() wait for it.
  [[nodiscard]] std::vector<std::byte> state() const {
    require_landed("state");
    std::span<const std::byte> replicas;
    if constexpr (has_replicas) replicas = session_.rule().replicas().bytes();
    std::vector<std::byte> copy;
    if constexpr (has_device_replicas) {
      copy.resize(session_.replica_bytes());
      session_.save(call("state", 0), copy);
      replicas = copy;
    }
    return detail::to_blob(identity(), schedule_, metrics_, replicas);
  }

  /// @brief Continues from a state() of an averager with the same size, topology, exchange and buffers. The
  /// continuation is bit-identical if the parameters are restored too. Local; on all ranks.
  /// @throws UsageError if the blob is not one or comes from another kind of averager; nothing has changed then.
  void restore(std::span<const std::byte> blob) {
    require_landed("restore");
    std::span<std::byte> replicas;
    if constexpr (has_replicas) replicas = session_.rule().replicas().bytes();
    std::size_t replica_bytes = replicas.size();
    if constexpr (has_device_replicas) replica_bytes = session_.replica_bytes();
    const detail::State state = detail::from_blob(identity(), blob, replica_bytes);
    if constexpr (has_device_replicas) session_.restore(call("restore", 0), state.replicas);
    schedule_ = state.schedule;
    metrics_ = state.metrics;
    if constexpr (has_replicas) std::copy(state.replicas.begin(), state.replicas.end(), replicas.begin());
    captured_ = 0;
  }

  /// @brief The parameters have moved: the same counts and dtypes at new places. Local.
  /// @throws UsageError for other counts or dtypes, overlapping buffers, or memory that the engine cannot change to
  ///         (see kith::mpi::Communicator::allocate); the old places stay in force then.
  void rebind(std::vector<BufferView> buffers) {
    require_landed("rebind");
    detail::require_same_layout(buffers_, buffers, "rebind");
    detail::require_distinct(buffers);
    require_readable(buffers);
    if constexpr (requires { session_.require_place(buffers); }) session_.require_place(buffers);
    if constexpr (StreamOrdered<C>) session_.staging().rebind(buffers, call("rebind", 0));
    if constexpr (requires { session_.rebind(buffers, call("rebind", 0)); })
      session_.rebind(buffers, call("rebind", 0));
    buffers_ = std::move(buffers);
  }

private:
  using Rounds::call, Rounds::plan, Rounds::perform_due, Rounds::enqueue_round, Rounds::count_round,
      Rounds::global_round, Rounds::throw_refusal, Rounds::throw_non_finite, Rounds::require_not_capturing,
      Rounds::require_targets, Rounds::broadcast_from, Rounds::set_replicas, Rounds::identity, Rounds::require_readable,
      Rounds::require_landed, Rounds::require_encodable, Rounds::take_flight, Rounds::make_hidden,
      Rounds::perform_hidden, Rounds::enqueue_hidden, Rounds::hidden_call, Rounds::count_hidden, Rounds::count_call,
      Rounds::has_replicas, Rounds::has_device_replicas, Rounds::communicator_, Rounds::options_, Rounds::buffers_,
      Rounds::max_degree_, Rounds::session_, Rounds::global_, Rounds::schedule_, Rounds::captured_,
      Rounds::calls_of_global_, Rounds::metrics_, Rounds::hidden_, Rounds::flight_;
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
