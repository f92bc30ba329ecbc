// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <cuda_runtime_api.h>

#include <kith/cuda/arguments.hpp>
#include <kith/types.hpp>

/// @file
/// The codecs on a device, as functions that every C++ compiler can call: the bytes that the codecs of the host write,
/// and the bits that these decode. Few programs need them and they take long to compile, so including this header does
/// not bring the kernels, also not where nvcc reads it: a program that uses them compiles `kith/cuda/codec_kernels.cu`
/// once, or includes kith/cuda/codec_kernels.cuh in a translation unit of nvcc. The CMake target kith::cuda does the
/// first, unless the program's target has the property KITH_CUDA_CODECS OFF.
///
/// What kith/cuda/kernels.hpp says of all its functions holds here: they enqueue on `stream` in the current device and
/// return; cudaErrorInvalidValue for arguments that cannot be used, and nothing is enqueued then; they hold no state.
/// A wire lies at a multiple of 16 bytes and is whole: what is in it is not checked, as it is on the host, because
/// nothing but encode() wrote it. No index that it holds leads out of the values, whatever it says.
namespace kith::cuda {

/// A codec with its parameters, as kernels know it; kith/exchange/device/codecs.hpp makes one of each of Kith's codecs.
struct DeviceCodec {
  enum class Family : std::uint8_t { cast, absmax_block, min_max, sign_mean, qsgd, random_k, cyclic_mask, top_k };

  Family family = Family::cast;
  /// Cast: f16 or bf16.
  DType to = DType::bf16;
  /// Int4Block; else Int8Block.
  bool nibbles = false;
  /// Elements of a block; of MinMaxUInt8's chunks, where 0 is the whole buffer.
  std::uint64_t block = 0;
  /// QSGD.
  std::uint32_t levels = 127;
  /// TopK and the masks: how many elements are kept.
  std::uint64_t kept = 0;
  std::uint64_t seed = 0;
};

/// What is encoded, and where to.
struct Encoding {
  /// [count] of `dtype`.
  const void* values = nullptr;
  /// [count] in the type that `dtype` is computed in (f64 for f64, else f32), to be subtracted first; or null.
  const void* minus = nullptr;
  std::uint64_t count = 0;
  DType dtype = DType::f32;
  /// The dtype of the numbers in the wire: `dtype`, or the one that it is computed in.
  DType wire_dtype = DType::f32;
  void* wire = nullptr;
  /// encode_scratch_bytes() of device memory, at a multiple of 16.
  void* scratch = nullptr;
  /// What kith::CodecContext has.
  std::uint64_t round = 0;
  std::uint32_t rank = 0;
  std::uint32_t buffer = 0;
  /// Where a value that is not finite is found, it becomes the least of what it was and of (buffer << 40 | index), as
  /// with find_non_finite(); the wire then holds anything.
  std::uint64_t* finding = nullptr;
};

/// Bytes of scratch memory that encode() needs.
[[nodiscard]] std::size_t encode_scratch_bytes(const DeviceCodec& codec, std::uint64_t count, DType dtype);

/// @brief Writes a wire. Memory traffic: the values (and what is subtracted) are read once by Cast, the block codecs
/// and the masks (these read what they keep), twice by SignMean and by MinMaxUInt8, three times by QSGD and, for f32,
/// five times by TopK.
cudaError_t encode(const DeviceCodec& codec, const Encoding& encoding, cudaStream_t stream);

/// A wire to decode, and values to add it to or put it in place of.
struct Decoding {
  const void* wire = nullptr;
  DType wire_dtype = DType::f32;
  /// [count] of `dtype`.
  void* values = nullptr;
  std::uint64_t count = 0;
  DType dtype = DType::f32;
  /// Of kith::CodecContext; only the masks look at it.
  std::uint64_t round = 0;
};

/// Overwrites the values with what was encoded.
cudaError_t decode(const DeviceCodec& codec, const Decoding& decoding, cudaStream_t stream);

/// Adds `weight` times that, in one pass, unless `*go` is 0.
cudaError_t decode_add(const DeviceCodec& codec, double weight, const Decoding& decoding, const std::uint32_t* go,
                       cudaStream_t stream);

/// One wire of apply(): v = what it decodes to; or with a replica, which is in the type that the values are computed
/// in, v = the replica after that has been added to it.
struct Edge {
  /// Null: nothing to decode.
  const void* wire;
  /// Or null.
  void* replica;
  double weight;
};

/// How many wires an apply() takes.
inline constexpr std::size_t max_edges = 128;

/// What apply() makes of the v of all edges.
enum class Formula : std::uint8_t {
  /// v of the first edge.
  first,
  /// 0 + sum over the edges behind the first of weight (v - v of the first).
  differences,
  /// 0 + sum over the edges of weight v.
  weighted
};

/// The commit of a round: replicas move, and the values with them, in one pass over all of them.
struct Application {
  /// [count] of `dtype`; or null, where only replicas move.
  void* values = nullptr;
  std::uint64_t count = 0;
  DType dtype = DType::f32;
  std::span<const Edge> edges{};
  Formula formula = Formula::first;
  /// values += factor * formula; or
  double factor = 1;
  /// values = formula.
  bool overwrite = false;
  /// Nothing is written where `*go` is 0.
  const std::uint32_t* go = nullptr;
};

/// @brief Decodes, moves replicas and values. Wires hold numbers of the type that `dtype` is computed in. The sum runs
/// over the edges in their order; each operation is rounded on its own, 16-bit values once at the end. Not for TopK and
/// the masks, whose wires decode_add() adds to replicas; apply() with null wires does the rest.
cudaError_t apply(const DeviceCodec& codec, const Application& application, cudaStream_t stream);

/// target[i] = x + mixing * sum over the edges behind the first of weight (r - own) - own, where own is the first
/// edge's replica: x - own first, then plus mixing times the sum from 0. In the type that `dtype` is computed in.
cudaError_t step_difference(const Application& application, void* target, cudaStream_t stream);

/// replicas[k * stride + i] = values[i], widened, for `number` of them, unless `*go` is 0. `stride` in elements.
cudaError_t set_replicas(DType dtype, const void* values, std::uint64_t count, void* replicas, std::uint64_t stride,
                         std::uint32_t number, const std::uint32_t* go, cudaStream_t stream);

/// Adds sum_i (values[i] - replica[i])^2 to the sum of `partials` [1024], as squared_distance() does.
cudaError_t replica_distance(DType dtype, const void* values, const void* replica, std::uint64_t count,
                             double* partials, cudaStream_t stream);

/// @name Masks: the elements that RandomK or CyclicMask keep in a round, in the order of their wires
/// @{

/// values[index(j)] = kept[j], of the same dtype, unless `*go` is 0. (What gathers them is encode().)
cudaError_t scatter(const DeviceCodec& mask, const Decoding& decoding, const std::uint32_t* go, cudaStream_t stream);
/// @}

}  // namespace kith::cuda
