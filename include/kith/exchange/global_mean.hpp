// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/exchange/layout.hpp>
#include <kith/exchange/rows.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

// The mean of all ranks is row 0 of the complete graph's round: x_0 + sum_j (x_j - x_0)/n in ascending rank. So one
// kernel serves both, and identical models stay as they are to the last bit (but that -0 becomes 0), which a rounded
// sum over n does not promise.

/// Squared distances are added up over stretches of the flat model of this length, then over the stretches in order,
/// then over the ranks: the same bits on every engine.
inline constexpr std::size_t distance_block_bytes = std::size_t{1} << 16;

/// sum (a - b)^2 over `count` elements, added up in runs of Rows::granule elements.
template <class T>
[[nodiscard]] double sum_of_squares(const T* a, const T* b, std::size_t count) noexcept {
  double sum = 0;
  for (std::size_t i = 0; i < count; i += Rows::granule)
    sum += squared_distance(a + i, b + i, std::min(Rows::granule, count - i));
  return sum;
}

/// sqrt((1/n) sum_i norm(x_i - mean)^2) from the ranks' sums of squares.
[[nodiscard]] inline double to_consensus_distance(std::span<const double> squares) noexcept {
  double sum = 0;
  for (const double square : squares) sum += square;
  return std::sqrt(sum / static_cast<double>(squares.size()));
}

/// Computes means of a stretch of elements over all ranks, a row at a time.
class MeanRows {
public:
  explicit MeanRows(std::size_t size) : size_(size), rows_(size + 2, size) {}

  [[nodiscard]] std::size_t bytes() const noexcept { return rows_.bytes(); }

  /// Calls use(i, length, mean) for consecutive rows of [0, count): `mean` holds elements i, i + 1, ... of the mean, in
  /// `dtype`. `values(r, i)` is the address of element i of rank r.
  template <class T, class Values, class Use>
  void over(DType dtype, std::size_t count, const Values& values, const Use& use) noexcept {
    const T weight = static_cast<T>(1.0 / static_cast<double>(size_));
    std::byte* mean = rows_.template row<std::byte>(size_);
    for (std::size_t i = 0; i < count; i += rows_.length()) {
      const std::size_t length = std::min(rows_.length(), count - i);
      const std::span<Weighted<T>> others = rows_.template sources<T>().first(size_ - 1);
      for (std::size_t r = 1; r < size_; ++r)
        others[r - 1] = {rows_.template borrow<T>(dtype, values(r, i), r, length), weight};
      const T* first = rows_.template borrow<T>(dtype, values(0, i), 0, length);
      rows_.template average<T>(dtype, mean, first, others, 1.0, length);
      use(i, length, static_cast<const std::byte*>(mean));
    }
  }

  /// sum (x - mean)^2 of one row of `length` elements.
  template <class T>
  [[nodiscard]] double squares(DType dtype, const void* x, const void* mean, std::size_t length) noexcept {
    return sum_of_squares(rows_.template borrow<T>(dtype, x, 0, length),
                          rows_.template borrow<T>(dtype, mean, size_ + 1, length), length);
  }

  [[nodiscard]] std::size_t length() const noexcept { return rows_.length(); }

private:
  std::size_t size_;
  Rows rows_;
};

/// @brief Operations on all ranks of one address space: every rank's memory is read in place.
template <SharedAddressSpace C>
class SharedGlobalMean {
public:
  SharedGlobalMean(C& communicator, const Layout& layout)
      : communicator_(communicator),
        layout_(layout),
        rows_(static_cast<std::size_t>(communicator.size())),
        partial_(claims()),
        squares_(static_cast<std::size_t>(communicator.size())) {}

  [[nodiscard]] std::size_t staging_bytes() const noexcept {
    return rows_.bytes() + (partial_.size() + squares_.size()) * sizeof(double);
  }

  /// Writes the mean over ranks of `buffers` into `targets`, which may be `buffers`; not where `commit` is false.
  Seconds mean(const Call& call, std::span<const BufferView> buffers, std::span<const BufferView> targets,
               bool commit) {
    Publication mine{buffers, targets, commit, nullptr, nullptr};
    return over_means(
        call, mine,
        [&]<class T>(Published<Publication> ranks, std::size_t b, std::size_t first, std::size_t length,
                     const std::byte* mean, std::size_t) noexcept {
          for (Rank r = 0; r < ranks.size(); ++r)
            if (ranks[r].commit)
              std::memcpy(element(ranks[r].targets[b], first), mean, length * size_of(buffers[b].dtype));
        },
        [](auto) noexcept {});
  }

