// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

/// @file
/// What the averager must compute, written a second time for the tests: one element after another, through memory, so
/// that every operation is rounded on its own whatever the compiler would like. Shares no arithmetic with the library.

namespace reference {

/// A 16-bit floating-point format by its two numbers.
struct Format {
  int fraction_bits;
  int least_exponent;  // of the normal numbers
};
inline constexpr Format half{10, -14};
inline constexpr Format brain{7, -126};

/// The value of a finite number of the format, by its definition.
[[nodiscard]] inline double decode(Format format, std::uint16_t bits) {
  const int fraction = bits & ((1 << format.fraction_bits) - 1);
  const int exponent = (bits & 0x7fff) >> format.fraction_bits;
  const int significand = exponent == 0 ? fraction : fraction + (1 << format.fraction_bits);
  const double magnitude =
      std::ldexp(significand, format.least_exponent + std::max(exponent, 1) - 1 - format.fraction_bits);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

/// The nearest number of the format, ties to even: the value is counted in units of the last place, exactly, and that
/// count is rounded by the floating-point environment.
[[nodiscard]] inline std::uint16_t encode(Format format, double value) {
  const int infinity = 0x7fff >> format.fraction_bits << format.fraction_bits;
  const int sign = std::signbit(value) ? 0x8000 : 0;
  if (!std::isfinite(value)) return static_cast<std::uint16_t>(sign | (std::isnan(value) ? 0x7fff : infinity));
  const int exponent = value == 0 ? format.least_exponent : std::max(std::ilogb(value), format.least_exponent);
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(std::fabs(value), format.fraction_bits - exponent)));
  // The bits of consecutive magnitudes are consecutive numbers, so that a carry into the exponent needs no care.
  const int bits = ((exponent - format.least_exponent) << format.fraction_bits) + units;
  return static_cast<std::uint16_t>(sign | std::min(bits, infinity));
}

/// What one buffer of a model shall be: `shift` elements behind a boundary of 64 bytes.
struct Shape {
  kith::DType dtype;
  std::size_t count;
  std::size_t shift = 0;
};

/// One rank's model, with guards around each buffer.
class Model {
public:
  explicit Model(const std::vector<Shape>& shapes) {
    for (const Shape& shape : shapes) buffers_.emplace_back(shape);
  }

  [[nodiscard]] std::vector<kith::BufferView> views() {
    std::vector<kith::BufferView> views;
    for (Buffer& buffer : buffers_) views.push_back(kith::view(buffer.data(), buffer.shape.count, buffer.shape.dtype));
    return views;
  }

  [[nodiscard]] std::size_t buffers() const { return buffers_.size(); }
  [[nodiscard]] const Shape& shape(std::size_t b) const { return buffers_[b].shape; }
  [[nodiscard]] std::size_t bytes() const {
    std::size_t total = 0;
    for (const Buffer& buffer : buffers_) total += buffer.bytes();
    return total;
  }

  /// The value of an element, exactly.
  [[nodiscard]] double get(std::size_t b, std::size_t i) const {
    switch (shape(b).dtype) {
      case kith::DType::f64:
        return load<double>(b, i);
      case kith::DType::f32:
        return static_cast<double>(load<float>(b, i));
      case kith::DType::f16:
        return decode(half, load<std::uint16_t>(b, i));
      case kith::DType::bf16:
        return decode(brain, load<std::uint16_t>(b, i));
    }
    return 0;
  }
  /// Rounds to the element's type, nearest even.
  void set(std::size_t b, std::size_t i, double value) {
    switch (shape(b).dtype) {
      case kith::DType::f64:
        return store(b, i, value);
      case kith::DType::f32:
        return store(b, i, static_cast<float>(value));
      case kith::DType::f16:
        return store(b, i, encode(half, value));
      case kith::DType::bf16:
        return store(b, i, encode(brain, value));
    }
  }

  /// Numbers of many magnitudes, signs and dtypes' subnormals among them.
  void randomize(std::mt19937_64& random) {
    std::normal_distribution<double> normal;
    std::uniform_int_distribution<int> scale(-8, 6);
    for (std::size_t b = 0; b < buffers(); ++b)
      for (std::size_t i = 0; i < shape(b).count; ++i)
        set(b, i, std::ldexp(normal(random), scale(random) * (i % 17 == 0 ? 2 : 1)));
  }

  /// Same shapes, same bits, and the guards of this one untouched.
  friend bool operator==(const Model& a, const Model& b) {
    return std::equal(a.buffers_.begin(), a.buffers_.end(), b.buffers_.begin(), b.buffers_.end(),
                      [](const Buffer& x, const Buffer& y) {
                        return x.bytes() == y.bytes() && x.intact() && y.intact() &&
                               (x.bytes() == 0 || std::memcmp(x.data(), y.data(), x.bytes()) == 0);
                      });
  }

private:
  struct Buffer {
    static constexpr std::size_t boundary = 64;
    Shape shape;
    std::vector<std::byte> memory;

    explicit Buffer(const Shape& s) : shape(s), memory(4 * boundary + bytes() + shift_bytes(), std::byte{0x5A}) {
      if (bytes() > 0) std::memset(data(), 0, bytes());
    }
    Buffer(const Buffer& other) : Buffer(other.shape) {
      if (bytes() > 0) std::memcpy(data(), other.data(), bytes());
    }
    Buffer& operator=(const Buffer& other) {
      shape = other.shape;
      memory = Buffer(other).memory;  // moved: what lies on a boundary stays there
      return *this;
    }
    ~Buffer() = default;

