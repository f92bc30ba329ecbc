// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>
#include <string>

#include <doctest/doctest.h>

#include <kith/testing/failure.hpp>

namespace testing_failure_test {

TEST_CASE("failure: expect throws the message, and only where it does not hold") {
  CHECK_NOTHROW(kith::testing::expect(true, "fine"));
  CHECK_THROWS_WITH_AS(kith::testing::expect(false, "two is not one"), "two is not one", kith::testing::Failure);
  CHECK_THROWS_AS(kith::testing::expect(false, "as any test framework sees it"), std::runtime_error);
}

}  // namespace testing_failure_test
