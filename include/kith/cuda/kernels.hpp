// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <cuda_runtime_api.h>

#include <kith/cuda/arguments.hpp>
#include <kith/types.hpp>

/// @file
/// The kernels, as functions that every C++ compiler can call. nvcc sees their definitions too; a program without a
/// translation unit of nvcc that includes this header links `kith/cuda/kernels.cu`, which the target kith::cuda brings.
///
/// All of them enqueue on `stream`, in the current device, and return; what they return is the launch's error, and
/// cudaErrorInvalidValue where the arguments cannot be used: nothing is enqueued then. All memory is the device's, or
/// readable and writable by it, and stays valid until the stream has passed. Elements lie at multiples of their size;
/// buffers whose addresses are equal modulo 16 are moved 16 bytes at a time, others element by element. A count may be
/// 0 and its pointer null. They hold no state: any thread may call them at any time, also while a graph is captured.
///
/// `go`, where it is not null, is a word on the device that is read when the kernel runs. If it is 0, nothing is
/// written: so a round that was given up leaves the parameters alone.
namespace kith::cuda {

/// @brief The local step of a round, in place: values[i] = x + mixing * sum_k weight_k * (source_k[i] - x).
///
/// The bits are those of the host: the sum in the order given; each subtraction, product and addition rounded on its
/// own, in f64 for f64 and in f32 otherwise, for which weights and mixing are rounded to f32; 16-bit values rounded
/// once, to the nearest, even on a tie, with subnormals kept. Only which NaN comes out is left open. -use_fast_math (in
/// particular -ftz=true) is outside of this promise.
///
/// A source overlaps `values` nowhere or is the same memory. Without sources nothing is enqueued. Memory traffic:
/// (k + 2) bytes per byte of `values`, in one pass.
/// @param count elements of `values` and of each source, of which there are at most max_sources.
cudaError_t weighted_average(DType dtype, void* values, std::span<const Source> sources, double mixing,
                             std::size_t count, const std::uint32_t* go, cudaStream_t stream);

/// The same for f32 values, and in the same pass their rounded copy: shadow[i] = values[i] as they are afterwards. It
/// is [count] elements of f16 or bf16 and overlaps nothing. Two bytes more per element.
cudaError_t weighted_average(float* values, std::span<const Source> sources, double mixing, std::size_t count,
                             Shadow shadow, const std::uint32_t* go, cudaStream_t stream);

/// @brief The end of a hidden round, in place: values[i] += after[i] - before[i], in the arithmetic of
/// weighted_average(): each operation rounded on its own, 16-bit values once. Four bytes of memory traffic per byte.
/// @param after, before [count] elements each, which overlap `values` nowhere.
cudaError_t add_difference(DType dtype, void* values, const void* after, const void* before, std::size_t count,
                           const std::uint32_t* go, cudaStream_t stream);

/// @name Many tensors at once
/// Tensors, or pieces of them, that are sent as one flat bucket. add_table() makes the table that names them, the
/// caller puts it on the device, and a launch costs the same for one tensor as for a thousand.
/// @{

/// Copies the tensors to their places in the bucket, and leaves what lies between them. `first` as in
/// find_non_finite(), or null: no check.
cudaError_t pack(const Table& table, void* bucket, std::uint64_t* first, cudaStream_t stream);

/// Copies the bucket into the tensors.
cudaError_t unpack(const Table& table, const void* bucket, const std::uint32_t* go, cudaStream_t stream);

/// weighted_average() of the tensors, with sources that are buckets. One launch for each dtype in the table.
cudaError_t weighted_average(const Table& table, std::span<const Source> buckets, double mixing,
                             const std::uint32_t* go, cudaStream_t stream);

/// add_difference() of the tensors, with buckets of what they were in a copy. One launch for each dtype in the table.
cudaError_t add_difference(const Table& table, const void* after, const void* before, const std::uint32_t* go,
                           cudaStream_t stream);
/// @}

/// Copies `bytes` bytes. The ranges do not overlap. Addresses that are equal modulo 16 are best.
cudaError_t commit_copy(const void* from, void* to, std::size_t bytes, const std::uint32_t* go, cudaStream_t stream);

/// Looks for NaN and infinities: `*first` becomes the least of what it was and of (buffer << 40 | index) of each.
cudaError_t find_non_finite(DType dtype, const void* values, std::size_t count, std::uint32_t buffer,
                            std::uint64_t* first, cudaStream_t stream);

/// @brief Adds sum_i (a[i] - b[i])^2 to the sum of `partials` [1024], which the caller sets to zero before the first
/// call. Computed in f64, in an order that depends on `count` and the dtype alone: the same bits on every GPU, as long
/// as the partials are added up in one order.
cudaError_t squared_distance(DType dtype, const void* a, const void* b, std::size_t count, double* partials,
                             cudaStream_t stream);

/// @brief Adds to `*sum`, modulo 2^64, a hash of `bytes` bytes and of where they are in the model: equal sums mean
/// equal models, short of accidents. The position counts words of 8 bytes: the next buffer's is ceil(bytes / 8)
/// further. Not for secrets.
/// @param values, bytes multiples of 2.
cudaError_t digest(const void* values, std::size_t bytes, std::uint64_t position, std::uint64_t* sum,
                   cudaStream_t stream);

}  // namespace kith::cuda

#if defined(__CUDACC__)
#include <kith/cuda/kernels.cuh>
#endif
