// SPDX-License-Identifier: Apache-2.0
#include "plan_model.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>

#include <fmt/core.h>
#include <kith/error.hpp>
#include <kith/topology.hpp>

namespace bench::plan {
namespace {

using kith::Rank;
using Edge = std::pair<Rank, Rank>;  // from, to

constexpr double never_asks = std::numeric_limits<double>::infinity();

std::size_t at(Rank rank) noexcept { return static_cast<std::size_t>(rank); }

// Messages of one size that are all sent at once: the time of each is its latency, and its slower port's work.
class Step {
public:
  Step(const Cluster& cluster, const std::vector<Edge>& edges, double bytes, double eager_bytes = never_asks)
      : cluster_(cluster),
        bytes_(bytes),
        latencies_(bytes > eager_bytes ? 3 : 1),
        port_out_(at(cluster.ranks)),
        port_in_(at(cluster.ranks)),
        card_out_(at(cluster.machines() * cluster.cards_per_machine)),
        card_in_(card_out_.size()) {
    for (const auto& [from, to] : edges) {
      const bool crosses = cluster.machine_of(from) != cluster.machine_of(to);
      (crosses ? card_out_[at(cluster.card_of(from))] : port_out_[at(from)]) += bytes;
      (crosses ? card_in_[at(cluster.card_of(to))] : port_in_[at(to)]) += bytes;
    }
  }

  [[nodiscard]] double us(const Edge& edge) const noexcept {
    const auto& [from, to] = edge;
    if (bytes_ == 0) return 0;
    const Rank here = cluster_.machine_of(from);
    const Rank there = cluster_.machine_of(to);
    if (here == there)
      return latencies_ * cluster_.intra.latency_us +
             std::max(port_out_[at(from)], port_in_[at(to)]) / cluster_.intra.bytes_per_us;
    return latencies_ * cluster_.inter.latency_us +
           std::max(cluster_.least_sending_us(bytes_),
                    cluster_.wire_bytes_per_byte *
                        std::max(card_out_[at(cluster_.card_of(from))] / cluster_.card_bytes_per_us(here),
                                 card_in_[at(cluster_.card_of(to))] / cluster_.card_bytes_per_us(there)));
  }

  [[nodiscard]] double card_bytes() const noexcept { return *std::max_element(card_out_.begin(), card_out_.end()); }

  [[nodiscard]] double inter_bytes() const noexcept {
    double sum = 0;
    for (const double bytes : card_out_) sum += bytes;
    return sum;
  }

private:
  const Cluster& cluster_;
  double bytes_;
  double latencies_;
  std::vector<double> port_out_;
  std::vector<double> port_in_;
  std::vector<double> card_out_;
  std::vector<double> card_in_;
};

// Adds a step that all ranks end together, `times` over.
void add_step(AllReduce& all, const Cluster& cluster, const std::vector<Edge>& edges, double bytes, double eager_bytes,
              double times = 1) {
  const Step step{cluster, edges, bytes, eager_bytes};
  double us = 0;
  for (const Edge& edge : edges) us = std::max(us, step.us(edge));
  all.us += times * us;
  all.card_bytes += times * step.card_bytes();
  all.inter_bytes += times * step.inter_bytes();
}

// 2(n-1) steps, in each of which a rank sends the n-th part of a model to the next one.
AllReduce ring(const Cluster& cluster, double model_bytes) {
  AllReduce all{"ring"};
  std::vector<Edge> edges;
  edges.reserve(at(cluster.ranks));
  for (Rank rank = 0; rank < cluster.ranks; ++rank) edges.emplace_back(rank, (rank + 1) % cluster.ranks);
  add_step(all, cluster, edges, model_bytes / cluster.ranks, never_asks, 2.0 * (cluster.ranks - 1));
  return all;
}

// For the algorithms in which partners are 1, 2, 4, ... apart: where the ranks are no power of two, those that are too
// many give their values to a neighbour before, and get the result after.
class Doubling {
public:
  Doubling(const Cluster& cluster, double model_bytes, double eager_bytes)
      : cluster_(cluster),
        bytes_(model_bytes),
        eager_bytes_(eager_bytes),
        power_(static_cast<Rank>(std::bit_floor(static_cast<std::uint32_t>(cluster.ranks)))) {}

  // log2(n) steps with whole models.
  [[nodiscard]] AllReduce recursive_doubling() const {
    AllReduce all{"recursive doubling"};
    add_folding(all);
    for (Rank distance = 1; distance < power_; distance *= 2)
      add_step(all, cluster_, pairs(distance), bytes_, eager_bytes_);
    return all;
  }