  /// The consensus distance of `buffers`.
  double distance(const Call& call, std::span<const BufferView> buffers) {
    std::fill(partial_.begin(), partial_.end(), 0.0);
    Publication mine{buffers, {}, false, partial_.data(), squares_.data()};
    const auto total = [blocks = partial_.size()](Published<Publication> ranks) noexcept {
      for (Rank r = 0; r < ranks.size(); ++r) {
        double square = 0;
        for (std::size_t b = 0; b < blocks; ++b) square += ranks[r].partial[b];
        for (Rank to = 0; to < ranks.size(); ++to) ranks[to].squares[r] = square;
      }
    };
    over_means(
        call, mine,
        [&]<class T>(Published<Publication> ranks, std::size_t b, std::size_t first, std::size_t length,
                     const std::byte* mean, std::size_t claim) noexcept {
          for (Rank r = 0; r < ranks.size(); ++r)
            ranks[r].partial[claim] +=
                rows_.template squares<T>(buffers[b].dtype, element(ranks[r].buffers[b], first), mean, length);
        },
        total);
    return to_consensus_distance(squares_);
  }

  /// Copies the model of `root` to every rank.
  Seconds broadcast(const Call& call, std::span<const BufferView> buffers, Rank root) {
    Publication mine{buffers, {}, true, nullptr, nullptr};
    const auto copy = [&](Published<Publication> ranks, std::size_t claim) noexcept {
      over_claim(claim, buffers, [&](std::size_t b, std::size_t first, std::size_t count, std::size_t) {
        for (Rank r = 0; r < ranks.size(); ++r)
          if (r != root)
            std::memcpy(element(ranks[r].buffers[b], first), element(ranks[root].buffers[b], first),
                        count * size_of(buffers[b].dtype));
      });
    };
    return communicator_.collaborate(call, mine, claims(), copy, [](auto) noexcept {});
  }

private:
  struct Publication {
    std::span<const BufferView> buffers;
    std::span<const BufferView> targets;
    bool commit;
    double* partial;  // [claims] this rank's squares in each claim
    double* squares;  // [size] every rank's squares, for this rank to read
  };

  [[nodiscard]] std::size_t claims() const noexcept {
    return (layout_.bytes() + distance_block_bytes - 1) / distance_block_bytes;
  }

  template <class F>
  void over_claim(std::size_t claim, std::span<const BufferView> buffers, const F& f) const noexcept {
    layout_.for_each(buffers, claim * distance_block_bytes, (claim + 1) * distance_block_bytes, f);
  }

  // The means of all elements, a row at a time, by whichever ranks are free.
  template <class Use, class Epilogue>
  Seconds over_means(const Call& call, Publication& mine, const Use& use, const Epilogue& epilogue) {
    const std::span<const BufferView> buffers = mine.buffers;
    const auto work = [&](Published<Publication> ranks, std::size_t claim) noexcept {
      over_claim(claim, buffers, [&](std::size_t b, std::size_t first, std::size_t count, std::size_t) {
        const auto values = [&](std::size_t r, std::size_t i) {
          return element(ranks[static_cast<Rank>(r)].buffers[b], first + i);
        };
        with_compute_type(buffers[b].dtype, [&]<class T>() {
          rows_.template over<T>(buffers[b].dtype, count, values,
                                 [&](std::size_t i, std::size_t length, const std::byte* mean) {
                                   use.template operator()<T>(ranks, b, first + i, length, mean, claim);
                                 });
        });
      });
    };
    return communicator_.collaborate(call, mine, claims(), work, epilogue);
  }

  C& communicator_;
  const Layout& layout_;
  MeanRows rows_;
  std::vector<double> partial_;
  std::vector<double> squares_;
};

