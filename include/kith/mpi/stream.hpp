// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <mpi.h>

#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/mpi/arena.hpp>
#include <kith/mpi/engine.hpp>
#include <kith/mpi/messages.hpp>
#include <kith/mpi/native.hpp>
#include <kith/mpi/peers.hpp>
#include <kith/stream.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::mpi::detail {

/// @brief What a rank shows to those on its machine; only the rank itself writes it. Zeros are its initial state.
///
/// Pieces are counted through all rounds, from 1 on: piece c of round t has the number t * pieces + c on every rank.
struct Board {
  std::atomic<std::uint64_t> published;             // pieces below this number can be read
  alignas(64) std::atomic<std::uint64_t> consumed;  // this rank has read all that it needs of those below this number
  // From this number on the pieces of the round are in the copy, and no longer in the buffers.
  alignas(64) std::atomic<std::uint64_t> copied_from;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "they are shared between processes");

/// @brief The stream of the MPI engine: see kith::detail::ExchangeStream for the interface.
///
/// A rank copies its message, piece by piece, to where ranks on the same machine read it and whence MPI sends it to the
/// others. The copy is also what the parameters are restored from should the round fail. What MPI receives comes in to
/// short rings.
///
/// Where the models of all ranks lie in memory of the arena, ranks on the same machine read them in place, and there is
/// no copy. The owner then writes a piece only after all have read it. It does not wait for ever for one that has been
/// stopped in the middle of a round: it copies what is left of the old values after all, and that reader goes on from
/// there when it wakes up. So once the neighbours have come, such a round cannot fail, and nothing need be restored.
class Stream {
public:
  /// Collective.
  template <class C>
  Stream(C& communicator, const kith::detail::StreamShape& shape) : Stream(communicator.engine(), shape) {}

  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    engine_.settle();
    if (peers_.failed()) peers_.keep(private_part_.share());  // MPI may still be sending from it
  }

  [[nodiscard]] std::size_t staging_bytes() const noexcept {
    std::size_t bytes = part_bytes_;
    for (const Inlet& inlet : inlets_) bytes += inlet.staging_bytes();
    for (const Outlet& outlet : outlets_) bytes += outlet.staging_bytes();
    return bytes;
  }
  [[nodiscard]] std::size_t pieces() const noexcept { return pieces_; }
  [[nodiscard]] std::size_t piece_bytes() const noexcept { return piece_bytes_; }
  [[nodiscard]] std::size_t lead() const noexcept { return remote_ ? lanes_depth_ - 1 : 2; }

  void require_place(std::span<const BufferView> buffers) const {
    if (!in_place_) return;
    for (std::size_t b = 0; b < buffers.size(); ++b)
      if (buffers[b].count > 0 && engine_.arena().find(buffers[b].data, buffers[b].bytes()).known == 0)
        throw UsageError("buffer " + std::to_string(b) +
                         " is not in memory of Communicator::allocate. The other ranks read this averager's buffers in "
                         "place, so they stay in such memory");
  }

  void open(const Call& call, const Neighborhood& plan, std::span<const BufferView> buffers) {
    engine_.settle();
    peers_.require_alive(call);
    meeting_.emplace(call);
    first_ += pieces_;
    retreated_ = false;
    if (in_place_) find_places(buffers);
    open_outgoing(plan.targets());
    open_incoming(plan.sources());
    copies_out_ = !in_place_ || remote_;
    // Who still reads the message that was here before this one, has to finish.
    Copy& copy = own_copy();
    for (const Rank reader : copy.readers) await_reader(reader, copy.end - 1);
    copy.readers.assign(local_targets_.begin(), local_targets_.end());
    copy.end = first_ + pieces_;
    if (lease_) stamp_of(own_part_) = meeting_->stamp;
  }

  [[nodiscard]] bool travels(const Neighborhood& plan) const noexcept {
    const auto far = [this](Rank rank) { return !is_local(rank); };
    const auto from_far = [&](const Neighborhood::Source& source) { return far(source.rank); };
    return std::any_of(plan.targets().begin(), plan.targets().end(), far) ||
           std::any_of(plan.sources().begin(), plan.sources().end(), from_far);
  }
  void abandon() noexcept {
    own_copy().readers.clear();  // nobody will have read it
    first_ -= pieces_;
  }

  [[nodiscard]] std::byte* room(std::size_t piece) {
    for (std::size_t k = 0; k < remote_targets_; ++k)
      peers_.wait(*meeting_, outlets_[k].to(), [&] { return outlets_[k].sent(piece); });
    return copies_out_ ? copy() + piece * piece_bytes_ : nullptr;
  }

  void publish(std::size_t piece) {
    if (lease_ && (piece == 0 || !in_place_))
      board(own_part_).published.store(first_ + (in_place_ ? pieces_ : piece + 1), std::memory_order_release);
    for (std::size_t k = 0; k < remote_targets_; ++k) {
      if (cut_.is_short()) {
        outlets_[k].send_short(copy());
      } else {
        if (piece == 0) outlets_[k].send_header();
        outlets_[k].send_chunk(piece, copy() + piece * piece_bytes_, cut_.length(piece));
      }
    }
  }

  void await(std::size_t piece) {
    piece_ = piece;
    for (Source& source : sources_) {
      if (source.inlet != nullptr)
        peers_.wait(*meeting_, source.rank, [&] { return source.inlet->ready(*meeting_, piece); });
      else
        await_local(source);
    }
  }

  [[nodiscard]] const std::byte* source(std::size_t k, std::size_t buffer, std::size_t in_buffer,
                                        std::size_t offset) const noexcept {
    const Source& source = sources_[k];
    if (source.inlet != nullptr) return source.inlet->data(piece_) + (offset - piece_ * piece_bytes_);
    if (!source.in_place) return copy(source.part) + offset;
    const Arena::Position& place = places(source.part)[buffer];
    return engine_.arena().part(place.window, source.rank) + place.offset + in_buffer;
  }

  [[nodiscard]] const std::byte* message(std::size_t k) const noexcept {
    return sources_[k].inlet != nullptr ? nullptr : copy(sources_[k].part);
  }
  [[nodiscard]] bool keeps_messages() const noexcept { return inlets_.empty(); }

  void consumed(std::size_t piece) {
    if (lease_) board(own_part_).consumed.store(first_ + piece + 1, std::memory_order_release);
    for (Source& source : sources_)
      if (source.inlet != nullptr) source.inlet->release(piece);
  }

  void settle() {
    for (std::size_t k = 0; k < remote_targets_; ++k)
      peers_.wait(*meeting_, outlets_[k].to(), [&] { return outlets_[k].all_sent(); });
  }

  Seconds close() noexcept {
    if (lease_) board(own_part_).consumed.store(first_ + pieces_, std::memory_order_release);
    return meeting_->waited;
  }

  [[nodiscard]] std::byte* copy() noexcept { return copy(own_part_); }

  [[nodiscard]] bool ever_in_place() const noexcept { return in_place_; }
  [[nodiscard]] bool in_place() const noexcept { return in_place_ && !local_targets_.empty() && !retreated_; }
  [[nodiscard]] bool released(std::size_t piece) noexcept {
    try {
      for (const Rank reader : local_targets_) await_reader(reader, first_ + piece);
      return true;
    } catch (...) {  // the next call throws it again
      return false;
    }
  }
  void retreat(std::size_t piece) noexcept {
    retreated_ = true;
    board(own_part_).copied_from.store(first_ + piece, std::memory_order_release);
    // Whoever reads one of the new values that are written after this also reads that the old ones are elsewhere.
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }

  [[nodiscard]] bool may_move() const noexcept {
    return std::any_of(sources_.begin(), sources_.end(), [](const Source& source) { return source.in_place; });
  }
  [[nodiscard]] bool moved(std::size_t) noexcept {
    std::atomic_thread_fence(std::memory_order_seq_cst);  // after the reading of the values
    bool any = false;
    for (Source& source : sources_) {
      if (!source.in_place || !has_retreated(source)) continue;
      source.in_place = false;
      any = true;
    }
    return any;
  }

