// SPDX-License-Identifier: Apache-2.0
// No allocation in a round. This unit replaces the global operator new of the whole test program by one that counts,
// for each thread by itself. Sanitizers bring an operator new of their own, so their builds leave these cases out.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KITH_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define KITH_TEST_SANITIZED 1
#endif
#endif
#ifndef KITH_TEST_SANITIZED

#include <kith/averager.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include <kith/testing/message_passing.hpp>
#include <kith/topology/any.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace {
thread_local std::uint64_t allocations = 0;

void* counted(std::size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes > 0 ? bytes : 1)) return memory;
  throw std::bad_alloc{};
}
void* counted(std::size_t bytes, std::align_val_t alignment) {
  ++allocations;
  const auto boundary = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(boundary, (bytes + boundary - 1) / boundary * boundary)) return memory;
  throw std::bad_alloc{};
}
}  // namespace

// The forms that do not throw call these. A compiler that sees both ends takes free() for the wrong match.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif
void* operator new(std::size_t bytes) { return counted(bytes); }
void* operator new[](std::size_t bytes) { return counted(bytes); }
void* operator new(std::size_t bytes, std::align_val_t alignment) { return counted(bytes, alignment); }
void* operator new[](std::size_t bytes, std::align_val_t alignment) { return counted(bytes, alignment); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

// Allocations of this thread in f().
template <class F>
std::uint64_t allocations_of(const F& f) {
  const std::uint64_t before = allocations;
  f();
  return allocations - before;
}

}  // namespace

TEST_CASE("allocation: the counter counts") {
  std::vector<int> values;
  CHECK(allocations_of([&] { values.resize(100); }) == 1);
  CHECK(allocations_of([] { delete new int; }) <= 1);  // a compiler may leave such a pair out
  struct alignas(128) Wide {
    char c[128];
  };
  std::vector<Wide> wide;
  CHECK(allocations_of([&] { wide.resize(2); }) == 1);
  CHECK(allocations_of([] {}) == 0);
}

TEST_CASE("allocation: none in a round, from the first one on, on either path") {
  const std::vector<reference::Shape> shapes = {
      {kith::DType::f32, 40000}, {kith::DType::f64, 300}, {kith::DType::bf16, 5000, 1}, {kith::DType::f16, 77}};
  for (const std::string& name : kith::topology_names()) {
    for (const kith::Rank size : {1, 4}) {
      CAPTURE(name);
      CAPTURE(size);
      std::atomic<std::uint64_t> in_rounds{0};
      std::atomic<std::uint64_t> in_means{0};
      std::atomic<std::uint64_t> in_others{0};
      kith::testing::run_both_ways(size, [&](auto& communicator) {
        reference::Model model{shapes};
        kith::AveragerOptions options;
        options.check_finite = communicator.size() == 4;
        options.global_every = 5;
        kith::DecentralizedAverager averager{communicator, kith::parse_topology(name), model.views(), options};
        in_rounds += allocations_of([&] {
          for (int t = 0; t < 12; ++t) averager.average();
        });
        in_means += allocations_of([&] {
          for (int t = 0; t < 3; ++t) averager.average_globally();
        });
        in_others += allocations_of([&] {
          averager.broadcast(0);
          averager.set_mixing(0.5);
          (void)averager.consensus_distance();
        });
      });
      CHECK(in_rounds == 0);
      CHECK(in_means == 0);
      CHECK(in_others == 0);
    }
  }
}

#endif
