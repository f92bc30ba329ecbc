// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <kith/averager/options.hpp>
#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/types.hpp>
#include <kith/version.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// A 64-bit digest of bytes (words mixed by multiplication and rotation). For telling things apart, not for secrets.
class Digest {
public:
  void add(std::uint64_t word) noexcept {
    state_ = std::rotl(state_ ^ (word * 0x9E3779B97F4A7C15u), 29) * 0xBF58476D1CE4E5B9u;
  }
  void add(const void* data, std::size_t bytes) noexcept {
    const auto* p = static_cast<const unsigned char*>(data);
    add(bytes);
    for (; bytes >= 8; p += 8, bytes -= 8) {
      std::uint64_t word;
      std::memcpy(&word, p, 8);
      add(word);
    }
    std::uint64_t rest = 0;
    if (bytes > 0) std::memcpy(&rest, p, bytes);
    add(rest);
  }
  void add(std::string_view text) noexcept { add(text.data(), text.size()); }

  [[nodiscard]] std::uint64_t value() const noexcept { return state_ ^ (state_ >> 32); }

private:
  std::uint64_t state_ = 0x94D049BB133111EBu;
};

/// Counts and dtypes of a model, for comparison.
[[nodiscard]] inline std::uint64_t digest_of_layout(std::span<const BufferView> buffers) noexcept {
  Digest digest;
  for (const BufferView& buffer : buffers) {
    digest.add(buffer.count);
    digest.add(static_cast<std::uint64_t>(buffer.dtype));
  }
  return digest.value();
}

/// Throws UsageError for buffers that overlap, or that are nowhere. `role` says what they are.
inline void require_distinct(std::span<const BufferView> buffers, std::string_view role = "buffer") {
  struct Extent {
    std::uintptr_t begin, end;
    std::size_t index;
  };
  std::vector<Extent> extents;
  for (std::size_t b = 0; b < buffers.size(); ++b) {
    const BufferView& buffer = buffers[b];
    if (buffer.count == 0) continue;
    const std::string name = std::string{role} + " " + std::to_string(b);
    if (size_of(buffer.dtype) == 0) throw UsageError(name + " has no valid dtype");
    if (buffer.data == nullptr)
      throw UsageError(name + " has " + std::to_string(buffer.count) + " elements at a null pointer");
    if (buffer.count > (SIZE_MAX / 2) / size_of(buffer.dtype))
      throw UsageError(name + " has " + std::to_string(buffer.count) + " elements: more than there is memory");
    const auto begin = reinterpret_cast<std::uintptr_t>(buffer.data);
    extents.push_back({begin, begin + buffer.bytes(), b});
  }
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  for (std::size_t i = 1; i < extents.size(); ++i)
    if (extents[i].begin < extents[i - 1].end)
      throw UsageError(std::string{role} + "s " + std::to_string(std::min(extents[i - 1].index, extents[i].index)) +
                       " and " + std::to_string(std::max(extents[i - 1].index, extents[i].index)) +
                       " overlap: tied parameters would be averaged twice. Give each memory once");
}

/// What a rank was given at construction, in a form that ranks can compare.
struct Proposal {
  std::uint64_t digest_of_topology = 0;
  std::uint64_t digest_of_exchange = 0;
  std::uint64_t buffers = 0;
  std::uint64_t digest_of_layout = 0;
  std::uint64_t every = 0;
  std::uint64_t warmup_rounds = 0;
  std::uint64_t global_every = 0;
  std::uint64_t bucket_bytes = 0;
  std::uint64_t encode_from_bytes = 0;
  double mixing = 0;
  double deadline = 0;
  std::int32_t version = kith::version;
  std::int32_t check_finite = 0;
  std::array<char, 64> topology{};
  std::array<char, 64> exchange{};
  std::array<char, 256> refusal{};  // why this rank cannot take part; empty = it can

  static void write(std::span<char> field, std::string_view text) noexcept {
    std::fill(field.begin(), field.end(), '\0');
    std::copy_n(text.begin(), std::min(text.size(), field.size() - 1), field.begin());
  }
  static std::string read(std::span<const char> field) {
    return std::string(field.begin(), std::find(field.begin(), field.end(), '\0'));
  }
};

[[nodiscard]] inline Proposal propose(std::string_view topology, std::string_view exchange,
                                      std::span<const BufferView> buffers, const AveragerOptions& options) {
  Proposal mine;
  Digest of_topology;
  of_topology.add(topology);
  mine.digest_of_topology = of_topology.value();
  Digest of_exchange;
  of_exchange.add(exchange);
  mine.digest_of_exchange = of_exchange.value();
  Proposal::write(mine.topology, topology);
  Proposal::write(mine.exchange, exchange);
  mine.buffers = buffers.size();
  mine.digest_of_layout = digest_of_layout(buffers);
  mine.every = options.every;
  mine.warmup_rounds = options.warmup_rounds;
  mine.global_every = options.global_every;
  mine.bucket_bytes = options.bucket_bytes;
  mine.encode_from_bytes = options.encode_from_bytes;
  mine.mixing = options.mixing;
  mine.deadline = options.deadline.count();
  mine.check_finite = options.check_finite ? (*options.check_finite ? 1 : 0) : -1;
  return mine;
}

