// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include <kith/cuda/codec/parts.cuh>
#include <kith/cuda/codec_kernels.hpp>

// What becomes of wires: values and replicas are read and written once, however many wires there are.

namespace kith::cuda::detail {

/// For wires that have been added to replicas already.
template <class Real>
struct NoDecoder {
  [[nodiscard]] static std::uint64_t wire_bytes(std::uint64_t /*count*/) { return 0; }
  __host__ __device__ void decode(const std::byte*, std::uint64_t, unsigned, Real (&)[lane_elements]) const {}
};

template <class Real>
struct EdgeOf {
  const std::byte* wire;
  Real* replica;
  Real weight;
};

template <class Real>
inline constexpr DType dtype_of_real = sizeof(Real) == 8 ? DType::f64 : DType::f32;

/// See kith::cuda::apply. With a target, step_difference().
template <class Real, class Decoder>
struct Apply {
  Decoder decoder;
  void* values;
  Real* target;
  std::uint64_t count;
  const std::uint32_t* go;
  Real factor;
  std::uint32_t edges;
  DType dtype;
  Formula formula;
  bool overwrite;
  EdgeOf<Real> edge[max_edges];

  [[nodiscard]] unsigned tiles() const { return dense_tiles(count); }
  template <class V>
  void memory(V& v) {
    v.reads(go, sizeof *go);
    v.reads(values, count * width_of(dtype));
    if (target == nullptr) v.writes(values, count * width_of(dtype));
    v.writes(target, count * sizeof(Real));
    for (std::uint32_t k = 0; k < edges; ++k) {
      v.reads(edge[k].wire, decoder.wire_bytes(count));
      if (edge[k].wire != nullptr)
        v.writes(edge[k].replica, count * sizeof(Real));
      else
        v.reads(edge[k].replica, count * sizeof(Real));
    }
  }

  __host__ __device__ void run(unsigned tile) const {
    if (!may_write(go)) return;
    for_threads([&](unsigned thread) {
      const std::uint64_t i = (std::uint64_t{tile} * block_threads + thread) * lane_elements;
      const unsigned n = lane_count(i, count);
      if (n == 0) return;
      Real x[lane_elements] = {};  // before all else: more loads in flight
      if (values != nullptr && !overwrite) load_lane(dtype, values, i, n, x);
      Real first[lane_elements] = {};
      Real sum[lane_elements] = {};
      KITH_CUDA_NO_UNROLL
      for (std::uint32_t k = 0; k < edges; ++k) {
        Real v[lane_elements] = {};
        value_of(edge[k], i, n, v);
        if (k == 0) {
          KITH_CUDA_UNROLL
          for (unsigned j = 0; j < lane_elements; ++j) first[j] = v[j];
          if (formula != Formula::weighted) continue;
        }
        KITH_CUDA_UNROLL
        for (unsigned j = 0; j < lane_elements; ++j)
          sum[j] =
              add(sum[j], multiply(edge[k].weight, formula == Formula::differences ? subtract(v[j], first[j]) : v[j]));
      }
      if (formula == Formula::first) {
        KITH_CUDA_UNROLL
        for (unsigned j = 0; j < lane_elements; ++j) sum[j] = first[j];
      }
      write(i, n, x, first, sum);
    });
  }

private:
  __host__ __device__ void value_of(const EdgeOf<Real>& from, std::uint64_t i, unsigned n,
                                    Real (&v)[lane_elements]) const {
    if (from.wire != nullptr) decoder.decode(from.wire, i, n, v);
    if (from.replica == nullptr) return;
    Real replica[lane_elements];
    load_lane(dtype_of_real<Real>, from.replica, i, n, replica);
    KITH_CUDA_UNROLL
    for (unsigned j = 0; j < lane_elements; ++j) v[j] = from.wire != nullptr ? add(replica[j], v[j]) : replica[j];
    if (from.wire != nullptr) store_lane(dtype_of_real<Real>, from.replica, i, n, v);
  }
  __host__ __device__ void write(std::uint64_t i, unsigned n, const Real (&x)[lane_elements],
                                 const Real (&first)[lane_elements], Real (&sum)[lane_elements]) const {
    if (values == nullptr) return;
    if (!overwrite) {
      KITH_CUDA_UNROLL
      for (unsigned j = 0; j < lane_elements; ++j)
        sum[j] = add(target == nullptr ? x[j] : subtract(x[j], first[j]), multiply(factor, sum[j]));
    }
    if (target == nullptr)
      store_lane(dtype, values, i, n, sum);
    else
      store_lane(dtype_of_real<Real>, target, i, n, sum);
  }
};

/// See kith::cuda::set_replicas.
template <class Real>
struct SetReplicas {
  const void* values;
  Real* replicas;
  std::uint64_t count;
  std::uint64_t stride;
  const std::uint32_t* go;
  std::uint32_t number;
  DType dtype;

  [[nodiscard]] unsigned tiles() const { return dense_tiles(count); }
  template <class V>
  void memory(V& v) {
    v.reads(go, sizeof *go);
    v.reads(values, count * width_of(dtype));
    v.writes(replicas, ((number - 1) * stride + count) * sizeof(Real));
  }
  __host__ __device__ void run(unsigned tile) const {
    if (!may_write(go)) return;
    for_threads([&](unsigned thread) {
      const std::uint64_t i = (std::uint64_t{tile} * block_threads + thread) * lane_elements;
      const unsigned n = lane_count(i, count);
      Real x[lane_elements];
      if (n == 0) return;
      load_lane(dtype, values, i, n, x);
      for (std::uint32_t k = 0; k < number; ++k) store_lane(dtype_of_real<Real>, replicas + k * stride, i, n, x);
    });
  }
};

/// See kith::cuda::replica_distance. Its grid has as many blocks as there are partials, or fewer.
template <class Real>
struct ReplicaDistance {
  const void* values;
  const Real* replica;
  std::uint64_t count;
  double* partials;
  std::uint32_t blocks;
  DType dtype;

  [[nodiscard]] unsigned tiles() const { return blocks; }
  template <class V>
  void memory(V& v) {
    v.reads(values, count * width_of(dtype));
    v.reads(replica, count * sizeof(Real));
    v.writes(partials, blocks * sizeof(double));
  }
  __host__ __device__ void run(unsigned block) const {
    PerThread<double> sums;
    for_threads([&](unsigned thread) {
      double sum = 0;
      for (std::uint64_t i = (std::uint64_t{block} * block_threads + thread) * lane_elements; i < count;
           i += std::uint64_t{blocks} * dense_tile) {
        const unsigned n = lane_count(i, count);
        Real x[lane_elements];
        Real r[lane_elements];
        load_lane(dtype, values, i, n, x);
        load_lane(dtype_of_real<Real>, replica, i, n, r);
        KITH_CUDA_UNROLL
        for (unsigned j = 0; j < lane_elements; ++j) {
          const auto difference = static_cast<double>(subtract(x[j], r[j]));
          sum = add(sum, multiply(difference, difference));
        }
      }
      sums[thread] = sum;
    });
    block_fold(sums);
    for_threads([&](unsigned thread) {
      if (thread == 0) partials[block] = add(partials[block], sums[0]);
    });
  }
};

}  // namespace kith::cuda::detail
