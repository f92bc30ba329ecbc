// SPDX-License-Identifier: Apache-2.0
#include <kith/numeric/kernels.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace numeric_kernels_test {

namespace {

using kith::DType;
using kith::detail::Weighted;

template <class T>
using Sources = std::span<const Weighted<T>>;

/// What a rank hears, as average_tile() takes it.
struct Edge {
  std::int32_t rank;
  double weight;
};

/// One implementation of everything; its members have the same meaning as the functions of kith/numeric/kernels.hpp.
struct Variant {
  const char* name;
  void (*widen)(DType, const void*, float*, std::size_t);
  void (*narrow)(DType, const float*, void*, std::size_t);
  void (*combine_f32)(float*, const float*, Sources<float>, float, std::size_t);
  void (*combine_f64)(double*, const double*, Sources<double>, double, std::size_t);
  void (*combine_narrow)(DType, void*, const float*, Sources<float>, float, std::size_t);
  void (*average_tile)(DType, std::span<const kith::detail::TileRow<Edge>>, void*, double, std::size_t, std::size_t);
  std::size_t (*first_non_finite)(DType, const void*, std::size_t);
  double (*distance_f32)(const float*, const float*, std::size_t);
  double (*distance_f64)(const double*, const double*, std::size_t);

  void combine(float* target, const float* self, Sources<float> sources, float mixing, std::size_t count) const {
    combine_f32(target, self, sources, mixing, count);
  }
  void combine(double* target, const double* self, Sources<double> sources, double mixing, std::size_t count) const {
    combine_f64(target, self, sources, mixing, count);
  }
  [[nodiscard]] double distance(const float* a, const float* b, std::size_t n) const { return distance_f32(a, b, n); }
  [[nodiscard]] double distance(const double* a, const double* b, std::size_t n) const { return distance_f64(a, b, n); }
};

#define KITH_TEST_VARIANT(scope)                                                                                   \
  Variant {                                                                                                        \
#scope, [](DType d, const void* s, float* t, std::size_t n) { scope::widen(d, s, t, n); },                       \
        [](DType d, const float* s, void* t, std::size_t n) { scope::narrow(d, s, t, n); },                          \
        [](float* t, const float* x, Sources<float> s, float a, std::size_t n) { scope::combine(t, x, s, a, n, 64); },  \
        [](double* t, const double* x, Sources<double> s, double a, std::size_t n) { scope::combine(t, x, s, a, n, 0); }, \
        [](DType d, void* t, const float* x, Sources<float> s, float a, std::size_t n) {                             \
          scope::combine_narrow(d, t, x, s, a, n, 128);                                                                   \
        },                                                                                                           \
        [](DType d, std::span<const kith::detail::TileRow<Edge>> r, void* s, double a, std::size_t b, std::size_t e) { \
          scope::average_tile(d, r, s, a, b, e);                                                                   \
        },                                                                                                           \
        [](DType d, const void* s, std::size_t n) { return scope::first_non_finite(d, s, n); },                      \
        [](const float* a, const float* b, std::size_t n) { return scope::squared_distance(a, b, n); },              \
        [](const double* a, const double* b, std::size_t n) { return scope::squared_distance(a, b, n); } \
  }

/// Every variant that this processor can run, and the choice that the library makes.
const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = [] {
    std::vector<Variant> list{KITH_TEST_VARIANT(kith::detail), KITH_TEST_VARIANT(kith::detail::scalar),
                              KITH_TEST_VARIANT(kith::detail::baseline)};
    using kith::detail::Isa;
    if (kith::detail::isa() >= Isa::avx2) list.push_back(KITH_TEST_VARIANT(kith::detail::avx2));
    if (kith::detail::isa() >= Isa::avx512) list.push_back(KITH_TEST_VARIANT(kith::detail::avx512));
    return list;
  }();
  return all;
}

