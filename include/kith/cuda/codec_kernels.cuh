// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <kith/cuda/codec/absmax_block.cuh>
#include <kith/cuda/codec/apply.cuh>
#include <kith/cuda/codec/cast.cuh>
#include <kith/cuda/codec/min_max_uint8.cuh>
#include <kith/cuda/codec/parts.cuh>
#include <kith/cuda/codec/sparse.cuh>
#include <kith/cuda/codec/sums.cuh>
#include <kith/cuda/codec/top_k.cuh>
#include <kith/cuda/codec_kernels.hpp>
#include <kith/numeric/counter_rng.hpp>

// The definitions behind kith/cuda/codec_kernels.hpp. They are weak, as those of kith/cuda/kernels.cuh.

namespace kith::cuda::detail {

using Family = DeviceCodec::Family;

template <class Kernel>
inline cudaError_t launch(const Kernel& kernel, cudaStream_t stream) {
  return enqueue(codec_kernel<Kernel>, kernel, kernel.tiles(), stream);
}

/// One kernel after another, until one is refused.
template <class... Kernels>
inline cudaError_t launch_all(cudaStream_t stream, const Kernels&... kernels) {
  cudaError_t error = cudaSuccess;
  ((error = error == cudaSuccess ? launch(kernels, stream) : error), ...);
  return error;
}

/// Calls f.operator()<Real>() for what a dtype is computed in.
template <class F>
inline cudaError_t with_real(DType dtype, const F& f) {
  if (size_of(dtype) == 0) return cudaErrorInvalidValue;
  return dtype == DType::f64 ? f.template operator()<double>() : f.template operator()<float>();
}

inline bool possible(const DeviceCodec& codec, std::uint64_t count) {
  switch (codec.family) {
    case Family::cast:
      return codec.to == DType::f16 || codec.to == DType::bf16;
    case Family::absmax_block:
      return codec.block > 0 && codec.block % lane_elements == 0;
    case Family::min_max:
      return codec.block % lane_elements == 0 || codec.block >= count;
    case Family::sign_mean:
      return true;
    case Family::qsgd:
      return codec.levels >= 1 && codec.levels <= 127;
    case Family::random_k:
    case Family::cyclic_mask:
    case Family::top_k:
      return codec.kept <= count && (codec.kept > 0 || count == 0);
  }
  return false;
}

inline bool sparse(const DeviceCodec& codec) { return codec.family >= Family::random_k; }

/// Whether a wire's numbers can be of a dtype, for values of another: they are computed in the same type.
inline bool matching(DType dtype, DType wire_dtype) { return (dtype == DType::f64) == (wire_dtype == DType::f64); }

inline Kept kept_by(const DeviceCodec& codec, std::uint64_t count, std::uint64_t round) {
  Kept kept;
  kept.count = count;
  kept.number = codec.kept;
  kept.seed = codec.seed;
  kept.round = round;
  if (codec.family == Family::random_k && count > 0) {
    kept.rule = Kept::Rule::random;
    kept.seed = CounterRng{codec.seed}.bits(round);
    kept.round = CounterRng{codec.seed}.bits(round, 1) % count;
  } else if (codec.family == Family::top_k) {
    kept.rule = Kept::Rule::listed;
    kept.index_bytes = top_k_index_bytes(count);
    kept.offset = codec.kept * kept.index_bytes;
  }
  return kept;
}

inline std::uint32_t noisy_header(DType wire_dtype) { return 8 + width_of(wire_dtype); }

template <class Real>
inline cudaError_t encode_levels(const DeviceCodec& codec, const Encoding& e, const Input<Real>& input,
                                 cudaStream_t stream) {
  const Chunks chunks{codec.block, e.count};
  auto* const wire = static_cast<std::byte*>(e.wire);
  const BoundsAt<Real> bounds{wire + Chunks::align / 2, Chunks::bytes(chunks.size.by)};
  return launch_all(stream, ChunkHeaders<Real>{bounds, wire, chunks, e.wire_dtype, false},
                    FindBounds<Real>{input, bounds, chunks},
                    ChunkHeaders<Real>{bounds, wire, chunks, e.wire_dtype, true},
                    EncodeLevels<Real>{input, wire, chunks, e.wire_dtype});
}

template <class Real>
inline cudaError_t encode_signs(const Encoding& e, const Input<Real>& input, cudaStream_t stream) {
  auto* const wire = static_cast<std::byte*>(e.wire);
  auto* const total = static_cast<double*>(e.scratch);
  double* const sums = total + 2;
  const SumTiles<Real> tiles{input, sums, nullptr, nullptr, Term::magnitude};
  const FinishSum<Real> sum{sums, total, wire, nullptr, e.count, e.wire_dtype, Term::magnitude};
  cudaError_t error = launch_all(stream, tiles, sum);
  if (sizeof(Real) == 8 && error == cudaSuccess) {  // those of doubles may overflow
    SumTiles<Real> again = tiles;
    again.before = total;
    again.term = Term::scaled;
    FinishSum<Real> scaled = sum;
    scaled.term = Term::scaled;
    error = launch_all(stream, again, scaled);
  }
  return error == cudaSuccess ? launch(EncodeSigns<Real>{input, wire}, stream) : error;
}

template <class Real>
inline cudaError_t encode_noisy(const DeviceCodec& codec, const Encoding& e, const Input<Real>& input,
                                cudaStream_t stream) {
  auto* const wire = static_cast<std::byte*>(e.wire);
  const Chunks whole{0, e.count};
  const BoundsAt<Real> at{static_cast<std::byte*>(e.scratch), 0};
  auto* const bounds = static_cast<Bounds<Real>*>(e.scratch);
  double* const sums = static_cast<double*>(e.scratch) + 2;
  const std::uint64_t key = splitmix64(CounterRng{codec.seed}.bits(e.round, e.buffer), e.rank);
  return launch_all(stream, ChunkHeaders<Real>{at, nullptr, whole, e.wire_dtype, false},
                    FindBounds<Real>{input, at, whole}, SumTiles<Real>{input, sums, bounds, nullptr, Term::square},
                    FinishSum<Real>{sums, nullptr, wire, bounds, e.count, e.wire_dtype, Term::square},
                    EncodeNoisy<Real>{input, wire, bounds, key, codec.levels, noisy_header(e.wire_dtype)});
}

template <class Real>
inline cudaError_t encode_as(const DeviceCodec& codec, const Encoding& e, cudaStream_t stream) {
  const Input<Real> input{e.values, static_cast<const Real*>(e.minus), e.count, e.finding, e.buffer, e.dtype};
  auto* const wire = static_cast<std::byte*>(e.wire);
  switch (codec.family) {
    case Family::cast:
      return launch(EncodeCast<Real>{input, static_cast<std::uint16_t*>(e.wire), codec.to}, stream);
    case Family::absmax_block:
      return launch(EncodeBlocks<Real>{input,
                                       wire,
                                       {codec.block, e.count, e.wire_dtype, codec.nibbles},
                                       EncodeBlocks<Real>::lanes_for(codec.block, e.count)},
                    stream);
    case Family::min_max:
      return encode_levels(codec, e, input, stream);
    case Family::sign_mean:
      return encode_signs(e, input, stream);
    case Family::qsgd:
      return encode_noisy(codec, e, input, stream);
    case Family::random_k:
    case Family::cyclic_mask:
      return launch(Gather<Real>{input, kept_by(codec, e.count, e.round), wire, e.wire_dtype}, stream);
    case Family::top_k:
      return encode_top_k(codec.kept, e, input, [&](const auto& kernel) { return launch(kernel, stream); });
  }
  return cudaErrorInvalidValue;
}

/// Calls f(decoder) with that of a codec whose wires stand for all values.
template <class Real, class F>
inline cudaError_t with_decoder(const DeviceCodec& codec, std::uint64_t count, DType dtype, DType wire_dtype,
                                const F& f) {
  switch (codec.family) {
    case Family::cast:
      return f(CastDecoder<Real>{codec.to, largest_number<Real>(dtype)});
    case Family::absmax_block:
      return f(BlockDecoder<Real>{{codec.block, count, wire_dtype, codec.nibbles}});
    case Family::min_max:
      return f(LevelsDecoder<Real>{{codec.block, count}, wire_dtype, largest_number<Real>(dtype)});
    case Family::sign_mean:
      return f(SignDecoder<Real>{});
    case Family::qsgd:
      return f(NoisyDecoder<Real>{codec.levels, noisy_header(wire_dtype), wire_dtype, largest_number<double>(dtype)});
    default:
      return f(NoDecoder<Real>{});
  }
}

/// `limits`: the dtype that decoded values must fit into.
template <class Real>
inline cudaError_t apply_as(const DeviceCodec& codec, const Application& a, Real* target, DType wire_dtype,
                            DType limits, cudaStream_t stream) {
  const auto run = [&]<class Decoder>(const Decoder& decoder) {
    static_assert(sizeof(Apply<Real, Decoder>) <= 4096);  // of arguments, which every driver allows
    Apply<Real, Decoder> kernel{};
    kernel.decoder = decoder;
    kernel.values = a.values;
    kernel.target = target;
    kernel.count = a.count;
    kernel.go = a.go;
    kernel.factor = static_cast<Real>(a.factor);
    kernel.edges = static_cast<std::uint32_t>(a.edges.size());
    kernel.dtype = a.dtype;
    kernel.formula = a.formula;
    kernel.overwrite = a.overwrite;
    for (std::size_t k = 0; k < a.edges.size(); ++k)
      kernel.edge[k] = {static_cast<const std::byte*>(a.edges[k].wire), static_cast<Real*>(a.edges[k].replica),
                        static_cast<Real>(a.edges[k].weight)};
    return launch(kernel, stream);
  };
  return with_decoder<Real>(codec, a.count, limits, wire_dtype, run);
}

template <class Real>
inline cudaError_t scatter_as(const DeviceCodec& codec, const Decoding& d, double weight, bool overwrite,
                              const std::uint32_t* go, cudaStream_t stream) {
  return launch(Scatter<Real>{kept_by(codec, d.count, d.round), static_cast<const std::byte*>(d.wire), d.values, go,
                              static_cast<Real>(weight), d.dtype, d.wire_dtype, overwrite},
                stream);
}

inline bool usable(const DeviceCodec& codec, const Decoding& d) {
  return usable(d.dtype, d.values, d.count) && possible(codec, d.count) && matching(d.dtype, d.wire_dtype) &&
         (d.count == 0 || (d.wire != nullptr && misalignment(d.wire) == 0));
}

inline bool usable(const Application& a) {
  return (a.values == nullptr || usable(a.dtype, a.values, a.count)) && size_of(a.dtype) != 0 && !a.edges.empty() &&
         a.edges.size() <= max_edges;
}

inline DType real_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

}  // namespace kith::cuda::detail

