// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// What a stream has to carry.
struct StreamShape {
  /// Of one rank's message: the same on all ranks, in every round.
  std::size_t bytes = 0;
  std::size_t max_degree = 0;
  /// How long a piece shall be; 0 = the stream chooses.
  std::size_t piece_bytes = 0;
  /// The buffers that messages are copies of; none if they are something else.
  std::span<const BufferView> buffers{};
  /// For the construction.
  Seconds deadline = Call{}.deadline;
};

/// @brief How one round's message gets to the out-neighbours, and theirs to this rank, piece by piece: the interface of
/// all streams, and the one for engines that have none of their own. Here the message is a single piece.
///
/// A round: open(); for every piece room(), which is then filled, and publish(); for every piece, at most lead()
/// behind, await(), source() as often as wanted, consumed(); settle() before the last piece is taken; close(). Up to
/// settle() and the await() of the last piece a call may throw PeerError; after that nothing does.
///
/// Who has to know all of a message before anything is done with it looks at message(k) instead of source().
///
/// An engine whose ranks can read each other's memory may do without the copy: in_place() and what follows it.
template <Communicator C>
class ExchangeStream {
public:
  /// Collective.
  ExchangeStream(C& communicator, const StreamShape& shape)
      : communicator_(communicator),
        bytes_(shape.bytes),
        staging_bytes_((shape.max_degree + 1) * shape.bytes),
        staging_(std::make_unique_for_overwrite<std::byte[]>(staging_bytes_)) {
    outgoing_.reserve(shape.max_degree);
    incoming_.reserve(shape.max_degree);
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept { return staging_bytes_; }

  /// Number of pieces of a message, at least one, and the length of all but the last.
  [[nodiscard]] std::size_t pieces() const noexcept { return 1; }
  [[nodiscard]] std::size_t piece_bytes() const noexcept { return bytes_; }
  /// By how many pieces publishing may run ahead of taking.
  [[nodiscard]] std::size_t lead() const noexcept { return 0; }

  /// Throws UsageError if the buffers cannot be moved there.
  void require_place(std::span<const BufferView>) const {}
  /// Begins a round. `call` and `plan` outlive it; `buffers` are where StreamShape::buffers are now.
  void open(const Call& call, const Neighborhood& plan, std::span<const BufferView>) {
    call_ = &call;
    outgoing_.clear();
    incoming_.clear();
    for (const Rank to : plan.targets()) outgoing_.push_back({to, staging_.get(), bytes_});
    for (const auto& source : plan.sources())
      incoming_.push_back({source.rank, staging_.get() + (incoming_.size() + 1) * bytes_, bytes_});
  }

  /// Whether pieces are on their way in such a round while this rank fills the next ones.
  [[nodiscard]] bool travels(const Neighborhood&) const noexcept { return false; }
  /// Takes open() back, in a round that does not travel() and of which nothing has been published: it has not begun.
  void abandon() noexcept {}

  /// Where to put a piece: in copy(), at its place in the message; null if nobody needs a copy of it.
  [[nodiscard]] std::byte* room(std::size_t) noexcept { return staging_.get(); }
  void publish(std::size_t) noexcept {}
  /// Waits until the piece of every in-neighbour is there.
  void await(std::size_t) { waited_ = communicator_.exchange(*call_, outgoing_, incoming_); }
  /// What in-neighbour k sent from `offset` of its message on, within the piece that was awaited last. Where messages
  /// are copies of buffers, that is in its buffer `buffer` from byte `in_buffer` on.
  [[nodiscard]] const std::byte* source(std::size_t k, std::size_t /*buffer*/, std::size_t /*in_buffer*/,
                                        std::size_t offset) const noexcept {
    return static_cast<const std::byte*>(incoming_[k].data) + offset;
  }
  /// All of in-neighbour k's message as far as it has come, if it stays until the last piece is consumed(); null where
  /// the pieces share their memory.
  [[nodiscard]] const std::byte* message(std::size_t k) const noexcept {
    return static_cast<const std::byte*>(incoming_[k].data);
  }
  /// Whether that is never null.
  [[nodiscard]] bool keeps_messages() const noexcept { return true; }
  /// The sources of this piece have been read.
  void consumed(std::size_t) noexcept {}
  /// Waits until nothing that this rank sends can fail any more.
  void settle() noexcept {}
  /// Ends the round. The time spent waiting.
  Seconds close() noexcept { return waited_; }

  /// This rank's message as far as it has been published, until the next open(): the old values.
  [[nodiscard]] std::byte* copy() noexcept { return staging_.get(); }

  /// Whether neighbours may read this rank's buffers themselves, in some round.
  [[nodiscard]] bool ever_in_place() const noexcept { return false; }
  /// Whether they do in this round, which cannot fail then after the first piece has come. A piece of the buffers is
  /// written only after released(piece), which waits for all readers. If it says false, one does not read on: the old
  /// values from this piece on have to be put into copy(), and after retreat(piece) the buffers are this rank's own
  /// again. The same where the round is given up for an exception.
  [[nodiscard]] bool in_place() const noexcept { return false; }
  [[nodiscard]] bool released(std::size_t) noexcept { return true; }
  void retreat(std::size_t) noexcept {}
  /// Whether an in-neighbour has retreated while its piece was read: source() has moved, and is to be read again.
  [[nodiscard]] bool moved(std::size_t) noexcept { return false; }
  /// Whether that can happen in this round at all.
  [[nodiscard]] bool may_move() const noexcept { return false; }

private:
  C& communicator_;
  std::size_t bytes_;
  std::size_t staging_bytes_;
  std::unique_ptr<std::byte[]> staging_;
  const Call* call_ = nullptr;
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
  Seconds waited_{0};
};

template <class C>
struct StreamFor {
  using type = ExchangeStream<C>;
};
template <class C>
requires requires { typename C::Stream; }
struct StreamFor<C> {
  using type = typename C::Stream;
};

/// The stream of an engine: its own member `Stream`, with the members of ExchangeStream, or else that one.
template <Communicator C>
using Stream = typename StreamFor<C>::type;

}  // namespace kith::detail
