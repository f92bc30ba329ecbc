// SPDX-License-Identifier: Apache-2.0
#include <kith/exchange/rows.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace exchange_rows_test {

using kith::DType;
using kith::detail::Rows;
using kith::detail::Weighted;

namespace {

const void* address(reference::Model& model, std::size_t first) {
  return static_cast<const std::byte*>(model.views()[0].data) + first * size_of(model.shape(0).dtype);
}

// One rank's new values by Rows, against one element after another. By copies or by borrowed values.
template <class T>
void check_average(DType dtype, std::size_t count, bool borrowed, double mixing) {
  std::vector<reference::Model> models = reference::random_models(4, {{dtype, count, 1}}, count);
  std::vector<reference::Model> expected = models;
  const reference::Sources sources = {{1, 1.0 / 3}, {2, 0.125}, {3, 0.3}};
  reference::update(expected[0], models, 0, sources, mixing);

  Rows rows{4, 3};
  REQUIRE(count <= rows.length());
  const auto bring = [&](std::size_t r) {
    return borrowed ? rows.borrow<T>(dtype, address(models[r], 0), r, count)
                    : rows.load<T>(dtype, address(models[r], 0), r, count);
  };
  for (std::size_t k = 0; k < sources.size(); ++k)
    rows.sources<T>()[k] = {bring(sources[k].first), static_cast<T>(sources[k].second)};
  rows.average<T>(dtype, models[0].views()[0].data, bring(0), rows.sources<T>().first(3), mixing, count);
  const bool same = models == expected;
  CHECK(same);
}

}  // namespace

TEST_CASE("rows: short enough for the cache, long enough for vectors, and apart from each other") {
  std::size_t shorter = SIZE_MAX;
  for (const std::size_t count : {1U, 2U, 3U, 4U, 8U, 17U, 64U, 1000U}) {
    CAPTURE(count);
    Rows rows{count, 2};
    CHECK(rows.length() % Rows::granule == 0);
    CHECK(rows.length() >= Rows::granule);
    CHECK(rows.length() <= shorter);
    shorter = rows.length();
    CHECK(rows.sources<float>().size() == 2);
    CHECK(rows.sources<double>().size() == 2);
    CHECK(rows.bytes() >= count * rows.length() * sizeof(double));
    // Written to the brim, no row reaches into another (the address sanitizer watches the last one).
    for (std::size_t r = 0; r < count; ++r)
      std::memset(rows.row<double>(r), static_cast<int>(r % 251), rows.length() * 8);
    bool apart = true;
    for (std::size_t r = 0; r < count; ++r) {
      const auto* bytes = rows.row<unsigned char>(r);
      apart = apart && bytes[0] == r % 251 && bytes[rows.length() * 8 - 1] == r % 251;
    }
    CHECK(apart);
  }
}

TEST_CASE("rows: what is borrowed is not copied unless it has to be widened") {
  Rows rows{2, 1};
  std::vector<float> values(64, 1.5F);
  CHECK(rows.borrow<float>(DType::f32, values.data(), 0, 64) == values.data());
  CHECK(rows.load<float>(DType::f32, values.data(), 0, 64) == rows.row<float>(0));
  CHECK(rows.row<float>(0)[63] == 1.5F);
  const std::vector<std::uint16_t> brain(64, 0x3fc0);  // 1.5
  CHECK(rows.borrow<float>(DType::bf16, brain.data(), 1, 64) == rows.row<float>(1));
  CHECK(rows.row<float>(1)[63] == 1.5F);
}

TEST_CASE("rows: the average of a row, in every dtype") {
  for (const std::size_t count : {std::size_t{1}, std::size_t{3}, std::size_t{64}, Rows{4, 3}.length()})
    for (const bool borrowed : {false, true})
      for (const double mixing : {1.0, 0.7}) {
        CAPTURE(count);
        CAPTURE(borrowed);
        check_average<float>(DType::f32, count, borrowed, mixing);
        check_average<double>(DType::f64, count, borrowed, mixing);
        check_average<float>(DType::f16, count, borrowed, mixing);
        check_average<float>(DType::bf16, count, borrowed, mixing);
      }
}

TEST_CASE("rows: each dtype is computed in its own type") {
  int calls = 0;
  for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16})
    kith::detail::with_compute_type(dtype, [&]<class T>() {
      CHECK(std::is_same_v<T, double> == (dtype == DType::f64));
      ++calls;
    });
  CHECK(calls == 4);
}

}  // namespace exchange_rows_test
