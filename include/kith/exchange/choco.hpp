// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <kith/codec.hpp>
#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/exchange/encoded.hpp>
#include <kith/exchange/encoded_part.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/period.hpp>
#include <kith/exchange/replicas.hpp>
#include <kith/exchange/wire_layout.hpp>
#include <kith/numeric/compute_type.hpp>
#include <kith/numeric/isa.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

template <Codec Q>
struct Choco;

namespace detail {

/// See Choco. Where every edge is used in every round, all replicas of a rank's own values are the same: one is kept.
template <Codec Q>
class ChocoRule {
public:
  using Exchange = Choco<Q>;

  ChocoRule(const Exchange& exchange, const WireLayout& layout, const SessionOptions& options, Rank rank)
      : codec_(exchange.codec),
        gamma_(exchange.gamma),
        rank_(rank),
        period_(options.period),
        shared_(period_.rounds == 1),
        replicas_(layout, options.buffers, period_.sources.size() + (shared_ ? 1 : period_.targets.size())),
        squares_(shared_ ? 1 : std::max<std::size_t>(options.max_degree, 1)) {}

  static constexpr bool every_value = true;
  [[nodiscard]] static Workspace workspace(const WireLayout& layout, std::size_t max_degree) {
    return {max_degree, 1, layout.longest_computed()};
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return replicas_.bytes().size(); }
  [[nodiscard]] std::size_t begin(const Neighborhood& plan) noexcept {
    std::fill(squares_.begin(), squares_.end(), 0.0);
    return shared_ ? 1 : plan.targets().size();
  }
  [[nodiscard]] std::size_t most_messages() const noexcept { return squares_.size(); }

  void encode(const EncodedPart& part, std::size_t message, std::span<std::byte> wire, Workspace& workspace) {
    const BufferView values = part.values();
    with_compute_type(values.dtype, [&]<class T>() {
      const T* const replica = replicas_.values<T>(own(part.round, message), part.segment);
      subtract(values, replica, workspace.row<T>(0), squares_[message]);
    });
    encode_part(codec_, workspace.view(0, values), wire, part.context(rank_), part.segment.first);
  }

  void check(const EncodedPart& part, std::span<const std::byte> wire, Rank sender, Workspace& workspace) const {
    check_part(codec_, wire, workspace.view(0, part.values()), part.context(sender));
  }

  void apply(const EncodedPart& part, Workspace& workspace) {
    const BufferView values = part.values();
    const auto sources = part.round.plan.sources();
    for (std::size_t m = 0; m < part.sent.size(); ++m)
      codec_.decode_add(1, part.own(m), replicas_.view(own(part.round, m), part.segment, values), part.checked(rank_));
    for (std::size_t k = 0; k < sources.size(); ++k)
      codec_.decode_add(1, part.source(k), replicas_.view(other(sources[k].rank), part.segment, values),
                        part.checked(sources[k].rank));
    if (sources.empty() && part.round.plan.targets().empty()) return;
    with_compute_type(values.dtype, [&]<class T>() {
      const auto terms = workspace.average.sources<T>();
      std::size_t number = 0;
      for (const auto& source : sources)
        terms[number++] = {replicas_.values<T>(other(source.rank), part.segment), static_cast<T>(source.weight)};
      const T* self = nullptr;
      if (shared_) {  // sum_j w_ij (r_j - r_i)
        self = replicas_.values<T>(own(part.round, 0), part.segment);
      } else {  // sum_j w_ij r_ji - sum_k w_ki r_ik: what comes in along the edges, and what goes out
        const std::vector<double>& told = period_.told[part.round.call.sequence % period_.rounds];
        for (std::size_t m = 0; m < told.size(); ++m)
          terms[number++] = {replicas_.values<T>(own(part.round, m), part.segment), static_cast<T>(-told[m])};
      }
      add_average(values, self, terms.first(number), gamma_ * part.round.mixing);
    });
  }