/// @brief The same by messages: every rank averages one slice of the model (reduce-scatter), then all gather the
/// slices.
///
/// Nothing is written to a target before the last message has come.
template <Communicator C>
class MessageGlobalMean {
public:
  MessageGlobalMean(C& communicator, const Layout& layout)
      : communicator_(communicator),
        layout_(layout),
        size_(static_cast<std::size_t>(communicator.size())),
        rank_(static_cast<std::size_t>(communicator.rank())),
        slice_bytes_((layout.bytes() / Layout::alignment + size_ - 1) / size_ * Layout::alignment),
        rows_(size_),
        staging_bytes_(2 * layout.bytes() + size_ * slice_bytes_),
        staging_(std::make_unique_for_overwrite<std::byte[]>(staging_bytes_)),
        squares_(size_) {
    outgoing_.reserve(size_);
    incoming_.reserve(size_);
    if constexpr (requires { communicator.reserve(size_, size_, slice_bytes_); })
      communicator.reserve(size_ - 1, size_ - 1, layout.bytes());
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept {
    return rows_.bytes() + staging_bytes_ + squares_.size() * sizeof(double);
  }

  /// See SharedGlobalMean::mean.
  Seconds mean(const Call& call, std::span<const BufferView> buffers, std::span<const BufferView> targets,
               bool commit) {
    const Seconds waited = gather_mean(call, buffers);
    if (commit) unpack(layout_, targets, 0, layout_.bytes(), mean_model());
    return waited;
  }

  /// See SharedGlobalMean::distance.
  double distance(const Call& call, std::span<const BufferView> buffers) {
    gather_mean(call, buffers);
    double own = 0;
    for (std::size_t begin = 0; begin < layout_.bytes(); begin += distance_block_bytes) {
      double block = 0;
      layout_.for_each(buffers, begin, begin + distance_block_bytes,
                       [&](std::size_t b, std::size_t first, std::size_t count, std::size_t offset) {
                         with_compute_type(buffers[b].dtype, [&]<class T>() {
                           block = add_squares<T>(block, buffers[b], first, count, offset);
                         });
                       });
      own += block;
    }
    communicator_.all_gather(call, std::as_bytes(std::span{&own, 1}), std::as_writable_bytes(std::span{squares_}));
    return to_consensus_distance(squares_);
  }

  /// See SharedGlobalMean::broadcast.
  Seconds broadcast(const Call& call, std::span<const BufferView> buffers, Rank root) {
    const bool sends = communicator_.rank() == root;
    start_messages();
    if (sends) {
      pack(layout_, buffers, 0, layout_.bytes(), own_model());
      for (Rank r = 0; r < communicator_.size(); ++r)
        if (r != root) outgoing_.push_back({r, own_model(), layout_.bytes()});
    } else {
      incoming_.push_back({root, mean_model(), layout_.bytes()});
    }
    const Seconds waited = communicator_.exchange(call, outgoing_, incoming_);
    if (!sends) unpack(layout_, buffers, 0, layout_.bytes(), mean_model());
    return waited;
  }

private:
  [[nodiscard]] std::byte* own_model() const noexcept { return staging_.get(); }
  [[nodiscard]] std::byte* mean_model() const noexcept { return staging_.get() + layout_.bytes(); }
  [[nodiscard]] std::byte* received(std::size_t rank) const noexcept {
    return staging_.get() + 2 * layout_.bytes() + rank * slice_bytes_;
  }
  [[nodiscard]] std::size_t slice_begin(std::size_t rank) const noexcept {
    return std::min(rank * slice_bytes_, layout_.bytes());
  }
  [[nodiscard]] std::size_t slice_length(std::size_t rank) const noexcept {
    return slice_begin(rank + 1) - slice_begin(rank);
  }

  void start_messages() noexcept {
    outgoing_.clear();
    incoming_.clear();
  }

  Seconds gather_mean(const Call& call, std::span<const BufferView> buffers) {
    pack(layout_, buffers, 0, layout_.bytes(), own_model());
    start_messages();
    for (std::size_t r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      outgoing_.push_back({static_cast<Rank>(r), own_model() + slice_begin(r), slice_length(r)});
      incoming_.push_back({static_cast<Rank>(r), received(r), slice_length(rank_)});
    }
    Seconds waited = communicator_.exchange(call, outgoing_, incoming_);
    average_slice(buffers);
    start_messages();
    for (std::size_t r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      outgoing_.push_back({static_cast<Rank>(r), mean_model() + slice_begin(rank_), slice_length(rank_)});
      incoming_.push_back({static_cast<Rank>(r), mean_model() + slice_begin(r), slice_length(r)});
    }
    waited += communicator_.exchange(call, outgoing_, incoming_);
    return waited;
  }

  // This rank's slice of the mean, from its own model and what the others sent of theirs.
  void average_slice(std::span<const BufferView> buffers) noexcept {
    const std::size_t begin = slice_begin(rank_);
    layout_.for_each(buffers, begin, begin + slice_length(rank_),
                     [&](std::size_t b, std::size_t, std::size_t count, std::size_t offset) {
                       const std::size_t width = size_of(buffers[b].dtype);
                       const auto values = [&](std::size_t r, std::size_t i) {
                         return (r == rank_ ? own_model() + offset : received(r) + (offset - begin)) + i * width;
                       };
                       with_compute_type(buffers[b].dtype, [&]<class T>() {
                         rows_.template over<T>(buffers[b].dtype, count, values,
                                                [&](std::size_t i, std::size_t length, const std::byte* mean) {
                                                  std::memcpy(mean_model() + offset + i * width, mean, length * width);
                                                });
                       });
                     });
  }

  template <class T>
  double add_squares(double sum, const BufferView& buffer, std::size_t first, std::size_t count,
                     std::size_t offset) noexcept {
    const std::size_t width = size_of(buffer.dtype);
    for (std::size_t i = 0; i < count; i += rows_.length())
      sum += rows_.template squares<T>(buffer.dtype, element(buffer, first + i), mean_model() + offset + i * width,
                                       std::min(rows_.length(), count - i));
    return sum;
  }

  C& communicator_;
  const Layout& layout_;
  std::size_t size_;
  std::size_t rank_;
  std::size_t slice_bytes_;
  MeanRows rows_;
  std::size_t staging_bytes_;
  std::unique_ptr<std::byte[]> staging_;
  std::vector<double> squares_;
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
};

template <class C>
struct GlobalMeanFor {
  using type = MessageGlobalMean<C>;
};
template <SharedAddressSpace C>
struct GlobalMeanFor<C> {
  using type = SharedGlobalMean<C>;
};

/// Exact means over all ranks, the consensus distance and the broadcast, for either kind of communicator.
template <Communicator C>
using GlobalMean = typename GlobalMeanFor<C>::type;

}  // namespace kith::detail
