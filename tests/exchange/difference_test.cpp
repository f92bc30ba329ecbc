// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/difference.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include <kith/codec/cast.hpp>
#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/min_max_uint8.hpp>
#include <kith/codec/qsgd.hpp>

#include "encoded.hpp"

namespace exchange_difference_test {

using namespace encoded;

namespace {

// z_i = x_i - r_i + a sum_j w_ij (r_j - r_i); r_i <- r_i + Q(z_i); x_i <- r_i
template <class T, class Q>
struct DifferenceReference {
  Q codec;
  std::size_t buffer;
  Rows<T> replicas;

  void step(Rows<T>& x, const kith::MixingMatrix& w, Round t, double mixing) {
    Rows<T> z = x;
    for (Rank i = 0; i < w.size(); ++i)
      for (std::size_t e = 0; e < x[0].size(); ++e) {
        const auto row = static_cast<std::size_t>(i);
        const T change = minus(x[row][e], replicas[row][e]);
        z[row][e] = plus(change, times(static_cast<T>(mixing), sum_of_differences(w, replicas, i, e)));
      }
    for (std::size_t i = 0; i < x.size(); ++i) add(replicas[i], coded(codec, z[i], {static_cast<Rank>(i), t, buffer}));
    x = replicas;
  }
};

template <class Q>
void check_difference(const Q& codec, const Case& c, std::uint64_t seed) {
  check(kith::Difference{codec}, c, seed, [&]<class T>(Rank size, std::size_t b, std::size_t count) {
    return DifferenceReference<T, Q>{codec, b, Rows<T>(static_cast<std::size_t>(size), std::vector<T>(count))};
  });
}

/// Bagua's low-precision decentralized SGD on a ring in f32, one element after another and without any of Kith's code:
/// every rank has its own copies of its neighbours' models, and decodes what they send.
class Bagua {
public:
  using Model = std::vector<float>;

  /// All ranks begin with the same model.
  Bagua(std::size_t ranks, const Model& initial) : own_(ranks, initial), left_(own_), right_(own_) {}

  /// `x` is every rank's model after its optimizer's step, and then the new one. `z` says how a rank's difference is
  /// computed: z(x, left, own, right).
  template <class Z>
  void step(std::vector<Model>& x, const Z& z) {
    const std::size_t n = x.size();
    std::vector<Message> sent(n);
    step_size_ = 0;
    for (std::size_t i = 0; i < n; ++i) {
      Model difference(x[i].size());
      for (std::size_t e = 0; e < x[i].size(); ++e) difference[e] = z(x[i][e], left_[i][e], own_[i][e], right_[i][e]);
      sent[i] = encode(difference);
    }
    for (std::size_t i = 0; i < n; ++i) {
      decode_add(sent[(i + n - 1) % n], left_[i]);
      decode_add(sent[(i + 1) % n], right_[i]);
      decode_add(sent[i], own_[i]);
      x[i] = own_[i];
    }
  }

  /// The largest unit in which a rank's difference was sent in the latest step.
  [[nodiscard]] float step_size() const { return step_size_; }

private:
  // MinMaxUInt8 with one chunk: the formulas of the CUDA kernel, each operation rounded to f32.
  struct Message {
    float least;
    float greatest;
    std::vector<std::uint8_t> codes;
  };
  static float scale_of(float least, float greatest) {
    const float range = plus(minus(greatest, least), 1e-7F);
    volatile float scale = 255.0F / range;
    return scale;
  }
  Message encode(const Model& values) {
    const auto [least, greatest] = std::minmax_element(values.begin(), values.end());
    Message message{*least, *greatest, {}};
    const float scale = scale_of(*least, *greatest);
    const float upper = std::nearbyint(times(*greatest, scale));
    const float lower = minus(upper, 255.0F);
    for (const float value : values) {
      const float level = std::min(std::nearbyint(times(value, scale)), upper);
      message.codes.push_back(static_cast<std::uint8_t>(std::max(minus(level, lower), 0.0F)));
    }
    step_size_ = std::max(step_size_, 1 / scale);
    return message;
  }
  static void decode_add(const Message& message, Model& replica) {
    const float scale = scale_of(message.least, message.greatest);
    const float lower = minus(std::nearbyint(times(message.greatest, scale)), 255.0F);
    for (std::size_t e = 0; e < replica.size(); ++e) {
      volatile float value = plus(static_cast<float>(message.codes[e]), lower) / scale;
      replica[e] = plus(replica[e], static_cast<float>(value));
    }
  }

