// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <kith/codec.hpp>
#include <kith/communicator.hpp>
#include <kith/cuda/codec_kernels.hpp>
#include <kith/cuda/kernels.hpp>
#include <kith/cuda/resources.hpp>
#include <kith/error.hpp>
#include <kith/exchange/device/codecs.hpp>
#include <kith/exchange/device/staging.hpp>
#include <kith/exchange/device/wires.hpp>
#include <kith/exchange/encoded.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/layout.hpp>
#include <kith/exchange/period.hpp>
#include <kith/numeric/compute_type.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// The exchanges that encode, by their names: what they do with values and replicas on a device.
enum class EncodedRule : std::uint8_t { direct, difference, choco, masked_mean };

template <Exchange E>
[[nodiscard]] constexpr EncodedRule encoded_rule() noexcept {
  constexpr std::string_view name = E::name;
  static_assert(name == "direct" || name == "difference" || name == "choco" || name == "masked-mean",
                "this exchange has no device side: on a GPU take one of Kith's");
  return name == "choco"        ? EncodedRule::choco
         : name == "difference" ? EncodedRule::difference
         : name == "direct"     ? EncodedRule::direct
                                : EncodedRule::masked_mean;
}

/// @brief A round of encoded buffers between devices: the twin of EncodedSession, with the same bits of the parameters
/// and replicas after each round.
///
/// Enqueued before anything is sent: the own messages, and the search for what is not finite, which the codecs do in
/// passing. One group of NCCL brings headers and messages; then the device decides, and kernels decode, move replicas
/// and write parameters only if it has decided for it.
///
/// Who must know of a value that is not finite: both ends of an edge move its replicas, or neither. A rank that commits
/// nothing does not move its replicas of those it hears, so they must not move theirs, so those who hear these must
/// not either, and so on along all edges. So with replicas (Choco, Difference) headers go from all to all, 64 bytes
/// each (by an all-gather of NCCL among more than 16 ranks), every rank decides by the same headers, and of a round in
/// which some rank holds such a value nobody commits anything. Without replicas (Direct, MaskedMean) headers go along
/// the edges: as with FullPrecision, the rank and those that hear it do not commit.
///
/// What has come is not checked code by code, as it is between processes of the host: nothing but the kernels of
/// another device has written it, and no code can lead a kernel out of its memory.
template <StreamOrdered C, Exchange E>
class DeviceEncoded {
  static constexpr EncodedRule rule = encoded_rule<E>();
  static constexpr bool masked = rule == EncodedRule::masked_mean;

  static decltype(auto) codec_of(const E& exchange) noexcept {
    if constexpr (masked)
      return (exchange.mask);
    else
      return (exchange.codec);
  }
  using Q = std::remove_cvref_t<decltype(codec_of(std::declval<const E&>()))>;

public:
  /// Whether what ranks remember of each other is a part of the state.
  static constexpr bool keeps_replicas = rule == EncodedRule::choco || rule == EncodedRule::difference;

  DeviceEncoded(C& communicator, const E& exchange, const Layout&, const SessionOptions& options)
      : exchange_(exchange),
        rank_(communicator.rank()),
        period_(options.period),
        shared_(period_.rounds == 1),
        layout_(exchange, options.buffers, options.encode_from_bytes),
        staging_(make_staging(communicator, options)),
        wires_(std::make_unique<DeviceWires<C>>(*staging_, layout_, options.buffers, numbers(options))),
        gathers_(communicator.size() > most_pairwise),
        alone_(options.max_degree == 0) {
    for (Rank r = 0; r < communicator.size(); ++r)
      if (gathers_ || r != rank_) everybody_.push_back(r);
    for (const BufferView& buffer : options.buffers) codecs_.push_back(device_codec(codec_of(exchange_), buffer.count));
    sources_.reserve(options.max_degree);
    weighted_.reserve(options.max_degree);
    edges_.reserve(2 * options.max_degree + 1);
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return staging_->bytes() + wires_->bytes(); }
  [[nodiscard]] DeviceStaging<C>& staging() noexcept { return *staging_; }
  /// Bytes of every message, as the engines of the host count them.
  [[nodiscard]] std::size_t message_bytes() const noexcept { return layout_.payload_bytes(); }

  /// See DeviceStaging. The first time also what the all-gather of headers needs to connect.
  void meet(const Call& call, const Neighborhood& plan) {
    staging_->meet(call, plan);
    if (!keeps_replicas || !gathers_ || have_met_) return;
    have_met_ = true;
    auto& engine = staging_->engine();
    engine.enqueue(call, [&] {
      engine.group(call, [&] {
        engine.all_gather(staging_->sent_header(), staging_->received_header(0), sizeof(cuda::RoundHeader));
      });
    });
  }

