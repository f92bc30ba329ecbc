// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <kith/topology/any.hpp>
#include <kith/types.hpp>

// What a round of communication costs by the alpha-beta model. bench/README.md, "plan", has the formulas and their
// limits.

namespace bench::plan {

/// One way of a port: what a message costs before its first byte comes, and how fast bytes follow.
struct Link {
  double latency_us = 0;
  double bytes_per_us = 1;
};

/// Machines of equal size. Ranks 0, 1, ... fill the first machine, then the second.
struct Cluster {
  kith::Rank ranks = 2;
  kith::Rank ranks_per_machine = 1;
  /// Network cards of a machine; its ranks share them evenly.
  kith::Rank cards_per_machine = 1;
  /// A rank's port to the others of its machine.
  Link intra = {};
  /// A network card, shared by the ranks that use it.
  Link inter = {};
  /// Bytes on a card's wire for each byte of a message: headers, gaps, acknowledgements.
  double wire_bytes_per_byte = 1;
  /// bytes_per_us of each machine's cards where they differ; else empty.
  std::vector<double> rates_by_machine = {};
  /// Round trips that a message between machines takes to be sent, at least: see bbr_round_trips.
  double sending_round_trips = 0;

  [[nodiscard]] kith::Rank machines() const noexcept { return ranks / ranks_per_machine; }
  [[nodiscard]] kith::Rank machine_of(kith::Rank rank) const noexcept { return rank / ranks_per_machine; }
  [[nodiscard]] kith::Rank card_of(kith::Rank rank) const noexcept;
  [[nodiscard]] double card_bytes_per_us(kith::Rank machine) const noexcept;
  /// What a message between machines takes to be sent at least, whatever the rate.
  [[nodiscard]] double least_sending_us(double bytes) const noexcept;
};

/// Throws kith::UsageError for numbers that describe no cluster.
void require_cluster(const Cluster& cluster);

/// The bytes on the wire for each byte of a message over TCP and Ethernet with an MTU of 1500. A frame carries 1448
/// bytes, after headers of IPv4 and TCP with timestamps (RFC 7323), and takes 1538 with Ethernet's header, checksum,
/// preamble and gap. An acknowledgement (RFC 5681: one for two frames) takes 90, in a link's other direction; where
/// both directions carry models, both carry acknowledgements.
inline constexpr double tcp_wire_bytes_per_byte = (1538 + 90 / 2.0) / 1448;

/// TCP sends so many bytes at once, ten segments (RFC 6928), and more as it is paced.
inline constexpr double tcp_first_window_bytes = 10 * 1448;

/// What BBR (Cardwell et al. 2016) needs to send a message that is shorter than the bandwidth-delay product. It takes
/// for a link's rate what has been delivered in (the time to send it + a round trip), s + r, and where messages end
/// before the link is full it stays in its first phase, which sends g = 2.885 times as fast (2 / ln 2):
/// s = (s + r) / g, that is s = r / (g - 1).
inline constexpr double bbr_round_trips = 1 / (2.885 - 1);

/// What a rank sends to each peer of a round, and what that costs it besides the link.
struct Message {
  double bytes = 0;
  /// For each message: encoding it, decoding another.
  double host_us = 0;
  /// For a round in which a rank has a peer.
  double host_us_once = 0;
};

/// A round: who waits for whom, and how long it takes once all of those have come. A node is a rank, or several that
/// always wait for each other.
struct Round {
  std::vector<std::vector<kith::Rank>> waits_for = {};  // by node: the nodes that it hears or tells
  std::vector<double> us = {};                          // by node
  double card_bytes = 0;                                // that leave the busiest card
  double inter_bytes = 0;                               // that leave all cards together
};

/// Rounds that are repeated.
struct Communication {
  kith::Rank ranks_per_node = 1;
  std::vector<Round> rounds;

  /// The time from the first start to the last end, if all start together: the mean over the rounds.
  [[nodiscard]] double round_us() const noexcept;
  /// Bytes that leave the busiest card in a round, mean over the rounds. Those of messages, without headers.
  [[nodiscard]] double card_bytes() const noexcept;
  [[nodiscard]] double inter_bytes() const noexcept;
};

/// Gossip of single ranks. At most `most_rounds` rounds of the schedule are looked at. Throws kith::UsageError for a
/// size that the topology refuses.
[[nodiscard]] Communication gossip(const Cluster& cluster, const kith::AnyTopology& topology, const Message& message,
                                   std::size_t most_rounds);

/// Sharded gossip of machines: reduce-scatter inside, each rank's shard to the same rank of the peers' machines,
/// all-gather inside. `model_bytes` travel inside, `shard` is what a rank sends to each peer's machine.
[[nodiscard]] Communication sharded_gossip(const Cluster& cluster, const kith::AnyTopology& inter_topology,
                                           double model_bytes, const Message& shard, std::size_t most_rounds);

/// An algorithm for the exact mean of all ranks.
struct AllReduce {
  std::string algorithm;
  double us = 0;
  double card_bytes = 0;
  double inter_bytes = 0;

  /// All ranks wait for each other.
  [[nodiscard]] Communication communication(kith::Rank ranks) const;
};

/// What algorithms the model knows for the cluster: at least one.
[[nodiscard]] std::vector<AllReduce> all_reduces(const Cluster& cluster, double model_bytes);

/// The fastest of them.
[[nodiscard]] AllReduce best_all_reduce(const Cluster& cluster, double model_bytes);

/// What Open MPI 4.1 takes, by its fixed rules for 4 to 15 ranks: recursive doubling below 8 KiB, else halving and
/// doubling. Its messages over TCP above 64 KiB (btl_tcp_eager_limit) ask first, which takes two more latencies.
[[nodiscard]] AllReduce open_mpi_all_reduce(const Cluster& cluster, double model_bytes);

}  // namespace bench::plan
