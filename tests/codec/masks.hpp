// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <kith/codec.hpp>
#include <kith/error.hpp>
#include <kith/types.hpp>

#include <doctest/doctest.h>

#include "checks.hpp"

/// @file
/// What RandomK and CyclicMask have in common: they keep elements that they name themselves.

namespace codec_checks {

template <class Mask>
[[nodiscard]] std::vector<std::size_t> indices(const Mask& mask, std::size_t count, kith::Round round) {
  std::vector<std::size_t> list;
  mask.for_each_index(count, round, [&](std::size_t index) { list.push_back(index); });
  return list;
}

template <class Mask>
void check_mask(double fraction) {
  CAPTURE(fraction);
  const Mask mask{.fraction = fraction, .seed = 3};
  check_codec(
      mask, {0, 1, 2, 50, 149, 150, 1001},
      [&](const Values& values, const Values& result) {
        std::vector<double> expected(values.count(), 0);
        for (const std::size_t i : indices(mask, values.count(), context.round)) expected[i] = values[i];
        const bool same = result.all() == expected;
        CHECK(same);
      },
      false);
  for (const DType dtype : dtypes) {
    CHECK(mask.wire_bytes(0, dtype) == 0);
    CHECK(mask.wire_bytes(1, dtype) == kith::size_of(dtype));
    CHECK(mask.wire_bytes(1000, dtype) ==
          static_cast<std::size_t>(std::lround(1000 * fraction)) * kith::size_of(dtype));
  }
  for (const std::size_t count : {1U, 2U, 3U, 10U, 99U, 1000U}) {
    for (kith::Round round = 0; round < 20; ++round) {
      const auto list = indices(mask, count, round);
      std::vector<int> hits(count, 0);
      for (const std::size_t i : list) ++hits.at(i);
      const bool distinct = list.size() == mask.kept(count) && *std::max_element(hits.begin(), hits.end()) == 1;
      CHECK(distinct);
      // Nothing of the rank or the buffer: all ranks keep the same.
      Values values{DType::f32, std::vector<double>(count, 1)};
      const bool same = decoded(mask, encoded(mask, values, {1, round, 2}), DType::f32, count, {5, round, 0}) ==
                        decoded(mask, encoded(mask, values, {0, round, 0}), DType::f32, count, {0, round, 0});
      CHECK(same);
    }
  }
}

/// What is kept and not finite is reported, and refused on the wire; what is left out is not looked at.
template <class Mask>
void check_mask_errors() {
  const Mask mask{.fraction = 0.1, .seed = 4};
  for (const DType dtype : dtypes) {
    const auto list = indices(mask, 60, context.round);
    Values values{dtype, std::vector<double>(60, std::nan(""))};
    for (const std::size_t i : list) values.set(i, 2);
    const Wire good = encoded(mask, values);
    for (const std::size_t bad : list) {
      Values spoiled = values;
      spoiled.set(bad, -HUGE_VAL);
      Wire wire(good.size());
      try {
        mask.encode(spoiled.view(), wire, context);
        FAIL_CHECK("encoded an infinity");
      } catch (const kith::NonFiniteError& error) {
        CHECK(error.index() == bad);
        CHECK(error.buffer() == context.buffer);
        CHECK(error.rank() == context.rank);
      }
    }
    for (std::size_t j = 0; j < list.size(); ++j) {
      Wire wire = good;
      Values number{dtype, {HUGE_VAL}};
      std::memcpy(wire.data() + j * kith::size_of(dtype), number.view().data, kith::size_of(dtype));
      check_refused(mask, wire, dtype, 60);
    }
  }
  for (const double fraction : {0.0, -1.0, 1.5, std::nan("")})
    CHECK_THROWS_AS((void)Mask{.fraction = fraction}.wire_bytes(10, DType::f32), kith::UsageError);
}

}  // namespace codec_checks
