// SPDX-License-Identifier: Apache-2.0
#include <kith/numeric/codec_kernels.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include <doctest/doctest.h>

namespace numeric_codec_kernels_test {

namespace {

using kith::detail::BlockScale;
using kith::detail::CodecKernels;
using kith::detail::Isa;

struct Variant {
  const char* name;
  const CodecKernels* kernels;
};

/// Every variant that this processor can run, the plain loops first.
std::vector<Variant> variants() {
  std::vector<Variant> list{{"scalar", &kith::detail::scalar::codec_kernels},
                            {"baseline", &kith::detail::baseline::codec_kernels}};
  if (kith::detail::isa() >= Isa::avx2) list.push_back({"avx2", &kith::detail::avx2::codec_kernels});
  if (kith::detail::isa() >= Isa::avx512) list.push_back({"avx512", &kith::detail::avx512::codec_kernels});
  return list;
}

constexpr std::size_t counts[] = {0, 1, 3, 15, 16, 17, 31, 32, 63, 64, 65, 127, 128, 129, 200, 256, 1000};

/// Floats one element behind a boundary of 64 bytes, or three bytes behind one.
class Floats {
public:
  explicit Floats(std::size_t count, std::size_t shift = 0) : bytes_(count * 4 + 128, std::byte{0xA5}), count_(count) {
    const auto address = reinterpret_cast<std::uintptr_t>(bytes_.data());
    start_ = 64 - address % 64 + shift;
  }
  [[nodiscard]] float* data() { return reinterpret_cast<float*>(bytes_.data() + start_); }
  void set(std::size_t i, float value) { std::memcpy(bytes_.data() + start_ + 4 * i, &value, 4); }
  [[nodiscard]] float get(std::size_t i) const {
    float value;
    std::memcpy(&value, bytes_.data() + start_ + 4 * i, 4);
    return value;
  }
  /// The memory behind the last element is as it was.
  [[nodiscard]] bool end_untouched() const {
    return std::all_of(bytes_.begin() + static_cast<std::ptrdiff_t>(start_ + 4 * count_), bytes_.end(),
                       [](std::byte b) { return b == std::byte{0xA5}; });
  }
  [[nodiscard]] std::vector<std::uint32_t> bits() const {
    std::vector<std::uint32_t> all(count_);
    for (std::size_t i = 0; i < count_; ++i) all[i] = std::bit_cast<std::uint32_t>(get(i));
    return all;
  }

private:
  std::vector<std::byte> bytes_;
  std::size_t count_;
  std::size_t start_ = 0;
};

Floats random_floats(std::size_t count, std::mt19937_64& random, double magnitude, std::size_t shift = 0) {
  Floats values{count, shift};
  std::normal_distribution<double> normal;
  for (std::size_t i = 0; i < count; ++i) values.set(i, static_cast<float>(magnitude * normal(random)));
  return values;
}

std::vector<std::byte> random_bytes(std::size_t count, std::mt19937_64& random) {
  std::vector<std::byte> bytes(count + 8, std::byte{0xA5});
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(random());
  return bytes;
}

/// Runs `body(variant, generator)` for every variant with the same random numbers and compares what it returns.
template <class Body>
void check_alike(std::uint64_t seed, const Body& body) {
  INFO("seed ", seed);
  std::mt19937_64 first{seed};
  const auto expected = body(*variants()[0].kernels, first);
  for (const Variant& variant : variants()) {
    CAPTURE(variant.name);
    std::mt19937_64 random{seed};
    const bool same = body(*variant.kernels, random) == expected;
    CHECK(same);
  }
}

}  // namespace

TEST_CASE("codec kernels: every variant finds the same extremes") {
  for (const std::size_t count : counts) {
    CAPTURE(count);
    for (const std::size_t special : {count, std::size_t{0}, count / 2, count - 1}) {
      for (const float value : {3e38F, -3e38F, std::nanf(""), -HUGE_VALF, 1e-45F}) {
        check_alike(count + 1, [&](const CodecKernels& kernels, std::mt19937_64& random) {
          Floats values = random_floats(count, random, 2, count % 5);
          if (special < count) values.set(special, value);
          const auto found = kernels.extremes(values.data(), count);
          return std::vector<std::int64_t>{kernels.max_magnitude(values.data(), count), found.least, found.greatest};
        });
      }
    }
  }
}

TEST_CASE("codec kernels: extremes are those of the numbers, and what is not finite is outside of them") {
  for (const Variant& variant : variants()) {
    CAPTURE(variant.name);
    std::vector<float> values(100, 1);
    values[98] = -5;
    values[3] = 4;
    auto found = variant.kernels->extremes(values.data(), values.size());
    CHECK(found.number(found.least) == -5);
    CHECK(found.number(found.greatest) == 4);
    CHECK(found.finite());
    CHECK(std::bit_cast<float>(variant.kernels->max_magnitude(values.data(), values.size())) == 5);
    for (const float bad : {std::nanf(""), -std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
      for (const std::size_t at : {0U, 70U, 99U}) {
        std::vector<float> spoiled = values;
        spoiled[at] = bad;
        CHECK_FALSE(variant.kernels->extremes(spoiled.data(), spoiled.size()).finite());
        CHECK(variant.kernels->max_magnitude(spoiled.data(), spoiled.size()) >= kith::detail::infinite_bits<float>);
      }
    }
    values.assign(64, std::numeric_limits<float>::max());
    values[1] = -values[1];
    CHECK(variant.kernels->extremes(values.data(), values.size()).finite());
  }
}

TEST_CASE("codec kernels: every variant rounds values to the same codes, to the nearest and ties to even") {
  for (const std::size_t count : counts) {
    CAPTURE(count);
    check_alike(7 * count, [&](const CodecKernels& kernels, std::mt19937_64& random) {
      // Multiples of a quarter: a quarter of them are ties.
      Floats values{count, count % 4};
      for (std::size_t i = 0; i < count; ++i)
        values.set(i, static_cast<float>(static_cast<int>(random() % 1001) - 500) / 4);
      std::vector<std::byte> codes(count + 8, std::byte{0xA5});
      kernels.quantize(values.data(), {2, 0.5F, 1, 1}, codes.data(), count);
      bool right = true;
      for (std::size_t i = 0; i < count; ++i)
        right = right && static_cast<std::int8_t>(codes[i]) == std::nearbyint(static_cast<double>(values.get(i)));
      CHECK(right);
      CHECK(codes[count] == std::byte{0xA5});
      return codes;
    });
    check_alike(7 * count, [&](const CodecKernels& kernels, std::mt19937_64& random) {
      Floats values = random_floats(count, random, 0.01);
      std::vector<std::byte> codes(count + 8, std::byte{0xA5});
      kernels.quantize(values.data(), {0x1p-3F, 7123.5F, 1, 1}, codes.data(), count);
      return codes;
    });
  }
}

TEST_CASE("codec kernels: every variant gives the same levels, from zero on") {
  for (const std::size_t count : counts) {
    for (const std::int32_t lower : {-100, 0, 16777216 - 255, -16777216}) {
      CAPTURE(count);
      CAPTURE(lower);
      check_alike(count, [&](const CodecKernels& kernels, std::mt19937_64& random) {
        Floats values{count, count % 4};
        std::vector<int> expected(count);
        for (std::size_t i = 0; i < count; ++i) {
          const int code = static_cast<int>(random() % 257) - 1;
          expected[i] = std::max(code, 0);
          values.set(i, static_cast<float>(code + lower) / 8);
        }
        std::vector<std::byte> codes(count + 8, std::byte{0xA5});
        kernels.quantize_level(values.data(), 8, lower, codes.data(), count);
        bool right = true;
        for (std::size_t i = 0; i < count; ++i) right = right && std::to_integer<int>(codes[i]) == expected[i];
        CHECK(right);
        CHECK(codes[count] == std::byte{0xA5});
        Floats back{count, count % 3};
        kernels.dequantize_level(codes.data(), 8, static_cast<float>(lower), back.data(), count);
        for (std::size_t i = 0; i < count; ++i)
          right = right && back.get(i) == static_cast<float>(expected[i] + lower) / 8;
        CHECK(right);
        CHECK(back.end_untouched());
        return codes;
      });
    }
  }
}

TEST_CASE("codec kernels: every variant decodes, adds and limits to the same bits") {
  for (const std::size_t count : counts) {
    CAPTURE(count);
    for (const BlockScale<float> scale : {BlockScale<float>{1, 1, 0.1F, 1}, BlockScale<float>{1, 1, 0.3F, 0x1p-64F}}) {
      check_alike(count, [&](const CodecKernels& kernels, std::mt19937_64& random) {
        const std::vector<std::byte> codes = random_bytes(count, random);
        Floats values{count, count % 4};
        kernels.dequantize(codes.data(), scale, values.data(), count);
        bool right = values.end_untouched();
        for (std::size_t i = 0; i < count; ++i) {
          volatile float product = static_cast<float>(static_cast<std::int8_t>(codes[i])) * scale.step;
          right = right && values.get(i) == product * scale.restore;
        }
        CHECK(right);
        return values.bits();
      });
    }
    check_alike(count, [&](const CodecKernels& kernels, std::mt19937_64& random) {
      Floats sums = random_floats(count, random, 3, count % 4);
      Floats values = random_floats(count, random, 5);
      std::vector<float> expected(count);
      for (std::size_t i = 0; i < count; ++i) {
        volatile float product = 0.3F * values.get(i);
        expected[i] = sums.get(i) + product;
      }
      kernels.accumulate(sums.data(), values.data(), 0.3F, count);
      bool right = sums.end_untouched();
      for (std::size_t i = 0; i < count; ++i) right = right && sums.get(i) == expected[i];
      CHECK(right);
      kernels.saturate(sums.data(), 2.5F, values.data(), count);
      for (std::size_t i = 0; i < count; ++i) right = right && values.get(i) == std::clamp(sums.get(i), -2.5F, 2.5F);
      CHECK(right);
      kernels.saturate(sums.data(), 2.5F, sums.data(), count);
      CHECK(sums.bits() == values.bits());
      return sums.bits();
    });
  }
}

TEST_CASE("codec kernels: every variant subtracts, and adds an average, each operation rounded on its own") {
  for (const std::size_t count : counts) {
    CAPTURE(count);
    check_alike(count + 3, [&](const CodecKernels& kernels, std::mt19937_64& random) {
      Floats self = random_floats(count, random, 3, count % 4);
      Floats a = random_floats(count, random, 5);
      Floats b = random_floats(count, random, 7, 3);
      Floats target{count, count % 3};
      double squares[8] = {};
      bool right = true;
      const double found = kernels.subtract(a.data(), self.data(), target.data(), count);
      for (std::size_t i = 0; i < count; ++i) {
        volatile float difference = a.get(i) - self.get(i);
        volatile double square = static_cast<double>(difference) * static_cast<double>(difference);
        squares[i % 8] += square;
        right = right && target.get(i) == difference;
      }
      const double sum = ((squares[0] + squares[4]) + (squares[2] + squares[6])) +
                         ((squares[1] + squares[5]) + (squares[3] + squares[7]));
      CHECK(right);
      CHECK(found == sum);
      std::vector<float> expected(count);
      for (std::size_t i = 0; i < count; ++i) {
        volatile float first = a.get(i) - self.get(i);
        volatile float second = b.get(i) - self.get(i);
        first = 0.3F * first;
        second = -0.7F * second;
        volatile float product = first + second;
        product = 0.9F * product;
        expected[i] = target.get(i) + product;
      }
      const kith::detail::Weighted<float> sources[] = {{a.data(), 0.3F}, {b.data(), -0.7F}};
      kernels.add_averaged(target.data(), self.data(), std::span{sources}, 0.9F, count);
      for (std::size_t i = 0; i < count; ++i) right = right && target.get(i) == expected[i];
      CHECK(right);
      CHECK(target.end_untouched());
      return target.bits();
    });
  }
}

TEST_CASE("codec kernels: every variant finds a code below the least one, wherever it is") {
  for (const Variant& variant : variants()) {
    CAPTURE(variant.name);
    for (const std::size_t count : counts) {
      std::vector<std::byte> codes(count, std::byte{0x81});
      bool right = !variant.kernels->any_below(codes.data(), -127, count);
      for (std::size_t i = 0; i < count; ++i) {
        codes[i] = std::byte{0x80};
        right = right && variant.kernels->any_below(codes.data(), -127, count);
        codes[i] = std::byte{0x7F};
      }
      CHECK(right);
    }
  }
}

}  // namespace numeric_codec_kernels_test
