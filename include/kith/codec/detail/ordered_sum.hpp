// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <type_traits>

#include <kith/codec/detail/tiles.hpp>
#include <kith/numeric/isa.hpp>
#include <kith/numeric/scalar_kernels.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// Adds the second half of the lanes to the first until one is left. `Lanes` is a power of two.
template <std::size_t Lanes>
[[nodiscard]] inline double fold(double (&lanes)[Lanes]) noexcept {
  for (std::size_t half = Lanes / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

/// sum of term(|x|) over a buffer, in double, in an order that suits a processor and a block of threads alike: within a
/// tile of 1024 elements, element i goes to lane i % 8; of the tiles, tile i to lane i % 256.
template <class T, class Term>
[[nodiscard]] double ordered_sum(const BufferView& values, const Term& term) {
  static_assert(tile_elements == 1024);
  double tiles[256] = {};
  for_each_tile<T>(values, 0, values.count, [&](const T* from, std::size_t first, std::size_t count) {
    double lanes[8] = {};
    for (std::size_t i = 0; i < count; ++i)
      lanes[i % 8] += rounded(term(std::fabs(static_cast<double>(scalar::load<T>(from, i)))));
    tiles[first / tile_elements % 256] += fold(lanes);
  });
  return fold(tiles);
}

}  // namespace kith::detail