    [[nodiscard]] std::size_t bytes() const { return shape.count * kith::size_of(shape.dtype); }
    [[nodiscard]] std::size_t shift_bytes() const { return shape.shift * kith::size_of(shape.dtype); }
    [[nodiscard]] std::size_t begin() const {
      const auto address = reinterpret_cast<std::uintptr_t>(memory.data()) + boundary;
      return boundary + (boundary - address % boundary) % boundary + shift_bytes();
    }
    [[nodiscard]] std::byte* data() { return memory.data() + begin(); }
    [[nodiscard]] const std::byte* data() const { return memory.data() + begin(); }
    [[nodiscard]] bool intact() const {
      const auto guard = [](std::byte b) { return b == std::byte{0x5A}; };
      const auto first = memory.begin() + static_cast<std::ptrdiff_t>(begin());
      return std::all_of(memory.begin(), first, guard) &&
             std::all_of(first + static_cast<std::ptrdiff_t>(bytes()), memory.end(), guard);
    }
  };

  template <class T>
  [[nodiscard]] T load(std::size_t b, std::size_t i) const {
    T value;
    std::memcpy(&value, buffers_[b].data() + i * sizeof(T), sizeof(T));
    return value;
  }
  template <class T>
  void store(std::size_t b, std::size_t i, T value) {
    std::memcpy(buffers_[b].data() + i * sizeof(T), &value, sizeof(T));
  }

  std::vector<Buffer> buffers_;
};

/// `size` random models of one shape.
[[nodiscard]] inline std::vector<Model> random_models(kith::Rank size, const std::vector<Shape>& shapes,
                                                      std::uint64_t seed) {
  std::mt19937_64 random{seed};
  std::vector<Model> models(static_cast<std::size_t>(size), Model{shapes});
  for (Model& model : models) model.randomize(random);
  return models;
}

/// Whom a rank hears, in ascending rank, and with which weight.
using Sources = std::vector<std::pair<std::size_t, double>>;

/// x + a (w_1 (y_1 - x) + w_2 (y_2 - x) + ...), each operation rounded to T: volatile leaves no room for contraction.
template <class T>
[[nodiscard]] T step(T x, const std::vector<std::pair<T, T>>& weighted, T a) {
  volatile T sum = 0;
  bool first = true;
  for (const auto& [weight, y] : weighted) {
    volatile T difference = y - x;
    volatile T product = weight * difference;
    volatile T next = sum + product;
    sum = first ? product : next;
    first = false;
  }
  volatile T scaled = a * sum;
  volatile T result = x + scaled;
  return weighted.empty() ? x : result;
}

/// Sets buffer `b` of `target` to what `rank` holds after a round, computed in T.
template <class T>
void update_buffer(Model& target, const std::vector<Model>& old, std::size_t rank, const Sources& sources, double a,
                   std::size_t b) {
  std::vector<std::pair<T, T>> weighted;
  for (const auto& source : sources) weighted.emplace_back(static_cast<T>(source.second), T{0});
  for (std::size_t i = 0; i < target.shape(b).count; ++i) {
    for (std::size_t k = 0; k < sources.size(); ++k)
      weighted[k].second = static_cast<T>(old[sources[k].first].get(b, i));
    const T x = static_cast<T>(old[rank].get(b, i));
    target.set(b, i, static_cast<double>(step<T>(x, weighted, static_cast<T>(a))));
  }
}

/// Sets every element of `target` to what `rank` holds after a round.
inline void update(Model& target, const std::vector<Model>& old, std::size_t rank, const Sources& sources, double a) {
  for (std::size_t b = 0; b < target.buffers(); ++b) {
    if (target.shape(b).dtype == kith::DType::f64)
      update_buffer<double>(target, old, rank, sources, a, b);
    else
      update_buffer<float>(target, old, rank, sources, a, b);
  }
}

/// One gossip round of all ranks.
template <kith::Topology T>
void round(std::vector<Model>& models, const T& topology, kith::Round round, double a = 1) {
  const std::vector<Model> old = models;
  const auto size = static_cast<kith::Rank>(models.size());
  for (std::size_t r = 0; r < models.size(); ++r) {
    kith::Neighborhood out;
    if (size > 1) topology.neighbors(static_cast<kith::Rank>(r), size, round, out);
    Sources sources;
    for (const auto& [peer, weight] : out.sources()) sources.emplace_back(static_cast<std::size_t>(peer), weight);
    std::sort(sources.begin(), sources.end());
    update(models[r], old, r, sources, a);
  }
}

/// The mean of all ranks: x_0 + sum_j (x_j - x_0) / n.
[[nodiscard]] inline Model mean(const std::vector<Model>& models) {
  Sources others;
  for (std::size_t r = 1; r < models.size(); ++r) others.emplace_back(r, 1.0 / static_cast<double>(models.size()));
  Model result = models[0];
  update(result, models, 0, others, 1);
  return result;
}

/// The exact sum over ranks of an element, as far as double goes.
[[nodiscard]] inline double sum_over_ranks(const std::vector<Model>& models, std::size_t b, std::size_t i) {
  double sum = 0;
  for (const Model& model : models) sum += model.get(b, i);
  return sum;
}

}  // namespace reference
