// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/layout.hpp>
#include <kith/exchange/rows.hpp>
#include <kith/numeric/kernels.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

struct FullPrecision;

namespace detail {

/// How much of a rank's model a claim covers, where ranks share the work on a round. Long claims let the processor
/// fetch memory ahead, short ones spread the work evenly: a quarter of a worker's share, within bounds that were
/// measured.
[[nodiscard]] inline std::size_t claim_bytes(std::size_t model_bytes, Rank size, Rank workers,
                                             std::size_t bucket_bytes) noexcept {
  constexpr std::size_t page = 4096;
  constexpr std::size_t least = std::size_t{1} << 16;  // of all ranks' models together
  constexpr std::size_t most = std::size_t{1} << 22;
  const auto ranks = static_cast<std::size_t>(size);
  const std::size_t share = model_bytes * ranks / (4 * static_cast<std::size_t>(workers));
  const std::size_t wanted = bucket_bytes > 0 ? bucket_bytes : std::clamp(share, least, most) / ranks;
  return std::max<std::size_t>(wanted / page, 1) * page;
}

/// @brief A round of full values between ranks that share an address space.
///
/// Whoever is free takes a claim and averages it for all ranks, a few cache lines at a time: the old values of every
/// rank go into scratch, the new ones in place. So each byte is read once and written once whatever the degree, no
/// value is read after it has changed, and nothing can fail once the ranks have met.
template <SharedAddressSpace C>
class SharedFullPrecision {
public:
  SharedFullPrecision(C& communicator, const FullPrecision&, const Layout& layout, const SessionOptions& options)
      : communicator_(communicator),
        layout_(layout),
        claim_bytes_(claim_bytes(layout.bytes(), communicator.size(), communicator.workers(), options.bucket_bytes)),
        rows_(static_cast<std::size_t>(communicator.size())),
        scratch_(rows_.size()) {}

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return rows_.size() * (sizeof(Row) + sizeof(RowScratch)); }

  Seconds round(const GossipRound& round) {
    Publication mine{round.buffers, &round.plan, round.commit};
    const std::size_t claims = (layout_.bytes() + claim_bytes_ - 1) / claim_bytes_;
    const auto work = [&](Published<Publication> ranks, std::size_t claim) noexcept {
      const std::size_t begin = claim * claim_bytes_;
      layout_.for_each(round.buffers, begin, begin + claim_bytes_,
                       [&](std::size_t buffer, std::size_t first, std::size_t count, std::size_t) {
                         average_piece(ranks, buffer, first, count, round.mixing);
                       });
    };
    return communicator_.collaborate(round.call, mine, claims, work, [](auto) noexcept {});
  }

private:
  struct Publication {
    std::span<const BufferView> buffers;
    const Neighborhood* plan;
    bool commit;
  };
  using Row = TileRow<Neighborhood::Source>;
  struct alignas(64) RowScratch {
    std::byte bytes[tile_scratch_bytes];
  };

  void average_piece(Published<Publication> ranks, std::size_t buffer, std::size_t first, std::size_t count,
                     double mixing) noexcept {
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      const Publication& rank = ranks[static_cast<Rank>(r)];
      rows_[r].data = rank.buffers[buffer].data;
      rows_[r].sources = rank.commit ? rank.plan->sources() : std::span<const Neighborhood::Source>{};
    }
    average_tile(ranks[0].buffers[buffer].dtype, std::span<const Row>{rows_}, scratch_.data(), mixing, first,
                 first + count);
  }

  C& communicator_;
  const Layout& layout_;
  std::size_t claim_bytes_;
  std::vector<Row> rows_;  // what average_tile works on, filled in for each piece
  std::vector<RowScratch> scratch_;
};

/// @brief A round of full values by messages: one to each out-neighbour, one from each in-neighbour, into staging.
///
/// The parameters are written after the last message has come, by arithmetic that cannot fail.
template <Communicator C>
class MessageFullPrecision {
public:
  MessageFullPrecision(C& communicator, const FullPrecision&, const Layout& layout, const SessionOptions& options)
      : communicator_(communicator),
        layout_(layout),
        rows_(options.max_degree + 1, options.max_degree),
        packed_bytes_(layout.buffers() > 1 ? layout.bytes() : 0),
        staging_bytes_(options.max_degree * layout.bytes() + packed_bytes_),
        staging_(std::make_unique_for_overwrite<std::byte[]>(staging_bytes_)) {
    outgoing_.reserve(options.max_degree);
    incoming_.reserve(options.max_degree);
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return staging_bytes_ + rows_.bytes(); }

