// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <string_view>
#include <vector>

#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>

namespace kith {

/// @brief Static exponential graph: in every round each rank tells the ranks 1, 2, 4, ..., 2^(tau-1) ahead of it and
/// hears those as far behind, tau = ceil(log2 size). Every value weighs 1/(tau + 1), the rank's own included.
///
/// Directed: W is not symmetric from 4 ranks on. Exact after one round for 2 and 3 ranks, where W = J; never for more.
/// OnePeerExponential takes the same edges one at a time.
///
/// @par Cost          tau messages of the model's size each way per rank and round.
/// @par Thread safety A value without state; every member is a pure function.
/// @par Source        Ying et al., Exponential Graph is Provably Efficient for Decentralized Deep Training,
///                    NeurIPS 2021.
struct StaticExponential {
  static constexpr std::string_view name = "static-exponential";

  [[nodiscard]] static constexpr Round period(Rank /*size*/) noexcept { return 1; }

  [[nodiscard]] static constexpr Rank max_degree(Rank size) noexcept { return detail::ceil_log2(size); }

  /// Appends the tau peers that `rank` hears and the tau that it tells. Requires 0 <= rank < size.
  static void neighbors(Rank rank, Rank size, Round /*round*/, Neighborhood& out) {
    const Rank hops = detail::ceil_log2(size);
    for (Rank hop = 0; hop < hops; ++hop) {
      const Rank distance = Rank{1} << hop;  // < size
      out.hear(detail::behind(rank, distance, size), 1.0 / (hops + 1));
      out.tell(detail::ahead(rank, distance, size));
    }
  }

  /// @brief The gap is 2 / (tau + 1) for even sizes (Ying et al., Theorem 1) and larger for odd ones.
  ///
  /// Odd sizes take the largest eigenvalue of the circulant W: size * tau / 2 additions and 16 bytes a rank.
  [[nodiscard]] static TopologyReport report(Rank size) {
    if (size < 2) return detail::report_of_one();
    const Rank hops = detail::ceil_log2(size);
    double gap = 1;  // 2 and 3 ranks: everybody hears everybody
    if (size > 3) gap = size % 2 == 0 ? 2.0 / (hops + 1) : 1 - largest_modulus(size, hops) / (hops + 1);
    TopologyReport report = detail::report_of_static(hops, gap);
    report.symmetric = size <= 3;
    return report;
  }

  friend bool operator==(StaticExponential, StaticExponential) = default;

private:
  // The largest |1 + sum_j z^(k 2^j)| over k = 1..size-1, z = exp(2 pi i / size). The powers come from a table: by
  // squaring, the error of z^k would double with every hop.
  static double largest_modulus(Rank size, Rank hops) {
    const auto count = static_cast<std::uint32_t>(size);
    std::vector<double> cosine(count);
    std::vector<double> sine(count);
    for (std::uint32_t k = 0; k < count; ++k) {
      const double angle = 2 * std::numbers::pi * k / size;
      cosine[k] = std::cos(angle);
      sine[k] = std::sin(angle);
    }
    double largest = 0;
    for (std::uint32_t k = 1; k <= count / 2; ++k) {  // k and size - k have the same modulus
      double real = 1;
      double imaginary = 0;
      std::uint32_t power = k;
      for (Rank hop = 0; hop < hops; ++hop) {
        real += cosine[power];
        imaginary += sine[power];
        power = power < count - power ? 2 * power : power - (count - power);
      }
      largest = std::max(largest, real * real + imaginary * imaginary);
    }
    return std::sqrt(largest);
  }
};

static_assert(Topology<StaticExponential>);

}  // namespace kith
