// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include <kith/codec/detail/tiles.hpp>
#include <kith/exchange/encoded_part.hpp>
#include <kith/exchange/wire_layout.hpp>
#include <kith/numeric/codec_kernels.hpp>
#include <kith/numeric/compute_type.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// What ranks remember of each other's encoded buffers, in the type that those are computed in; zeros at first. Both
/// ends of an edge keep the same numbers, since both add to them what has travelled and nothing else.
class Replicas {
public:
  Replicas(const WireLayout& layout, std::span<const BufferView> buffers, std::size_t number) : number_(number) {
    for (std::size_t b = 0; b < buffers.size(); ++b) {
      const std::size_t bytes = buffers[b].count * size_of(compute_dtype(buffers[b].dtype));
      offsets_.push_back(layout.part(b).encoded ? stride_ : not_kept);
      if (layout.part(b).encoded) stride_ += (bytes + alignment - 1) / alignment * alignment;
    }
    memory_.resize(number * stride_);
  }

  /// Replica `index` of a segment whose values look like `like`.
  template <class T>
  [[nodiscard]] T* values(std::size_t index, const Segment& segment) noexcept {
    return values<T>(index, segment.buffer) + segment.first;
  }
  [[nodiscard]] BufferView view(std::size_t index, const Segment& segment, const BufferView& like) noexcept {
    const DType dtype = compute_dtype(like.dtype);
    return {values<std::byte>(index, segment.buffer) + segment.first * size_of(dtype), like.count, dtype};
  }

  /// All ranks hold the same parameters: so does every replica.
  void agree(std::span<const BufferView> buffers) noexcept {
    for (std::size_t b = 0; b < buffers.size(); ++b) {
      if (offsets_[b] == not_kept) continue;
      with_compute_type(buffers[b].dtype, [&]<class T>() {
        for (std::size_t r = 0; r < number_; ++r) load_values(buffers[b], values<T>(r, b));
      });
    }
  }

  /// All of it, for checkpoints.
  [[nodiscard]] std::span<std::byte> bytes() noexcept { return memory_; }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return memory_; }

private:
  static constexpr std::size_t alignment = 64;
  static constexpr std::size_t not_kept = static_cast<std::size_t>(-1);

  template <class T>
  [[nodiscard]] T* values(std::size_t index, std::size_t buffer) noexcept {
    return reinterpret_cast<T*>(memory_.data() + index * stride_ + offsets_[buffer]);
  }

  std::size_t number_;
  std::size_t stride_ = 0;
  std::vector<std::size_t> offsets_;
  std::vector<std::byte> memory_;
};

/// target = values - replica. Adds the squares of that to `squares`, tile by tile.
template <class T>
void subtract(const BufferView& values, const T* replica, T* target, double& squares) noexcept {
  const CodecKernels& kernels = codec_kernels();
  for_each_tile<T>(values, 0, values.count, [&](const T* from, std::size_t first, std::size_t count) {
    squares += subtract(kernels, from, replica + first, target + first, count);
  });
}

}  // namespace kith::detail