private:
  struct Source {
    Rank rank = 0;
    Inlet* inlet = nullptr;     // where its messages come in, or
    std::byte* part = nullptr;  // its part of the window
    bool in_place = false;      // read from its buffers, not from the copy
  };
  struct Copy {
    std::vector<Rank> readers;  // on this machine, of the message that is in it
    std::uint64_t end = 0;      // number of that message's last piece, plus one
  };
  static constexpr std::size_t page = 4096;
  static constexpr std::size_t line = 64;
  static constexpr std::size_t deepest = 64;  // pieces of a message that are under way over a network

  Stream(Engine& engine, const kith::detail::StreamShape& shape)
      : engine_(engine), peers_(engine.peers()), buffers_(shape.buffers.size()) {
    const Arena& arena = engine_.arena();
    const bool together = arena.is_here(peers_.rank()) && arena.ranks_here() == peers_.size();
    choose_pieces(shape, together);
    const bool placed = find_places(shape.buffers);
    in_place_ = engine_.all(placed && buffers_ > 0 && shape.bytes >= engine_.in_place_from_bytes(), shape.deadline);
    // Of short messages two take turns: then nobody waits until the others have read the one before.
    constexpr std::size_t is_long = std::size_t{1} << 16;
    copies_.resize(shape.bytes > is_long ? 1 : 2);
    for (Copy& copy : copies_) copy.readers.reserve(shape.max_degree);
    copies_offset_ = round_up(sizeof(Board) + buffers_ * sizeof(Arena::Position), line);
    copy_stride_ = sizeof(Stamp) + round_up(shape.bytes, line);
    part_bytes_ = copies_offset_ + copies_.size() * copy_stride_;
    lease_ = engine_.take(part_bytes_, shape.deadline);
    in_place_ = in_place_ && lease_;
    if (!lease_) private_part_ = Slots{part_bytes_};
    own_part_ = lease_ ? lease_.part(peers_.rank()) : private_part_.data();
    for (std::size_t b = 0; b < buffers_; ++b) places(own_part_)[b] = known_[b].place;
    sources_.reserve(shape.max_degree);
    local_targets_.reserve(shape.max_degree);
    if (!lease_ || !together) make_lanes(shape.max_degree);
  }

  void choose_pieces(const kith::detail::StreamShape& shape, bool together) {
    constexpr std::size_t longest = std::size_t{1} << 30;  // MPI counts bytes in an int
    // Measured. In shared memory, cutting costs more than it hides up to the double length. Over a network, Open MPI
    // asks the receiver before it sends more than 64 KiB, and the answer takes a round trip.
    constexpr std::size_t in_memory = std::size_t{1} << 18;
    constexpr std::size_t unasked = 15 * page;
    std::size_t wanted = shape.piece_bytes;
    if (wanted == 0) wanted = !together ? unasked : shape.bytes <= 2 * in_memory ? 2 * in_memory : in_memory;
    if (Cut{shape.bytes}.is_short()) wanted = longest;  // it goes in one message
    piece_bytes_ = std::min(round_up(std::min(wanted, longest), page), std::max<std::size_t>(shape.bytes, 1));
    cut_ = {shape.bytes, piece_bytes_};
    pieces_ = std::max<std::size_t>((shape.bytes + piece_bytes_ - 1) / piece_bytes_, 1);
  }

  // With many neighbours fewer pieces of each are under way.
  void make_lanes(std::size_t degree) {
    constexpr std::size_t most_bytes = std::size_t{1} << 25;
    const std::size_t slot_bytes = cut_.is_short() ? 0 : piece_bytes_;
    lanes_depth_ =
        std::min(std::clamp<std::size_t>(most_bytes / (std::max<std::size_t>(degree, 1) * piece_bytes_), 2, deepest),
                 pieces_ + 1);
    inlets_.reserve(degree);
    outlets_.reserve(degree);
    for (std::size_t k = 0; k < degree; ++k) {
      inlets_.emplace_back(peers_, lanes_depth_, slot_bytes);
      outlets_.emplace_back(peers_, lanes_depth_, 0);
    }
  }

  void open_outgoing(std::span<const Rank> targets) {
    local_targets_.clear();
    remote_targets_ = 0;
    for (const Rank to : targets) {
      if (is_local(to))
        local_targets_.push_back(to);
      else
        outlets_[remote_targets_++].open(to, *meeting_, cut_.bytes);
    }
  }

  void open_incoming(std::span<const Neighborhood::Source> sources) {
    sources_.clear();
    std::size_t inlets = 0;
    for (const auto& [rank, weight] : sources) {
      Source& source = sources_.emplace_back();
      source.rank = rank;
      if (is_local(rank)) {
        source.part = lease_.part(rank);
      } else {
        source.inlet = &inlets_[inlets++];
        source.inlet->open(rank, cut_);
      }
    }
    remote_ = remote_targets_ + inlets > 0;
  }

  [[nodiscard]] bool is_local(Rank rank) const noexcept { return lease_ && engine_.arena().is_here(rank); }

  // Whether all buffers lie in the arena; the others are told where.
  bool find_places(std::span<const BufferView> buffers) noexcept {
    if (known_.size() != buffers.size()) known_.assign(buffers.size(), {});
    bool all = true;
    for (std::size_t b = 0; b < buffers.size(); ++b) {
      Known& known = known_[b];
      if (known.data != buffers[b].data) {
        known = {buffers[b].data, engine_.arena().find(buffers[b].data, buffers[b].bytes())};
        if (lease_) places(own_part_)[b] = known.place;
      }
      all = all && (buffers[b].count == 0 || known.place.known != 0);
    }
    return all;
  }

  void await_local(Source& source) {
    await_counter(source.rank, board(source.part).published, first_ + piece_);
    if (piece_ == 0) {
      const std::string text = difference(peers_.rank(), meeting_->stamp, source.rank, stamp_of(source.part));
      if (!text.empty()) peers_.fail_protocol(*meeting_, source.rank, text);
    }
    source.in_place = in_place_ && !has_retreated(source);
  }

  [[nodiscard]] bool has_retreated(const Source& source) const noexcept {
    const std::uint64_t from = board(source.part).copied_from.load(std::memory_order_acquire);
    // A smaller number is of another round. A larger one cannot be: who retreats has failed, and begins no other.
    return from >= first_ && from <= first_ + piece_;
  }

  void await_reader(Rank reader, std::uint64_t number) {
    await_counter(reader, board(lease_.part(reader)).consumed, number);
  }

  // Waits until a rank on this machine has counted past `number`.
  void await_counter(Rank rank, const std::atomic<std::uint64_t>& counter, std::uint64_t number) {
    peers_.wait(
        *meeting_, rank,
        [&] {
          if (counter.load(std::memory_order_acquire) > number) return true;
          if (remote_) peers_.progress();
          return false;
        },
        [&] { look_for_message(rank, counter, number); });
  }

  // A neighbour on this machine that sends a message instead of taking part in the round is in another call. It sends
  // after it has counted, so if it has not counted by now, the message is not of a later one.
  void look_for_message(Rank peer, const std::atomic<std::uint64_t>& counter, std::uint64_t number) {
    int flag = 0;
    peers_.require_success(MPI_Iprobe(peer, static_cast<int>(Tag::message), peers_.comm(), &flag, MPI_STATUS_IGNORE),
                           "MPI_Iprobe");
    if (flag == 0 || counter.load(std::memory_order_acquire) > number) return;
    peers_.fail_protocol(*meeting_, peer,
                         "rank " + std::to_string(peer) + " is in another call than " + describe(meeting_->stamp) +
                             ", where rank " + std::to_string(peers_.rank()) +
                             " waits for it. All ranks make the same calls in the same order");
  }

  static std::size_t round_up(std::size_t value, std::size_t unit) noexcept { return (value + unit - 1) / unit * unit; }
  static Board& board(std::byte* part) noexcept { return *std::launder(reinterpret_cast<Board*>(part)); }
  [[nodiscard]] static Arena::Position* places(std::byte* part) noexcept {
    return std::launder(reinterpret_cast<Arena::Position*>(part + sizeof(Board)));
  }
  [[nodiscard]] Copy& own_copy() noexcept { return copies_[turn()]; }
  [[nodiscard]] std::size_t turn() const noexcept { return first_ / pieces_ % copies_.size(); }
  // In front of each copy: what the message is about.
  [[nodiscard]] Stamp& stamp_of(std::byte* part) const noexcept {
    return *std::launder(reinterpret_cast<Stamp*>(part + copies_offset_ + turn() * copy_stride_));
  }
  // This round's message of the rank whose part it is.
  [[nodiscard]] std::byte* copy(std::byte* part) const noexcept {
    return part + copies_offset_ + turn() * copy_stride_ + sizeof(Stamp);
  }

  struct Known {
    const void* data = nullptr;
    Arena::Position place{};
  };

  Engine& engine_;
  Peers& peers_;
  std::size_t buffers_;
  Cut cut_;
  std::size_t piece_bytes_ = 0;
  std::size_t pieces_ = 0;
  bool in_place_ = false;  // the models of all ranks lie in the arena, and are read there

  // A rank's part of the window: its board, the places of its buffers, one or two copies of its message.
  std::size_t copies_offset_ = 0;
  std::size_t copy_stride_ = 0;
  std::size_t part_bytes_ = 0;
  Arena::Lease lease_;
  Slots private_part_;  // the same, where nothing is shared
  std::byte* own_part_ = nullptr;
  std::vector<Copy> copies_;
  std::vector<Known> known_;
  std::size_t lanes_depth_ = 2;
  std::vector<Inlet> inlets_;
  std::vector<Outlet> outlets_;

  // Of the round.
  std::optional<Meeting> meeting_;
  std::uint64_t first_ = 0;  // number of its first piece
  std::size_t piece_ = 0;    // awaited last
  bool retreated_ = false;   // nobody reads this rank's buffers any more
  bool copies_out_ = true;
  bool remote_ = false;
  std::vector<Rank> local_targets_;
  std::size_t remote_targets_ = 0;
  std::vector<Source> sources_;
};

}  // namespace kith::mpi::detail
