// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <kith/codec.hpp>
#include <kith/codec/detail/tiles.hpp>
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
struct Difference;

namespace detail {

/// See Difference. Replica 0 is the own one, those of the sources follow.
template <Codec Q>
class DifferenceRule {
public:
  using Exchange = Difference<Q>;

  DifferenceRule(const Exchange& exchange, const WireLayout& layout, const SessionOptions& options, Rank rank)
      : codec_(exchange.codec),
        rank_(rank),
        sources_(options.period.sources),
        replicas_(layout, options.buffers, sources_.size() + 1) {}

  static constexpr bool every_value = true;
  [[nodiscard]] static Workspace workspace(const WireLayout& layout, std::size_t max_degree) {
    return {max_degree, 1, layout.longest_computed()};
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return replicas_.bytes().size(); }
  [[nodiscard]] std::size_t begin(const Neighborhood&) noexcept {
    squares_ = 0;
    return 1;
  }
  [[nodiscard]] static std::size_t most_messages() noexcept { return 1; }

  void encode(const EncodedPart& part, std::size_t, std::span<std::byte> wire, Workspace& workspace) {
    const BufferView values = part.values();
    const BufferView change = workspace.view(0, values);
    with_compute_type(values.dtype, [&]<class T>() {
      const T* const own = replicas_.values<T>(0, part.segment);
      subtract(values, own, workspace.row<T>(0), squares_);
      const auto terms = workspace.average.sources<T>();
      std::size_t number = 0;
      for (const auto& source : part.round.plan.sources())
        terms[number++] = {replicas_.values<T>(other(source.rank), part.segment), static_cast<T>(source.weight)};
      add_average(change, own, terms.first(number), part.round.mixing);
    });
    encode_part(codec_, change, wire, part.context(rank_), part.segment.first);
  }

  void check(const EncodedPart& part, std::span<const std::byte> wire, Rank sender, Workspace& workspace) const {
    check_part(codec_, wire, workspace.view(0, part.values()), part.context(sender));
  }

  void apply(const EncodedPart& part, Workspace&) {
    const BufferView values = part.values();
    const auto sources = part.round.plan.sources();
    codec_.decode_add(1, part.own(), replicas_.view(0, part.segment, values), part.checked(rank_));
    for (std::size_t k = 0; k < sources.size(); ++k)
      codec_.decode_add(1, part.source(k), replicas_.view(other(sources[k].rank), part.segment, values),
                        part.checked(sources[k].rank));
    with_compute_type(values.dtype, [&]<class T>() {
      const T* const own = replicas_.values<T>(0, part.segment);
      Overwrite{}.tiles<T>(values, [&](T* to, std::size_t first, std::size_t count) {
        std::memcpy(to, own + first, count * sizeof(T));
      });
    });
  }

  [[nodiscard]] Replicas& replicas() noexcept { return replicas_; }
  [[nodiscard]] const Replicas& replicas() const noexcept { return replicas_; }
  [[nodiscard]] double replica_distance() const noexcept { return std::sqrt(squares_); }

private:
  [[nodiscard]] std::size_t other(Rank source) const noexcept { return 1 + PeriodPlan::place(sources_, source); }

  Q codec_;
  Rank rank_;
  std::vector<Rank> sources_;
  Replicas replicas_;
  double squares_ = 0;
};

}  // namespace detail

/// @brief What a round changes travels, encoded: DCD-PSGD. All ranks keep replicas r_j of themselves and of those they
/// hear; z_i = x_i - r_i + a sum_j w_ij (r_j - r_i); then r_i <- r_i + Q(z_i) at rank i and wherever it is heard, and
/// x_i <- r_i.
///
/// So the parameters are the replicas after every round, and a codec's error is relative to a round's change. With Ring
/// and MinMaxUInt8 this is Bagua's low-precision decentralized SGD step by step: replicas of both neighbours, weights
/// of one third, one chunk for the buffer. Bagua computes z as x_i + 1/3 r_left + 1/3 r_right - 5/3 r_i, each term by a
/// fused multiply-add; here it is the sum of differences above, in ascending rank, every operation rounded on its own:
/// Bagua's factors add up to 6e-8 instead of 0, which makes the models drift.
///
/// An optimizer's step since the last round is sent, but not yet averaged: combine-while-adapt, x_i <- sum_j w_ij r_j +
/// (x_i - r_i), where the other exchanges average after the step.
///
/// What Q loses of z is lost: there is no error feedback, and averaging alone does not keep the mean of the models (by
/// 0.03 with int4). It takes an accurate codec; with Int4Block, TopK or SignMean use Choco.
///
/// Replicas begin as zeros: begin with AveragerOptions::warmup_rounds = 1 or with broadcast(), which set them to the
/// common model, as does every exact global mean. Buffers smaller than AveragerOptions::encode_from_bytes travel as
/// they are and are averaged as with FullPrecision. Everything is computed in f32 (f64 for f64 buffers); f16 and bf16
/// are widened first and rounded once at the end, the replicas are not rounded.
///
/// @par Topologies Static ones: whose period is 1.
/// @par Errors     NonFiniteError for a NaN or an infinity in what is to be encoded, before anything is sent: the round
///                 has not begun on this rank. Mend the values and call again; the others wait, up to their deadline.
///                 To other machines a message travels while it is encoded: there, finite values whose difference
///                 overflows are found too late, and fail the round. PeerError on this rank and those that it tells;
///                 nothing has changed, and the communicator has failed.
/// @par Cost       One message of wire_bytes() for each buffer per edge. Staging: a model (of encoded buffers, in f32
///                 or f64) for this rank and each in-neighbour, a segment (see detail::EncodedSession), the own
///                 message, and those of the in-neighbours unless they are read where they are.
/// @par Source     Tang et al., Communication Compression for Decentralized Training, NeurIPS 2018, arXiv:1803.06443,
///                 Algorithm 1 (DCD-PSGD); Gan et al., Bagua, VLDB 2021, arXiv:2107.01499.
template <Codec Q>
struct Difference {
  static constexpr std::string_view name = "difference";

  Q codec;

  [[nodiscard]] std::size_t wire_bytes(std::size_t count, DType dtype) const {
    return codec.wire_bytes(count, detail::compute_dtype(dtype));
  }
  [[nodiscard]] std::string parameters() const { return codec_name(codec); }

  /// Throws UsageError for a schedule that changes.
  void require(const detail::PeriodPlan& period) const {
    if (period.rounds != 1)
      throw UsageError(
          "difference keeps one replica of each neighbour, which hears of every round, and " + period.topology +
          " has others in other rounds. Choose a static topology (ring, torus, static-exponential, ...) or "
          "the exchange " +
          (period.rounds == 0 ? "direct" : "choco"));
  }

  template <Communicator C>
  using Session = detail::EncodedSession<C, detail::DifferenceRule<Q>>;
};

template <class Q>
Difference(Q) -> Difference<Q>;

}  // namespace kith
