// SPDX-License-Identifier: Apache-2.0
// A round with an exchange that encodes: what it costs, what it saves, and when that pays.
#include "exchange_round.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <fmt/core.h>
#include <kith/averager.hpp>
#include <kith/error.hpp>

namespace bench {
namespace {

using kith::AnyTopology;
using kith::BufferView;
using kith::DType;

template <class E>
const auto& codec_of(const E& exchange) {
  if constexpr (requires { exchange.codec; })
    return exchange.codec;
  else
    return exchange.mask;
}

// The codec's part of a round, by itself: on values of the type in which an exchange computes. Each rank works on
// buffers of its own.
template <class E>
class CodecAlone {
public:
  CodecAlone(const E& exchange, const BufferView& model)
      : codec_(codec_of(exchange)),
        type_(model.dtype == DType::f64 ? DType::f64 : DType::f32),
        wire_bytes_(codec_.wire_bytes(model.count, type_)),
        values_memory_(own_memory(model.count * size_of(type_))),
        sum_memory_(own_memory(model.count * size_of(type_))),
        wire_memory_(own_memory(wire_bytes_)),
        values_{values_memory_.get(), model.count, type_},
        sum_{sum_memory_.get(), model.count, type_} {
    fill(values_, 1, 0);
    encode(1);
  }

  void encode(std::size_t messages) {
    for (std::size_t m = 0; m < messages; ++m) codec_.encode(values_, wire(), {});
  }
  // Twice the weight, and back: the sum stays where it is.
  void decode(std::size_t messages) {
    for (std::size_t m = 0; m < messages; ++m) codec_.decode_add(m % 2 == 0 ? weight_ : -weight_, wire(), sum_, {});
    weight_ = -weight_;
  }
  [[nodiscard]] const BufferView& values() const noexcept { return values_; }
  [[nodiscard]] const BufferView& sum() const noexcept { return sum_; }

private:
  [[nodiscard]] std::span<std::byte> wire() const noexcept {
    return {static_cast<std::byte*>(wire_memory_.get()), wire_bytes_};
  }

