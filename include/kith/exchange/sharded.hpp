// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/full_precision.hpp>
#include <kith/exchange/layout.hpp>
#include <kith/exchange/rows.hpp>
#include <kith/exchange/shards.hpp>
#include <kith/numeric/compute_type.hpp>
#include <kith/numeric/kernels.hpp>
#include <kith/topology/machines.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

struct Sharded;

namespace detail {

/// The arithmetic of a sharded round, on rows that stay in the cache: one definition for all engines.
class ShardRows {
public:
  /// For machines of up to `ranks` ranks that hear up to `machines` others, and `rows` rows for the caller.
  ShardRows(std::size_t ranks, std::size_t machines, std::size_t rows)
      : first_(rows), rows_(rows + ranks, std::max({ranks, machines, std::size_t{1}})) {}

  [[nodiscard]] std::size_t bytes() const noexcept { return rows_.bytes(); }
  /// Elements of a row: the most that a call below takes.
  [[nodiscard]] std::size_t length() const noexcept { return rows_.length(); }
  /// One of the caller's rows.
  template <class T>
  [[nodiscard]] T* row(std::size_t index) noexcept {
    return rows_.template row<T>(index);
  }

  /// target = x_0 + sum_j (x_j - x_0) / ranks; `values(j)` is the address of the elements of rank j of the machine.
  template <class T, class Values>
  void mean(DType dtype, T* target, std::size_t ranks, const Values& values, std::size_t count) noexcept {
    const T weight = static_cast<T>(1.0 / static_cast<double>(ranks));
    const std::span<Weighted<T>> others = rows_.template sources<T>().first(ranks - 1);
    for (std::size_t j = 1; j < ranks; ++j)
      others[j - 1] = {rows_.template borrow<T>(dtype, values(j), first_ + j, count), weight};
    combine(target, rows_.template borrow<T>(dtype, values(0), first_, count), std::span<const Weighted<T>>{others},
            T{1}, count);
  }

  /// target = own + sum_b W_M(a, b) (m_b - own); `means(k)` is the address of the elements of source k.
  template <class T, class Means>
  void merge(T* target, const T* own, std::span<const MachinePlan::Source> sources, const Means& means,
             std::size_t count) noexcept {
    const std::span<Weighted<T>> others = rows_.template sources<T>().first(sources.size());
    for (std::size_t k = 0; k < sources.size(); ++k) others[k] = {means(k), static_cast<T>(sources[k].weight)};
    combine(target, own, std::span<const Weighted<T>>{others}, T{1}, count);
  }

  /// x = x + a (merged - x), and for a = 1 x = merged; rounded to the buffer's type once.
  template <class T>
  void store(DType dtype, std::byte* x, const T* merged, double mixing, std::size_t count) noexcept {
    if (mixing != 1) {
      const Weighted<T> only{merged, T{1}};
      return rows_.template average<T>(dtype, x, rows_.template borrow<T>(dtype, x, first_, count), {&only, 1}, mixing,
                                       count);
    }
    if constexpr (std::is_same_v<T, float>) {
      if (dtype != DType::f32) return narrow(dtype, merged, x, count);
    }
    std::memcpy(x, merged, count * sizeof(T));
  }

private:
  std::size_t first_;
  Rows rows_;
};

/// A sharded round between ranks that share an address space: whoever is free takes a claim, and computes the means of
/// all machines, what they become, and what that makes of all ranks, row by row.
template <SharedAddressSpace C>
class SharedSharded {
public:
  SharedSharded(C& communicator, const Sharded&, const Layout& layout, const SessionOptions& options)
      : communicator_(communicator),
        layout_(layout),
        claim_bytes_(claim_bytes(layout.bytes(), communicator.size(), communicator.workers(), options.bucket_bytes)),
        plan_(communicator.rank(), communicator.size(), options),
        machines_(static_cast<std::size_t>(plan_.machines.count(communicator.size()))),
        rows_(static_cast<std::size_t>(plan_.machines.ranks_of_largest(1, communicator.size())), plan_.most_machines,
              2 * machines_) {}

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return rows_.bytes(); }
  /// Of a round with this plan.
  [[nodiscard]] const RoundTraffic& traffic(const Neighborhood& plan) {
    plan_.prepare(plan);
    return plan_.traffic;
  }

