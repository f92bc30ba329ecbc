// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include <kith/topology.hpp>
#include <kith/types.hpp>

/// What a user would write without a library: plain loops between threads that read each other's vectors. They are
/// compiled with the flags of the build, as a user's would be.
namespace bench::by_hand {

/// y = w0*x + w1*r1 + w2*r2 + ..., fused over up to four peers at a time; peers beyond that are added afterwards.
template <class T>
void weighted_sum(T* y, const T* x, T own, const T* const* peers, const T* weights, std::size_t degree,
                  std::size_t count) {
  const T* const a = degree > 0 ? peers[0] : x;
  const T* const b = degree > 1 ? peers[1] : x;
  const T* const c = degree > 2 ? peers[2] : x;
  const T* const d = degree > 3 ? peers[3] : x;
  const T wa = degree > 0 ? weights[0] : T{0};
  const T wb = degree > 1 ? weights[1] : T{0};
  const T wc = degree > 2 ? weights[2] : T{0};
  const T wd = degree > 3 ? weights[3] : T{0};
  switch (std::min<std::size_t>(degree, 4)) {
    case 0:
      std::memcpy(y, x, count * sizeof(T));
      break;
    case 1:
      for (std::size_t i = 0; i < count; ++i) y[i] = own * x[i] + wa * a[i];
      break;
    case 2:
      for (std::size_t i = 0; i < count; ++i) y[i] = own * x[i] + wa * a[i] + wb * b[i];
      break;
    case 3:
      for (std::size_t i = 0; i < count; ++i) y[i] = own * x[i] + wa * a[i] + wb * b[i] + wc * c[i];
      break;
    default:
      for (std::size_t i = 0; i < count; ++i) y[i] = own * x[i] + wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i];
  }
  for (std::size_t k = 4; k < degree; ++k)
    for (std::size_t i = 0; i < count; ++i) y[i] += weights[k] * peers[k][i];
}

/// A gossip round: every rank sums into a second vector, all wait, every rank copies it back, all wait.
template <class T, class Group>
void round(Group& group, const std::vector<kith::Neighborhood::Source>& sources, T* x, T* second, std::size_t count) {
  std::vector<const T*> peers;
  std::vector<T> weights;
  T own = 1;
  for (const auto& source : sources) {
    peers.push_back(static_cast<const T*>(group.peer(source.rank)));
    weights.push_back(static_cast<T>(source.weight));
    own -= weights.back();
  }
  weighted_sum(second, x, own, peers.data(), weights.data(), peers.size(), count);
  group.barrier();
  std::memcpy(x, second, count * sizeof(T));
  group.barrier();
}

/// The mean of all ranks: each adds up one slice of everybody's vectors (reduce-scatter), all wait, each copies the
/// other slices (all-gather), all wait.
template <class T, class Group>
void all_reduce(Group& group, T* x, std::size_t count) {
  const auto size = static_cast<std::size_t>(group.size());
  const auto rank = static_cast<std::size_t>(group.rank());
  const auto begin_of = [&](std::size_t slice) { return count / size * slice + std::min(slice, count % size); };
  const auto vector_of = [&](std::size_t r) { return static_cast<const T*>(group.peer(static_cast<kith::Rank>(r))); };
  constexpr std::size_t block = 2048;  // elements that stay in the first-level cache while the ranks are added up
  const T scale = T{1} / static_cast<T>(size);
  for (std::size_t begin = begin_of(rank); begin < begin_of(rank + 1); begin += block) {
    const std::size_t length = std::min(block, begin_of(rank + 1) - begin);
    T* const sum = x + begin;
    for (std::size_t r = 0; r < size; ++r) {
      if (r == rank) continue;
      const T* const other = vector_of(r) + begin;
      for (std::size_t i = 0; i < length; ++i) sum[i] += other[i];
    }
    for (std::size_t i = 0; i < length; ++i) sum[i] *= scale;
  }
  group.barrier();
  for (std::size_t s = 0; s < size; ++s)
    if (s != rank)
      std::memcpy(x + begin_of(s), vector_of(s) + begin_of(s), (begin_of(s + 1) - begin_of(s)) * sizeof(T));
  group.barrier();
}

}  // namespace bench::by_hand