/// Memory for `count` elements that start `shift` bytes behind a 64-byte boundary, with a pattern around them.
template <class T>
class Shifted {
public:
  Shifted(std::size_t count, std::size_t shift) : bytes_(count * sizeof(T) + 256, std::byte{0xa5}), count_(count) {
    const auto address = reinterpret_cast<std::uintptr_t>(bytes_.data());
    start_ = 64 + (64 - address % 64) % 64 + shift;
  }
  Shifted(const std::vector<T>& values, std::size_t shift) : Shifted(values.size(), shift) { fill(values); }

  void fill(const std::vector<T>& values) {
    if (count_ != 0) std::memcpy(bytes_.data() + start_, values.data(), count_ * sizeof(T));
  }
  [[nodiscard]] T* data() { return reinterpret_cast<T*>(bytes_.data() + start_); }
  [[nodiscard]] std::vector<T> values() const {
    std::vector<T> copy(count_);
    if (count_ != 0) std::memcpy(copy.data(), bytes_.data() + start_, count_ * sizeof(T));
    return copy;
  }
  [[nodiscard]] bool surroundings_untouched() const {
    const auto is_pattern = [](std::byte byte) { return byte == std::byte{0xa5}; };
    const auto first = bytes_.begin() + static_cast<std::ptrdiff_t>(start_);
    return std::all_of(bytes_.begin(), first, is_pattern) &&
           std::all_of(first + static_cast<std::ptrdiff_t>(count_ * sizeof(T)), bytes_.end(), is_pattern);
  }

private:
  std::vector<std::byte> bytes_;
  std::size_t count_;
  std::size_t start_ = 0;
};

/// The same bits, or both NaN: which NaN an addition of two of them gives is left open.
template <class T>
bool same(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  }
  return std::memcmp(&a, &b, sizeof a) == 0;
}

template <class T>
std::size_t differences(const std::vector<T>& a, const std::vector<T>& b) {
  REQUIRE(a.size() == b.size());
  std::size_t count = 0;
  for (std::size_t i = 0; i < a.size(); ++i) count += same(a[i], b[i]) ? 0 : 1;
  return count;
}

/// Mostly ordinary numbers, with every kind of special one mixed in.
template <class T>
std::vector<T> numbers(std::mt19937& random, std::size_t count, bool with_special) {
  using Limits = std::numeric_limits<T>;
  const std::array<T, 9> special{
      T(0),          -T(0),         Limits::infinity(),   -Limits::infinity(), Limits::quiet_NaN(),
      Limits::max(), Limits::min(), Limits::denorm_min(), -Limits::max()};
  std::normal_distribution<T> normal;
  std::vector<T> values(count);
  for (T& value : values) {
    value = normal(random);
    if (with_special && random() % 16 == 0) value = special[random() % special.size()];
    if (with_special && random() % 16 == 0) value *= Limits::min();
  }
  return values;
}

/// f32 values that make rounding to 16 bits go every possible way: bit patterns at random, and all that differ from a
/// 16-bit value or a tie by at most one unit.
std::vector<float> rounding_cases() {
  std::vector<float> values;
  std::mt19937 random(7);
  for (std::uint32_t bits = 0; bits < 0x10000; bits += 3) {
    for (const std::uint32_t low : {0U, 1U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU}) {
      values.push_back(std::bit_cast<float>((bits << 16) | low));
    }
    const auto half = std::bit_cast<std::uint32_t>(kith::to_float(kith::float16{static_cast<std::uint16_t>(bits)}));
    for (const std::uint32_t low : {0U, 1U, 0xfffU, 0x1000U, 0x1001U, 0x1fffU}) {
      values.push_back(std::bit_cast<float>(half + low));
    }
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
    // Around 2^-14 and below, where binary16 becomes subnormal.
    values.push_back(std::bit_cast<float>(0x32000000U + static_cast<std::uint32_t>(random()) % 0x07000000U));
  }
  return values;
}

