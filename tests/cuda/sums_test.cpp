// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include <doctest/doctest.h>

#include <kith/cuda/kernels.hpp>

#include "device_array.hpp"
#include "numbers.hpp"

namespace {

using kith::DType;
using numbers::Number;

constexpr unsigned seed = 13;

TEST_CASE("cuda: a gated copy moves every byte, whatever the addresses") {
  MESSAGE("seed ", seed);
  std::mt19937 random(seed);
  const kith::cuda::Stream stream;
  const DeviceArray<std::uint32_t> no(1, 0U);
  const DeviceArray<std::uint32_t> yes(1, 5U);
  for (const std::size_t bytes : {0UL, 1UL, 2UL, 15UL, 16UL, 17UL, 64UL, 333UL, 16384UL, 16385UL, 40003UL, 65536UL})
    for (const std::size_t from_shift : {0UL, 1UL, 4UL, 8UL})
      for (const std::size_t to_shift : {0UL, 1UL, 2UL, 8UL}) {
        CAPTURE(bytes);
        CAPTURE(from_shift);
        CAPTURE(to_shift);
        std::vector<std::uint8_t> values(bytes);
        for (auto& value : values) value = static_cast<std::uint8_t>(random());
        const DeviceArray<std::uint8_t> from(values, from_shift);
        const DeviceArray<std::uint8_t> to(std::vector<std::uint8_t>(bytes, 1), to_shift);
        REQUIRE(kith::cuda::commit_copy(from.data(), to.data(), bytes, no.data(), stream.get()) == cudaSuccess);
        CHECK(to.values() == std::vector<std::uint8_t>(bytes, 1));
        const std::uint32_t* go = to_shift == 1 ? nullptr : yes.data();
        REQUIRE(kith::cuda::commit_copy(from.data(), to.data(), bytes, go, stream.get()) == cudaSuccess);
        CHECK(to.values() == values);
        CHECK(from.values() == values);
      }
}

template <DType D>
void check_non_finite(std::vector<typename Number<D>::Stored> kinds) {
  std::mt19937 random(seed);
  const kith::cuda::Stream stream;
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{33}, std::size_t{20001}})
    for (const std::size_t shift : {0UL, 1UL}) {
      CAPTURE(count);
      CAPTURE(shift);
      auto values = numbers::random<D>(random, count, false);
      const auto find = [&] {
        const DeviceArray<typename Number<D>::Stored> array(values, shift * sizeof(values[0]));
        const DeviceArray<std::uint64_t> first(1, kith::cuda::no_finding);
        REQUIRE(kith::cuda::find_non_finite(D, array.data(), count, 3, first.data(), stream.get()) == cudaSuccess);
        return first.values().front();
      };
      CHECK(find() == kith::cuda::no_finding);
      // From the last to the first: the later ones stay.
      for (std::size_t i = count; i > 0; i = i * 2 / 3) {
        values[i - 1] = kinds[i % kinds.size()];
        CHECK(find() == (std::uint64_t{3} << kith::cuda::finding_index_bits | (i - 1)));
      }
    }
}

TEST_CASE("cuda: the first value that is not finite is found") {
  using F = std::numeric_limits<float>;
  using D = std::numeric_limits<double>;
  check_non_finite<DType::f32>({F::quiet_NaN(), F::infinity(), -F::infinity(), -F::quiet_NaN()});
  check_non_finite<DType::f64>({D::quiet_NaN(), D::infinity(), -D::infinity(), -D::signaling_NaN()});
  check_non_finite<DType::f16>({{0x7c00}, {0xfc00}, {0x7c01}, {0xffff}});
  check_non_finite<DType::bf16>({{0x7f80}, {0xff80}, {0x7f81}, {0xffff}});
}

