// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// Where each buffer of a model lies in one flat range of bytes, so that work and messages are cut by bytes and not by
/// tensors: a thousand small tensors cost what one of their total size costs.
///
/// Each buffer starts at a multiple of `alignment`, so a cut there never splits an element.
class Layout {
public:
  static constexpr std::size_t alignment = 64;

  explicit Layout(std::span<const BufferView> buffers) {
    offsets_.reserve(buffers.size() + 1);
    offsets_.push_back(0);
    for (const BufferView& buffer : buffers) {
      payload_ += buffer.bytes();
      offsets_.push_back(offsets_.back() + (buffer.bytes() + alignment - 1) / alignment * alignment);
    }
  }

  /// Bytes of all buffers.
  [[nodiscard]] std::size_t payload_bytes() const noexcept { return payload_; }
  /// Length of the flat range: the same with the gaps.
  [[nodiscard]] std::size_t bytes() const noexcept { return offsets_.back(); }
  [[nodiscard]] std::size_t buffers() const noexcept { return offsets_.size() - 1; }

  /// Calls f(buffer, first element, elements, flat offset of the first) for each piece of a buffer that lies in the
  /// flat range [begin, end). Both are multiples of `alignment`, or past the end.
  template <class F>
  void for_each(std::span<const BufferView> buffers, std::size_t begin, std::size_t end, const F& f) const {
    end = std::min(end, bytes());
    if (begin >= end) return;
    auto b = static_cast<std::size_t>(std::upper_bound(offsets_.begin(), offsets_.end(), begin) - offsets_.begin()) - 1;
    for (; b < buffers.size() && offsets_[b] < end; ++b) {
      const std::size_t width = size_of(buffers[b].dtype);
      const std::size_t first = begin > offsets_[b] ? (begin - offsets_[b]) / width : 0;
      const std::size_t last = std::min(buffers[b].count, (end - offsets_[b]) / width);
      if (first < last) f(b, first, last - first, offsets_[b] + first * width);
    }
  }

private:
  std::vector<std::size_t> offsets_;
  std::size_t payload_ = 0;
};

/// The address of an element of a buffer.
[[nodiscard]] inline std::byte* element(const BufferView& buffer, std::size_t index) noexcept {
  return static_cast<std::byte*>(buffer.data) + index * size_of(buffer.dtype);
}

/// Copies the pieces of the model in [begin, end) to their place in flat memory that holds that range.
inline void pack(const Layout& layout, std::span<const BufferView> buffers, std::size_t begin, std::size_t end,
                 std::byte* flat) {
  layout.for_each(buffers, begin, end, [&](std::size_t b, std::size_t first, std::size_t count, std::size_t offset) {
    std::memcpy(flat + (offset - begin), element(buffers[b], first), count * size_of(buffers[b].dtype));
  });
}

/// The reverse: from flat memory into the buffers.
inline void unpack(const Layout& layout, std::span<const BufferView> buffers, std::size_t begin, std::size_t end,
                   const std::byte* flat) {
  layout.for_each(buffers, begin, end, [&](std::size_t b, std::size_t first, std::size_t count, std::size_t offset) {
    std::memcpy(element(buffers[b], first), flat + (offset - begin), count * size_of(buffers[b].dtype));
  });
}

}  // namespace kith::detail