/// The formula of combine(), with every intermediate result forced into memory.
template <class T>
std::vector<T> slow_combine(const std::vector<T>& self, const std::vector<std::vector<T>>& rows,
                            const std::vector<T>& weights, T mixing) {
  std::vector<T> result = self;
  if (rows.empty()) return result;
  for (std::size_t i = 0; i < self.size(); ++i) {
    volatile T sum = 0;
    for (std::size_t k = 0; k < rows.size(); ++k) {
      volatile T difference = rows[k][i] - self[i];
      volatile T product = weights[k] * difference;
      if (k == 0) {
        sum = product;
      } else {
        sum = sum + product;
      }
    }
    volatile T step = mixing * sum;
    result[i] = self[i] + step;
  }
  return result;
}

/// Where a variant's combine() writes: a row of its own, over self, or over a source.
template <class T>
void check_combine(const Variant& variant, std::mt19937& random, std::size_t count, std::size_t degree) {
  CAPTURE(variant.name);
  CAPTURE(count);
  CAPTURE(degree);
  const bool with_special = random() % 4 == 0;
  const T mixing = random() % 2 == 0 ? T(1) : static_cast<T>(random() % 1000) / T(777);
  const std::vector<T> self = numbers<T>(random, count, with_special);
  std::vector<std::vector<T>> rows;
  std::vector<T> weights;
  for (std::size_t k = 0; k < degree; ++k) {
    rows.push_back(numbers<T>(random, count, with_special));
    weights.push_back(static_cast<T>(1 + random() % 1000) / T(3001));
  }
  const std::vector<T> expected = slow_combine(self, rows, weights, mixing);
  for (std::size_t overwritten = 0; overwritten <= degree + 1; ++overwritten) {  // 0: self; then the sources; then none
    CAPTURE(overwritten);
    std::vector<Shifted<T>> memory;
    memory.emplace_back(self, random() % 16);
    for (const std::vector<T>& row : rows) memory.emplace_back(row, random() % 16);
    memory.emplace_back(count, random() % 16);
    std::vector<Weighted<T>> sources;
    for (std::size_t k = 0; k < degree; ++k) sources.push_back({memory[k + 1].data(), weights[k]});
    variant.combine(memory[overwritten].data(), memory[0].data(), sources, mixing, count);
    CHECK(differences(memory[overwritten].values(), expected) == 0);
    for (const Shifted<T>& row : memory) CHECK(row.surroundings_untouched());
    if (overwritten != 0) CHECK(differences(memory[0].values(), self) == 0);
  }
}

/// The sum in eight lanes, every step forced into memory.
template <class T>
double slow_distance(const std::vector<T>& a, const std::vector<T>& b) {
  volatile double lane[8] = {};
  for (std::size_t i = 0; i < a.size(); ++i) {
    volatile double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    volatile double square = difference * difference;
    lane[i % 8] = lane[i % 8] + square;
  }
  volatile double even = (lane[0] + lane[4]) + (lane[2] + lane[6]);
  volatile double odd = (lane[1] + lane[5]) + (lane[3] + lane[7]);
  return even + odd;
}

template <class T>
void check_distance(const Variant& variant, std::mt19937& random, std::size_t count) {
  CAPTURE(variant.name);
  CAPTURE(count);
  const std::vector<T> a = numbers<T>(random, count, false);
  const std::vector<T> b = numbers<T>(random, count, false);
  Shifted<T> left(a, random() % 16);
  Shifted<T> right(b, random() % 16);
  const double distance = variant.distance(left.data(), right.data(), count);
  CHECK(same(distance, slow_distance(a, b)));
  long double exact = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const long double difference = static_cast<long double>(a[i]) - static_cast<long double>(b[i]);
    exact += difference * difference;
  }
  CHECK(distance == doctest::Approx(static_cast<double>(exact)).epsilon(1e-14));
}

template <class T>
void check_first_non_finite(const Variant& variant, DType dtype, std::size_t count, std::size_t shift,
                            const std::vector<T>& finite, const std::vector<T>& others) {
  CAPTURE(variant.name);
  CAPTURE(count);
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = finite[i % finite.size()];
  Shifted<T> memory(values, shift);
  CHECK(variant.first_non_finite(dtype, memory.data(), count) == count);
  for (std::size_t at = 0; at < count; ++at) {
    std::vector<T> bad = values;
    bad[at] = others[(at + count) % others.size()];
    bad[at + (count - at) / 2] = others[at % others.size()];  // there may be a second one
    memory.fill(bad);
    CHECK(variant.first_non_finite(dtype, memory.data(), count) == at);
  }
}

}  // namespace