  /// Enqueues a round between what `stream` holds and what it is given next.
  /// @throws UsageError in a capture, for a codec that is to draw anew in every round.
  void round(const GossipRound& round, bool check_finite, DeviceStream<C> stream) {
    if (draws<Q> && DeviceStaging<C>::capturing(stream))
      throw UsageError("a graph cannot record rounds with " + codec_name(codec_of(exchange_)) +
                       ": each replay would draw what the recorded round has drawn");
    const Call call = staging_->with_patience(round.call, round.plan);
    sources_.clear();
    for (const auto& source : round.plan.sources()) sources_.push_back(source.rank);
    if (alone_) {  // on every rank, in every round: there is nothing to do but to look
      const auto nothing = [] {};
      return staging_->perform({call, round.buffers, {}, true}, stream, nothing, nothing);
    }
    const std::span<const Rank> heard = keeps_replicas ? std::span<const Rank>{everybody_} : sources_;
    staging_->perform_prepared(
        {call, round.buffers, heard, true}, stream,
        [&](std::uint64_t* finding) { encode(round, check_finite, finding); }, [&] { exchange(round); },
        [&] { commit(round); });
  }

  /// Enqueues behind a global mean or a broadcast, which may have been given up: all ranks hold the same parameters, so
  /// does every replica. `stream` waits for that too.
  void agree(const Call& call, std::span<const BufferView> buffers, DeviceStream<C> stream) {
    staging_->engine().enqueue(call, [&] {
      for (std::size_t b = 0; b < buffers.size(); ++b)
        if (layout_.encoded(b))
          cuda::check(cuda::set_replicas(buffers[b].dtype, buffers[b].data, buffers[b].count, replica(0, b),
                                         layout_.replica_bytes() / size_of(compute_dtype(buffers[b].dtype)),
                                         static_cast<std::uint32_t>(number_of_replicas()), staging_->go(), own()),
                      "set replicas");
      if (!staging_->aside()) cuda::order(wires_->event(), own(), stream);
    });
  }

  /// There is a copy of the model now, on which rounds are performed too: see DeviceStaging::Aside.
  void add_copy(std::span<const BufferView> buffers) { wires_->add_copy(layout_.plain(buffers)); }

  /// @name The replicas, for checkpoints. Both wait for the device.
  /// @{
  [[nodiscard]] std::size_t replica_bytes() const noexcept { return wires_->replicas().bytes(); }
  void save(const Call& call, std::span<std::byte> bytes) const {
    copy(call, bytes.data(), wires_->replicas().data(), cudaMemcpyDeviceToHost);
  }
  void restore(const Call& call, std::span<const std::byte> bytes) {
    copy(call, wires_->replicas().data(), bytes.data(), cudaMemcpyHostToDevice);
  }
  /// @}

  /// norm(x_i - r_i) as they are now; of several own replicas the largest. Waits for the device.
  [[nodiscard]] double replica_distance(const Call& call, std::span<const BufferView> buffers) {
    double most = 0;
    const cuda::DeviceGuard guard{staging_->engine().device()};
    for (std::size_t r = first_own(); r < first_own() + own_replicas(); ++r) {
      std::vector<double> partials(cuda::distance_partials);
      staging_->engine().enqueue(call, [&] {
        cuda::check(cudaMemsetAsync(wires_->partials(), 0, partials.size() * sizeof(double), own()), "clear sums");
        for (std::size_t b = 0; b < buffers.size(); ++b)
          if (layout_.encoded(b))
            cuda::check(cuda::replica_distance(buffers[b].dtype, buffers[b].data, replica(r, b), buffers[b].count,
                                               wires_->partials(), own()),
                        "add up squared distances");
        cuda::check(cudaMemcpyAsync(partials.data(), wires_->partials(), partials.size() * sizeof(double),
                                    cudaMemcpyDeviceToHost, own()),
                    "copy sums");
      });
      staging_->engine().drain(call);
      most = std::max(most, std::accumulate(partials.begin(), partials.end(), 0.0));
    }
    return std::sqrt(most);
  }

