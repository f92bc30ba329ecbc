// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include <doctest/doctest.h>
#include "device_array.hpp"
#include "numbers.hpp"

#include <kith/cuda/kernels.hpp>

namespace {

using kith::DType;
using kith::cuda::Shadow;
using kith::cuda::Source;
using numbers::Number;

constexpr unsigned seed = 11;

/// One launch: what it is given, and where.
template <DType D>
struct Case {
  using Stored = typename Number<D>::Stored;
  using Real = typename Number<D>::Real;
  std::vector<Stored> x;
  std::vector<std::vector<Stored>> rows;
  std::vector<double> weights;
  double mixing;

  Case(std::mt19937& random, std::size_t count, std::size_t degree, bool special)
      : x(numbers::random<D>(random, count, special)),
        mixing(random() % 2 == 0 ? 1.0 : static_cast<double>(random() % 1000) / 777) {
    for (std::size_t k = 0; k < degree; ++k) {
      rows.push_back(numbers::random<D>(random, count, special));
      weights.push_back(static_cast<double>(1 + random() % 1000) / 3001);
    }
  }

  [[nodiscard]] Real expected(std::size_t i) const {
    std::vector<Real> sources;
    for (const auto& row : rows) sources.push_back(Number<D>::real(row[i]));
    return numbers::average<Real>(Number<D>::real(x[i]), sources, weights, mixing);
  }

  /// Whether `result` has the bits of both other computations.
  void check(const std::vector<Stored>& result) const {
    REQUIRE(result.size() == x.size());
    if (rows.empty()) {
      CHECK(numbers::differences<D>(result, x) == 0);
      return;
    }
    CHECK(numbers::differences<D>(result, numbers::host_average<D>(x, rows, weights, mixing)) == 0);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < x.size(); ++i) wrong += Number<D>::is(result[i], expected(i)) ? 0 : 1;
    CHECK(wrong == 0);
  }
};

/// The sources of a case on the device, `shift` elements behind an aligned address, or each somewhere else.
template <DType D>
struct Rows {
  std::vector<DeviceArray<typename Number<D>::Stored>> arrays;
  std::vector<Source> sources;

  Rows(const Case<D>& given, std::size_t shift, std::mt19937* random = nullptr) {
    using Stored = typename Number<D>::Stored;
    for (std::size_t k = 0; k < given.rows.size(); ++k) {
      const std::size_t own = random == nullptr ? shift : (*random)() % (16 / sizeof(Stored));
      arrays.emplace_back(given.rows[k], own * sizeof(Stored));
      sources.push_back({arrays.back().data(), given.weights[k]});
    }
  }
};

template <DType D>
void check_average(std::mt19937& random, std::size_t count, std::size_t degree, std::size_t shift, bool alike) {
  CAPTURE(count);
  CAPTURE(degree);
  CAPTURE(shift);
  CAPTURE(alike);
  const Case<D> given(random, count, degree, random() % 3 == 0);
  const DeviceArray<typename Number<D>::Stored> values(given.x, shift * sizeof(given.x[0]));
  const Rows<D> rows(given, shift, alike ? nullptr : &random);
  const kith::cuda::Stream stream;
  REQUIRE(kith::cuda::weighted_average(D, values.data(), rows.sources, given.mixing, count, nullptr, stream.get()) ==
          cudaSuccess);
  given.check(values.values());
}

template <DType D>
void check_averages() {
  MESSAGE("seed ", seed, ", ", kith::to_string(D));
  std::mt19937 random(seed);
  constexpr std::size_t pack = 16 / size_of(D);
  for (std::size_t count = 0; count <= 70; ++count)
    check_average<D>(random, count, 1 + count % 4, count % pack, count % 5 != 0);
  constexpr std::size_t tile = kith::cuda::tile_bytes / size_of(D);
  for (const std::size_t degree : {0UL, 1UL, 2UL, 3UL, 4UL, 5UL, 6UL, 7UL, 8UL, 9UL, 17UL}) {
    check_average<D>(random, tile / 2 + degree, degree, 0, true);
    check_average<D>(random, tile + 3, degree, degree % pack, degree % 2 == 0);
  }
  for (const std::size_t count : {tile - 1UL, tile, tile + 1UL, 2UL * tile - 1UL, 2UL * tile, 3UL * tile + pack + 1UL})
    for (const std::size_t shift : {std::size_t{0}, std::size_t{1}, pack - 1}) {
      check_average<D>(random, count, 1 + shift % 3, shift, true);
      check_average<D>(random, count, 1 + shift % 3, shift, false);
    }
}

