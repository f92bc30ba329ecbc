// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <mpi.h>
#include <sys/statvfs.h>

#include <kith/error.hpp>
#include <kith/mpi/native.hpp>
#include <kith/mpi/peers.hpp>
#include <kith/types.hpp>

namespace kith::mpi::detail {

/// @brief Memory that the ranks of one machine share: windows of MPI, kept and used again until the communicator ends.
///
/// Every rank of the communicator has a part of its own in each window, of the same length; it is the only one that
/// writes there. Windows are made and given out by all ranks together, also by those that are alone on their machine:
/// so they have the same numbers everywhere.
class Arena {
public:
  /// Gathers a small value of every rank: Communicator::all_gather.
  using AllGather = std::function<void(std::span<const std::byte> mine, std::span<std::byte> all)>;

  /// Collective. Without `wanted`, or if all ranks have machines of their own, there is nothing to share.
  Arena(Peers& peers, bool wanted, const AllGather& all_gather) : peers_(peers), place_(ranks(), -1) {
    // Not only of this rank's machine: all ranks have to make the same calls later.
    require_success(MPI_Comm_split_type(peers.comm(), MPI_COMM_TYPE_SHARED, peers.rank(), MPI_INFO_NULL, &machine_),
                    "MPI_Comm_split_type");
    MPI_Comm_set_errhandler(machine_, MPI_ERRORS_RETURN);
    MPI_Comm_size(machine_, &ranks_here_);
    find_places();
    struct {
      int wanted;
      int ranks_here;
    } const mine{wanted ? 1 : 0, ranks_here_};
    std::vector<std::remove_const_t<decltype(mine)>> all(ranks());
    all_gather(std::as_bytes(std::span{&mine, 1}), std::as_writable_bytes(std::span{all}));
    shares_ = std::all_of(all.begin(), all.end(), [](const auto& rank) { return rank.wanted != 0; }) &&
              std::any_of(all.begin(), all.end(), [](const auto& rank) { return rank.ranks_here > 1; });
    gives_ = shares_;
  }

  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() = default;  // windows can only be freed by all ranks together: see free()

  [[nodiscard]] Rank ranks_here() const noexcept { return ranks_here_; }
  [[nodiscard]] bool is_here(Rank rank) const noexcept {
    return shares_ && place_[static_cast<std::size_t>(rank)] >= 0;
  }

  /// A window that is in use.
  class Lease {
  public:
    Lease() = default;
    Lease(Arena& arena, std::size_t window) : arena_(&arena), window_(window) {}
    Lease(Lease&& other) noexcept : arena_(std::exchange(other.arena_, nullptr)), window_(other.window_) {}
    Lease& operator=(Lease&& other) noexcept {
      std::swap(arena_, other.arena_);
      std::swap(window_, other.window_);
      return *this;
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() {
      if (arena_ != nullptr) arena_->windows_[window_].leased = false;
    }
    explicit operator bool() const noexcept { return arena_ != nullptr; }
    [[nodiscard]] std::size_t window() const noexcept { return window_; }
    /// The part of a rank on this machine.
    [[nodiscard]] std::byte* part(Rank rank) const noexcept { return arena_->part(window_, rank); }

  private:
    Arena* arena_ = nullptr;
    std::size_t window_ = 0;
  };

  /// @brief Collective. A window of at least `bytes`, filled with zeros, or none if a machine has too little room.
  /// @throws UsageError on every rank if they ask for different lengths.
  [[nodiscard]] Lease take(std::size_t bytes, const AllGather& all_gather) {
    if (!gives_) return {};
    const Request mine{bytes, free_windows(bytes), has_room(bytes)};
    std::vector<Request> all(ranks());
    all_gather(std::as_bytes(std::span{&mine, 1}), std::as_writable_bytes(std::span{all}));
    Request common = mine;
    for (std::size_t r = 0; r < all.size(); ++r) {
      if (all[r].bytes != bytes)
        throw UsageError("rank " + std::to_string(r) + " asks for " + std::to_string(all[r].bytes) +
                         " bytes of shared memory and rank " + std::to_string(peers_.rank()) + " for " +
                         std::to_string(bytes) + ": all ranks ask for the same");
      common.free &= all[r].free;
      common.room = common.room && all[r].room;
    }
    std::size_t window = most_windows;  // the smallest that is long enough
    for (std::size_t w = 0; w < std::min(windows_.size(), most_windows); ++w)
      if ((common.free >> w & 1) != 0 && (window == most_windows || windows_[w].bytes < windows_[window].bytes))
        window = w;
    bool made = window < most_windows;
    if (!made && common.room) {
      window = windows_.size();
      made = make_window(bytes);
    }
    if (made) std::memset(part(window, peers_.rank()), 0, bytes);
    // Nobody looks into a part before its owner has cleared it, and nobody has what others have not.
    std::vector<std::byte> all_made(ranks());
    const std::byte own{made ? std::uint8_t{1} : std::uint8_t{0}};
    all_gather(std::span{&own, 1}, all_made);
    if (std::find(all_made.begin(), all_made.end(), std::byte{0}) != all_made.end()) {
      gives_ = gives_ && !common.room;  // MPI has refused somewhere: from here on the numbers of windows may differ
      return {};
    }
    windows_[window].leased = true;
    return {*this, window};
  }