  [[nodiscard]] Replicas& replicas() noexcept { return replicas_; }
  [[nodiscard]] const Replicas& replicas() const noexcept { return replicas_; }
  /// norm(x_i - r_i) when the latest round began; over the messages of the round the largest.
  [[nodiscard]] double replica_distance() const noexcept {
    return std::sqrt(*std::max_element(squares_.begin(), squares_.end()));
  }

private:
  // The replicas of the sources come first, then the own ones.
  [[nodiscard]] std::size_t other(Rank source) const noexcept { return PeriodPlan::place(period_.sources, source); }
  [[nodiscard]] std::size_t own(const GossipRound& round, std::size_t message) const noexcept {
    if (shared_) return period_.sources.size();
    return period_.sources.size() + PeriodPlan::place(period_.targets, round.plan.targets()[message]);
  }

  Q codec_;
  double gamma_;
  Rank rank_;
  PeriodPlan period_;
  bool shared_;
  Replicas replicas_;
  std::vector<double> squares_;  // of x_i - r_i, for each message
};

/// The gamma that Choco takes for a codec; see there.
template <Codec Q>
[[nodiscard]] double default_gamma([[maybe_unused]] Q codec) {
  constexpr std::string_view name = Q::name;
  if constexpr (name == "top-k")
    return std::min(1.0, 2 * codec.fraction);
  else if constexpr (name == "random-k" || name == "cyclic-mask")
    return codec.fraction / 2;
  else
    return name == "sign-mean" ? 0.45 : 1;
}

}  // namespace detail

/// @brief Differences to a replica travel, encoded, and replicas are averaged: CHOCO. What a codec loses of a
/// difference is still in the next one, so that the models converge to the same place as with FullPrecision, down to
/// the rounding of their type, whereas Direct stops at the codec's error.
///
/// Both ends of an edge i -> k keep the replica r_ik of x_i. When the edge is used, Q(x_i - r_ik) travels and both add
/// it to r_ik; then x_i <- x_i + a gamma (sum over in-edges of w_ij r_ji - sum over out-edges of w_ki r_ik). That keeps
/// the mean of the models for every doubly stochastic W. In a static topology all replicas of a rank are the same: it
/// keeps one, and x_i <- x_i + a gamma sum_j w_ij (r_j - r_i), whose differences leave the mean no room to drift. In a
/// schedule that changes, replicas belong to edges: with one of its own per rank, those that have not heard every round
/// would be wrong about it, and the exchange diverges.
///
/// gamma is how far one goes towards the replicas, 0 < gamma <= 1. Too large, it diverges, often after hundreds of
/// rounds that look like convergence; Metrics::replica_distance shows it early. Unless it is given it depends on the
/// codec:
///
/// - Cast, Int8Block, Int4Block, MinMaxUInt8, QSGD, a codec of your own: 1 (Koloskova et al. for qsgd; measured);
/// - TopK: 2 fraction, 0.02 for 1 % (measured; Koloskova et al. have 0.046 for 1 % on a ring of 25);
/// - RandomK, CyclicMask: fraction / 2 (measured; Koloskova et al. have 0.011 for 1 % on that ring);
/// - SignMean: 0.45 (measured).
///
/// Measured: fixed vectors averaged for 3,000 to 10,000 rounds on rings of 4, 8 and 25, a torus, complete, star, static
/// and one-peer exponential graphs, the one-peer hypercube and base graphs of 6 to 16 ranks. The values above converge
/// on all of them. For TopK of 1 %, 0.03 diverges on the complete graph and the star, 0.05 on all static ones but the
/// ring of 25; one-peer schedules bear 0.05 and are not faster with it.
///
/// Replicas begin as zeros, so the first rounds carry whole models: begin with AveragerOptions::warmup_rounds = 1 or
/// with broadcast(), which set them to the common model, as does every exact global mean. Buffers smaller than
/// AveragerOptions::encode_from_bytes travel as they are and are averaged as with FullPrecision, without gamma.
/// Everything is computed in f32 (f64 for f64 buffers), sums from zero, over in-edges and then out-edges in ascending
/// rank, every operation rounded on its own; f16 and bf16 are widened first and rounded once at the end, the replicas
/// are not rounded. What codecs draw at random, or take turns by, goes by the times that a phase of the schedule has
/// come.
///
/// @par Topologies All with a period. Not random ones, whose edges are new in every round. SignMean only where every
///                 W is symmetric: it diverges on directed graphs, static and changing, at any useful gamma.
/// @par Errors     NonFiniteError for a NaN or an infinity in what is to be encoded, before anything is sent: the round
///                 has not begun on this rank. Mend the values and call again; the others wait, up to their deadline.
///                 To other machines a message travels while it is encoded: there, finite values whose difference
///                 overflows are found too late, and fail the round. PeerError on this rank and those that it tells;
///                 nothing has changed, and the communicator has failed.
/// @par Cost       One message of wire_bytes() for each buffer per edge. Staging: replicas of the encoded buffers, in
///                 f32 or f64; in a static topology one for each in-neighbour and one for the rank itself, else one
///                 for each rank that is heard in the period and each that is told (2 log2 n models on one-peer
///                 exponential graphs). Besides that a segment (see detail::EncodedSession), the own messages, and
///                 those of the in-neighbours unless they are read where they are.
/// @par Source     Koloskova, Stich and Jaggi, Decentralized Stochastic Optimization and Gossip Algorithms with
///                 Compressed Communication, ICML 2019, arXiv:1902.00340, Algorithm 1. Replicas on edges, and the sums
///                 of differences, are departures: the published form adds up a weighted sum of what has come, whose
///                 rounding moves the mean (by 1e-2 in 30,000 rounds of fp32).
template <Codec Q>
struct Choco {
  static constexpr std::string_view name = "choco";

