// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <kith/averager/options.hpp>
#include <kith/error.hpp>
#include <kith/types.hpp>

namespace kith::detail {

/// Where an averager is in its schedule: equal on all ranks between calls.
struct Schedule {
  std::uint64_t calls = 0;  // of average()
  std::uint64_t due = 0;    // those of them that were due
  Round round = 0;          // gossip rounds performed: what the topology is asked for next
  double mixing = 1;
};

/// A call of the schedule: which one it is, and what it does.
struct DueCall {
  std::uint64_t call;
  std::uint64_t due;  // among the calls that do something
  bool is_due;
  bool globally;
};

/// The call that comes next.
[[nodiscard]] inline DueCall next_call(const Schedule& schedule, const AveragerOptions& options) noexcept {
  const Round call = schedule.calls + 1;
  if (call % options.every != 0) return {call, schedule.due, false, false};
  const Round due = schedule.due + 1;
  return {call, due, true,
          due <= options.warmup_rounds || (options.global_every > 0 && due % options.global_every == 0)};
}

/// The schedule goes on behind it.
inline void count_call(Schedule& schedule, const DueCall& done) noexcept {
  schedule.calls = done.call;
  schedule.due = done.due;
  if (done.is_due && !done.globally) ++schedule.round;
}

/// What two averagers must have in common for one to continue from the other's state.
struct Identity {
  std::string topology;
  std::string exchange;
  Rank size;
  std::uint64_t digest_of_layout;
};

/// What a blob begins with; the last character counts the format's versions.
inline constexpr std::string_view blob_magic = "kith-averager-2";

/// Writes values one after another.
class BlobWriter {
public:
  template <class V>
  void put(const V& value) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    blob_.insert(blob_.end(), bytes, bytes + sizeof value);
  }
  void put_text(std::string_view text) {
    put(static_cast<std::uint64_t>(text.size()));
    const auto* bytes = reinterpret_cast<const std::byte*>(text.data());
    blob_.insert(blob_.end(), bytes, bytes + text.size());
  }
  [[nodiscard]] std::vector<std::byte> take() { return std::move(blob_); }

private:
  std::vector<std::byte> blob_;
};

/// Reads them back, and refuses a blob that is too short or too long.
class BlobReader {
public:
  explicit BlobReader(std::span<const std::byte> blob) : rest_(blob) {}

  template <class V>
  [[nodiscard]] V get() {
    V value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  [[nodiscard]] std::string get_text() {
    const std::span<const std::byte> bytes = get_bytes();
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  [[nodiscard]] std::span<const std::byte> get_bytes() {
    const auto length = get<std::uint64_t>();
    if (length > rest_.size()) refuse();
    return take(static_cast<std::size_t>(length));
  }
  void end() const {
    if (!rest_.empty()) refuse();
  }
  [[noreturn]] static void refuse() { throw UsageError("restore: this is not a whole state of an averager"); }

private:
  std::span<const std::byte> take(std::size_t bytes) {
    if (bytes > rest_.size()) refuse();
    const std::span<const std::byte> taken = rest_.first(bytes);
    rest_ = rest_.subspan(bytes);
    return taken;
  }
  std::span<const std::byte> rest_;
};

/// The state of an averager as bytes, in the machine's own byte order.
[[nodiscard]] inline std::vector<std::byte> to_blob(const Identity& identity, const Schedule& schedule,
                                                    const Metrics& metrics, std::span<const std::byte> replicas = {}) {
  BlobWriter writer;
  writer.put_text(blob_magic);
  writer.put_text(identity.topology);
  writer.put_text(identity.exchange);
  writer.put(identity.size);
  writer.put(identity.digest_of_layout);
  writer.put(schedule);
  writer.put(metrics);
  writer.put_text({reinterpret_cast<const char*>(replicas.data()), replicas.size()});
  return writer.take();
}

/// What is in a blob; `replicas` lies in it.
struct State {
  Schedule schedule;
  Metrics metrics;
  std::span<const std::byte> replicas;
};

/// The reverse. Throws UsageError if the blob is not one, or belongs to another kind of averager.
[[nodiscard]] inline State from_blob(const Identity& identity, std::span<const std::byte> blob,
                                     std::size_t replica_bytes = 0) {
  BlobReader reader{blob};
  if (reader.get_text() != blob_magic) BlobReader::refuse();
  const auto require = [](std::string_view field, const std::string& theirs, const std::string& ours) {
    if (theirs != ours)
      throw UsageError("restore: the state is of an averager with " + std::string{field} + " " + theirs +
                       ", this one has " + ours);
  };
  require("topology", reader.get_text(), identity.topology);
  require("exchange", reader.get_text(), identity.exchange);
  require("size", std::to_string(reader.get<Rank>()), std::to_string(identity.size));
  if (reader.get<std::uint64_t>() != identity.digest_of_layout)
    throw UsageError("restore: the state is of an averager whose buffers had other counts or dtypes");
  State state{reader.get<Schedule>(), reader.get<Metrics>(), {}};
  state.replicas = reader.get_bytes();
  reader.end();
  if (state.replicas.size() != replica_bytes)
    throw UsageError("restore: the state is of an averager that encodes other buffers: see encode_from_bytes");
  const Schedule& schedule = state.schedule;
  if (!(schedule.mixing >= 0 && schedule.mixing <= 2)) BlobReader::refuse();  // no averager was ever in that state
  return state;
}

}  // namespace kith::detail