  /// The buffers have moved. Waits for rounds in flight if some of them are not encoded.
  void rebind(std::span<const BufferView> buffers, const Call& call) {
    if (wires_->bucket_bytes() == 0) return;
    const cuda::DeviceGuard guard{staging_->engine().device()};
    staging_->engine().drain(call);
    wires_->rebind(layout_.plain(buffers));
  }

private:
  std::unique_ptr<DeviceStaging<C>> make_staging(C& communicator, const SessionOptions& options) const {
    require_on_device(codec_of(exchange_));
    const bool flows = rule == EncodedRule::choco && !shared_;
    const std::size_t most = flows ? cuda::max_edges / 2 : cuda::max_edges - 1;
    if (options.max_degree > most)
      throw UsageError("a round of encoded values on a GPU takes at most " + std::to_string(most) +
                       " in-neighbours; the topology has " + std::to_string(options.max_degree));
    return std::make_unique<DeviceStaging<C>>(communicator, options.buffers, 0, options.bucket_bytes);
  }

  [[nodiscard]] DeviceWireNumbers numbers(const SessionOptions& options) const {
    const bool one_message = rule != EncodedRule::choco || shared_;
    DeviceWireNumbers result{one_message ? 1 : options.max_degree, options.max_degree, number_of_replicas(), 0};
    for (const BufferView& buffer : options.buffers)
      if (buffer.count > 0)
        result.scratch_bytes =
            std::max(result.scratch_bytes, cuda::encode_scratch_bytes(device_codec(codec_of(exchange_), buffer.count),
                                                                      buffer.count, compute_dtype(buffer.dtype)));
    // Behind it what the codec is given, or what it gives.
    result.scratch_bytes =
        (result.scratch_bytes + DeviceLayout::alignment - 1) / DeviceLayout::alignment * DeviceLayout::alignment;
    values_at_ = result.scratch_bytes;
    if (rule == EncodedRule::difference) result.scratch_bytes += layout_.most_computed();
    if (rule == EncodedRule::direct && is_sparse<Q>)
      result.scratch_bytes += (options.max_degree + 1) * layout_.most_computed();
    return result;
  }

  // Where replicas are: as the rules of the host have them.
  [[nodiscard]] std::size_t own_replicas() const noexcept {
    return rule == EncodedRule::choco && !shared_ ? period_.targets.size() : 1;
  }
  [[nodiscard]] std::size_t number_of_replicas() const noexcept {
    return keeps_replicas ? period_.sources.size() + own_replicas() : 0;
  }
  [[nodiscard]] std::size_t first_own() const noexcept {
    return rule == EncodedRule::difference ? 0 : period_.sources.size();
  }
  [[nodiscard]] std::size_t own_replica(const GossipRound& round, std::size_t message) const noexcept {
    if (own_replicas() == 1 && shared_) return first_own();
    return first_own() + PeriodPlan::place(period_.targets, round.plan.targets()[message]);
  }
  [[nodiscard]] std::size_t other_replica(Rank source) const noexcept {
    return (rule == EncodedRule::difference ? 1 : 0) + PeriodPlan::place(period_.sources, source);
  }
  [[nodiscard]] std::byte* replica(std::size_t index, std::size_t buffer) const noexcept {
    return wires_->replicas().data() + index * layout_.replica_bytes() + layout_.replica_offset(buffer);
  }

  [[nodiscard]] cudaStream_t own() const noexcept { return staging_->engine().stream(); }
  /// Scratch memory for a buffer's values: that of in-neighbour k, and behind those the own ones.
  [[nodiscard]] std::byte* scratch_values(std::size_t k = 0) const noexcept {
    return wires_->scratch() + values_at_ + k * layout_.most_computed();
  }
  [[nodiscard]] std::size_t messages(const GossipRound& round) const noexcept {
    return rule == EncodedRule::choco && !shared_ ? round.plan.targets().size() : 1;
  }

  /// The round as codecs are told it; see EncodedSession::codec_round and MaskedMeanRule::context.
  [[nodiscard]] Round codec_round(Round t) const noexcept {
    if (period_.rounds <= 1) return t;
    return masked ? t / period_.rounds : t / period_.rounds + (t % period_.rounds << 32U);
  }

  void encode(const GossipRound& round, bool check_finite, std::uint64_t* finding) {
    for (std::size_t b = 0; b < layout_.buffers(); ++b) {
      if (!layout_.encoded(b)) continue;
      const BufferView& values = round.buffers[b];
      if (check_finite && is_mask<Q>)  // all others look at every value
        cuda::check(cuda::find_non_finite(values.dtype, values.data, values.count, static_cast<std::uint32_t>(b),
                                          finding, own()),
                    "look for values that are not finite");
      for (std::size_t m = 0; m < messages(round); ++m) encode(round, b, m, finding);
    }
    if (wires_->bucket_bytes() > 0)
      cuda::check(cuda::pack(wires_->table(), wires_->bucket(), finding, own()), "pack small buffers");
  }

