// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>

namespace kith {

/// @brief Bidirectional ring: in every round each rank averages with the rank before it and the rank after it.
///
/// W = (I + S + S^T) / 3, S the cyclic shift. Two ranks have one edge between them and take halves. Symmetric. Exact
/// after one round for 2 and 3 ranks, where W = J; never for more, and slow for many: the gap falls with the square of
/// the size.
///
/// @par Cost          Two messages of the model's size each way per rank and round (one for 2 ranks).
/// @par Thread safety A value without state; every member is a pure function.
/// @par Source        Lian et al., Can Decentralized Algorithms Outperform Centralized Algorithms?, NeurIPS 2017.
struct Ring {
  static constexpr std::string_view name = "ring";

  [[nodiscard]] static constexpr Round period(Rank /*size*/) noexcept { return 1; }

  [[nodiscard]] static constexpr Rank max_degree(Rank size) noexcept { return size < 3 ? size - 1 : 2; }

  /// Appends the two ranks beside `rank`. Requires 0 <= rank < size.
  static void neighbors(Rank rank, Rank size, Round /*round*/, Neighborhood& out) {
    if (size < 2) return;
    const double weight = size == 2 ? 1.0 / 2 : 1.0 / 3;
    out.swap_with(detail::ahead(rank, 1, size), weight);
    if (size > 2) out.swap_with(detail::behind(rank, 1, size), weight);
  }

  /// The eigenvalues of W are 1/3 + 2/3 cos(2 pi k / size): the gap is 4/3 sin^2(pi / size).
  [[nodiscard]] static TopologyReport report(Rank size) noexcept {
    if (size < 2) return detail::report_of_one();
    const double sine = detail::sin_pi(1, size);
    return detail::report_of_static(max_degree(size), size <= 3 ? 1 : 4.0 / 3 * sine * sine);
  }

  friend bool operator==(Ring, Ring) = default;
};

static_assert(Topology<Ring>);

}  // namespace kith