/// The first field in which two proposals differ, with both values: "topology: ring against torus:2x2"; empty if none.
[[nodiscard]] inline std::string difference(const Proposal& a, const Proposal& b) {
  const auto against = [](std::string_view field, const std::string& left, const std::string& right) {
    return std::string{field} + ": " + left + " against " + right;
  };
  if (a.version != b.version) return against("library version", std::to_string(a.version), std::to_string(b.version));
  if (a.digest_of_topology != b.digest_of_topology)
    return against("topology", Proposal::read(a.topology), Proposal::read(b.topology));
  if (a.digest_of_exchange != b.digest_of_exchange)
    return against("exchange", Proposal::read(a.exchange), Proposal::read(b.exchange));
  if (a.buffers != b.buffers) return against("number of buffers", std::to_string(a.buffers), std::to_string(b.buffers));
  const auto number = [&](std::string_view field, auto left, auto right) {
    return left == right ? std::string{} : against(field, std::to_string(left), std::to_string(right));
  };
  for (const std::string& found :
       {number("option mixing", a.mixing, b.mixing), number("option every", a.every, b.every),
        number("option warmup_rounds", a.warmup_rounds, b.warmup_rounds),
        number("option global_every", a.global_every, b.global_every),
        number("option deadline", a.deadline, b.deadline),
        number("option bucket_bytes", a.bucket_bytes, b.bucket_bytes),
        number("option encode_from_bytes", a.encode_from_bytes, b.encode_from_bytes),
        number("option check_finite (-1 = default)", a.check_finite, b.check_finite)})
    if (!found.empty()) return found;
  return {};
}

/// A buffer as ranks compare it.
struct BufferRecord {
  std::uint64_t count;
  std::uint64_t dtype;
  std::uint64_t address;
  std::uint64_t bytes;
};

template <Communicator C, class T>
[[nodiscard]] std::vector<T> gather(C& communicator, const Call& call, std::span<const T> mine) {
  std::vector<T> all(mine.size() * static_cast<std::size_t>(communicator.size()));
  communicator.all_gather(call, std::as_bytes(mine), std::as_writable_bytes(std::span{all}));
  return all;
}

/// Compares the buffers one by one, and between threads also their places: two ranks that name the same memory would
/// average a model with itself. Collective; every rank reaches the same verdict.
template <Communicator C>
void agree_on_buffers(C& communicator, const Call& call, std::span<const BufferView> buffers) {
  std::vector<BufferRecord> mine;
  for (const BufferView& buffer : buffers)
    mine.push_back({buffer.count, static_cast<std::uint64_t>(buffer.dtype),
                    reinterpret_cast<std::uintptr_t>(buffer.data), buffer.bytes()});
  const auto all = gather(communicator, call, std::span<const BufferRecord>{mine});
  const std::size_t n = buffers.size();
  const auto describe = [](const BufferRecord& r) {
    return std::to_string(r.count) + " elements of " + std::string{to_string(static_cast<DType>(r.dtype))};
  };
  for (std::size_t i = n; i < all.size(); ++i)
    if (all[i].count != all[i % n].count || all[i].dtype != all[i % n].dtype)
      throw UsageError("rank " + std::to_string(i / n) + " differs from rank 0 in buffer " + std::to_string(i % n) +
                       ": " + describe(all[i]) + " against " + describe(all[i % n]));
  if constexpr (SharedAddressSpace<C>) {
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < all.size(); ++i)
      if (all[i].bytes > 0) order.push_back(i);
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return all[a].address < all[b].address; });
    for (std::size_t i = 1; i < order.size(); ++i)
      if (all[order[i]].address < all[order[i - 1]].address + all[order[i - 1]].bytes)
        throw UsageError("ranks " + std::to_string(std::min(order[i], order[i - 1]) / n) + " and " +
                         std::to_string(std::max(order[i], order[i - 1]) / n) +
                         " gave memory that overlaps: each rank has a model of its own");
  }
}

/// @brief Makes sure that all ranks were given the same things, and that each of them can take part.
///
/// Collective, with two small all-gathers. A rank that must refuse (`refusal` not empty) still comes here, so that all
/// ranks learn of it at once.
/// @throws UsageError on every rank, naming the first rank that refuses or differs, and what differs.
template <Communicator C>
void agree(C& communicator, Call call, Proposal mine, std::string_view refusal, std::span<const BufferView> buffers) {
  Proposal::write(mine.refusal, refusal);
  call.what = "construction";
  const auto all = gather(communicator, call, std::span<const Proposal>{&mine, 1});
  for (std::size_t r = 0; r < all.size(); ++r)
    if (all[r].refusal[0] != '\0')  // the whole text on the rank itself, as much of it as fits elsewhere
      throw UsageError(
          "rank " + std::to_string(r) + " cannot take part: " +
          (static_cast<Rank>(r) == communicator.rank() ? std::string{refusal} : Proposal::read(all[r].refusal)));
  for (std::size_t r = 1; r < all.size(); ++r)
    if (const std::string field = difference(all[r], all[0]); !field.empty())
      throw UsageError("rank " + std::to_string(r) + " differs from rank 0 in " + field);
  const bool same_layout = std::all_of(
      all.begin(), all.end(), [&](const Proposal& p) { return p.digest_of_layout == all[0].digest_of_layout; });
  if (!same_layout || SharedAddressSpace<C>) {
    call.what = "comparison of buffers";
    agree_on_buffers(communicator, call, buffers);
  }
}

}  // namespace kith::detail