  void encode(const GossipRound& round, std::size_t b, std::size_t m, std::uint64_t* finding) {
    const BufferView& values = round.buffers[b];
    cuda::Encoding encoding;
    encoding.values = values.data;
    encoding.count = values.count;
    encoding.dtype = values.dtype;
    encoding.wire_dtype = masked ? values.dtype : compute_dtype(values.dtype);
    encoding.wire = wires_->message(m) + layout_.offset(b);
    encoding.scratch = wires_->scratch();
    encoding.round = codec_round(round.call.sequence);
    encoding.rank = static_cast<std::uint32_t>(rank_);
    encoding.buffer = static_cast<std::uint32_t>(b);
    encoding.finding = finding;
    if constexpr (rule == EncodedRule::choco) encoding.minus = replica(own_replica(round, m), b);
    if constexpr (rule == EncodedRule::difference) {
      collect(round, b, false);
      cuda::check(cuda::step_difference({values.data, values.count, values.dtype, edges_, cuda::Formula::differences,
                                         round.mixing, false, nullptr},
                                        scratch_values(), own()),
                  "compute a difference");
      encoding.values = scratch_values();
      encoding.dtype = encoding.wire_dtype;
    }
    cuda::check(cuda::encode(codecs_[b], encoding, own()), "encode a buffer");
  }

  void exchange(const GossipRound& round) {
    auto& engine = staging_->engine();
    if (keeps_replicas) exchange_headers();
    const auto targets = round.plan.targets();
    for (std::size_t m = 0; m < targets.size(); ++m) {
      if (!keeps_replicas) engine.send(staging_->sent_header(), sizeof(cuda::RoundHeader), targets[m]);
      if (wires_->bucket_bytes() > 0) engine.send(wires_->bucket(), wires_->bucket_bytes(), targets[m]);
      if (layout_.bytes() > 0) engine.send(wires_->message(messages(round) == 1 ? 0 : m), layout_.bytes(), targets[m]);
    }
    for (std::size_t k = 0; k < sources_.size(); ++k) {
      if (!keeps_replicas) engine.receive(staging_->received_header(k), sizeof(cuda::RoundHeader), sources_[k]);
      if (wires_->bucket_bytes() > 0) engine.receive(wires_->bucket(k), wires_->bucket_bytes(), sources_[k]);
      if (layout_.bytes() > 0) engine.receive(wires_->slot(k), layout_.bytes(), sources_[k]);
    }
  }

  // Pairs tell who has not come, and are connected already: that is how the ranks have agreed on everything else.
  void exchange_headers() {
    auto& engine = staging_->engine();
    constexpr std::size_t bytes = sizeof(cuda::RoundHeader);
    if (gathers_) return engine.all_gather(staging_->sent_header(), staging_->received_header(0), bytes);
    for (std::size_t k = 0; k < everybody_.size(); ++k) {
      engine.send(staging_->sent_header(), bytes, everybody_[k]);
      engine.receive(staging_->received_header(k), bytes, everybody_[k]);
    }
  }

  void commit(const GossipRound& round) {
    for (std::size_t b = 0; b < layout_.buffers(); ++b) {
      if (!layout_.encoded(b)) continue;
      if constexpr (masked)
        commit_mask(round, b);
      else
        commit_values(round, b);
    }
    if (wires_->bucket_bytes() == 0) return;
    weighted_.clear();
    for (std::size_t k = 0; k < sources_.size(); ++k)
      weighted_.push_back({wires_->bucket(k), round.plan.sources()[k].weight});
    cuda::check(cuda::weighted_average(wires_->table(), weighted_, round.mixing, staging_->go(), own()),
                "average small buffers");
  }

  // The slice that all have sent is averaged where the own one is, and goes to its places.
  void commit_mask(const GossipRound& round, std::size_t b) {
    if (sources_.empty()) return;
    const BufferView& values = round.buffers[b];
    weighted_.clear();
    for (std::size_t k = 0; k < sources_.size(); ++k)
      weighted_.push_back({wires_->slot(k) + layout_.offset(b), round.plan.sources()[k].weight});
    std::byte* const slice = wires_->message(0) + layout_.offset(b);
    cuda::check(
        cuda::weighted_average(values.dtype, slice, weighted_, round.mixing, codecs_[b].kept, staging_->go(), own()),
        "average a slice");
    cuda::check(
        cuda::scatter(codecs_[b],
                      {slice, values.dtype, values.data, values.count, values.dtype, codec_round(round.call.sequence)},
                      staging_->go(), own()),
        "write a slice");
  }

