// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include <kith/topology.hpp>
#include <kith/topology/any.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

#include "sweep.hpp"
#include "thread_group.hpp"

/// What a user would write without a library: plain loops between threads that read each other's vectors. They are
/// compiled with the flags of the build, as a user's would be. f32 and f64 only.
namespace bench::by_hand {

/// What the contestants of `round` work on: a rank's model, and whom it meets in the round that comes next.
struct RoundSubject {
  kith::BufferView model;
  const kith::AnyTopology& topology;
  const kith::Neighborhood& now;
  std::uint64_t seed;
};

/// Calls f with a pointer to the model's elements if they are of a type that the loops know.
template <class F>
void with_elements(const kith::BufferView& model, const F& f) {
  if (model.dtype == kith::DType::f32) f(static_cast<float*>(model.data));
  if (model.dtype == kith::DType::f64) f(static_cast<double*>(model.data));
}

/// y = w0*x + w1*r1 + w2*r2 + ..., fused over up to four peers at a time; peers beyond that are added afterwards.
/// y may be x.
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
      if (y != x) std::memcpy(y, x, count * sizeof(T));
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

/// The peers of a round, where their vectors lie, and their weights. To be filled again and again.
template <class T>
class Peers {
public:
  /// vector_of(k): where the vector of the k-th source lies.
  template <class VectorOf>
  void assign(const kith::Neighborhood& now, const VectorOf& vector_of) {
    vectors_.clear();
    weights_.clear();
    own_ = 1;
    for (const auto& source : now.sources()) {
      vectors_.push_back(vector_of(vectors_.size()));
      weights_.push_back(static_cast<T>(source.weight));
      own_ -= weights_.back();
    }
  }
  /// y = the average of x and the peers; y may be x.
  void average(T* y, const T* x, std::size_t count) const {
    weighted_sum(y, x, own_, vectors_.data(), weights_.data(), vectors_.size(), count);
  }

private:
  std::vector<const T*> vectors_;
  std::vector<T> weights_;
  T own_ = 1;
};

/// A gossip round: every rank sums into a second vector, all wait, every rank copies it back, all wait.
template <class T>
void round(ThreadGroup& group, const kith::Neighborhood& now, T* x, T* second, Peers<T>& peers, std::size_t count) {
  peers.assign(now, [&](std::size_t k) { return static_cast<const T*>(group.peer(now.sources()[k].rank)); });
  peers.average(second, x, count);
  group.barrier();
  std::memcpy(x, second, count * sizeof(T));
  group.barrier();
}

/// The mean of all ranks: each adds up one slice of everybody's vectors (reduce-scatter), all wait, each copies the
/// other slices (all-gather), all wait.
template <class T>
void all_reduce(ThreadGroup& group, T* x, std::size_t count) {
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

/// The contestants beside Kith in a line of `round`. Collective.
[[nodiscard]] inline std::vector<Contestant> rivals_of_round(ThreadGroup& group, const RoundSubject& round) {
  group.publish(round.model.data);
  Contestant loop{"by_hand", "by hand", round.model, {}, {}};
  with_elements(round.model, [&]<class T>(T* x) {
    const auto second = own_memory(round.model.bytes());
    const auto peers = std::make_shared<Peers<T>>();
    loop.call = [&group, &now = round.now, x, second, peers, count = round.model.count] {
      by_hand::round(group, now, x, static_cast<T*>(second.get()), *peers, count);
    };
  });
  return {loop};
}

/// Those of `allreduce`. Collective.
[[nodiscard]] inline std::vector<Contestant> rivals_of_all_reduce(ThreadGroup& group, const kith::BufferView& model,
                                                                  std::uint64_t) {
  group.publish(model.data);
  Contestant loop{"by_hand", "by hand", model, {}, {}};
  with_elements(model, [&]<class T>(T* x) {
    loop.call = [&group, x, count = model.count] { by_hand::all_reduce(group, x, count); };
  });
  return {loop};
}

}  // namespace bench::by_hand