template <DType D>
void check_finite(const std::vector<typename Number<D>::Stored>& extremes) {
  const kith::cuda::Stream stream;
  const DeviceArray<typename Number<D>::Stored> array(extremes);
  const DeviceArray<std::uint64_t> first(1, kith::cuda::no_finding);
  REQUIRE(kith::cuda::find_non_finite(D, array.data(), extremes.size(), 0, first.data(), stream.get()) == cudaSuccess);
  CHECK(first.values().front() == kith::cuda::no_finding);
}

TEST_CASE("cuda: the largest and the smallest numbers are finite") {
  using F = std::numeric_limits<float>;
  using D = std::numeric_limits<double>;
  check_finite<DType::f32>({F::max(), -F::max(), F::denorm_min()});
  check_finite<DType::f64>({D::max(), -D::max(), D::denorm_min()});
  check_finite<DType::f16>({{0x7bff}, {0xfbff}, {0x0001}});
  check_finite<DType::bf16>({{0x7f7f}, {0xff7f}, {0x0001}});
}

TEST_CASE("cuda: the least of several findings stays") {
  const kith::cuda::Stream stream;
  const DeviceArray<float> bad(std::vector<float>{1.0F, std::numeric_limits<float>::quiet_NaN()});
  const DeviceArray<std::uint64_t> first(1, kith::cuda::no_finding);
  for (const std::uint32_t buffer : {7U, 4U, 9U})
    REQUIRE(kith::cuda::find_non_finite(DType::f32, bad.data(), 2, buffer, first.data(), stream.get()) == cudaSuccess);
  CHECK(first.values().front() == (std::uint64_t{4} << 40 | 1));
}

template <DType D>
void check_distance() {
  using Stored = typename Number<D>::Stored;
  std::mt19937 random(seed);
  const kith::cuda::Stream stream;
  for (const std::size_t count : {0UL, 1UL, 7UL, 100UL, 4097UL, 300'001UL}) {
    CAPTURE(count);
    const auto a = numbers::random<D>(random, count, false);
    const auto b = numbers::random<D>(random, count, false);
    long double expected = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const long double difference = static_cast<long double>(Number<D>::real(a[i])) - Number<D>::real(b[i]);
      expected += difference * difference;
    }
    std::vector<double> results;
    for (const std::size_t shift : {0UL, 1UL}) {
      const DeviceArray<Stored> left(a, shift * sizeof(Stored));
      const DeviceArray<Stored> right(b);
      const DeviceArray<double> partials(kith::cuda::distance_partials, 0.0);
      REQUIRE(kith::cuda::squared_distance(D, left.data(), right.data(), count, partials.data(), stream.get()) ==
              cudaSuccess);
      const std::vector<double> sums = partials.values();
      results.push_back(std::accumulate(sums.begin(), sums.end(), 0.0));
    }
    CHECK(results[0] == results[1]);
    CHECK(std::abs(static_cast<long double>(results[0]) - expected) <= 1e-13L * expected);
  }
}

TEST_CASE("cuda: the squared distance is exact to rounding, and the same at every address") {
  MESSAGE("seed ", seed);
  check_distance<DType::f32>();
  check_distance<DType::f64>();
  check_distance<DType::f16>();
  check_distance<DType::bf16>();
}

TEST_CASE("cuda: squared distances of several buffers add up") {
  const kith::cuda::Stream stream;
  const DeviceArray<float> a(5000, 3.0F);
  const DeviceArray<float> b(5000, 1.0F);
  const DeviceArray<double> partials(kith::cuda::distance_partials, 0.0);
  for (const std::size_t count : {5000UL, 10UL})
    REQUIRE(kith::cuda::squared_distance(DType::f32, a.data(), b.data(), count, partials.data(), stream.get()) ==
            cudaSuccess);
  const std::vector<double> sums = partials.values();
  CHECK(std::accumulate(sums.begin(), sums.end(), 0.0) == 4.0 * 5010);
}

