// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include <kith/mpi/arena.hpp>
#include <kith/types.hpp>

namespace kith::mpi {

/// @brief Memory for a model (or a part of one) that the other ranks of this machine can read in place; see
/// Communicator::allocate. A contiguous range: kith::view() takes it as it takes a vector.
///
/// Owned by this object, which the communicator outlives.
template <Element T>
class Memory {
public:
  using value_type = T;

  Memory(Memory&&) noexcept = default;
  Memory& operator=(Memory&&) noexcept = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() = default;

  [[nodiscard]] T* data() noexcept { return data_; }
  [[nodiscard]] const T* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return count_; }
  [[nodiscard]] T* begin() noexcept { return data_; }
  [[nodiscard]] T* end() noexcept { return data_ + count_; }
  [[nodiscard]] const T* begin() const noexcept { return data_; }
  [[nodiscard]] const T* end() const noexcept { return data_ + count_; }
  [[nodiscard]] T& operator[](std::size_t index) noexcept { return data_[index]; }
  [[nodiscard]] const T& operator[](std::size_t index) const noexcept { return data_[index]; }

private:
  friend class Communicator;

  Memory(detail::Arena::Lease lease, Rank rank, std::size_t count) : lease_(std::move(lease)), count_(count) {
    if (lease_) {
      data_ = reinterpret_cast<T*>(lease_.part(rank));
    } else {
      private_ = std::make_unique<T[]>(count);
      data_ = private_.get();
    }
  }

  detail::Arena::Lease lease_;
  std::unique_ptr<T[]> private_;  // where nothing is shared
  T* data_;
  std::size_t count_;
};

}  // namespace kith::mpi
