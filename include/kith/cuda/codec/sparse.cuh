// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include <kith/cuda/codec/parts.cuh>

// Codecs that keep a few values, bit for bit: RandomK, CyclicMask and TopK.

namespace kith::cuda::detail {

/// Which elements a wire stands for: by a rule, or by a list in it.
struct Kept {
  enum class Rule : std::uint8_t { cyclic, random, listed };

  std::uint64_t count = 0;
  std::uint64_t number = 0;
  std::uint64_t seed = 0;    // random: the round's key
  std::uint64_t round = 0;   // random: by how much the elements are moved
  std::uint64_t offset = 0;  // of the values in the wire
  Rule rule = Rule::cyclic;
  std::uint8_t index_bytes = 4;

  [[nodiscard]] __host__ __device__ std::uint64_t index(const std::byte* wire, std::uint64_t j) const {
    if (rule == Rule::listed)
      return index_bytes == 8 ? reinterpret_cast<const std::uint64_t*>(wire)[j]
                              : std::uint64_t{reinterpret_cast<const std::uint32_t*>(wire)[j]};
    // kith::detail::Strata
    const std::uint64_t size = count / number + (j < count % number ? 1 : 0);
    const std::uint64_t begin = j * (count / number) + smaller(j, count % number);
    const std::uint64_t drawn = split_mix(seed, j) % size;
    if (rule == Rule::cyclic) return begin + (drawn + round % size) % size;
    const std::uint64_t place = begin + drawn;
    return place < count - round ? place + round : place - (count - round);
  }
};

inline unsigned thread_tiles(std::uint64_t number) {
  return static_cast<unsigned>((number + block_threads - 1) / block_threads);
}

/// Writes the kept values of a mask, a thread for each.
template <class Real>
struct Gather {
  Input<Real> input;
  Kept kept;
  std::byte* wire;
  DType wire_dtype;

  [[nodiscard]] unsigned tiles() const { return thread_tiles(kept.number); }
  template <class V>
  void memory(V& v) {
    input.memory(v);
    v.writes(wire, kept.number * width_of(wire_dtype));
  }
  __host__ __device__ void run(unsigned tile) const {
    for_threads([&](unsigned thread) {
      const std::uint64_t j = std::uint64_t{tile} * block_threads + thread;
      if (j >= kept.number) return;
      const std::uint64_t i = kept.index(nullptr, j);
      const Real value = input.load(i);
      if (!is_finite(value)) input.report(i);
      store_number(wire_dtype, wire, j, value);
    });
  }
};

/// Puts kept values in their places, or adds them.
template <class Real>
struct Scatter {
  Kept kept;
  const std::byte* wire;
  void* values;
  const std::uint32_t* go;
  Real weight;
  DType dtype;
  DType wire_dtype;
  bool overwrite;

  [[nodiscard]] unsigned tiles() const { return thread_tiles(kept.number); }
  template <class V>
  void memory(V& v) {
    v.reads(go, sizeof *go);
    v.reads(wire, kept.offset + kept.number * width_of(wire_dtype));
    v.writes(values, kept.count * width_of(dtype));
  }
  __host__ __device__ void run(unsigned tile) const {
    if (!may_write(go)) return;
    for_threads([&](unsigned thread) {
      const std::uint64_t j = std::uint64_t{tile} * block_threads + thread;
      if (j >= kept.number) return;
      const std::uint64_t i = kept.index(wire, j);
      if (i >= kept.count) return;
      const Real value = load(j);
      store_number(dtype, values, i,
                   overwrite ? value : add(load_number<Real>(dtype, values, i), multiply(weight, value)));
    });
  }

private:
  // Behind 4-byte indices a double may not lie at a multiple of its size.
  [[nodiscard]] __host__ __device__ Real load(std::uint64_t j) const {
    const std::byte* const from = wire + kept.offset;
    if constexpr (sizeof(Real) == 8)
      return bits_as<Real>(load_bytes(from + j * 8, 8));
    else
      return load_number<Real>(wire_dtype, from, j);
  }
};

}  // namespace kith::cuda::detail
