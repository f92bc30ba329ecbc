// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include <kith/topology.hpp>
#include <kith/topology/detail.hpp>

namespace kith {

/// @brief Nobody: W is the identity and every rank keeps its own values.
///
/// The other end of the scale from Complete: what training gives without any communication, and a member of a Cycle
/// for rounds in which nobody talks.
///
/// @par Cost          No message.
/// @par Thread safety A value without state; every member is a pure function.
struct Isolated {
  static constexpr std::string_view name = "isolated";

  [[nodiscard]] static constexpr Round period(Rank /*size*/) noexcept { return 1; }

  [[nodiscard]] static constexpr Rank max_degree(Rank /*size*/) noexcept { return 0; }

  /// Appends nothing.
  static constexpr void neighbors(Rank /*rank*/, Rank /*size*/, Round /*round*/, Neighborhood& /*out*/) noexcept {}

  /// W = I: norm(I - J) = 1 for two ranks or more, who never meet.
  [[nodiscard]] static TopologyReport report(Rank size) noexcept {
    if (size < 2) return detail::report_of_one();
    TopologyReport report = detail::report_of_static(0, 0);
    report.connected = false;
    return report;
  }

  friend bool operator==(Isolated, Isolated) = default;
};

static_assert(Topology<Isolated>);

}  // namespace kith
