// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

// What the host kernels may use here. KITH_VECTORS: GNU vector types, on a little-endian 64-bit x86 or ARM (their
// 128-bit registers are part of the architecture). KITH_X86: also functions for instructions that are looked for at
// run time. Elsewhere the kernels are plain loops. KITH_NO_VECTORS asks for plain loops.
#if defined(__GNUC__) && defined(__x86_64__) && defined(__SSE2__) && defined(__has_builtin) && !defined(KITH_NO_VECTORS)
#if __has_builtin(__builtin_shufflevector) && __has_builtin(__builtin_convertvector)
#define KITH_VECTORS 1
#define KITH_X86 1
#endif
#elif defined(__GNUC__) && defined(__AARCH64EL__) && defined(__has_builtin) && !defined(KITH_NO_VECTORS)
#if __has_builtin(__builtin_shufflevector) && __has_builtin(__builtin_convertvector)
#define KITH_VECTORS 1
#define KITH_X86 0
#endif
#endif
#if !defined(KITH_VECTORS)
#define KITH_VECTORS 0
#define KITH_X86 0
#endif

namespace kith::detail {

/// Keeps a product a number that was rounded on its own. Compilers contract a product and the sum it enters into one
/// fused operation where the target has it, g++ without being asked; they cannot look through an empty statement that
/// claims to change the register.
template <class T>
[[nodiscard]] inline T rounded(T product) noexcept {
  static_assert(std::is_floating_point_v<T>);
#if KITH_X86
  asm("" : "+x"(product));
  return product;
#elif KITH_VECTORS
  asm("" : "+w"(product));
  return product;
#elif defined(__GNUC__)
  asm("" : "+m"(product));
  return product;
#else
  const volatile T kept = product;
  return kept;
#endif
}

/// The variants of the host kernels, each with what the one before it needs.
enum class Isa : std::uint8_t { baseline, avx2, avx512 };

#if KITH_X86
/// Asks the processor. AVX2 is used together with F16C, for which not every compiler has a name, hence the instruction.
/// AVX-512 is used from Ice Lake and Zen 4 on: VBMI2 tells them from the processors that slow down for it.
[[nodiscard]] inline Isa find_isa() noexcept {
  unsigned leaf = 1;
  unsigned features = 0;
  asm volatile("cpuid" : "+a"(leaf), "+c"(features) : : "rbx", "rdx");
  const bool f16c = (features & (1U << 29)) != 0;
  if (!f16c || __builtin_cpu_supports("avx2") == 0) return Isa::baseline;
  const bool wide = __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
                    __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
                    __builtin_cpu_supports("avx512vbmi2") != 0;
  return wide ? Isa::avx512 : Isa::avx2;
}

/// The widest variant that this processor runs; found out once, since `cpuid` is slow in virtual machines.
[[nodiscard]] inline Isa isa() noexcept {
  static const Isa found = find_isa();
  return found;
}
#else
/// There is only one: namespaces avx2 and avx512 are other names of namespace baseline.
[[nodiscard]] constexpr Isa isa() noexcept { return Isa::baseline; }
#endif

/// A source row of combine() and its weight.
template <class T>
struct Weighted {
  const T* values;
  T weight;
};

/// A rank's part in average_tile(): its buffer, and whom it hears. A Source has a `rank`, which is an index into the
/// tile's rows, and a `weight`; kith::Neighborhood::Source is one.
template <class Source>
struct TileRow {
  void* data;
  std::span<const Source> sources;
};

/// Bytes of scratch memory that average_tile() needs for each row.
inline constexpr std::size_t tile_scratch_bytes = 256;

/// How far ahead of its loads average_tile() asks for memory. Measured: 0 to 256 are alike, more is worse.
inline constexpr std::size_t tile_ahead_bytes = 128;

/// Partial sums of squared_distance(): lane i holds the elements i, i + 8, i + 16, ... whatever the registers' width,
/// so that every variant adds in the same order.
inline constexpr std::size_t distance_lanes = 8;

}  // namespace kith::detail
