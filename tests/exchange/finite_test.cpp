// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/finite.hpp>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <kith/averager.hpp>
#include <kith/testing/message_passing.hpp>
#include <kith/topology/any.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace exchange_finite_test {

using kith::AnyTopology;
using kith::DType;
using kith::NonFiniteError;
using kith::Rank;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
const double nan_value = std::nan("");

kith::AveragerOptions checked() {
  kith::AveragerOptions options;
  options.check_finite = true;
  return options;
}

// What a rank's call of average() or average_globally() said.
template <class Call>
std::optional<NonFiniteError> finding_of(const Call& call) {
  try {
    call();
    return std::nullopt;
  } catch (const NonFiniteError& error) {
    return error;
  }
}

}  // namespace

TEST_CASE("finite: the first value that is not finite is found, in every dtype") {
  std::vector<float> f32(100, 1.0F);
  std::vector<double> f64(100, 1e300);
  std::vector<kith::float16> f16(100, kith::float16{0x7bff});     // 65504, the largest
  std::vector<kith::bfloat16> bf16(100, kith::bfloat16{0x7f7f});  // the largest
  const std::vector<kith::BufferView> buffers = {
      kith::view(f32), {nullptr, 0, DType::f32}, kith::view(f64), kith::view(f16), kith::view(bf16)};
  const auto find = [&] { return kith::detail::find_non_finite(3, buffers); };
  CHECK_FALSE(find());
  bf16[99].bits = 0x7f80;  // infinity
  REQUIRE(find());
  CHECK(find()->rank == 3);
  CHECK(find()->buffer == 4);
  CHECK(find()->index == 99);
  f16[50].bits = 0xfc01;  // a NaN
  CHECK(find()->buffer == 3);
  CHECK(find()->index == 50);
  f64[0] = -infinity;
  CHECK(find()->buffer == 2);
  CHECK(find()->index == 0);
  f32[77] = std::nanf("");
  CHECK(find()->buffer == 0);
  CHECK(find()->index == 77);
}

// Ring of 5, NaN on rank 1: ranks 0, 1 and 2 throw and keep their values; 3 and 4 commit. All stay in step.
TEST_CASE("finite: a gossip round refuses NaN on its holder and on those that hear it") {
  constexpr Rank size = 5;
  const std::vector<reference::Shape> shapes = {{DType::f32, 10}, {DType::bf16, 300}};
  auto initial = reference::random_models(size, shapes, 11);
  initial[1].set(1, 270, infinity);
  auto after_first = initial;
  reference::round(after_first, kith::Ring{}, 0);
  for (const std::size_t r : {0U, 1U, 2U}) after_first[r] = initial[r];
  auto after_second = after_first;
  after_second[1].set(1, 270, 0.25);  // the trainer mends its model
  const auto mended = after_second[1];
  reference::round(after_second, kith::Ring{}, 1);

  kith::testing::run_both_ways(size, [&](auto& communicator) {
    const auto r = static_cast<std::size_t>(communicator.rank());
    reference::Model model = initial[r];
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, model.views(), checked()};
    const auto error = finding_of([&] { averager.average(); });
    CHECK(error.has_value() == (r <= 2));
    if (error) {
      CHECK(error->rank() == 1);
      CHECK(error->buffer() == 1);
      CHECK(error->index() == 270);
    }
    bool as_expected = model == after_first[r];
    CHECK(as_expected);
    CHECK(averager.metrics().rounds == (r <= 2 ? 0 : 1));
    if (r == 1) model = mended;
    averager.rebind(model.views());
    averager.average();  // nobody lags behind
    as_expected = model == after_second[r];
    CHECK(as_expected);
  });
}

TEST_CASE("finite: in a directed round only the holder and the one that it tells throw") {
  constexpr Rank size = 4;
  kith::testing::run_both_ways(size, [](auto& communicator) {
    std::vector<double> model(3, communicator.rank());
    if (communicator.rank() == 3) model[2] = nan_value;
    kith::DecentralizedAverager averager{
        communicator, AnyTopology{kith::OnePeerExponential{}}, {kith::view(model)}, checked()};
    const auto first = finding_of([&] { averager.average(); });   // 3 tells 0
    const auto second = finding_of([&] { averager.average(); });  // 3 tells 1, 0 tells 2: 0 has been spared
    CHECK(first.has_value() == (communicator.rank() == 3 || communicator.rank() == 0));
    CHECK(second.has_value() == (communicator.rank() == 3 || communicator.rank() == 1));
    if (communicator.rank() != 3) CHECK(std::isfinite(model[2]));
    if (second) {
      CHECK(second->rank() == 3);
      CHECK(second->index() == 2);
    }
  });
}

TEST_CASE("finite: a rank names its own value before a peer's, and the lowest peer's first") {
  kith::testing::run_both_ways(4, [](auto& communicator) {
    std::vector<float> model(8, 1.0F);
    if (communicator.rank() > 0) model[static_cast<std::size_t>(communicator.rank())] = static_cast<float>(infinity);
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, {kith::view(model)}, checked()};
    const auto error = finding_of([&] { averager.average(); });
    REQUIRE(error);
    const Rank expected = communicator.rank() > 0 ? communicator.rank() : 1;  // rank 0 hears 1 and 3
    CHECK(error->rank() == expected);
    CHECK(error->index() == static_cast<std::size_t>(expected));
  });
}

TEST_CASE("finite: a global mean refuses NaN on every rank, and the next one works") {
  constexpr Rank size = 3;
  auto initial = reference::random_models(size, {{DType::f64, 70}, {DType::f16, 70}}, 5);
  auto mended = initial;
  mended[2].set(1, 69, 0.5);
  initial[2].set(1, 69, -infinity);
  const reference::Model mean = reference::mean(mended);
  kith::testing::run_both_ways(size, [&](auto& communicator) {
    const auto r = static_cast<std::size_t>(communicator.rank());
    reference::Model model = initial[r];
    kith::AveragerOptions options = checked();
    options.warmup_rounds = 1;  // a scheduled global mean behaves like one that is asked for
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, model.views(), options};
    for (const bool scheduled : {true, false}) {
      const auto error = finding_of([&] { scheduled ? averager.average() : averager.average_globally(); });
      REQUIRE(error);
      CHECK(error->rank() == 2);
      CHECK(error->buffer() == 1);
      CHECK(error->index() == 69);
    }
    bool as_expected = model == initial[r];
    CHECK(as_expected);
    CHECK(averager.metrics().global_rounds == 0);
    if (r == 2) model.set(1, 69, 0.5);
    averager.average_globally();
    as_expected = model == mean;
    CHECK(as_expected);
  });
}

TEST_CASE("finite: without communication a rank still looks at itself") {
  kith::testing::run_both_ways(2, [](auto& communicator) {
    std::vector<float> model(4, 1.0F);
    if (communicator.rank() == 1) model[3] = std::nanf("");
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Isolated{}}, {kith::view(model)}, checked()};
    CHECK(finding_of([&] { averager.average(); }).has_value() == (communicator.rank() == 1));
  });
}

TEST_CASE("finite: unless asked for, NaN and Inf are averaged like any other value") {
  kith::testing::run_both_ways(4, [](auto& communicator) {
    std::vector<float> model(2, static_cast<float>(communicator.rank()));
    if (communicator.rank() == 0) model[1] = std::nanf("");
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, {kith::view(model)}};
    CHECK_NOTHROW(averager.average());
    CHECK(std::isnan(model[1]) == (communicator.rank() != 2));  // rank 2 hears 1 and 3
    CHECK(std::isfinite(model[0]));
  });
}

}  // namespace exchange_finite_test
