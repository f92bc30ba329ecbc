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
#include <kith/stream.hpp>
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

/// @brief A round of full values between ranks that have memory of their own: what the others hold comes in piece by
/// piece, and each piece is averaged while the next ones travel.
///
/// New values are written as they are computed, straight into the parameters. If a later piece fails to come, the
/// parameters are restored from the message that this rank has sent.
template <Communicator C>
class StreamFullPrecision {
public:
  StreamFullPrecision(C& communicator, const FullPrecision&, const Layout& layout, const SessionOptions& options)
      : layout_(layout),
        stream_(communicator,
                {layout.bytes(), options.max_degree, options.bucket_bytes, options.buffers, options.deadline}),
        rows_(options.max_degree + 1, options.max_degree),
        new_bytes_(stream_.ever_in_place() ? new_pieces * stream_.piece_bytes() : 0),
        new_(std::make_unique_for_overwrite<std::byte[]>(new_bytes_)) {}

  [[nodiscard]] std::size_t staging_bytes() const noexcept {
    return stream_.staging_bytes() + rows_.bytes() + new_bytes_;
  }

  void require_place(std::span<const BufferView> buffers) const { stream_.require_place(buffers); }
  [[nodiscard]] bool ever_in_place() const noexcept { return stream_.ever_in_place(); }

  Seconds round(const GossipRound& round) {
    stream_.open(round.call, round.plan, round.buffers);
    written_ = computed_ = 0;
    const std::size_t pieces = stream_.pieces();
    try {
      for (std::size_t step = 0; step < pieces + stream_.lead(); ++step) {
        if (step < pieces) publish(round, step);
        if (step >= stream_.lead()) take(round, step - stream_.lead());
      }
    } catch (...) {
      take_back(round);
      throw;
    }
    while (written_ < computed_) write(round);
    if (stream_.in_place()) let_go(round, pieces - 1);
    return stream_.close();
  }

private:
  // So many pieces of new values wait until the others have read the old ones.
  static constexpr std::size_t new_pieces = 4;

  [[nodiscard]] std::size_t begin_of(std::size_t piece) const noexcept { return piece * stream_.piece_bytes(); }
  [[nodiscard]] std::size_t end_of(std::size_t piece) const noexcept {
    return std::min(begin_of(piece + 1), layout_.bytes());
  }
  [[nodiscard]] std::byte* new_values(std::size_t piece) const noexcept {
    return new_.get() + piece % new_pieces * stream_.piece_bytes();
  }

  void publish(const GossipRound& round, std::size_t piece) {
    if (std::byte* const room = stream_.room(piece)) pack(layout_, round.buffers, begin_of(piece), end_of(piece), room);
    stream_.publish(piece);
  }

  void take(const GossipRound& round, std::size_t piece) {
    stream_.await(piece);
    if (piece + 1 == stream_.pieces()) stream_.settle();
    if (!round.commit || round.plan.sources().empty()) return stream_.consumed(piece);
    const bool at_once = written_ == computed_ && !stream_.in_place() && !stream_.may_move();
    if (at_once) {
      average(round, piece, nullptr);
      stream_.consumed(piece);
      written_ = computed_ = piece + 1;
      return;
    }
    do average(round, piece, new_values(piece));
    while (stream_.moved(piece));
    stream_.consumed(piece);
    computed_ = piece + 1;
    if (computed_ - written_ == new_pieces) write(round);
  }

  // Writes the next piece of new values, once nobody needs the old ones.
  void write(const GossipRound& round) {
    if (stream_.in_place()) let_go(round, written_);
    unpack(layout_, round.buffers, begin_of(written_), end_of(written_), new_values(written_));
    ++written_;
  }

  // Waits until those that read this rank's buffers have read the piece, or leaves them a copy of what they have not.
  void let_go(const GossipRound& round, std::size_t piece) noexcept {
    if (!stream_.released(piece)) retreat(round);
  }
  void retreat(const GossipRound& round) noexcept {
    pack(layout_, round.buffers, begin_of(written_), layout_.bytes(), stream_.copy() + begin_of(written_));
    stream_.retreat(written_);
  }

  void take_back(const GossipRound& round) noexcept {
    if (stream_.in_place()) retreat(round);
    unpack(layout_, round.buffers, 0, begin_of(written_), stream_.copy());
  }

  // The piece's new values, into `target` or in place.
  void average(const GossipRound& round, std::size_t piece, std::byte* target) noexcept {
    layout_.for_each(round.buffers, begin_of(piece), end_of(piece),
                     [&](std::size_t b, std::size_t first, std::size_t count, std::size_t offset) {
                       std::byte* const to =
                           target != nullptr ? target + (offset - begin_of(piece)) : element(round.buffers[b], first);
                       with_compute_type(round.buffers[b].dtype,
                                         [&]<class T>() { average_stretch<T>(round, b, first, count, offset, to); });
                     });
  }

  template <class T>
  void average_stretch(const GossipRound& round, std::size_t b, std::size_t first, std::size_t count,
                       std::size_t offset, std::byte* target) noexcept {
    const DType dtype = round.buffers[b].dtype;
    const std::size_t width = size_of(dtype);
    const std::size_t length = width == sizeof(T) ? count : rows_.length();  // what has to be widened is, row by row
    const std::span<Weighted<T>> sources = rows_.template sources<T>();
    for (std::size_t i = 0; i < count; i += length) {
      const std::size_t n = std::min(length, count - i);
      std::size_t k = 0;
      for (const auto& [rank, weight] : round.plan.sources()) {
        const std::byte* const values = stream_.source(k, b, (first + i) * width, offset + i * width);
        sources[k] = {rows_.template borrow<T>(dtype, values, k + 1, n), static_cast<T>(weight)};
        ++k;
      }
      rows_.template average<T>(dtype, target + i * width,
                                rows_.template borrow<T>(dtype, element(round.buffers[b], first + i), 0, n),
                                sources.first(k), round.mixing, n);
    }
  }

  const Layout& layout_;
  Stream<C> stream_;
  Rows rows_;
  std::size_t new_bytes_;
  std::unique_ptr<std::byte[]> new_;
  std::size_t computed_ = 0;  // pieces of the round whose new values are known
  std::size_t written_ = 0;   // and are in the parameters
};

template <class C>
struct FullPrecisionSession {
  using type = StreamFullPrecision<C>;
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
///             otherwise one model, for what the parameters held before the round, and what the engine's stream needs.
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