  // Reduce-scatter with halves, quarters, ..., then all-gather the same way back: Rabenseifner's algorithm.
  [[nodiscard]] AllReduce halving_and_doubling() const {
    AllReduce all{"halving and doubling"};
    add_folding(all);
    for (Rank distance = 1; distance < power_; distance *= 2)
      add_step(all, cluster_, pairs(distance), bytes_ / (2.0 * distance), eager_bytes_, 2);
    return all;
  }

private:
  // The rank that is number `index` of the power of two.
  [[nodiscard]] Rank active(Rank index) const noexcept {
    const Rank extra = cluster_.ranks - power_;
    return index < extra ? 2 * index : index + extra;
  }

  [[nodiscard]] std::vector<Edge> pairs(Rank distance) const {
    std::vector<Edge> edges;
    edges.reserve(at(power_));
    for (Rank index = 0; index < power_; ++index) edges.emplace_back(active(index), active(index ^ distance));
    return edges;
  }

  void add_folding(AllReduce& all) const {
    std::vector<Edge> edges;
    edges.reserve(at(cluster_.ranks - power_));
    for (Rank index = 0; index < cluster_.ranks - power_; ++index) edges.emplace_back(2 * index + 1, 2 * index);
    if (edges.empty()) return;
    add_step(all, cluster_, edges, bytes_, eager_bytes_);
    for (auto& [from, to] : edges) std::swap(from, to);
    add_step(all, cluster_, edges, bytes_, eager_bytes_);
  }