TEST_CASE("kernels: every variant widens all 16-bit values as to_float does") {
  std::vector<std::uint16_t> bits(0x10000);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  std::vector<float> wide(bits.size());
  for (const Variant& variant : variants()) {
    CAPTURE(variant.name);
    std::size_t wrong = 0;
    variant.widen(DType::f16, bits.data(), wide.data(), bits.size());
    for (std::size_t i = 0; i < bits.size(); ++i) {
      wrong +=
          std::bit_cast<std::uint32_t>(wide[i]) != std::bit_cast<std::uint32_t>(kith::to_float(kith::float16{bits[i]}));
    }
    variant.widen(DType::bf16, bits.data(), wide.data(), bits.size());
    for (std::size_t i = 0; i < bits.size(); ++i) {
      wrong += std::bit_cast<std::uint32_t>(wide[i]) !=
               std::bit_cast<std::uint32_t>(kith::to_float(kith::bfloat16{bits[i]}));
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("kernels: every variant narrows as to_float16 and to_bfloat16 do, NaN payloads included") {
  const std::vector<float> values = rounding_cases();
  std::vector<std::uint16_t> narrow(values.size());
  for (const Variant& variant : variants()) {
    CAPTURE(variant.name);
    std::size_t wrong = 0;
    variant.narrow(DType::f16, values.data(), narrow.data(), values.size());
    for (std::size_t i = 0; i < values.size(); ++i) wrong += narrow[i] != kith::to_float16(values[i]).bits;
    variant.narrow(DType::bf16, values.data(), narrow.data(), values.size());
    for (std::size_t i = 0; i < values.size(); ++i) wrong += narrow[i] != kith::to_bfloat16(values[i]).bits;
    CHECK(wrong == 0);
  }
}

TEST_CASE("kernels: conversions of every count at every misalignment stay within their rows") {
  std::mt19937 random(11);
  for (const Variant& variant : variants()) {
    CAPTURE(variant.name);
    for (std::size_t count = 0; count <= 67; ++count) {
      CAPTURE(count);
      for (std::size_t shift = 0; shift < 4; ++shift) {
        const DType dtype = (count + shift) % 2 == 0 ? DType::f16 : DType::bf16;
        std::vector<float> wide = numbers<float>(random, count, true);
        std::vector<std::uint16_t> expected(count);
        for (std::size_t i = 0; i < count; ++i) {
          expected[i] = dtype == DType::f16 ? kith::to_float16(wide[i]).bits : kith::to_bfloat16(wide[i]).bits;
        }
        Shifted<float> from(wide, shift);
        Shifted<std::uint16_t> to(count, random() % 16);
        variant.narrow(dtype, from.data(), to.data(), count);
        CHECK(to.values() == expected);
        CHECK(to.surroundings_untouched());
        for (std::size_t i = 0; i < count; ++i) {
          wide[i] = dtype == DType::f16 ? kith::to_float(kith::float16{expected[i]})
                                        : kith::to_float(kith::bfloat16{expected[i]});
        }
        Shifted<float> back(count, random() % 16);
        variant.widen(dtype, to.data(), back.data(), count);
        CHECK(differences(back.values(), wide) == 0);
        CHECK(back.surroundings_untouched());
      }
    }
    variant.widen(DType::f16, nullptr, nullptr, 0);
    variant.narrow(DType::bf16, nullptr, nullptr, 0);
  }
}

TEST_CASE("kernels: combine rounds every step on its own, in every place that it may write to") {
  std::mt19937 random(13);
  for (const Variant& variant : variants()) {
    for (std::size_t count = 0; count <= 67; ++count) {
      check_combine<float>(variant, random, count, count % 10);
      check_combine<double>(variant, random, count, (count + 3) % 10);
    }
    for (std::size_t degree = 0; degree < 10; ++degree) {
      check_combine<float>(variant, random, 300 + random() % 200, degree);
      check_combine<double>(variant, random, 300 + random() % 200, degree);
    }
    variant.combine(static_cast<float*>(nullptr), static_cast<const float*>(nullptr), {}, 1.0F, 0);
  }
}

TEST_CASE("kernels: the signs of zeros follow from the formula") {
  // The product 0.25 * -denorm_min rounds to -0, and -0 + -0 is -0. A sum that started from +0 instead of the first
  // product would give +0.
  for (const Variant& variant : variants()) {
    CAPTURE(variant.name);
    const std::vector<float> self(40, -0.0F);
    const std::vector<float> other(40, -std::numeric_limits<float>::denorm_min());
    std::vector<float> result(40);
    const std::vector<Weighted<float>> sources{{other.data(), 0.25F}};
    variant.combine(result.data(), self.data(), sources, 1.0F, self.size());
    CHECK(std::all_of(result.begin(), result.end(), [](float x) { return x == 0 && std::signbit(x); }));
    variant.combine(result.data(), self.data(), sources, -1.0F, self.size());
    CHECK(std::none_of(result.begin(), result.end(), [](float x) { return std::signbit(x); }));
    variant.combine(result.data(), self.data(), {}, 1.0F, self.size());
    CHECK(std::all_of(result.begin(), result.end(), [](float x) { return x == 0 && std::signbit(x); }));
  }
}

TEST_CASE("kernels: combine_narrow is combine and then one rounding") {
  std::mt19937 random(17);
  for (const Variant& variant : variants()) {
    CAPTURE(variant.name);
    for (std::size_t count = 0; count <= 140; ++count) {
      CAPTURE(count);
      const std::size_t degree = count % 7;
      const DType dtype = random() % 2 == 0 ? DType::f16 : DType::bf16;
      const std::vector<float> self = numbers<float>(random, count, false);
      std::vector<std::vector<float>> rows;
      std::vector<float> weights;
      std::vector<Weighted<float>> sources;
      for (std::size_t k = 0; k < degree; ++k) {
        rows.push_back(numbers<float>(random, count, count % 5 == 0));
        weights.push_back(static_cast<float>(1 + random() % 100) / 701.0F);
      }
      for (std::size_t k = 0; k < degree; ++k) sources.push_back({rows[k].data(), weights[k]});
      const std::vector<float> wide = slow_combine(self, rows, weights, 0.75F);
      Shifted<std::uint16_t> to(count, random() % 16);
      variant.combine_narrow(dtype, to.data(), self.data(), sources, 0.75F, count);
      std::size_t wrong = 0;
      const std::vector<std::uint16_t> narrow = to.values();
      for (std::size_t i = 0; i < count; ++i) {
        if (std::isnan(wide[i])) {
          wrong += dtype == DType::f16 ? (narrow[i] & 0x7fff) <= 0x7c00 : (narrow[i] & 0x7fff) <= 0x7f80;
        } else {
          wrong +=
              narrow[i] != (dtype == DType::f16 ? kith::to_float16(wide[i]).bits : kith::to_bfloat16(wide[i]).bits);
        }
      }
      CHECK(wrong == 0);
      CHECK(to.surroundings_untouched());
    }
  }
}

namespace {

/// A whole round of `size` ranks at once, against slow_combine() rank by rank. T: as computed, Stored: as stored.
template <class T, class Stored, class Widen, class Narrow>
void check_tile(const Variant& variant, DType dtype, std::mt19937& random, std::size_t size, std::size_t count,
                Widen widen, Narrow narrow) {
  CAPTURE(variant.name);
  CAPTURE(dtype);
  CAPTURE(size);
  CAPTURE(count);
  std::vector<std::vector<T>> wide;
  std::vector<std::vector<Stored>> stored;
  std::vector<Shifted<Stored>> memory;
  for (std::size_t r = 0; r < size; ++r) {
    std::vector<Stored> row;
    for (const T x : numbers<T>(random, count, random() % 3 == 0)) row.push_back(narrow(x));
    std::vector<T> values;
    for (const Stored x : row) values.push_back(widen(x));
    memory.emplace_back(row, random() % 16);
    stored.push_back(row);
    wide.push_back(values);
  }
  std::vector<std::vector<Edge>> edges(size);
  std::vector<kith::detail::TileRow<Edge>> rows;
  for (std::size_t r = 0; r < size; ++r) {
    for (std::size_t peer = 0; peer < size; ++peer) {
      if (peer != r && random() % 3 == 0) {
        edges[r].push_back({static_cast<std::int32_t>(peer), static_cast<double>(1 + random() % 100) / 901.0});
      }
    }
    rows.push_back({memory[r].data(), edges[r]});
  }
  const std::size_t begin = count == 0 ? 0 : random() % std::min<std::size_t>(count, 40);
  const std::size_t end = count - (count - begin == 0 ? 0 : random() % std::min<std::size_t>(count - begin, 3));
  std::vector<double> scratch(size * kith::detail::tile_scratch_bytes / sizeof(double));
  variant.average_tile(dtype, rows, scratch.data(), 0.7, begin, end);
  std::size_t wrong = 0;
  for (std::size_t r = 0; r < size; ++r) {
    std::vector<std::vector<T>> sources;
    std::vector<T> weights;
    for (const Edge& edge : edges[r]) {
      sources.push_back(wide[static_cast<std::size_t>(edge.rank)]);
      weights.push_back(static_cast<T>(edge.weight));
    }
    const std::vector<T> expected = slow_combine(wide[r], sources, weights, static_cast<T>(0.7));
    const std::vector<Stored> result = memory[r].values();
    for (std::size_t i = 0; i < count; ++i) {
      const bool written = begin <= i && i < end && !sources.empty();
      if (written && std::isnan(expected[i])) {
        wrong += std::isnan(widen(result[i])) ? 0 : 1;
      } else {
        const Stored right = written ? narrow(expected[i]) : stored[r][i];
        wrong += std::memcmp(&result[i], &right, sizeof right) == 0 ? 0 : 1;
      }
    }
    CHECK(memory[r].surroundings_untouched());
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("kernels: average_tile is combine for each of several ranks, from the values before the round") {
  std::mt19937 random(23);
  const auto same_value = [](auto x) { return x; };
  const auto widen = [](auto x) { return kith::to_float(x); };
  for (const Variant& variant : variants()) {
    for (std::size_t size = 1; size <= 9; ++size) {
      for (const std::size_t count : {std::size_t{0}, std::size_t{1}, random() % 70, 64 + random() % 200}) {
        check_tile<float, float>(variant, DType::f32, random, size, count, same_value, same_value);
        check_tile<double, double>(variant, DType::f64, random, size, count, same_value, same_value);
        check_tile<float, kith::float16>(variant, DType::f16, random, size, count, widen,
                                         [](float x) { return kith::to_float16(x); });
        check_tile<float, kith::bfloat16>(variant, DType::bf16, random, size, count, widen,
                                          [](float x) { return kith::to_bfloat16(x); });
      }
    }
  }
}

TEST_CASE("kernels: average_tile rounds bf16 ties to even, and keeps infinities and NaNs") {
  // Two ranks, weight 1/2 each: the mean of neighbouring values is a tie.
  std::vector<std::uint16_t> low(0x10000);
  std::vector<std::uint16_t> high(low.size());
  for (std::size_t i = 0; i < low.size(); ++i) {
    low[i] = static_cast<std::uint16_t>(i);
    high[i] = static_cast<std::uint16_t>((i & 0x8000) | ((i + 1) & 0x7fff));
  }
  const std::vector<Edge> to_high{{1, 0.5}};
  const std::vector<Edge> to_low{{0, 0.5}};
  for (const Variant& variant : variants()) {
    CAPTURE(variant.name);
    std::vector<std::uint16_t> a = low;
    std::vector<std::uint16_t> b = high;
    const std::vector<kith::detail::TileRow<Edge>> rows{{a.data(), to_high}, {b.data(), to_low}};
    std::vector<double> scratch(2 * kith::detail::tile_scratch_bytes / sizeof(double));
    variant.average_tile(DType::bf16, rows, scratch.data(), 1.0, 0, a.size());
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      const float x = kith::to_float(kith::bfloat16{low[i]});
      const float y = kith::to_float(kith::bfloat16{high[i]});
      const volatile float step_x = 0.5F * (y - x);
      const volatile float step_y = 0.5F * (x - y);
      const kith::bfloat16 mean_x = kith::to_bfloat16(x + step_x);
      const kith::bfloat16 mean_y = kith::to_bfloat16(y + step_y);
      wrong += same(kith::to_float(kith::bfloat16{a[i]}), kith::to_float(mean_x)) ? 0 : 1;
      wrong += same(kith::to_float(kith::bfloat16{b[i]}), kith::to_float(mean_y)) ? 0 : 1;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("kernels: combine_narrow keeps a NaN whose payload is all ones") {
  // Rounding it as if it were a number would carry into the sign: -0.
  for (const Variant& variant : variants()) {
    CAPTURE(variant.name);
    const std::vector<float> self(70, 1.0F);
    for (const std::uint32_t bits : {0x7fffffffU, 0xffffffffU, 0x7fffff00U, 0x7f800001U}) {
      const std::vector<float> other(70, std::bit_cast<float>(bits));
      const std::vector<Weighted<float>> sources{{other.data(), 0.5F}};
      std::vector<std::uint16_t> result(70);
      variant.combine_narrow(DType::bf16, result.data(), self.data(), sources, 1.0F, self.size());
      CHECK(std::all_of(result.begin(), result.end(), [](int x) { return (x & 0x7fff) > 0x7f80; }));
      variant.combine_narrow(DType::f16, result.data(), self.data(), sources, 1.0F, self.size());
      CHECK(std::all_of(result.begin(), result.end(), [](int x) { return (x & 0x7fff) > 0x7c00; }));
    }
  }
}

TEST_CASE("kernels: first_non_finite finds the first NaN or infinity of every type") {
  using F = std::numeric_limits<float>;
  using D = std::numeric_limits<double>;
  for (const Variant& variant : variants()) {
    for (const std::size_t count : {0U, 1U, 2U, 7U, 63U, 64U, 65U, 130U, 290U}) {
      check_first_non_finite<float>(variant, DType::f32, count, count % 4, {1.0F, -F::max(), 0.0F, F::denorm_min()},
                                    {F::infinity(), -F::infinity(), F::quiet_NaN(), -F::quiet_NaN()});
      check_first_non_finite<double>(variant, DType::f64, count, count % 8, {1.0, -D::max(), 0.0, 1e300, D::min()},
                                     {D::infinity(), -D::infinity(), D::quiet_NaN(), D::signaling_NaN()});
      check_first_non_finite<std::uint16_t>(variant, DType::f16, count, count % 2, {0x0000, 0x7bff, 0xfbff, 0x8001},
                                            {0x7c00, 0xfc00, 0x7c01, 0xffff});
      check_first_non_finite<std::uint16_t>(variant, DType::bf16, count, count % 2, {0x0000, 0x7f7f, 0xff7f, 0x7c00},
                                            {0x7f80, 0xff80, 0x7f81, 0xffff});
    }
    CHECK(variant.first_non_finite(DType::f32, nullptr, 0) == 0);
  }
}

TEST_CASE("kernels: squared_distance gives the same bits in every variant") {
  std::mt19937 random(19);
  for (const Variant& variant : variants()) {
    for (std::size_t count = 0; count <= 67; ++count) {
      check_distance<float>(variant, random, count);
      check_distance<double>(variant, random, count);
    }
    check_distance<float>(variant, random, 10001);
    check_distance<double>(variant, random, 10001);
    CHECK(variant.distance(static_cast<const float*>(nullptr), nullptr, 0) == 0.0);
  }
}

}  // namespace numeric_kernels_test
