// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

/// @file
/// Who touched which memory, and whether two accesses are ordered.
namespace kith::gpu_emulator::detail {

using StreamId = std::size_t;

/// By stream: operations up to this number come before. Streams beyond the end: none do.
using Clock = std::vector<std::uint64_t>;

inline std::uint64_t at(const Clock& clock, StreamId stream) { return stream < clock.size() ? clock[stream] : 0; }

inline void raise(Clock& clock, StreamId stream, std::uint64_t number) {
  if (clock.size() <= stream) clock.resize(stream + 1, 0);
  clock[stream] = std::max(clock[stream], number);
}

inline void join(Clock& into, const Clock& other) {
  if (into.size() < other.size()) into.resize(other.size(), 0);
  for (StreamId stream = 0; stream < other.size(); ++stream) into[stream] = std::max(into[stream], other[stream]);
}

/// One buffer of an operation. Parts of one operation run at the same time, so they may conflict with each other.
struct Access {
  const char* begin;
  std::size_t bytes;
  bool write;
  std::size_t part;
  std::string what;
};

/// An operation as the history knows it.
struct Moment {
  StreamId stream;
  std::uint64_t number;
  const Clock& before;  // includes the operation itself
  std::string where;    // for reports
};

/// The accesses to some memory that a later one may not be ordered after.
class History {
public:
  /// Reports each earlier access that conflicts with this one and is not ordered before it; then remembers this one.
  /// What `host` knows to have ended is forgotten: every later operation is enqueued by the host. So is what this
  /// access hides: whoever is unordered with the hidden one is unordered with this one too. That keeps the list short.
  void add(const Access& access, const Moment& moment, const Clock& host);

private:
  struct Record {
    const char* begin;
    const char* end;
    StreamId stream;
    std::uint64_t number;
    bool write;
    std::size_t part;
    std::string what;
  };
  std::vector<Record> records_;
};

}  // namespace kith::gpu_emulator::detail