  Seconds round(const GossipRound& round) {
    plan_.prepare(round.plan);
    Publication mine{round.buffers, plan_.between.sources, round.commit};
    const std::size_t claims = (layout_.bytes() + claim_bytes_ - 1) / claim_bytes_;
    const auto work = [&](Published<Publication> ranks, std::size_t claim) noexcept {
      const std::size_t begin = claim * claim_bytes_;
      layout_.for_each(round.buffers, begin, begin + claim_bytes_,
                       [&](std::size_t b, std::size_t first, std::size_t count, std::size_t) {
                         with_compute_type(round.buffers[b].dtype, [&]<class T>() {
                           for (std::size_t i = 0; i < count; i += rows_.length())
                             average_row<T>(ranks, b, first + i, std::min(rows_.length(), count - i), round.mixing);
                         });
                       });
    };
    return communicator_.collaborate(round.call, mine, claims, work, [](auto) noexcept {});
  }

private:
  struct Publication {
    std::span<const BufferView> buffers;
    std::span<const MachinePlan::Source> sources;  // of the rank's machine
    bool commit;
  };

  // Rows 0, 1, ... hold the means of the machines, those behind them what they become.
  template <class T>
  void average_row(Published<Publication> ranks, std::size_t b, std::size_t first, std::size_t count,
                   double mixing) noexcept {
    const Rank size = ranks.size();
    const DType dtype = ranks[0].buffers[b].dtype;
    const auto at = [&](Rank rank) { return element(ranks[rank].buffers[b], first); };
    for (std::size_t m = 0; m < machines_; ++m) {
      const auto machine = static_cast<Rank>(m);
      rows_.mean(
          dtype, rows_.template row<T>(m), static_cast<std::size_t>(plan_.machines.ranks(machine, size)),
          [&](std::size_t j) { return at(plan_.machines.member(machine, static_cast<Rank>(j))); }, count);
    }
    for (std::size_t m = 0; m < machines_; ++m) {
      const auto sources = ranks[plan_.machines.member(static_cast<Rank>(m), 0)].sources;
      const auto mean = [&](std::size_t k) {
        return rows_.template row<T>(static_cast<std::size_t>(sources[k].machine));
      };
      rows_.merge(rows_.template row<T>(machines_ + m), rows_.template row<T>(m), sources, mean, count);
    }
    for (Rank rank = 0; rank < size; ++rank)
      if (ranks[rank].commit)
        rows_.store(dtype, at(rank),
                    rows_.template row<T>(machines_ + static_cast<std::size_t>(plan_.machines.of(rank))), mixing,
                    count);
  }

  C& communicator_;
  const Layout& layout_;
  std::size_t claim_bytes_;
  ShardPlan plan_;
  std::size_t machines_;
  ShardRows rows_;
};

/// A sharded round by messages, in three exchanges. Nothing is written to the parameters before the last message has
/// come.
template <Communicator C>
class MessageSharded {
public:
  MessageSharded(C& communicator, const Sharded&, const Layout&, const SessionOptions& options)
      : communicator_(communicator),
        plan_(communicator.rank(), communicator.size(), options),
        rows_(static_cast<std::size_t>(plan_.ranks_here), plan_.most_machines, 0),
        received_(plan_.layout.bytes()),
        means_(received_ + (ranks() - 1) * own_raw_bytes()),
        staging_bytes_(means_ + plan_.most_machines * plan_.own.bytes()),
        staging_(std::make_unique_for_overwrite<std::byte[]>(staging_bytes_)) {
    const std::size_t most = std::max(ranks() - 1, plan_.most_overlaps());
    outgoing_.reserve(most);
    incoming_.reserve(most);
    const std::size_t longest =
        std::max(plan_.own.bytes(), *std::max_element(plan_.raw_bytes.begin(), plan_.raw_bytes.end()));
    if constexpr (requires { communicator.reserve(most, most, longest); }) communicator.reserve(most, most, longest);
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return staging_bytes_ + rows_.bytes(); }
  /// Of a round with this plan.
  [[nodiscard]] const RoundTraffic& traffic(const Neighborhood& plan) {
    plan_.prepare(plan);
    return plan_.traffic;
  }

  Seconds round(const GossipRound& round) {
    plan_.prepare(round.plan);
    Seconds waited = scatter(round);
    add_up(round);
    waited += exchange_shards(round);
    merge(round);
    waited += gather(round);
    if (round.commit) store(round);
    return waited;
  }

private:
  // Staging: a merged model in the types that are computed in, whose first phase has the raw shards for the others; the
  // own shard of the other ranks here; the own shard of the other machines.
  [[nodiscard]] std::byte* merged() const noexcept { return staging_.get(); }
  [[nodiscard]] std::byte* received(std::size_t index) const noexcept {
    const auto before = static_cast<std::size_t>(plan_.own_index);
    return staging_.get() + received_ + (index < before ? index : index - 1) * own_raw_bytes();
  }
  [[nodiscard]] std::byte* mean_of(std::size_t source) const noexcept {
    return staging_.get() + means_ + source * plan_.own.bytes();
  }
  [[nodiscard]] std::size_t ranks() const noexcept { return static_cast<std::size_t>(plan_.ranks_here); }
  [[nodiscard]] std::size_t own_raw_bytes() const noexcept {
    return plan_.raw_bytes[static_cast<std::size_t>(plan_.own_index)];
  }

