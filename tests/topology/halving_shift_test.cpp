// SPDX-License-Identifier: Apache-2.0
#include "dense.hpp"

#include <kith/topology/halving_shift.hpp>

namespace topology_halving_shift_test {

using kith::HalvingShift;
using kith::Rank;
using kith::Round;

TEST_CASE("halving-shift: every size, every rank") { dense::check_family(HalvingShift{}, 64); }

TEST_CASE("halving-shift: the shifts are 0, h/2, h/2 + h/4, ...") {
  const Rank shifts[] = {0, 4, 6, 7};  // of 16 ranks, h = 8
  CHECK(HalvingShift::period(16) == 4);
  for (Round round = 0; round < 4; ++round) {
    const dense::Plan plan = dense::plan(HalvingShift{}, 16, round);
    for (Rank r = 0; r < 8; ++r) {
      REQUIRE(plan[static_cast<std::size_t>(r)].sources().size() == 1);
      CHECK(plan[static_cast<std::size_t>(r)].sources()[0].rank == 8 + (r + shifts[round]) % 8);
    }
  }
}

TEST_CASE("halving-shift: exact after log2 n rounds, one more from the worst phase") {
  CHECK(HalvingShift::report(2).exact_after_any_phase == 1);
  CHECK(HalvingShift::report(4).exact_after_any_phase == 2);
  for (const auto& [size, rounds] : {std::pair{8, 3}, {1024, 10}, {1 << 20, 20}}) {
    CHECK(HalvingShift::report(size).exact_after == static_cast<Round>(rounds));
    CHECK(HalvingShift::report(size).exact_after_any_phase == static_cast<Round>(rounds + 1));
  }
}

TEST_CASE("halving-shift: all but powers of two are refused") {
  CHECK(dense::mentions(dense::refusal(HalvingShift{}, 10), "8 or 16"));
  CHECK(dense::mentions(dense::refusal(HalvingShift{}, 10), "halving-shift"));
  CHECK_FALSE(dense::refusal(HalvingShift{}, 7).empty());
}

}  // namespace topology_halving_shift_test
