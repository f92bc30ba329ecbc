// SPDX-License-Identifier: Apache-2.0
#include "limit.hpp"

#include <cstddef>
#include <cstdint>

// CMake compiles this file with -O3 whatever the rest is built with: the limit is the machine's, not the flags'.
// AVX2 matters for models that fit into the cache.
#if defined(__x86_64__)
#define KITH_BENCH_AVX2 __attribute__((target("avx2")))
#endif

namespace bench {
namespace {

#if defined(KITH_BENCH_AVX2)
KITH_BENCH_AVX2 void scale_avx2(float* x, std::size_t count, float factor) noexcept {
  for (std::size_t i = 0; i < count; ++i) x[i] *= factor;
}
KITH_BENCH_AVX2 void scale_avx2(double* x, std::size_t count, double factor) noexcept {
  for (std::size_t i = 0; i < count; ++i) x[i] *= factor;
}
KITH_BENCH_AVX2 void flip_avx2(std::uint16_t* x, std::size_t count, std::uint16_t bits) noexcept {
  for (std::size_t i = 0; i < count; ++i) x[i] = static_cast<std::uint16_t>(x[i] ^ bits);
}
bool has_avx2() noexcept { return __builtin_cpu_supports("avx2") != 0; }
#endif

template <class T>
void scale(void* data, std::size_t count, T factor) noexcept {
  auto* const x = static_cast<T*>(data);
#if defined(KITH_BENCH_AVX2)
  if (has_avx2()) return scale_avx2(x, count, factor);
#endif
  for (std::size_t i = 0; i < count; ++i) x[i] *= factor;
}

void flip(void* data, std::size_t count, std::uint16_t bits) noexcept {
  auto* const x = static_cast<std::uint16_t*>(data);
#if defined(KITH_BENCH_AVX2)
  if (has_avx2()) return flip_avx2(x, count, bits);
#endif
  for (std::size_t i = 0; i < count; ++i) x[i] = static_cast<std::uint16_t>(x[i] ^ bits);
}

}  // namespace

void touch_once(const kith::BufferView& model, unsigned turn) noexcept {
  switch (model.dtype) {
    case kith::DType::f32:
      return scale(model.data, model.count, turn % 2 == 0 ? 2.0F : 0.5F);
    case kith::DType::f64:
      return scale(model.data, model.count, turn % 2 == 0 ? 2.0 : 0.5);
    case kith::DType::f16:
    case kith::DType::bf16:
      return flip(model.data, model.count, 1);
  }
}

}  // namespace bench