  Seconds exchange(const GossipRound& round, std::string_view what) {
    Call call = round.call;
    call.what = what;
    return communicator_.exchange(call, outgoing_, incoming_);
  }

  void send(Rank to, const std::byte* data, std::size_t bytes) {
    if (bytes > 0) outgoing_.push_back({to, data, bytes});
  }
  void receive(Rank from, std::byte* data, std::size_t bytes) {
    if (bytes > 0) incoming_.push_back({from, data, bytes});
  }

  // Everybody's values of a shard go to the rank that has it.
  Seconds scatter(const GossipRound& round) {
    outgoing_.clear();
    incoming_.clear();
    std::byte* room = merged();
    for (Rank index = 0; index < plan_.ranks_here; ++index) {
      if (index == plan_.own_index) continue;
      const Rank peer = plan_.machines.member(plan_.own_machine, index);
      const ShardRange shard = plan_.shard(index, plan_.ranks_here);
      std::byte* const begin = room;
      plan_.layout.for_each(shard.begin, shard.end,
                            [&](std::size_t b, std::size_t first, std::size_t count, std::size_t) {
                              const std::size_t bytes = count * size_of(round.buffers[b].dtype);
                              std::memcpy(room, element(round.buffers[b], first), bytes);
                              room += bytes;
                            });
      send(peer, begin, static_cast<std::size_t>(room - begin));
      receive(peer, received(static_cast<std::size_t>(index)), own_raw_bytes());
    }
    return exchange(round, "gossip round, reduce-scatter");
  }

  // Calls f.operator()<T>(buffer, first element, elements, offset in the model, offset in the own shard as received)
  // for the rows of the own shard.
  template <class F>
  void for_each_row(const GossipRound& round, const ShardRange& range, const F& f) {
    std::size_t raw = 0;
    plan_.layout.for_each(range.begin, range.end,
                          [&](std::size_t b, std::size_t first, std::size_t count, std::size_t offset) {
                            const std::size_t width = size_of(round.buffers[b].dtype);
                            with_compute_type(round.buffers[b].dtype, [&]<class T>() {
                              for (std::size_t i = 0; i < count; i += rows_.length())
                                f.template operator()<T>(b, first + i, std::min(rows_.length(), count - i),
                                                         offset + i * sizeof(T), raw + i * width);
                            });
                            raw += count * width;
                          });
  }

  void add_up(const GossipRound& round) noexcept {
    for_each_row(
        round, plan_.own,
        [&]<class T>(std::size_t b, std::size_t first, std::size_t count, std::size_t offset, std::size_t raw) {
          const auto values = [&](std::size_t index) -> const std::byte* {
            if (index == static_cast<std::size_t>(plan_.own_index)) return element(round.buffers[b], first);
            return received(index) + raw;
          };
          rows_.mean(round.buffers[b].dtype, reinterpret_cast<T*>(merged() + offset), ranks(), values, count);
        });
  }

  // Between machines.
  Seconds exchange_shards(const GossipRound& round) {
    outgoing_.clear();
    incoming_.clear();
    for (const Rank machine : plan_.between.targets)
      plan_.for_each_overlap(
          machine, [&](Rank peer, const ShardRange& range) { send(peer, merged() + range.begin, range.bytes()); });
    for (std::size_t k = 0; k < plan_.between.sources.size(); ++k)
      plan_.for_each_overlap(plan_.between.sources[k].machine, [&](Rank peer, const ShardRange& range) {
        receive(peer, mean_of(k) + (range.begin - plan_.own.begin), range.bytes());
      });
    return exchange(round, "gossip round, exchange of shards");
  }

  void merge(const GossipRound& round) noexcept {
    for_each_row(round, plan_.own,
                 [&]<class T>(std::size_t, std::size_t, std::size_t count, std::size_t offset, std::size_t) {
                   T* const own = reinterpret_cast<T*>(merged() + offset);
                   const auto mean = [&](std::size_t k) {
                     return reinterpret_cast<const T*>(mean_of(k) + (offset - plan_.own.begin));
                   };
                   rows_.merge(own, own, plan_.between.sources, mean, count);
                 });
  }

