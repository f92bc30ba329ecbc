// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include <kith/codec.hpp>
#include <kith/numeric/compute_type.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// A stretch of a buffer that is encoded, checked and taken in by itself: short enough to stay in the cache meanwhile.
struct Segment {
  std::size_t buffer;
  std::size_t first;   // element
  std::size_t count;   // elements
  std::size_t offset;  // in a message
  std::size_t bytes;
  bool encoded;

  /// These values of the model.
  [[nodiscard]] BufferView of(std::span<const BufferView> buffers) const noexcept {
    const BufferView& whole = buffers[buffer];
    return {static_cast<std::byte*>(whole.data) + first * size_of(whole.dtype), count, whole.dtype};
  }
};

/// Where each buffer of a model stands in a message, encoded, or as it is if it is small; and how it is cut into
/// segments: as the codec's granule allows, whole where it has none.
class WireLayout {
public:
  struct Part {
    std::size_t offset;
    std::size_t bytes;
    bool encoded;
    std::size_t count;             // of the buffer
    std::size_t segment_elements;  // of all segments but the last
    std::size_t segment_bytes;
    std::size_t first_segment;

    [[nodiscard]] std::size_t segments() const noexcept {
      return count == 0 ? 0 : (count + segment_elements - 1) / segment_elements;
    }
  };

  template <class E>
  WireLayout(const E& exchange, std::span<const BufferView> buffers, std::size_t encode_from_bytes) {
    parts_.reserve(buffers.size());
    for (const BufferView& buffer : buffers) {
      const bool encoded = buffer.count > 0 && buffer.bytes() >= encode_from_bytes;
      const auto wire_bytes = [&](std::size_t count) {
        return encoded ? exchange.wire_bytes(count, buffer.dtype) : count * size_of(buffer.dtype);
      };
      const std::size_t elements = segment_elements(encoded ? granule(exchange) : 1, buffer.count);
      Part part{bytes_, 0, encoded, buffer.count, elements, wire_bytes(elements), segments_};
      if (part.segments() > 0) {
        const std::size_t before_last = part.segments() - 1;
        const std::size_t last = wire_bytes(buffer.count - before_last * elements);
        part.bytes = before_last * part.segment_bytes + last;
        if (encoded) {
          longest_computed_ = std::max(longest_computed_, elements * size_of(compute_dtype(buffer.dtype)));
          longest_encoded_ = std::max({longest_encoded_, part.segment_bytes, last});
        }
      }
      parts_.push_back(part);
      bytes_ += part.bytes;
      segments_ += part.segments();
    }
  }

  [[nodiscard]] std::size_t buffers() const noexcept { return parts_.size(); }
  /// Length of a message.
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] const Part& part(std::size_t buffer) const noexcept { return parts_[buffer]; }
  /// Of the encoded segments: bytes of the longest in the type that it is computed in, and of the longest encoded.
  [[nodiscard]] std::size_t longest_computed() const noexcept { return longest_computed_; }
  [[nodiscard]] std::size_t longest_encoded() const noexcept { return longest_encoded_; }

  /// Number of segments, and one of them. They are in the order of the message, without gaps.
  [[nodiscard]] std::size_t segments() const noexcept { return segments_; }
  [[nodiscard]] Segment segment(std::size_t index) const noexcept {
    const auto after = std::upper_bound(parts_.begin(), parts_.end(), index,
                                        [](std::size_t i, const Part& part) { return i < part.first_segment; });
    const Part& part = *(after - 1);
    const std::size_t before = index - part.first_segment;
    const std::size_t first = before * part.segment_elements;
    const std::size_t offset = before * part.segment_bytes;
    const bool last = before + 1 == part.segments();
    return {static_cast<std::size_t>(after - parts_.begin()) - 1, first,
            last ? part.count - first : part.segment_elements,    part.offset + offset,
            last ? part.bytes - offset : part.segment_bytes,      part.encoded};
  }

private:
  // Measured: what a segment needs of values, replicas and scratch fits into the second-level cache, and its fixed cost
  // does not show.
  static constexpr std::size_t wanted_elements = 8192;

  template <class E>
  static std::size_t granule(const E& exchange) noexcept {
    if constexpr (requires { exchange.codec; })
      return granule_of(exchange.codec);
    else
      return 0;
  }
  static std::size_t segment_elements(std::size_t granule, std::size_t count) noexcept {
    if (granule == 0) return count;
    return std::min(count, std::max(wanted_elements / granule, std::size_t{1}) * granule);
  }

  std::vector<Part> parts_;
  std::size_t bytes_ = 0;
  std::size_t segments_ = 0;
  std::size_t longest_computed_ = 0;
  std::size_t longest_encoded_ = 0;
};

}  // namespace kith::detail
