// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/cuda/resources.hpp>
#include <kith/exchange/device/staging.hpp>
#include <kith/numeric/compute_type.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// Where each buffer of a model stands in the messages between devices, and its replicas in theirs. What is encoded
/// goes into a message; the small buffers that are not, into one bucket for all messages.
class DeviceWireLayout {
public:
  static constexpr std::size_t not_encoded = std::numeric_limits<std::size_t>::max();

  template <class E>
  DeviceWireLayout(const E& exchange, std::span<const BufferView> buffers, std::size_t encode_from_bytes) {
    for (const BufferView& buffer : buffers) {
      const bool encoded = buffer.count > 0 && buffer.bytes() >= encode_from_bytes;
      offsets_.push_back(encoded ? bytes_ : not_encoded);
      replicas_.push_back(replica_bytes_);
      if (!encoded) {
        payload_ += buffer.bytes();
        continue;
      }
      const std::size_t wire = exchange.wire_bytes(buffer.count, buffer.dtype);
      const std::size_t computed = buffer.count * size_of(compute_dtype(buffer.dtype));
      payload_ += wire;
      bytes_ += round_up(wire, alignment);
      replica_bytes_ += round_up(computed, replica_alignment);
      most_computed_ = std::max(most_computed_, round_up(computed, alignment));
    }
  }

  [[nodiscard]] std::size_t buffers() const noexcept { return offsets_.size(); }
  [[nodiscard]] bool encoded(std::size_t buffer) const noexcept { return offsets_[buffer] != not_encoded; }
  /// Of a buffer's wire in a message, and of its values in a replica of the model.
  [[nodiscard]] std::size_t offset(std::size_t buffer) const noexcept { return offsets_[buffer]; }
  [[nodiscard]] std::size_t replica_offset(std::size_t buffer) const noexcept { return replicas_[buffer]; }
  /// Of a message; of a replica; of the longest buffer in it.
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] std::size_t replica_bytes() const noexcept { return replica_bytes_; }
  [[nodiscard]] std::size_t most_computed() const noexcept { return most_computed_; }
  /// What a message and the bucket say, without gaps: the bytes that the engines of the host send.
  [[nodiscard]] std::size_t payload_bytes() const noexcept { return payload_; }

  /// The buffers that are not encoded, the others empty: what the bucket is made from.
  [[nodiscard]] std::vector<BufferView> plain(std::span<const BufferView> buffers) const {
    std::vector<BufferView> result(buffers.begin(), buffers.end());
    for (std::size_t b = 0; b < result.size(); ++b)
      if (encoded(b)) result[b].count = 0;
    return result;
  }

private:
  static constexpr std::size_t alignment = DeviceLayout::alignment;
  static constexpr std::size_t replica_alignment = 64;

  static constexpr std::size_t round_up(std::size_t bytes, std::size_t to) noexcept {
    return (bytes + to - 1) / to * to;
  }

  std::vector<std::size_t> offsets_;
  std::vector<std::size_t> replicas_;
  std::size_t bytes_ = 0;
  std::size_t replica_bytes_ = 0;
  std::size_t most_computed_ = 0;
  std::size_t payload_ = 0;
};

/// How much of everything there is.
struct DeviceWireNumbers {
  std::size_t messages;  // of its own
  std::size_t slots;     // for those of the in-neighbours
  std::size_t replicas;
  std::size_t scratch_bytes;
};

/// The memory of an exchange that encodes, on a device. The replicas begin as zeros.
template <StreamOrdered C>
class DeviceWires {
public:
  DeviceWires(DeviceStaging<C>& staging, const DeviceWireLayout& layout, std::span<const BufferView> buffers,
              const DeviceWireNumbers& numbers)
      : DeviceWires(cuda::DeviceGuard{staging.engine().device()}, staging, layout, buffers, numbers) {}
  DeviceWires(const DeviceWires&) = delete;
  DeviceWires& operator=(const DeviceWires&) = delete;
  ~DeviceWires() {
    if (staging_.engine().quiesce()) return;
    table_.abandon();
    if (copy_table_) copy_table_->abandon();
    messages_.abandon();
    replicas_.abandon();
    scratch_.abandon();
    partials_.abandon();
  }