  /// The part of a rank of this machine in a window.
  [[nodiscard]] std::byte* part(std::size_t window, Rank rank) const noexcept {
    return windows_[window].parts[static_cast<std::size_t>(place_[static_cast<std::size_t>(rank)])];
  }

  /// Where memory of this rank lies: in which window, how far from its beginning.
  struct Position {
    std::uint32_t window;
    std::uint32_t known;  // 0: in none
    std::uint64_t offset;
  };
  [[nodiscard]] Position find(const void* data, std::size_t bytes) const noexcept {
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    for (std::size_t w = 0; w < windows_.size(); ++w) {
      if (!windows_[w].leased) continue;
      const auto own = reinterpret_cast<std::uintptr_t>(part(w, peers_.rank()));
      if (begin >= own && begin + bytes <= own + windows_[w].bytes)
        return {static_cast<std::uint32_t>(w), 1, begin - own};
    }
    return {0, 0, 0};
  }

  /// Collective: gives everything back to MPI. The last thing that is called.
  void free() {
    if (shares_ && !gives_) return;  // some have windows that others have not: they stay until the program ends
    for (Window& window : windows_) {
      MPI_Win_unlock_all(window.handle);
      MPI_Win_free(&window.handle);
    }
    windows_.clear();
    MPI_Comm_free(&machine_);
  }

private:
  static constexpr std::size_t most_windows = 64;
  static constexpr std::size_t alignment = 4096;

  struct Window {
    MPI_Win handle;
    std::size_t bytes;
    std::vector<std::byte*> parts;  // of the ranks of this machine
    bool leased;
  };
  struct Request {
    std::uint64_t bytes;
    std::uint64_t free;  // bit w: window w is long enough and not in use
    bool room;
  };

  [[nodiscard]] std::size_t ranks() const noexcept { return static_cast<std::size_t>(peers_.size()); }

  // place_[r]: the number of rank r among those of this machine.
  void find_places() {
    MPI_Group all = MPI_GROUP_NULL;
    MPI_Group here = MPI_GROUP_NULL;
    MPI_Comm_group(peers_.comm(), &all);
    MPI_Comm_group(machine_, &here);
    std::vector<int> numbers(ranks());
    for (std::size_t r = 0; r < numbers.size(); ++r) numbers[r] = static_cast<int>(r);
    MPI_Group_translate_ranks(all, peers_.size(), numbers.data(), here, place_.data());
    std::replace(place_.begin(), place_.end(), MPI_UNDEFINED, -1);
    MPI_Group_free(&all);
    MPI_Group_free(&here);
  }

  [[nodiscard]] std::uint64_t free_windows(std::size_t bytes) const noexcept {
    std::uint64_t free = 0;
    for (std::size_t w = 0; w < std::min(windows_.size(), most_windows); ++w)
      if (!windows_[w].leased && windows_[w].bytes >= bytes) free |= std::uint64_t{1} << w;
    return free;
  }

  // MPI makes the file of a window without asking whether it fits, and the program would end at the first touch.
  [[nodiscard]] bool has_room(std::size_t bytes) const noexcept {
    struct statvfs space {};
    if (statvfs("/dev/shm", &space) != 0) return true;  // no such thing here: MPI knows better
    const double needed = (static_cast<double>(bytes) + 2 * alignment) * ranks_here_;
    constexpr double reserve = 1 << 20;
    return static_cast<double>(space.f_bavail) * static_cast<double>(space.f_frsize) >= needed + reserve;
  }

  [[nodiscard]] bool make_window(std::size_t bytes) {
    Window window{MPI_WIN_NULL, bytes, {}, false};
    MPI_Info info = MPI_INFO_NULL;
    MPI_Info_create(&info);
    MPI_Info_set(info, "alloc_shared_noncontig", "true");
    void* own = nullptr;
    const int code =
        MPI_Win_allocate_shared(static_cast<MPI_Aint>(bytes + alignment), 1, info, machine_, &own, &window.handle);
    MPI_Info_free(&info);
    if (code != MPI_SUCCESS) return false;
    MPI_Win_set_errhandler(window.handle, MPI_ERRORS_RETURN);
    // For as long as the window lives: ranks use plain atomics.
    require_success(MPI_Win_lock_all(MPI_MODE_NOCHECK, window.handle), "MPI_Win_lock_all");
    for (int r = 0; r < ranks_here_; ++r) {
      MPI_Aint length = 0;
      int unit = 0;
      void* begin = nullptr;
      require_success(MPI_Win_shared_query(window.handle, r, &length, &unit, &begin), "MPI_Win_shared_query");
      // Every process maps whole pages: the boundary is at the same place for all.
      const auto address = reinterpret_cast<std::uintptr_t>(begin);
      window.parts.push_back(static_cast<std::byte*>(begin) + (alignment - address % alignment) % alignment);
    }
    windows_.push_back(std::move(window));
    return true;
  }

  Peers& peers_;
  MPI_Comm machine_ = MPI_COMM_NULL;
  int ranks_here_ = 1;
  bool shares_ = false;
  bool gives_ = false;
  std::vector<int> place_;
  std::vector<Window> windows_;
};

}  // namespace kith::mpi::detail