  std::decay_t<decltype(codec_of(std::declval<const E&>()))> codec_;
  DType type_;
  std::size_t wire_bytes_;
  std::shared_ptr<void> values_memory_;
  std::shared_ptr<void> sum_memory_;
  std::shared_ptr<void> wire_memory_;
  BufferView values_;
  BufferView sum_;
  double weight_ = 0.25;
};

// How far a round may move the mean of the models, relative to values between 1 and 2: by the rounding of their type.
// Difference alone loses what its codec does, half a step of a change that is here at most as large as the values are.
template <class E>
double tolerance_of(DType dtype) {
  if (std::string_view{E::name} == "difference") return 0.05;
  return dtype == DType::bf16 ? 0x1p-6 : (dtype == DType::f16 ? 0x1p-9 : 1e-5);
}

template <class Group, class E>
ExchangeLine measure_one(Group& group, const SweepOptions& options, const AnyTopology& topology, const E& exchange,
                         const BufferView& model) {
  kith::AveragerOptions averaging;
  averaging.bucket_bytes = parse_bytes(options.bucket_bytes);
  averaging.encode_from_bytes = 0;
  const auto full_memory = own_memory(model.bytes());
  const BufferView full_model{full_memory.get(), model.count, model.dtype};
  kith::DecentralizedAverager averager{group.communicator(), topology, {model}, exchange, averaging};
  kith::DecentralizedAverager full{group.communicator(), topology, {full_model}, averaging};
  const auto merged_memory = own_memory(model.bytes());
  const BufferView merged{merged_memory.get(), model.count, model.dtype};
  CodecAlone<E> alone{exchange, model};
  kith::Neighborhood now{topology.max_degree(group.size())};
  const auto plan = [&] { plan_round(topology, group.rank(), group.size(), averager.metrics().rounds, now); };
  plan();
  const bool per_target = std::string_view{E::name} == "choco" && topology.period(group.size()) != 1;
  const auto own_messages = [&] { return per_target ? now.targets().size() : 1; };
  const bool decodes_own = std::string_view{E::name} != "masked-mean";
  const auto own_decoded = [&] { return decodes_own ? own_messages() : 0; };

  Contest contest;
  contest.model = model;
  contest.kith = [&] { averager.average(); };
  contest.expected = [&] {
    plan();
    return global_mean(options.seed, group.size());
  };
  contest.outcome = [&] {  // no single value is what it would be unencoded, but their mean over the ranks is
    averager.mean_into({merged});
    return merged;
  };
  contest.tolerance = tolerance_of<E>(model.dtype);
  contest.bytes_sent = [&] { return averager.metrics().bytes_sent; };
  Contestant whole{"full_precision", "full", full_model, [&] { full.average(); }, {}};
  whole.expected = [&] {
    return Expectation{options.seed, group.rank(), {now.sources().begin(), now.sources().end()}};
  };
  Contestant encode{"encode", "encode", alone.values(), [&] { alone.encode(own_messages()); }, {}};
  Contestant decode{"decode", "decode", alone.sum(), [&] { alone.decode(own_decoded() + now.sources().size()); }, {}};
  encode.averages = decode.averages = false;
  contest.rivals = {whole, encode, decode};

  ExchangeLine measured;
  measured.line = measure(group, options, contest);
  const std::vector<double> sent = group.gather(static_cast<double>(full.metrics().bytes_sent));
  measured.full_precision_bytes_sent = *std::max_element(sent.begin(), sent.end()) /
                                       static_cast<double>(std::max<kith::Round>(full.metrics().rounds, 1));
  measured.line.wire_us =
      measured.line.kith.p50 - measured.line.rivals[1].time->p50 - measured.line.rivals[2].time->p50;
  return measured;
}

template <class Group>
ExchangeLine measure_any(Group& group, const SweepOptions& options, const AnyTopology& topology,
                         const digits::AnyExchange& exchange, const BufferView& model) {
  return std::visit(
      [&]<class E>(const E& one) -> ExchangeLine {
        if constexpr (std::is_same_v<E, kith::FullPrecision>)
          throw kith::UsageError("full-precision stands beside every other exchange");
        else if constexpr (std::is_same_v<E, kith::Sharded>)
          throw kith::UsageError("it encodes nothing; --machines measures it");
        else
          return measure_one(group, options, topology, one, model);
      },
      exchange);
}

template <class Group>
OverlapLine measure_any_hidden(Group& group, const SweepOptions& options, const AnyTopology& topology,
                               const digits::AnyExchange& exchange, const BufferView& model,
                               const ComputeTime& compute) {
  kith::AveragerOptions averaging;
  averaging.bucket_bytes = parse_bytes(options.bucket_bytes);
  averaging.encode_from_bytes = 0;
  return std::visit(
      [&](const auto& one) {
        kith::DecentralizedAverager averager{group.communicator(), topology, {model}, one, averaging};
        return measure_overlap(group, options, model,
                               {[&] { averager.average(); }, [&] { averager.begin(); }, [&] { averager.finish(); }},
                               compute);
      },
      exchange);
}

}  // namespace

double ExchangeLine::pays_below() const {
  const double saved = full_precision_bytes_sent - line.bytes_sent;
  const double spent_us = line.kith.p50 - line.rivals[0].time->p50;
  if (saved <= 0) return 0;
  return spent_us > 0 ? saved / spent_us * 1e6 : std::numeric_limits<double>::infinity();
}

std::string ExchangeLine::verdict() const {
  const double spent_us = line.kith.p50 - line.rivals[0].time->p50;
  const double below = pays_below();
  std::string when = fmt::format("pays on links slower than {:.3g} GB/s ({:.3g} Gbit/s)", below / 1e9, below / 1e9 * 8);
  if (below == 0) when = "never pays";
  if (std::isinf(below)) when = "pays on any link";
  return fmt::format("#   saves {:.0f} B and costs {:.2f} us a round: {}", full_precision_bytes_sent - line.bytes_sent,
                     spent_us, when);
}

ExchangeLine measure_exchange(ThreadGroup& group, const SweepOptions& options, const AnyTopology& topology,
                              const digits::AnyExchange& exchange, const BufferView& model) {
  return measure_any(group, options, topology, exchange, model);
}

OverlapLine measure_hidden(ThreadGroup& group, const SweepOptions& options, const AnyTopology& topology,
                           const digits::AnyExchange& exchange, const BufferView& model, const ComputeTime& compute) {
  return measure_any_hidden(group, options, topology, exchange, model, compute);
}

#if defined(KITH_BENCH_MPI)
OverlapLine measure_hidden(MpiGroup& group, const SweepOptions& options, const AnyTopology& topology,
                           const digits::AnyExchange& exchange, const BufferView& model, const ComputeTime& compute) {
  return measure_any_hidden(group, options, topology, exchange, model, compute);
}

ExchangeLine measure_exchange(MpiGroup& group, const SweepOptions& options, const AnyTopology& topology,
                              const digits::AnyExchange& exchange, const BufferView& model) {
  return measure_any(group, options, topology, exchange, model);
}
#endif

}  // namespace bench
