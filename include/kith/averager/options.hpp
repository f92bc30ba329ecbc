// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include <kith/error.hpp>
#include <kith/types.hpp>

namespace kith {

/// @brief How an averager works. Every field has a safe default; all ranks give the same values.
struct AveragerOptions {
  /// a in x_i <- x_i + a sum_j w_ij (x_j - x_i): 1 = the mixing matrix as it is, 0 = nothing. 0 <= a <= 2.
  double mixing = 1;
  /// average() does something on calls every, 2 every, ... and nothing in between (local SGD's period). At least 1.
  Round every = 1;
  /// The first so many due calls are exact global means.
  Round warmup_rounds = 0;
  /// Every so many-th due call is an exact global mean (Gossip-PGA, Chen et al. 2021, arXiv:2105.09080). 0 = never,
  /// 1 = always: what an all-reduce gives, whatever the topology.
  Round global_every = 0;
  /// How long a call waits for a peer to arrive before it throws PeerError.
  Seconds deadline{60};
  /// Bytes of a rank's model that are worked on at a time: between threads the claim that a thread takes, elsewhere
  /// the size of a message; on a device, buffers smaller than this travel together, packed. 0 = what was measured to be
  /// best (on a device, 1 MiB, not measured).
  std::size_t bucket_bytes = 0;
  /// Buffers smaller than this travel unencoded (exchanges that encode; FullPrecision never does).
  std::size_t encode_from_bytes = 4096;
  /// Look for NaN and Inf before each round, and throw NonFiniteError instead of spreading them. Unset: on where it
  /// costs under 3 % of a round, which is nowhere yet: between threads it is one more pass over the model.
  std::optional<bool> check_finite{};
};

/// @brief What an averager has done so far on this rank. Counts rounds only: not mean_into(), broadcast() and the like.
///
/// Messages and bytes are logical, what the edges of the rounds carry, also where an engine reads memory in place: in a
/// gossip round one message of the model's size per out-neighbour (of Sharded, those of its three steps); in an exact
/// global mean those of a reduce-scatter
/// and an all-gather, 2 (n-1) messages and 2 (n-1)/n models.
struct Metrics {
  /// Gossip rounds committed; on a device, enqueued.
  Round rounds = 0;
  /// Exact global means, the same.
  Round global_rounds = 0;
  std::uint64_t messages_sent = 0;
  std::uint64_t bytes_sent = 0;
  std::uint64_t bytes_received = 0;
  /// Time spent in rounds waiting for peers to arrive; of a hidden round, in finish() waiting for it. Stays 0 where
  /// rounds are enqueued: the host does not wait.
  double seconds_waiting = 0;
  /// Of exchanges with replicas: norm(x_i - r_i), how far this rank's encoded buffers were from what the others
  /// remember of them when the latest gossip round began; of several replicas that a round used, the largest. It
  /// shrinks, or stays at the size of an optimizer's step. Where it grows round after round, gamma is too large and the
  /// exchange diverges, though the models may have looked converged for hundreds of rounds. 0 for other exchanges.
  /// On a device synchronize() sets it, to the distance as it is then.
  double replica_distance = 0;
};

namespace detail {

/// Throws UsageError for a mixing factor that no schedule survives.
inline void require_mixing(double mixing) {
  if (!(mixing >= 0 && mixing <= 2))
    throw UsageError("mixing must lie in [0, 2] (1 applies the mixing matrix as it is), not " + std::to_string(mixing));
}

/// Throws UsageError for options that no rank can work with.
inline void require_options(const AveragerOptions& options) {
  require_mixing(options.mixing);
  if (options.every < 1) throw UsageError("every must be at least 1: 1 averages on each call");
  if (!(options.deadline.count() > 0))
    throw UsageError("the deadline must be a positive time, not " + std::to_string(options.deadline.count()) + " s");
}

}  // namespace detail
}  // namespace kith
