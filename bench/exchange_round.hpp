// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <kith/topology/any.hpp>
#include <kith/view.hpp>
#include <train_digits/exchanges.hpp>

#include "engines.hpp"
#include "overlap_round.hpp"
#include "sweep.hpp"

namespace bench {

/// A line of `round --exchange`.
struct ExchangeLine {
  Line line;
  /// By the busiest rank in a round of FullPrecision.
  double full_precision_bytes_sent = 0;

  /// Bytes per second of a link below which the exchange is faster than FullPrecision: the bytes that it saves, over
  /// the time that it costs on this machine. 0: it never is; infinite: it always is.
  [[nodiscard]] double pays_below() const;
  /// The same as a remark.
  [[nodiscard]] std::string verdict() const;
};

/// @brief Collective. A round with an exchange that encodes, beside one with FullPrecision on another model,
/// and the codec alone on buffers of that size.
///
/// Throws kith::UsageError on every rank where the exchange cannot serve the topology.
ExchangeLine measure_exchange(ThreadGroup& group, const SweepOptions& options, const kith::AnyTopology& topology,
                              const digits::AnyExchange& exchange, const kith::BufferView& model);
/// @brief Collective. A hidden round with any exchange, beside an open one.
///
/// Throws kith::UsageError on every rank where the exchange cannot serve the topology.
OverlapLine measure_hidden(ThreadGroup& group, const SweepOptions& options, const kith::AnyTopology& topology,
                           const digits::AnyExchange& exchange, const kith::BufferView& model,
                           const ComputeTime& compute);
#if defined(KITH_BENCH_MPI)
OverlapLine measure_hidden(MpiGroup& group, const SweepOptions& options, const kith::AnyTopology& topology,
                           const digits::AnyExchange& exchange, const kith::BufferView& model,
                           const ComputeTime& compute);
ExchangeLine measure_exchange(MpiGroup& group, const SweepOptions& options, const kith::AnyTopology& topology,
                              const digits::AnyExchange& exchange, const kith::BufferView& model);
#endif

}  // namespace bench