  std::vector<Model> own_, left_, right_;
  float step_size_ = 0;
};

constexpr Rank ring_size = 5;
constexpr int ring_steps = 60;

/// Gradient steps of every rank towards a point of its own, `average(models, step)` in between.
template <class Average>
std::vector<std::vector<float>> descend(std::vector<std::vector<float>> models, const Average& average) {
  for (int step = 0; step < ring_steps; ++step) {
    for (std::size_t i = 0; i < models.size(); ++i)
      for (std::size_t e = 0; e < models[i].size(); ++e) {
        const auto target = std::sin(static_cast<float>(e * (i + 1)));
        models[i][e] = minus(models[i][e], times(0.1F, minus(models[i][e], target)));
      }
    average(models);
  }
  return models;
}

std::vector<float> common_model() {
  std::mt19937_64 random{77};
  std::normal_distribution<float> normal;
  std::vector<float> model(700);
  for (float& value : model) value = normal(random);
  return model;
}

/// The same by the averager. Rank 0 has the model in the beginning.
std::vector<std::vector<float>> descend_with_kith() {
  std::vector<std::vector<float>> models(ring_size);
  kith::thread::run(ring_size, [&](kith::thread::Communicator& communicator) {
    const auto i = static_cast<std::size_t>(communicator.rank());
    std::vector<std::vector<float>> mine(ring_size);
    std::vector<float> model = common_model();
    if (i != 0) std::fill(model.begin(), model.end(), 0.0F);
    kith::DecentralizedAverager averager{communicator,
                                         kith::Ring{},
                                         {kith::view(model)},
                                         kith::Difference{kith::MinMaxUInt8{}},
                                         kith::AveragerOptions{.encode_from_bytes = 0}};
    averager.broadcast(0);
    for (int step = 0; step < ring_steps; ++step) {
      for (std::size_t e = 0; e < model.size(); ++e) {
        const auto target = std::sin(static_cast<float>(e * (i + 1)));
        model[e] = minus(model[e], times(0.1F, minus(model[e], target)));
      }
      averager.average();
    }
    models[i] = model;
  });
  return models;
}

}  // namespace

TEST_CASE("difference: the arithmetic is pinned, for every accurate codec") {
  const Case c{kith::Ring{}, 4, every_dtype()};
  check_difference(kith::Cast<kith::bfloat16>{}, c, 1);
  check_difference(kith::Int8Block{}, c, 2);
  check_difference(kith::Int4Block{}, c, 3);
  check_difference(kith::MinMaxUInt8{}, c, 4);
  check_difference(kith::QSGD{.levels = 120, .seed = 5}, c, 5);
}

TEST_CASE("difference: the arithmetic is pinned, for every static topology and mixing factor") {
  for (const Rank size : {1, 2, 3, 5, 8})
    for (const char* name : {"ring", "static-exponential", "complete", "star"})
      check_difference(kith::Int8Block{}, {kith::parse_topology(name), size, every_dtype(), 1, 4}, 20);
  check_difference(kith::Int8Block{}, {kith::parse_topology("torus:2x3"), 6, every_dtype()}, 21);
  for (const double mixing : {0.0, 1.0 / 3, 1.5})
    check_difference(kith::Int8Block{}, {kith::Ring{}, 5, every_dtype(), mixing}, 22);
}

TEST_CASE("difference: small buffers travel as they are") {
  for (const std::size_t from : {std::size_t{1}, std::size_t{300}, std::size_t{4096}, std::size_t{1} << 40})
    check_difference(kith::Int8Block{}, {kith::Ring{}, 3, every_dtype(), 0.7, 3, from}, 30);
}

TEST_CASE("difference: with Ring and MinMaxUInt8 it is Bagua's algorithm, bit for bit but for the order of one sum") {
  const auto result = descend_with_kith();
  std::vector<std::vector<float>> start(ring_size, common_model());

  // In the library's order: differences, by ascending rank. On a ring only rank 0 and the last hear the right one
  // first.
  Bagua same{ring_size, start[0]};
  const float third = 1.0F / 3;
  const auto expected = descend(start, [&](std::vector<std::vector<float>>& models) {
    std::size_t calls = 0;
    same.step(models, [&](float x, float left, float own, float right) {
      const std::size_t i = calls++ / models[0].size();
      const bool swapped = i == 0 || i + 1 == models.size();
      const float first = times(third, minus(swapped ? right : left, own));
      return plus(minus(x, own), plus(first, times(third, minus(swapped ? left : right, own))));
    });
  });
  CHECK(result == expected);

  // In Bagua's: three fused multiply-adds. A code may differ by one where a value lies between two of them.
  Bagua original{ring_size, start[0]};
  const auto theirs = descend(start, [&](std::vector<std::vector<float>>& models) {
    original.step(models, [&](float x, float left, float own, float right) {
      return std::fma(own, -5.0F / 3, std::fma(right, third, std::fma(left, third, x)));
    });
  });
  float largest = 0;
  for (std::size_t i = 0; i < result.size(); ++i)
    for (std::size_t e = 0; e < result[i].size(); ++e)
      largest = std::max(largest, std::abs(result[i][e] - theirs[i][e]));
  CAPTURE(original.step_size());
  CHECK(largest > 0);
  CHECK(largest < 8 * original.step_size());
}

TEST_CASE("difference: a schedule that changes is refused with the reason") {
  const kith::Difference exchange{kith::MinMaxUInt8{}};
  check_all_say(refusals(4, kith::OnePeerExponential{}, exchange), "static topology");
  check_all_say(refusals(4, kith::OnePeerExponential{}, exchange), "one-peer-exponential");
  check_all_say(refusals(4, kith::parse_topology("random-matching:1"), exchange), "the exchange direct");
  CHECK(refusals(4, kith::StaticExponential{}, exchange) == std::vector<std::string>(8));
}

}  // namespace exchange_difference_test