namespace kith::cuda {

[[gnu::weak]] std::size_t encode_scratch_bytes(const DeviceCodec& codec, std::uint64_t count, DType dtype) {
  switch (codec.family) {
    case DeviceCodec::Family::sign_mean:
    case DeviceCodec::Family::qsgd:
      return 16 + detail::sum_tiles(count) * sizeof(double);
    case DeviceCodec::Family::top_k:
      return detail::top_k_scratch_bytes(count, dtype);
    default:
      return 0;
  }
}

[[gnu::weak]] cudaError_t encode(const DeviceCodec& codec, const Encoding& e, cudaStream_t stream) {
  if (!detail::usable(e.dtype, e.values, e.count) || !detail::possible(codec, e.count) ||
      !detail::matching(e.dtype, e.wire_dtype) || e.finding == nullptr)
    return cudaErrorInvalidValue;
  if (e.count == 0) return cudaSuccess;
  if (e.wire == nullptr || detail::misalignment(e.wire) != 0 ||
      (e.scratch == nullptr && encode_scratch_bytes(codec, e.count, e.dtype) > 0))
    return cudaErrorInvalidValue;
  return detail::with_real(e.dtype, [&]<class Real>() { return detail::encode_as<Real>(codec, e, stream); });
}

[[gnu::weak]] cudaError_t decode(const DeviceCodec& codec, const Decoding& d, cudaStream_t stream) {
  if (!detail::usable(codec, d)) return cudaErrorInvalidValue;
  if (d.count == 0) return cudaSuccess;
  if (detail::sparse(codec)) {
    const cudaError_t error = cudaMemsetAsync(d.values, 0, d.count * size_of(d.dtype), stream);
    return error == cudaSuccess ? scatter(codec, d, nullptr, stream) : error;
  }
  const Edge edge{d.wire, nullptr, 1};
  const Application a{d.values, d.count, d.dtype, {&edge, 1}, Formula::first, 1, true, nullptr};
  return detail::with_real(
      d.dtype, [&]<class Real>() { return detail::apply_as<Real>(codec, a, nullptr, d.wire_dtype, d.dtype, stream); });
}

[[gnu::weak]] cudaError_t decode_add(const DeviceCodec& codec, double weight, const Decoding& d,
                                     const std::uint32_t* go, cudaStream_t stream) {
  if (!detail::usable(codec, d)) return cudaErrorInvalidValue;
  if (d.count == 0) return cudaSuccess;
  const Edge edge{d.wire, nullptr, 1};
  const Application a{d.values, d.count, d.dtype, {&edge, 1}, Formula::first, weight, false, go};
  return detail::with_real(d.dtype, [&]<class Real>() {
    if (detail::sparse(codec)) return detail::scatter_as<Real>(codec, d, weight, false, go, stream);
    return detail::apply_as<Real>(codec, a, nullptr, d.wire_dtype, d.dtype, stream);
  });
}

[[gnu::weak]] cudaError_t scatter(const DeviceCodec& mask, const Decoding& d, const std::uint32_t* go,
                                  cudaStream_t stream) {
  if (!detail::usable(mask, d) || !detail::sparse(mask)) return cudaErrorInvalidValue;
  return detail::with_real(d.dtype,
                           [&]<class Real>() { return detail::scatter_as<Real>(mask, d, 1, true, go, stream); });
}

[[gnu::weak]] cudaError_t apply(const DeviceCodec& codec, const Application& a, cudaStream_t stream) {
  bool decodes = false;
  for (const Edge& edge : a.edges) {
    decodes = decodes || edge.wire != nullptr;
    if (edge.wire == nullptr ? edge.replica == nullptr : detail::misalignment(edge.wire) != 0)
      return cudaErrorInvalidValue;
  }
  if (!detail::usable(a) || !detail::possible(codec, a.count) || (decodes && detail::sparse(codec)))
    return cudaErrorInvalidValue;
  const DType real = detail::real_dtype(a.dtype);
  return detail::with_real(a.dtype,
                           [&]<class Real>() { return detail::apply_as<Real>(codec, a, nullptr, real, real, stream); });
}

[[gnu::weak]] cudaError_t step_difference(const Application& a, void* target, cudaStream_t stream) {
  if (!detail::usable(a) || a.values == nullptr || target == nullptr) return cudaErrorInvalidValue;
  DeviceCodec none;
  none.family = DeviceCodec::Family::top_k;  // nothing to decode
  const DType real = detail::real_dtype(a.dtype);
  return detail::with_real(a.dtype, [&]<class Real>() {
    return detail::apply_as<Real>(none, a, static_cast<Real*>(target), real, real, stream);
  });
}

[[gnu::weak]] cudaError_t set_replicas(DType dtype, const void* values, std::uint64_t count, void* replicas,
                                       std::uint64_t stride, std::uint32_t number, const std::uint32_t* go,
                                       cudaStream_t stream) {
  if (!detail::usable(dtype, values, count) || (count > 0 && replicas == nullptr) || number == 0)
    return cudaErrorInvalidValue;
  return detail::with_real(dtype, [&]<class Real>() {
    return detail::launch(
        detail::SetReplicas<Real>{values, static_cast<Real*>(replicas), count, stride, go, number, dtype}, stream);
  });
}

[[gnu::weak]] cudaError_t replica_distance(DType dtype, const void* values, const void* replica, std::uint64_t count,
                                           double* partials, cudaStream_t stream) {
  if (!detail::usable(dtype, values, count) || (count > 0 && replica == nullptr) || partials == nullptr)
    return cudaErrorInvalidValue;
  const unsigned blocks = std::min(detail::dense_tiles(count), 1024U);
  return detail::with_real(dtype, [&]<class Real>() {
    return detail::launch(
        detail::ReplicaDistance<Real>{values, static_cast<const Real*>(replica), count, partials, blocks, dtype},
        stream);
  });
}

}  // namespace kith::cuda
