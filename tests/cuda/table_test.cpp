// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include <kith/cuda/kernels.hpp>

#include "device_array.hpp"
#include "numbers.hpp"

namespace {

using kith::DType;
using kith::cuda::Segment;
using kith::cuda::Source;
using kith::cuda::Table;
using kith::cuda::Tile;
using numbers::Number;

constexpr unsigned seed = 12;
constexpr std::size_t alignment = 64;

/// Tensors of one dtype and their places in a bucket.
template <DType D>
struct Tensors {
  using Stored = typename Number<D>::Stored;
  std::vector<std::vector<Stored>> values;
  std::vector<DeviceArray<Stored>> arrays;
  std::vector<std::size_t> offsets;

  void add(std::mt19937& random, std::size_t count, std::size_t shift, std::size_t& bucket_bytes,
           std::vector<Segment>& segments) {
    values.push_back(numbers::random<D>(random, count, false));
    arrays.emplace_back(values.back(), shift * sizeof(Stored));
    offsets.push_back(bucket_bytes);
    segments.push_back({arrays.back().data(), bucket_bytes, count, 0, static_cast<std::uint32_t>(segments.size()), D});
    bucket_bytes += (count * sizeof(Stored) + alignment - 1) / alignment * alignment;
  }
  [[nodiscard]] std::vector<Stored> at(const std::vector<std::byte>& bucket, std::size_t t) const {
    std::vector<Stored> result(values[t].size());
    if (!result.empty()) std::memcpy(result.data(), bucket.data() + offsets[t], result.size() * sizeof(Stored));
    return result;
  }
};

/// A model of tensors of all dtypes: many small ones, empty ones, misaligned ones and one of several tiles.
struct Model {
  Tensors<DType::f32> f32;
  Tensors<DType::f64> f64;
  Tensors<DType::f16> f16;
  Tensors<DType::bf16> bf16;
  std::size_t bucket_bytes = 0;
  Table table;
  std::vector<DeviceArray<std::byte>> uploaded;

  explicit Model(std::mt19937& random) {
    std::vector<Segment> segments;
    for (const std::size_t count : {1UL, 0UL, 7UL, 64UL, 1000UL, 4097UL, 9000UL})
      for (const std::size_t shift : {0UL, 1UL, 3UL}) {
        f32.add(random, count, shift, bucket_bytes, segments);
        bf16.add(random, count, shift, bucket_bytes, segments);
        if (shift == 1) f16.add(random, count, shift, bucket_bytes, segments);
        if (shift == 0) f64.add(random, count, shift, bucket_bytes, segments);
      }
    std::vector<Tile> tiles(3);  // of other buckets, before those of this one
    table = kith::cuda::add_table(segments, tiles);
    const auto bytes = std::as_bytes(std::span{tiles});
    uploaded.emplace_back(bytes);
    table.tiles = reinterpret_cast<const Tile*>(uploaded.front().data());
  }

