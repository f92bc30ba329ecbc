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
#include <kith/codec/detail/tiles.hpp>
#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/exchange/encoded.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/period.hpp>
#include <kith/exchange/replicas.hpp>
#include <kith/numeric/compute_type.hpp>
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
        scratch_(layout.most_computed()),
        squares_(shared_ ? 1 : std::max<std::size_t>(options.max_degree, 1)) {}

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return replicas_.bytes().size() + scratch_.bytes(); }
  [[nodiscard]] std::size_t begin(const Neighborhood& plan) noexcept {
    std::fill(squares_.begin(), squares_.end(), 0.0);
    return shared_ ? 1 : plan.targets().size();
  }
  [[nodiscard]] std::size_t most_messages() const noexcept { return squares_.size(); }

  void encode(const EncodedPart& part, std::size_t message, std::span<std::byte> wire) {
    const BufferView& values = part.values();
    with_compute_type(values.dtype, [&]<class T>() {
      const T* const replica = replicas_.values<T>(own(part.round, message), part.buffer);
      squares_[message] += subtract(values, replica, scratch_.as<T>());
    });
    codec_.encode(scratch_.view(values), wire, part.context(rank_));
  }

  void check(const EncodedPart& part, std::span<const std::byte> wire, Rank sender) {
    check_part(codec_, wire, scratch_.view(part.values()), part.context(sender));
  }

  void apply(const EncodedPart& part) {
    const BufferView& values = part.values();
    const auto sources = part.round.plan.sources();
    for (std::size_t m = 0; m < part.sent.size(); ++m)
      codec_.decode_add(1, part.own(m), replicas_.view(own(part.round, m), part.buffer, values), part.context(rank_));
    for (std::size_t k = 0; k < sources.size(); ++k)
      codec_.decode_add(1, part.source(k), replicas_.view(other(sources[k].rank), part.buffer, values),
                        part.context(sources[k].rank));
    if (sources.empty() && part.round.plan.targets().empty()) return;
    with_compute_type(values.dtype, [&]<class T>() {
      Add{gamma_ * part.round.mixing}.tiles<T>(values, [&](T* sums, std::size_t first, std::size_t count) {
        std::fill_n(sums, count, T{0});
        if (shared_)
          sum_differences(part, sums, first, count);
        else
          sum_flows(part, sums, first, count);
      });
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

  // sum_j w_ij (r_j - r_i)
  template <class T>
  void sum_differences(const EncodedPart& part, T* sums, std::size_t first, std::size_t count) noexcept {
    const T* const self = replicas_.values<T>(own(part.round, 0), part.buffer) + first;
    for (const auto& source : part.round.plan.sources())
      add_difference(sums, source.weight, replicas_.values<T>(other(source.rank), part.buffer) + first, self, count);
  }

  // sum_j w_ij r_ji - sum_k w_ki r_ik: what comes in along the edges, and what goes out
  template <class T>
  void sum_flows(const EncodedPart& part, T* sums, std::size_t first, std::size_t count) noexcept {
    const CodecKernels& kernels = codec_kernels();
    for (const auto& source : part.round.plan.sources())
      accumulate(kernels, sums, replicas_.values<T>(other(source.rank), part.buffer) + first,
                 static_cast<T>(source.weight), count);
    const std::vector<double>& told = period_.told[part.round.call.sequence % period_.rounds];
    for (std::size_t m = 0; m < told.size(); ++m)
      accumulate(kernels, sums, replicas_.values<T>(own(part.round, m), part.buffer) + first, static_cast<T>(-told[m]),
                 count);
  }

  Q codec_;
  double gamma_;
  Rank rank_;
  PeriodPlan period_;
  bool shared_;
  Replicas replicas_;
  Scratch scratch_;
  std::vector<double> squares_;  // of x_i - r_i, for each message
};

/// The gamma that Choco takes for a codec; see there.
template <Codec Q>
[[nodiscard]] double default_gamma(const Q& codec) {
  if constexpr (requires { codec.fraction; }) return std::min(1.0, 3 * codec.fraction);
  if constexpr (Q::name == std::string_view{"sign-mean"}) return 0.45;
  return 1;
}

}  // namespace detail

template <Codec Q>
struct Choco {
  static constexpr std::string_view name = "choco";

  Q codec;
  double gamma = detail::default_gamma(codec);

  [[nodiscard]] std::size_t wire_bytes(std::size_t count, DType dtype) const {
    return codec.wire_bytes(count, detail::compute_dtype(dtype));
  }
  [[nodiscard]] std::string parameters() const { return codec_name(codec) + ",gamma=" + detail::number_to_text(gamma); }

  /// Throws UsageError for a schedule without a period, or a gamma outside (0, 1].
  void require(const detail::PeriodPlan& period) const {
    if (!(gamma > 0 && gamma <= 1))
      throw UsageError("choco: a gamma of " + detail::number_to_text(gamma) + ": it takes more than 0, at most 1");
    if (period.rounds == 0)
      throw UsageError("choco keeps a replica for each edge of a period, and " + period.topology +
                       " draws its edges anew in every round. Choose a topology with a period, or the exchange direct");
    if (Q::name == std::string_view{"sign-mean"} && period.rounds > 1 && !period.symmetric)
      throw UsageError("choco with sign-mean diverges on directed schedules that change, such as " + period.topology +
                       ". Choose another codec, or a symmetric topology");
  }

  template <Communicator C>
  using Session = detail::EncodedSession<C, detail::ChocoRule<Q>>;
};

template <class Q>
Choco(Q) -> Choco<Q>;
template <class Q>
Choco(Q, double) -> Choco<Q>;

}  // namespace kith