TEST_CASE("cuda: the weighted average of f32 has the bits of the host") { check_averages<DType::f32>(); }
TEST_CASE("cuda: the weighted average of f64 has the bits of the host") { check_averages<DType::f64>(); }
TEST_CASE("cuda: the weighted average of f16 has the bits of the host") { check_averages<DType::f16>(); }
TEST_CASE("cuda: the weighted average of bf16 has the bits of the host") { check_averages<DType::bf16>(); }

/// Every 16-bit number there is, beside a neighbour of every size: all conversions in both directions.
template <DType D>
void check_all_numbers() {
  std::mt19937 random(seed);
  Case<D> given(random, 65536, 1, false);
  for (std::size_t i = 0; i < given.x.size(); ++i) {
    given.x[i].bits = static_cast<std::uint16_t>(i);
    given.rows[0][i].bits = static_cast<std::uint16_t>(random() % 2 == 0 ? i ^ (random() % 64) : random());
  }
  given.mixing = 0.37;
  const DeviceArray<typename Number<D>::Stored> values(given.x);
  const Rows<D> rows(given, 0);
  const kith::cuda::Stream stream;
  REQUIRE(kith::cuda::weighted_average(D, values.data(), rows.sources, given.mixing, given.x.size(), nullptr,
                                       stream.get()) == cudaSuccess);
  given.check(values.values());
}

TEST_CASE("cuda: every 16-bit number is widened and rounded as on the host") {
  MESSAGE("seed ", seed);
  check_all_numbers<DType::f16>();
  check_all_numbers<DType::bf16>();
}

TEST_CASE("cuda: as many sources as there can be, and no more") {
  MESSAGE("seed ", seed);
  std::mt19937 random(seed);
  Case<DType::f64> given(random, 37, kith::cuda::max_sources, false);
  const DeviceArray<double> values(given.x);
  Rows<DType::f64> rows(given, 0);
  const kith::cuda::Stream stream;
  REQUIRE(kith::cuda::weighted_average(DType::f64, values.data(), rows.sources, given.mixing, 37, nullptr,
                                       stream.get()) == cudaSuccess);
  const std::vector<double> result = values.values();
  given.check(result);
  rows.sources.push_back(rows.sources.front());
  CHECK(kith::cuda::weighted_average(DType::f64, values.data(), rows.sources, 1, 37, nullptr, stream.get()) ==
        cudaErrorInvalidValue);
  CHECK(values.values() == result);
}

TEST_CASE("cuda: a weighted average that is not to be writes nothing") {
  std::mt19937 random(seed);
  const Case<DType::f32> given(random, 5000, 2, false);
  const DeviceArray<float> values(given.x, 4);
  const Rows<DType::f32> rows(given, 1);
  const DeviceArray<kith::bfloat16> shadow(5000, kith::bfloat16{7});
  const kith::cuda::Stream stream;
  const DeviceArray<std::uint32_t> no(1, 0U);
  const DeviceArray<std::uint32_t> yes(1, 1U);
  REQUIRE(kith::cuda::weighted_average(DType::f32, values.data(), rows.sources, given.mixing, 5000, no.data(),
                                       stream.get()) == cudaSuccess);
  REQUIRE(kith::cuda::weighted_average(values.data(), rows.sources, given.mixing, 5000, Shadow{shadow.data()},
                                       no.data(), stream.get()) == cudaSuccess);
  CHECK(values.values() == given.x);
  CHECK(shadow.values() == std::vector<kith::bfloat16>(5000, kith::bfloat16{7}));
  REQUIRE(kith::cuda::weighted_average(DType::f32, values.data(), rows.sources, given.mixing, 5000, yes.data(),
                                       stream.get()) == cudaSuccess);
  given.check(values.values());
}

