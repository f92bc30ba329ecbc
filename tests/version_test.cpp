// SPDX-License-Identifier: Apache-2.0
#include <kith/version.hpp>

#include <doctest/doctest.h>

namespace version_test {

TEST_CASE("version: one number that orders releases") {
  CHECK(kith::version == KITH_VERSION_MAJOR * 10000 + KITH_VERSION_MINOR * 100 + KITH_VERSION_PATCH);
  CHECK(KITH_VERSION_MINOR < 100);  // beyond it the number would not order them
  CHECK(KITH_VERSION_PATCH < 100);
  CHECK(kith::version >= 100);  // 0.1.0
}

}  // namespace version_test