  void for_each(const auto& f) const {
    f.template operator()<DType::f32>(f32);
    f.template operator()<DType::f64>(f64);
    f.template operator()<DType::f16>(f16);
    f.template operator()<DType::bf16>(bf16);
  }
  /// Whether every tensor has the values that it had at the start.
  void check_unchanged() const {
    for_each([&]<DType D>(const Tensors<D>& tensors) {
      std::size_t changed = 0;
      for (std::size_t t = 0; t < tensors.values.size(); ++t)
        changed += tensors.arrays[t].values() == tensors.values[t] ? 0 : 1;
      CHECK(changed == 0);
    });
  }
};

std::vector<std::byte> random_bucket(std::mt19937& random, const Model& model) {
  std::vector<std::byte> bucket(model.bucket_bytes);
  model.for_each([&]<DType D>(const Tensors<D>& tensors) {
    for (std::size_t t = 0; t < tensors.values.size(); ++t) {
      const auto values = numbers::random<D>(random, tensors.values[t].size(), false);
      if (!values.empty())
        std::memcpy(bucket.data() + tensors.offsets[t], values.data(), values.size() * sizeof(values[0]));
    }
  });
  return bucket;
}

TEST_CASE("cuda: tiles cover every element once, and begin at 16-byte boundaries") {
  std::vector<Tile> tiles;
  constexpr std::uintptr_t base = 0x10000;
  const std::vector<Segment> segments{
      {reinterpret_cast<void*>(base + 4), 64, 10000, 500, 3, DType::f32},
      {reinterpret_cast<void*>(base + 0x20000), 0, 0, 0, 4, DType::f64},
      {reinterpret_cast<void*>(base + 0x30000), 65536, 8193, 0, 5, DType::bf16},
      {reinterpret_cast<void*>(base + 0x50000), 32, 4, 0, 6, DType::f32},
  };
  const Table table = kith::cuda::add_table(segments, tiles);
  CHECK(table.bucket_bytes == 65536 + 2 * 8193);
  CHECK(table.begins == std::array<std::uint32_t, 5>{0, 4, 4, 4, 6});
  REQUIRE(tiles.size() == 6);
  CHECK(reinterpret_cast<std::uintptr_t>(tiles[1].values) % 16 == 0);
  CHECK(reinterpret_cast<std::uintptr_t>(tiles[1].values) == base + kith::cuda::tile_bytes);
  CHECK(tiles[0].count == 4095);
  CHECK(tiles[1].count == 4096);
  CHECK(tiles[2].count == 10000 - 4095 - 4096);
  CHECK(tiles[2].first == 500 + 4095 + 4096);
  CHECK(tiles[2].offset_bytes == 64 + 4 * (4095 + 4096));
  CHECK(tiles[2].buffer == 3);
  CHECK(tiles[3].buffer == 6);
  CHECK(tiles[4].count == 8192);
  CHECK(tiles[5].count == 1);
}

TEST_CASE("cuda: packing and unpacking move every element, and no other byte") {
  MESSAGE("seed ", seed);
  std::mt19937 random(seed);
  const Model model(random);
  const kith::cuda::Stream stream;
  const DeviceArray<std::byte> bucket(model.bucket_bytes, std::byte{0x77});
  REQUIRE(kith::cuda::pack(model.table, bucket.data(), nullptr, stream.get()) == cudaSuccess);
  const std::vector<std::byte> packed = bucket.values();
  std::size_t payload = 0;
  model.for_each([&]<DType D>(const Tensors<D>& tensors) {
    std::size_t wrong = 0;
    for (std::size_t t = 0; t < tensors.values.size(); ++t) {
      payload += tensors.values[t].size() * size_of(D);
      wrong += tensors.at(packed, t) == tensors.values[t] ? 0 : 1;
    }
    CHECK(wrong == 0);
  });
  CHECK(static_cast<std::size_t>(std::count(packed.begin(), packed.end(), std::byte{0x77})) >=
        model.bucket_bytes - payload);
  model.check_unchanged();

  const std::vector<std::byte> other = random_bucket(random, model);
  const DeviceArray<std::byte> replacement(other);
  const DeviceArray<std::uint32_t> no(1, 0U);
  REQUIRE(kith::cuda::unpack(model.table, replacement.data(), no.data(), stream.get()) == cudaSuccess);
  model.check_unchanged();
  REQUIRE(kith::cuda::unpack(model.table, replacement.data(), nullptr, stream.get()) == cudaSuccess);
  model.for_each([&]<DType D>(const Tensors<D>& tensors) {
    std::size_t wrong = 0;
    for (std::size_t t = 0; t < tensors.values.size(); ++t)
      wrong += tensors.arrays[t].values() == tensors.at(other, t) ? 0 : 1;
    CHECK(wrong == 0);
  });
}

TEST_CASE("cuda: the weighted average of many tensors has the bits of the host") {
  MESSAGE("seed ", seed);
  std::mt19937 random(seed);
  const kith::cuda::Stream stream;
  for (const std::size_t degree : {1UL, 2UL, 3UL, 4UL, 10UL}) {
    CAPTURE(degree);
    const Model model(random);
    std::vector<std::vector<std::byte>> buckets;
    std::vector<DeviceArray<std::byte>> uploaded;
    std::vector<Source> sources;
    std::vector<double> weights;
    for (std::size_t k = 0; k < degree; ++k) {
      buckets.push_back(random_bucket(random, model));
      uploaded.emplace_back(buckets.back());
      weights.push_back(static_cast<double>(1 + random() % 100) / 301);
      sources.push_back({uploaded.back().data(), weights.back()});
    }
    const DeviceArray<std::uint32_t> no(1, 0U);
    REQUIRE(kith::cuda::weighted_average(model.table, sources, 0.9, no.data(), stream.get()) == cudaSuccess);
    model.check_unchanged();
    REQUIRE(kith::cuda::weighted_average(model.table, sources, 0.9, nullptr, stream.get()) == cudaSuccess);
    model.for_each([&]<DType D>(const Tensors<D>& tensors) {
      std::size_t wrong = 0;
      for (std::size_t t = 0; t < tensors.values.size(); ++t) {
        std::vector<std::vector<typename Number<D>::Stored>> rows;
        for (const auto& bucket : buckets) rows.push_back(tensors.at(bucket, t));
        const auto expected = numbers::host_average<D>(tensors.values[t], rows, weights, 0.9);
        wrong += numbers::differences<D>(tensors.arrays[t].values(), expected);
      }
      CHECK(wrong == 0);
    });
  }
}

TEST_CASE("cuda: an empty table is no work") {
  std::vector<Tile> tiles;
  const Table table = kith::cuda::add_table({}, tiles);
  const kith::cuda::Stream stream;
  CHECK(tiles.empty());
  CHECK(kith::cuda::pack(table, nullptr, nullptr, stream.get()) == cudaSuccess);
  CHECK(kith::cuda::weighted_average(table, std::vector<Source>{{nullptr, 1.0}}, 1, nullptr, stream.get()) ==
        cudaSuccess);
}

TEST_CASE("cuda: packing reports the first value that is not finite") {
  std::mt19937 random(seed);
  const kith::cuda::Stream stream;
  std::vector<float> first = numbers::random<DType::f32>(random, 9000, false);
  std::vector<double> second = numbers::random<DType::f64>(random, 50, false);
  second[40] = std::numeric_limits<double>::infinity();
  second[49] = std::numeric_limits<double>::quiet_NaN();
  const auto pack = [&](std::uint64_t first_of_first) {
    const DeviceArray<float> a(first, 4);
    const DeviceArray<double> b(second, 8);
    std::vector<Tile> tiles;
    Table table = kith::cuda::add_table(
        std::vector<Segment>{{b.data(), 0, 50, 0, 7, DType::f64}, {a.data(), 512, 9000, first_of_first, 2, DType::f32}},
        tiles);
    const DeviceArray<std::byte> uploaded{std::as_bytes(std::span{tiles})};
    table.tiles = reinterpret_cast<const Tile*>(uploaded.data());
    const DeviceArray<std::byte> bucket(table.bucket_bytes, std::byte{0});
    const DeviceArray<std::uint64_t> finding(1, kith::cuda::no_finding);
    REQUIRE(kith::cuda::pack(table, bucket.data(), finding.data(), stream.get()) == cudaSuccess);
    const std::vector<std::byte> packed = bucket.values();
    CHECK(std::memcmp(packed.data() + 512, first.data(), first.size() * 4) == 0);
    CHECK(std::memcmp(packed.data(), second.data(), second.size() * 8) == 0);
    return finding.values().front();
  };
  CHECK(pack(0) == (std::uint64_t{7} << 40 | 40));
  first[8999] = std::numeric_limits<float>::quiet_NaN();
  CHECK(pack(0) == (std::uint64_t{2} << 40 | 8999));
  first[1] = -std::numeric_limits<float>::infinity();
  CHECK(pack(0) == (std::uint64_t{2} << 40 | 1));
  CHECK(pack(100'000'000'000) == (std::uint64_t{2} << 40 | 100'000'000'001));
}

}  // namespace