  void commit_values(const GossipRound& round, std::size_t b) {
    if (rule == EncodedRule::direct && sources_.empty()) return;
    const BufferView& values = round.buffers[b];
    collect(round, b, true);
    if (edges_.empty()) return;
    if constexpr (is_sparse<Q>) decode_sparse(round, b);
    cuda::Application application{values.data, values.count, values.dtype, edges_,
                                  formula(),   round.mixing, false,        staging_->go()};
    if constexpr (rule == EncodedRule::difference) application.overwrite = true;
    if constexpr (rule == EncodedRule::choco) application.factor = exchange_.gamma * round.mixing;
    if (round.plan.targets().empty() && sources_.empty() && rule == EncodedRule::choco) application.values = nullptr;
    cuda::check(cuda::apply(codecs_[b], application, own()), "apply what has come");
  }

  [[nodiscard]] cuda::Formula formula() const noexcept {
    if (rule == EncodedRule::difference) return cuda::Formula::first;
    return rule == EncodedRule::choco && !shared_ ? cuda::Formula::weighted : cuda::Formula::differences;
  }

  /// The edges of a buffer in the order of the sum: the own replica or message and those of the sources; or, where
  /// replicas belong to edges, those of the sources and of the targets. Without `wires` the replicas alone.
  void collect(const GossipRound& round, std::size_t b, bool wires) {
    edges_.clear();
    const auto add = [&](const std::byte* message, std::size_t index, double weight) {
      edges_.push_back(
          {wires ? message + layout_.offset(b) : nullptr, keeps_replicas ? replica(index, b) : nullptr, weight});
    };
    const bool flows = rule == EncodedRule::choco && !shared_;
    if (!flows) add(wires_->message(0), first_own(), 0);
    for (std::size_t k = 0; k < sources_.size(); ++k)
      add(wires_->slot(k), keeps_replicas ? other_replica(sources_[k]) : 0, round.plan.sources()[k].weight);
    if (!flows) return;
    const std::vector<double>& told = period_.told[round.call.sequence % period_.rounds];
    for (std::size_t m = 0; m < told.size(); ++m) add(wires_->message(m), own_replica(round, m), -told[m]);
  }

  /// A few values of each wire are added to its replica, or stand alone in scratch memory: then there are only dense
  /// values left.
  void decode_sparse(const GossipRound& round, std::size_t b) {
    const BufferView& values = round.buffers[b];
    const DType real = compute_dtype(values.dtype);
    for (std::size_t k = 0; k < edges_.size(); ++k) {
      cuda::Edge& edge = edges_[k];
      const bool scratch = edge.replica == nullptr;
      if (scratch) edge.replica = scratch_values(k);
      const cuda::Decoding decoding{edge.wire,    real, edge.replica,
                                    values.count, real, codec_round(round.call.sequence)};
      cuda::check(scratch ? cuda::decode(codecs_[b], decoding, own())
                          : cuda::decode_add(codecs_[b], 1, decoding, staging_->go(), own()),
                  "decode a buffer");
      edge.wire = nullptr;
    }
  }

  void copy(const Call& call, void* to, const void* from, cudaMemcpyKind kind) const {
    if (replica_bytes() == 0) return;
    auto& engine = staging_->engine();
    engine.enqueue(
        call, [&] { cuda::check(cudaMemcpyAsync(to, from, replica_bytes(), kind, engine.stream()), "copy replicas"); });
    engine.drain(call);
  }

  E exchange_;
  Rank rank_;
  PeriodPlan period_;
  bool shared_;
  DeviceWireLayout layout_;
  mutable std::size_t values_at_ = 0;
  std::unique_ptr<DeviceStaging<C>> staging_;  // on the heap: DeviceGlobalMean refers to it when the averager moves
  std::unique_ptr<DeviceWires<C>> wires_;
  std::vector<cuda::DeviceCodec> codecs_;
  std::vector<Rank> everybody_;  // whose headers come, where all hear all
  std::vector<Rank> sources_;
  std::vector<cuda::Source> weighted_;
  std::vector<cuda::Edge> edges_;
  static constexpr Rank most_pairwise = 16;
  bool gathers_;  // headers, by a collective of NCCL
  bool alone_;
  bool have_met_ = false;
};

template <StreamOrdered C, class Rule>
struct EncodedSessionFor<C, Rule> {
  using type = DeviceEncoded<C, typename Rule::Exchange>;
};

}  // namespace kith::detail