  Q codec;
  double gamma = detail::default_gamma(codec);

  [[nodiscard]] std::size_t wire_bytes(std::size_t count, DType dtype) const {
    return codec.wire_bytes(count, detail::compute_dtype(dtype));
  }
  [[nodiscard]] std::string parameters() const { return codec_name(codec) + ",gamma=" + detail::number_to_text(gamma); }

  /// Throws UsageError for a gamma or a schedule that cannot be; see above.
  void require(const detail::PeriodPlan& period) const {
    if (!(gamma > 0 && gamma <= 1))
      throw UsageError("choco: a gamma of " + detail::number_to_text(gamma) + ": it takes more than 0, at most 1");
    if (period.rounds == 0)
      throw UsageError("choco keeps a replica for each edge of a period, and " + period.topology +
                       " draws its edges anew in every round. Choose a topology with a period, or the exchange direct");
    if (std::string_view{Q::name} == "sign-mean" && !period.symmetric)
      throw UsageError("choco with sign-mean diverges on directed graphs such as " + period.topology +
                       ". Choose another codec, or a topology with symmetric weights");
  }

  /// Throws UsageError for a buffer that the codec does not contract: QSGD adds more noise than there is signal.
  void require_buffer(const BufferView& buffer) const {
    if constexpr (std::string_view{Q::name} == "qsgd") {
      if (buffer.count >= static_cast<std::size_t>(codec.levels) * codec.levels)
        throw UsageError("choco with qsgd takes buffers of less than levels^2 = " +
                         std::to_string(static_cast<std::size_t>(codec.levels) * codec.levels) + " elements, not " +
                         std::to_string(buffer.count) + ": the noise of its rounding would feed itself");
    }
  }

  template <Communicator C>
  using Session = detail::EncodedSession<C, detail::ChocoRule<Q>>;
};

template <class Q>
Choco(Q) -> Choco<Q>;
template <class Q>
Choco(Q, double) -> Choco<Q>;

}  // namespace kith