  Seconds gather(const GossipRound& round) {
    outgoing_.clear();
    incoming_.clear();
    for (Rank index = 0; index < plan_.ranks_here; ++index) {
      if (index == plan_.own_index) continue;
      const Rank peer = plan_.machines.member(plan_.own_machine, index);
      const ShardRange theirs = plan_.shard(index, plan_.ranks_here);
      send(peer, merged() + plan_.own.begin, plan_.own.bytes());
      receive(peer, merged() + theirs.begin, theirs.bytes());
    }
    return exchange(round, "gossip round, all-gather");
  }

  void store(const GossipRound& round) noexcept {
    for_each_row(round, {0, plan_.layout.bytes()},
                 [&]<class T>(std::size_t b, std::size_t first, std::size_t count, std::size_t offset, std::size_t) {
                   rows_.store(round.buffers[b].dtype, element(round.buffers[b], first),
                               reinterpret_cast<const T*>(merged() + offset), round.mixing, count);
                 });
  }

  C& communicator_;
  ShardPlan plan_;
  ShardRows rows_;
  std::size_t received_;  // where the parts of the staging begin
  std::size_t means_;
  std::size_t staging_bytes_;
  std::unique_ptr<std::byte[]> staging_;
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
};

template <class C>
struct ShardedSession {
  static_assert(!StreamOrdered<C>, "include kith/nccl.hpp, or kith/exchange/device/sharded.hpp");
  using type = MessageSharded<C>;
};
template <SharedAddressSpace C>
struct ShardedSession<C> {
  using type = SharedSharded<C>;
};

}  // namespace detail

/// @brief For Hierarchical: each rank of a machine owns a shard of the model, and only shards travel between machines.
///
/// A round has three steps. Inside a machine of L ranks, a reduce-scatter: rank s gets shard s of all models there and
/// takes their mean. Between machines the round of the inter topology, each shard to the ranks of the other machine
/// that own the same elements: one of them where machines have equal sizes, otherwise the few whose shards overlap, in
/// as many bytes. Inside the machine an all-gather. What comes out is what FullPrecision computes, up to rounding.
///
/// The arithmetic is pinned, to the same bits on every engine: m_a = x_0 + sum_j (x_j - x_0)/L over the machine's ranks
/// in ascending order; then m'_a = m_a + sum_b W_M(a, b) (m_b - m_a) over the machines that it hears in ascending
/// order, W_M(a, b) = L_b W(i, j); then x_i + a (m'_a - x_i), which is m'_a for mixing a = 1: all ranks of a machine
/// then hold the same bits. In f32 (f64 for f64 buffers), each operation rounded on its own; f16 and bf16 are widened
/// first and rounded once, at the end, so their means travel as f32.
///
/// @par Topologies Those that say which ranks share a machine: Hierarchical. Others are a UsageError at construction.
/// @par Engines    All. Threads read each other's models in place. NCCL takes f32 and f64 (average fp32 masters); other
///                 buffers are a UsageError there.
/// @par Cost       With c = 1, or 2 for f16 and bf16 (f32 travels): over slow links c/L models a rank for each machine
///                 that is told, where FullPrecision sends L; inside the machine (1 + c) (L - 1)/L models in 2 (L - 1)
///                 messages. With one network card for each of 8 ranks, a card carries 1/8 of a model in a one-peer
///                 round: half of what a ring all-reduce that makes use of the fast links sends through it, nearly 2/8.
///                 Flat one-peer gossip sends a whole model, 4 times as much as that all-reduce.
///                 Staging between processes: 1 + (L - 1)/L + d/L models, d being the machines that are heard; between
///                 threads a few rows.
/// @par Source     Reduce-scatter, exchange of shards and all-gather as in hierarchical all-reduce, with gossip in the
///                 middle; the pieces are those of ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054).
struct Sharded {
  static constexpr std::string_view name = "sharded";

  /// Of a buffer in a message between machines of one rank each.
  [[nodiscard]] static constexpr std::size_t wire_bytes(std::size_t count, DType dtype) noexcept {
    return count * size_of(detail::compute_dtype(dtype));
  }

  /// Throws UsageError for a topology that does not say which ranks share a machine.
  static void require_machines(const std::optional<detail::Machines>& machines, const std::string& topology) {
    if (!machines)
      throw UsageError("sharded cuts the model among the ranks of a machine, and " + topology +
                       " does not say which ranks share one. Choose hierarchical, or the exchange full-precision");
  }

  template <Communicator C>
  using Session = typename detail::ShardedSession<C>::type;
};

static_assert(Exchange<Sharded>);

}  // namespace kith