  [[nodiscard]] std::size_t bytes() const noexcept {
    return table_.bytes() + (copy_table_ ? copy_table_->bytes() : 0) + messages_.bytes() + replicas_.bytes() +
           scratch_.bytes() + partials_.bytes();
  }

  /// The buffers that are not encoded, as one: its own, and where that of in-neighbour k is received.
  [[nodiscard]] const cuda::Table& table() const noexcept { return staging_.aside() ? **copy_table_ : *table_; }
  [[nodiscard]] std::size_t bucket_bytes() const noexcept { return plain_.bucket_bytes(); }
  [[nodiscard]] std::byte* bucket() const noexcept { return messages_.data(); }
  [[nodiscard]] std::byte* bucket(std::size_t k) const noexcept { return slot(k) + message_bytes_; }
  /// Its own message m, and where that of in-neighbour k is received.
  [[nodiscard]] std::byte* message(std::size_t m) const noexcept {
    return messages_.data() + plain_.bytes() + m * message_bytes_;
  }
  [[nodiscard]] std::byte* slot(std::size_t k) const noexcept {
    return message(number_) + k * (message_bytes_ + plain_.bytes());
  }
  [[nodiscard]] const cuda::DeviceMemory& replicas() const noexcept { return replicas_; }
  [[nodiscard]] std::byte* scratch() const noexcept { return scratch_.data(); }
  [[nodiscard]] const cuda::Event& event() const noexcept { return event_; }
  [[nodiscard]] double* partials() const noexcept { return partials_.template as<double>(); }

  /// The buffers have moved. Rounds in flight are done.
  void rebind(const std::vector<BufferView>& plain) {
    if (plain_.bucket_bytes() > 0) table_ = DeviceTable{plain_, plain, staging_.engine().stream()};
  }

  /// Where those of the model's copy are, for rounds on it: see DeviceStaging::Aside.
  void add_copy(const std::vector<BufferView>& plain) {
    copy_table_.emplace(plain_, plain, staging_.engine().stream());
  }

private:
  DeviceWires(const cuda::DeviceGuard&, DeviceStaging<C>& staging, const DeviceWireLayout& layout,
              std::span<const BufferView> buffers, const DeviceWireNumbers& numbers)
      : staging_(staging),
        plain_(layout.plain(buffers), std::numeric_limits<std::size_t>::max()),
        message_bytes_(layout.bytes()),
        number_(numbers.messages),
        table_(plain_, layout.plain(buffers), staging.engine().stream()),
        messages_(plain_.bytes() + numbers.messages * message_bytes_ +
                  numbers.slots * (message_bytes_ + plain_.bytes())),
        replicas_(numbers.replicas * layout.replica_bytes()),
        scratch_(numbers.scratch_bytes),
        partials_(numbers.replicas > 0 ? cuda::distance_partials * sizeof(double) : 0) {
    // Gaps are sent too, and nobody writes them.
    clear(messages_);
    clear(replicas_);
  }
  void clear(const cuda::DeviceMemory& memory) {
    if (memory.bytes() > 0)
      cuda::check(cudaMemsetAsync(memory.data(), 0, memory.bytes(), staging_.engine().stream()), "clear memory");
  }

  DeviceStaging<C>& staging_;
  DeviceLayout plain_;
  std::size_t message_bytes_;
  std::size_t number_;
  DeviceTable table_;
  std::optional<DeviceTable> copy_table_;
  cuda::DeviceMemory messages_;
  cuda::DeviceMemory replicas_;
  cuda::DeviceMemory scratch_;
  cuda::DeviceMemory partials_;
  cuda::Event event_;
};

}  // namespace kith::detail