  Seconds round(const GossipRound& round) {
    // A model of one buffer is its own message; several are packed into one.
    const bool packed = packed_bytes_ > 0;
    const std::size_t message_bytes = packed ? layout_.bytes() : layout_.payload_bytes();
    if (packed) pack(layout_, round.buffers, 0, layout_.bytes(), staging_.get());
    const void* message = packed ? staging_.get() : (round.buffers.empty() ? nullptr : round.buffers[0].data);
    outgoing_.clear();
    incoming_.clear();
    for (const Rank to : round.plan.targets()) outgoing_.push_back({to, message, message_bytes});
    for (const auto& source : round.plan.sources())
      incoming_.push_back({source.rank, received(incoming_.size()), message_bytes});
    const Seconds waited = communicator_.exchange(round.call, outgoing_, incoming_);
    if (round.commit && !incoming_.empty()) commit(round);
    return waited;
  }

private:
  [[nodiscard]] std::byte* received(std::size_t source) const noexcept {
    return staging_.get() + packed_bytes_ + source * layout_.bytes();
  }

  void commit(const GossipRound& round) noexcept {
    layout_.for_each(round.buffers, 0, layout_.bytes(),
                     [&](std::size_t b, std::size_t first, std::size_t count, std::size_t offset) {
                       with_compute_type(round.buffers[b].dtype, [&]<class T>() {
                         average_piece<T>(round, round.buffers[b], first, count, offset);
                       });
                     });
  }

  template <class T>
  void average_piece(const GossipRound& round, const BufferView& buffer, std::size_t first, std::size_t count,
                     std::size_t offset) noexcept {
    const std::size_t width = size_of(buffer.dtype);
    for (const std::size_t end = first + count; first < end;
         first += rows_.length(), offset += rows_.length() * width) {
      const std::size_t length = std::min(rows_.length(), end - first);
      const std::span<Weighted<T>> sources = rows_.template sources<T>();
      std::size_t k = 0;
      for (const auto& source : round.plan.sources()) {
        sources[k] = {rows_.template borrow<T>(buffer.dtype, received(k) + offset, k + 1, length),
                      static_cast<T>(source.weight)};
        ++k;
      }
      std::byte* target = element(buffer, first);
      rows_.template average<T>(buffer.dtype, target, rows_.template borrow<T>(buffer.dtype, target, 0, length),
                                sources.first(k), round.mixing, length);
    }
  }

  C& communicator_;
  const Layout& layout_;
  Rows rows_;
  std::size_t packed_bytes_;
  std::size_t staging_bytes_;
  std::unique_ptr<std::byte[]> staging_;
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
};

template <class C>
struct FullPrecisionSession {
  using type = MessageFullPrecision<C>;
};
template <SharedAddressSpace C>
struct FullPrecisionSession<C> {
  using type = SharedFullPrecision<C>;
};

}  // namespace detail

/// @brief The values themselves travel: D-PSGD's averaging step x_i <- x_i + a sum_j w_ij (x_j - x_i).
///
/// Every rank's sum runs over its in-neighbours in ascending rank, in f32 (f64 for f64 buffers), each subtraction,
/// product and addition rounded on its own; f16 and bf16 are widened first and rounded once at the end. So all engines
/// give the same bits. Differences instead of weighted values keep the mean of a symmetric W to rounding without drift.
///
/// @par Cost   A model's bytes in one message per edge. Staging: between threads a few rows of scratch per rank;
///             by messages one model per in-neighbour, and one more if the model has several buffers.
/// @par Source Lian et al., Can Decentralized Algorithms Outperform Centralized Algorithms?, NeurIPS 2017,
///             arXiv:1705.09056, Algorithm 1.
struct FullPrecision {
  static constexpr std::string_view name = "full-precision";

  [[nodiscard]] static constexpr std::size_t wire_bytes(std::size_t count, DType dtype) noexcept {
    return count * size_of(dtype);
  }

  template <Communicator C>
  using Session = typename detail::FullPrecisionSession<C>::type;
};

static_assert(Exchange<FullPrecision>);

}  // namespace kith