  const Cluster& cluster_;
  double bytes_;
  double eager_bytes_;
  Rank power_;
};

// Two binary trees of machines, each for half of the model, in pieces; inside a machine a chain (as NCCL has it): two
// models through each port, and the latencies of the way up and down.
AllReduce tree(const Cluster& cluster, double model_bytes) {
  AllReduce all{"tree"};
  const auto machines = static_cast<std::uint32_t>(cluster.machines());
  const double hops = 2.0 * std::bit_width(machines - 1);
  all.us = hops * cluster.inter.latency_us + 2.0 * (cluster.ranks_per_machine - 1) * cluster.intra.latency_us;
  double slowest = cluster.ranks_per_machine > 1 ? 1 / cluster.intra.bytes_per_us : 0;
  for (Rank machine = 0; machines > 1 && machine < cluster.machines(); ++machine)
    slowest = std::max(slowest, cluster.wire_bytes_per_byte / cluster.card_bytes_per_us(machine));
  all.us += std::max(2 * model_bytes * slowest, machines > 1 ? cluster.least_sending_us(model_bytes) : 0);
  if (machines > 1) all.card_bytes = 2 * model_bytes;
  if (machines > 1) all.inter_bytes = 2 * model_bytes * (machines - 1);  // up and down each edge
  return all;
}

// The machines of a cluster, each seen as one rank with one card.
Cluster of_machines(const Cluster& cluster) {
  Cluster machines = cluster;
  machines.ranks = cluster.machines();
  machines.ranks_per_machine = 1;
  machines.cards_per_machine = 1;
  return machines;
}

// Reduce-scatter and all-gather inside a machine: 2(L-1) steps with the L-th part of a model.
double inside_us(const Cluster& cluster, double model_bytes) {
  const Rank ranks = cluster.ranks_per_machine;
  return 2.0 * (ranks - 1) * (cluster.intra.latency_us + model_bytes / ranks / cluster.intra.bytes_per_us);
}

void sort_and_remove_doubles(std::vector<Rank>& ranks) {
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
}

}  // namespace

Rank Cluster::card_of(Rank rank) const noexcept {
  return machine_of(rank) * cards_per_machine + rank % ranks_per_machine * cards_per_machine / ranks_per_machine;
}

double Cluster::card_bytes_per_us(Rank machine) const noexcept {
  return rates_by_machine.empty() ? inter.bytes_per_us : rates_by_machine[at(machine)];
}

double Cluster::least_sending_us(double bytes) const noexcept {
  return bytes > tcp_first_window_bytes ? sending_round_trips * 2 * inter.latency_us : 0;
}

void require_cluster(const Cluster& cluster) {
  if (cluster.ranks < 2) throw kith::UsageError("a plan needs at least 2 ranks");
  if (cluster.ranks_per_machine < 1 || cluster.ranks % cluster.ranks_per_machine != 0)
    throw kith::UsageError(fmt::format("{} ranks do not fill machines of {}: the machines of a plan are equal",
                                       cluster.ranks, cluster.ranks_per_machine));
  if (cluster.cards_per_machine < 1 || cluster.ranks_per_machine % cluster.cards_per_machine != 0)
    throw kith::UsageError(fmt::format("{} ranks of a machine cannot share {} network cards evenly",
                                       cluster.ranks_per_machine, cluster.cards_per_machine));
  if (!cluster.rates_by_machine.empty() && cluster.rates_by_machine.size() != at(cluster.machines()))
    throw kith::UsageError("one rate for each machine, or one for all");
}

double Communication::round_us() const noexcept {
  double sum = 0;
  for (const Round& round : rounds) sum += *std::max_element(round.us.begin(), round.us.end());
  return sum / static_cast<double>(rounds.size());
}

double Communication::card_bytes() const noexcept {
  double sum = 0;
  for (const Round& round : rounds) sum += round.card_bytes;
  return sum / static_cast<double>(rounds.size());
}

double Communication::inter_bytes() const noexcept {
  double sum = 0;
  for (const Round& round : rounds) sum += round.inter_bytes;
  return sum / static_cast<double>(rounds.size());
}

Communication gossip(const Cluster& cluster, const kith::AnyTopology& topology, const Message& message,
                     std::size_t most_rounds) {
  require_size(topology, cluster.ranks);
  const kith::Round period = topology.period(cluster.ranks);
  Communication communication;
  communication.rounds.resize(period == 0 || period > most_rounds ? most_rounds : static_cast<std::size_t>(period));
  kith::Neighborhood neighborhood;
  std::vector<Edge> edges;
  for (std::size_t number = 0; number < communication.rounds.size(); ++number) {
    Round& round = communication.rounds[number];
    round.waits_for.resize(at(cluster.ranks));
    round.us.resize(at(cluster.ranks));
    edges.clear();
    for (Rank rank = 0; rank < cluster.ranks; ++rank) {
      plan_round(topology, rank, cluster.ranks, number, neighborhood);
      for (const Rank target : neighborhood.targets()) edges.emplace_back(rank, target);
      const std::size_t messages = std::max(neighborhood.targets().size(), neighborhood.sources().size());
      if (messages > 0) round.us[at(rank)] = message.host_us_once + static_cast<double>(messages) * message.host_us;
    }
    const Step step{cluster, edges, message.bytes};
    std::vector<double> slowest(at(cluster.ranks));
    for (const Edge& edge : edges) {
      const double us = step.us(edge);
      for (const auto& [one, other] : {edge, Edge{edge.second, edge.first}}) {
        slowest[at(one)] = std::max(slowest[at(one)], us);
        round.waits_for[at(one)].push_back(other);
      }
    }
    for (std::size_t rank = 0; rank < slowest.size(); ++rank) round.us[rank] += slowest[rank];
    for (std::vector<Rank>& others : round.waits_for) sort_and_remove_doubles(others);
    round.card_bytes = step.card_bytes();
    round.inter_bytes = step.inter_bytes();
  }
  return communication;
}

Communication sharded_gossip(const Cluster& cluster, const kith::AnyTopology& inter_topology, double model_bytes,
                             const Message& shard, std::size_t most_rounds) {
  Message message = shard;
  message.bytes *= static_cast<double>(cluster.ranks_per_machine) / cluster.cards_per_machine;  // through each card
  Communication communication = gossip(of_machines(cluster), inter_topology, message, most_rounds);
  communication.ranks_per_node = cluster.ranks_per_machine;
  for (Round& round : communication.rounds) {
    for (double& us : round.us) us += inside_us(cluster, model_bytes);
    round.inter_bytes *= cluster.cards_per_machine;
  }
  return communication;
}

Communication AllReduce::communication(Rank ranks) const {
  return {ranks, {Round{.waits_for = {{}}, .us = {us}, .card_bytes = card_bytes, .inter_bytes = inter_bytes}}};
}

std::vector<AllReduce> all_reduces(const Cluster& cluster, double model_bytes) {
  const Doubling doubling{cluster, model_bytes, never_asks};
  std::vector<AllReduce> all{ring(cluster, model_bytes), doubling.recursive_doubling(), doubling.halving_and_doubling(),
                             tree(cluster, model_bytes)};
  if (cluster.ranks_per_machine > 1 && cluster.machines() > 1) {
    AllReduce between = best_all_reduce(of_machines(cluster), model_bytes / cluster.cards_per_machine);
    between.algorithm = "hierarchical, " + between.algorithm;
    between.us += inside_us(cluster, model_bytes);
    between.inter_bytes *= cluster.cards_per_machine;
    all.push_back(std::move(between));
  }
  return all;
}

AllReduce best_all_reduce(const Cluster& cluster, double model_bytes) {
  const std::vector<AllReduce> all = all_reduces(cluster, model_bytes);
  return *std::min_element(all.begin(), all.end(), [](const AllReduce& a, const AllReduce& b) { return a.us < b.us; });
}

AllReduce open_mpi_all_reduce(const Cluster& cluster, double model_bytes) {
  constexpr double eager_bytes = 64 << 10;
  constexpr double small_bytes = 8 << 10;
  const Doubling doubling{cluster, model_bytes, eager_bytes};
  return model_bytes < small_bytes ? doubling.recursive_doubling() : doubling.halving_and_doubling();
}

}  // namespace bench::plan
