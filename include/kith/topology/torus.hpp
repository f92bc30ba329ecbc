// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include <kith/error.hpp>
#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>

namespace kith {

/// @brief Torus of rows x columns ranks: in every round each rank averages with the ranks above, below, left and right
/// of it, around the edges. Rank i stands in row i / columns and column i % columns.
///
/// Left at 0, 0 the torus is as square as the size allows, with rows <= columns (a prime size is a ring). Every edge
/// weighs 1/(1 + degree), as Metropolis-Hastings says: 1/5, or 1/4 where one side is 2. Tori of 1 x b and 2 x 2 are
/// rings and weigh thirds. Symmetric. Never exact (1 x 2 and 1 x 3 are, as the rings they are).
///
/// @par Cost          Up to four messages of the model's size each way per rank and round. Left at 0, 0, planning finds
///                    the sides anew each time, up to sqrt(size) / 2 divisions: name them where that matters.
/// @par Thread safety A value; every member is a pure function.
struct Torus {
  static constexpr std::string_view name = "torus";

  Rank rows = 0;
  Rank columns = 0;

  [[nodiscard]] static constexpr Round period(Rank /*size*/) noexcept { return 1; }

  [[nodiscard]] constexpr Rank max_degree(Rank size) const noexcept {
    const Sides sides = sides_for(size);
    return peers_along(sides.rows) + peers_along(sides.columns);
  }

  /// Appends the peers of `rank` along both sides. Requires 0 <= rank < size = rows * columns.
  void neighbors(Rank rank, Rank size, Round /*round*/, Neighborhood& out) const {
    const Sides sides = sides_for(size);
    const Rank row = rank / sides.columns;
    const Rank column = rank % sides.columns;
    const double weight = 1.0 / (1 + peers_along(sides.rows) + peers_along(sides.columns));
    const auto meet = [&](Rank r, Rank c) { out.swap_with(r * sides.columns + c, weight); };
    if (sides.rows > 1) meet(detail::ahead(row, 1, sides.rows), column);
    if (sides.rows > 2) meet(detail::behind(row, 1, sides.rows), column);
    if (sides.columns > 1) meet(row, detail::ahead(column, 1, sides.columns));
    if (sides.columns > 2) meet(row, detail::behind(column, 1, sides.columns));
  }

  /// Throws UsageError unless rows * columns is `size`, or both are 0.
  void require(Rank size) const {
    if (size < 2 || (rows == 0 && columns == 0)) return;
    const std::int64_t ranks = std::int64_t{rows} * columns;
    if (rows > 0 && columns > 0 && ranks == size) return;
    const Sides square = most_square(size);
    throw UsageError("torus:" + parameters() + " does not have " + std::to_string(size) + " ranks: take torus:" +
                     spell(square) + ", other sides whose product is the size, or plain torus for the most square one");
  }

  /// "4x2", or nothing for the most square torus.
  [[nodiscard]] std::string parameters() const { return *this == Torus{} ? std::string{} : spell({rows, columns}); }

  /// The inverse of parameters(). Throws UsageError for anything but ROWSxCOLUMNS or nothing.
  [[nodiscard]] static Torus from_parameters(std::string_view text) {
    Torus torus;
    if (text.empty()) return torus;
    const std::size_t cross = text.find('x');
    if (cross == std::string_view::npos || !detail::parse_number<Rank>(text.substr(0, cross), 1, torus.rows) ||
        !detail::parse_number<Rank>(text.substr(cross + 1), 1, torus.columns))
      throw UsageError("torus:" + std::string{text} + " is not a topology: the parameters of torus are its rows and " +
                       "columns, as in torus:4x2; plain torus takes the most square ones");
    return torus;
  }

  /// The eigenvalues of W are (1 + c(k) + c(l)) / (1 + degree) with c(k) = 2 cos(2 pi k / side), or +-1 for a side
  /// of 2.
  [[nodiscard]] TopologyReport report(Rank size) const noexcept {
    if (size < 2) return detail::report_of_one();
    const Sides sides = sides_for(size);
    const Rank degree = max_degree(size);
    if (degree == size - 1) return detail::report_of_static(degree, 1);  // 1 x 2 and 1 x 3: everybody meets
    // The eigenvalue of largest modulus is one turn around one side. Where it lies 2/(1 + degree) or less below 1, no
    // other can be nearer to -1; and it does unless all sides are 3, whose least eigenvalue is -1/5.
    return detail::report_of_static(degree, std::min(drop(sides.rows), drop(sides.columns)) / (1 + degree));
  }

  friend bool operator==(Torus, Torus) = default;

private:
  struct Sides {
    Rank rows;
    Rank columns;
  };

  static std::string spell(Sides sides) { return std::to_string(sides.rows) + 'x' + std::to_string(sides.columns); }

  [[nodiscard]] constexpr Sides sides_for(Rank size) const noexcept {
    if (size < 2) return {1, 1};
    return rows == 0 ? most_square(size) : Sides{rows, columns};
  }

  // The largest divisor of size that is not above its square root. Divisors of odd numbers are odd.
  static constexpr Sides most_square(Rank size) noexcept {
    const auto count = static_cast<std::uint32_t>(size);
    std::uint32_t root = std::uint32_t{1} << ((detail::ceil_log2(size) + 1) / 2);  // >= sqrt(size)
    for (std::uint32_t next = (root + count / root) / 2; next < root; next = (root + count / root) / 2) root = next;
    std::uint32_t divisor = count % 2 != 0 && root % 2 == 0 ? root - 1 : root;
    while (count % divisor != 0) divisor -= 1 + count % 2;
    return {static_cast<Rank>(divisor), static_cast<Rank>(count / divisor)};
  }

  // A side of 1 has no peers, a side of 2 one that is reached either way.
  static constexpr Rank peers_along(Rank side) noexcept { return side < 3 ? side - 1 : 2; }

  // By how much the largest c(k), k > 0, lies below c(0). A side of 1 has no k > 0.
  static double drop(Rank side) noexcept {
    const double sine = detail::sin_pi(1, side);
    return side == 1 ? std::numeric_limits<double>::infinity() : side == 2 ? 2 : 4 * sine * sine;
  }
};

static_assert(Topology<Torus>);

}  // namespace kith