TEST_CASE("cuda: a weighted average can be its own source") {
  std::mt19937 random(seed);
  const std::vector<float> x = numbers::random<DType::f32>(random, 100, false);
  const DeviceArray<float> values(x);
  const kith::cuda::Stream stream;
  REQUIRE(kith::cuda::weighted_average(DType::f32, values.data(), std::vector<Source>{{values.data(), 0.5}}, 1, 100,
                                       nullptr, stream.get()) == cudaSuccess);
  CHECK(values.values() == x);
}

template <DType D>
void check_shadow(std::mt19937& random, std::size_t count, std::size_t degree, std::size_t shift,
                  std::size_t shadow_shift) {
  CAPTURE(count);
  CAPTURE(degree);
  CAPTURE(shift);
  CAPTURE(shadow_shift);
  const Case<DType::f32> given(random, count, degree, random() % 2 == 0);
  const DeviceArray<float> values(given.x, shift * sizeof(float));
  const Rows<DType::f32> rows(given, shift);
  const DeviceArray<typename Number<D>::Stored> shadow(numbers::random<D>(random, count, false), shadow_shift * 2);
  const kith::cuda::Stream stream;
  REQUIRE(kith::cuda::weighted_average(values.data(), rows.sources, given.mixing, count, Shadow{shadow.data(), D},
                                       nullptr, stream.get()) == cudaSuccess);
  given.check(values.values());
  const auto rounded = shadow.values();
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < count; ++i) wrong += Number<D>::is(rounded[i], given.expected(i)) ? 0 : 1;
  CHECK(wrong == 0);
}

TEST_CASE("cuda: a weighted average also writes the rounded copy") {
  MESSAGE("seed ", seed);
  std::mt19937 random(seed);
  for (const std::size_t count : {1UL, 5UL, 64UL, 4095UL, 4100UL, 9001UL})
    for (const std::size_t degree : {1UL, 2UL, 3UL, 5UL, 9UL})
      for (const std::size_t shift : {0UL, 1UL, 3UL}) {
        check_shadow<DType::bf16>(random, count, degree, shift, shift);
        check_shadow<DType::f16>(random, count, degree, shift, 1);
      }
}

TEST_CASE("cuda: a weighted average refuses what it cannot work on") {
  const DeviceArray<float> values(8, 1.0F);
  const kith::cuda::Stream stream;
  const std::vector<Source> sources{{values.data(), 0.5}};
  const auto status = [&](DType dtype, void* x, const void* source, std::size_t count) {
    return kith::cuda::weighted_average(dtype, x, std::vector<Source>{{source, 0.5}}, 1, count, nullptr, stream.get());
  };
  auto* odd = reinterpret_cast<std::byte*>(values.data()) + 2;
  CHECK(status(DType::f32, nullptr, values.data(), 1) == cudaErrorInvalidValue);
  CHECK(status(DType::f32, values.data(), nullptr, 1) == cudaErrorInvalidValue);
  CHECK(status(DType::f32, odd, values.data(), 1) == cudaErrorInvalidValue);
  CHECK(status(DType::f32, values.data(), odd, 1) == cudaErrorInvalidValue);
  CHECK(status(static_cast<DType>(9), values.data(), values.data(), 1) == cudaErrorInvalidValue);
  CHECK(kith::cuda::weighted_average(values.data(), sources, 1, 1, Shadow{values.data(), DType::f32}, nullptr,
                                     stream.get()) == cudaErrorInvalidValue);
  CHECK(kith::cuda::weighted_average(values.data(), sources, 1, 1, Shadow{}, nullptr, stream.get()) ==
        cudaErrorInvalidValue);
  CHECK(status(DType::f32, nullptr, nullptr, 0) == cudaSuccess);
  CHECK(values.values() == std::vector<float>(8, 1.0F));
}

}  // namespace