std::uint64_t digest(const std::vector<std::uint16_t>& values, std::size_t shift, std::uint64_t position) {
  const kith::cuda::Stream stream;
  const DeviceArray<std::uint16_t> array(values, shift * 2);
  const DeviceArray<std::uint64_t> sum(1, std::uint64_t{0});
  REQUIRE(kith::cuda::digest(array.data(), values.size() * 2, position, sum.data(), stream.get()) == cudaSuccess);
  return sum.values().front();
}

TEST_CASE("cuda: a digest tells every bit and every place") {
  MESSAGE("seed ", seed);
  std::mt19937 random(seed);
  for (const std::size_t count : {1UL, 4UL, 5UL, 9UL, 4100UL}) {
    CAPTURE(count);
    std::vector<std::uint16_t> values(count);
    for (auto& value : values) value = static_cast<std::uint16_t>(random());
    std::set<std::uint64_t> seen{digest(values, 0, 0)};
    CHECK(digest(values, 1, 0) == *seen.begin());  // not where it is in memory
    std::size_t variants = 1;
    for (const std::size_t i : std::set<std::size_t>{0, count / 2, count - 1})
      for (unsigned bit = 0; bit < 16; ++bit) {
        auto changed = values;
        changed[i] = static_cast<std::uint16_t>(changed[i] ^ (1U << bit));
        seen.insert(digest(changed, 0, 0));
        ++variants;
      }
    for (const std::uint64_t position : {1U, 2U, 1000U}) {
      seen.insert(digest(values, 0, position));
      ++variants;
    }
    CHECK(seen.size() == variants);
  }
}

TEST_CASE("cuda: a digest sees words that change places, and zeros") {
  const std::vector<std::uint16_t> ab{1, 0, 0, 0, 2, 0, 0, 0};
  const std::vector<std::uint16_t> ba{2, 0, 0, 0, 1, 0, 0, 0};
  CHECK(digest(ab, 0, 0) != digest(ba, 0, 0));
  CHECK(digest(std::vector<std::uint16_t>(8), 0, 0) != digest(std::vector<std::uint16_t>(4), 0, 0));
  CHECK(digest(std::vector<std::uint16_t>(4), 0, 0) != 0);
  CHECK(digest({}, 0, 0) == 0);
}

TEST_CASE("cuda: the digest of a model is the sum of its parts") {
  std::mt19937 random(seed);
  std::vector<std::uint16_t> values(20'000);
  for (auto& value : values) value = static_cast<std::uint16_t>(random());
  const std::vector<std::uint16_t> first(values.begin(), values.begin() + 8196);
  const std::vector<std::uint16_t> second(values.begin() + 8196, values.end());
  CHECK(digest(first, 0, 5) + digest(second, 0, 5 + 8196 / 4) == digest(values, 0, 5));
}

TEST_CASE("cuda: sums refuse what they cannot work on") {
  const kith::cuda::Stream stream;
  const DeviceArray<double> values(1, 0.0);
  const DeviceArray<std::uint64_t> sum(1, std::uint64_t{0});
  auto* odd = reinterpret_cast<std::byte*>(values.data()) + 1;
  CHECK(kith::cuda::digest(odd, 2, 0, sum.data(), stream.get()) == cudaErrorInvalidValue);
  CHECK(kith::cuda::digest(values.data(), 3, 0, sum.data(), stream.get()) == cudaErrorInvalidValue);
  CHECK(kith::cuda::digest(values.data(), 2, 0, nullptr, stream.get()) == cudaErrorInvalidValue);
  CHECK(kith::cuda::squared_distance(DType::f64, odd, values.data(), 1, values.data(), stream.get()) ==
        cudaErrorInvalidValue);
  CHECK(kith::cuda::find_non_finite(DType::f64, nullptr, 1, 0, sum.data(), stream.get()) == cudaErrorInvalidValue);
  CHECK(kith::cuda::commit_copy(nullptr, values.data(), 8, nullptr, stream.get()) == cudaErrorInvalidValue);
}

}  // namespace
