// SPDX-License-Identifier: Apache-2.0
#include <kith/error.hpp>

#include <stdexcept>
#include <string>
#include <type_traits>

#include <doctest/doctest.h>

namespace error_test {

static_assert(std::is_base_of_v<std::runtime_error, kith::Error>);
static_assert(std::is_base_of_v<kith::Error, kith::UsageError> && std::is_base_of_v<kith::Error, kith::PeerError>);
static_assert(std::is_base_of_v<kith::Error, kith::BackendError> &&
              std::is_base_of_v<kith::Error, kith::NonFiniteError>);
static_assert(std::is_nothrow_copy_constructible_v<kith::PeerError>, "exceptions are copied while others are thrown");

TEST_CASE("error: what() names the library, message() does not") {
  const kith::UsageError error{"no such size"};
  CHECK(std::string{error.what()} == "kith: no such size");
  CHECK(std::string{error.message()} == "no such size");
  const kith::Error copy = error;
  CHECK(std::string{copy.message()} == "no such size");
}

TEST_CASE("error: each kind carries what a program needs to react") {
  const kith::PeerError peer{"gone", 3, kith::PeerError::lost};
  CHECK(peer.peer() == 3);
  CHECK(peer.reason() == kith::PeerError::Reason::lost);
  CHECK(kith::PeerError::timeout != kith::PeerError::protocol);

  CHECK(kith::BackendError{"ncclSystemError", 2}.code() == 2);

  const kith::NonFiniteError nan{"NaN", 5, 1, 99};
  CHECK(nan.rank() == 5);
  CHECK(nan.buffer() == 1);
  CHECK(nan.index() == 99);
}

}  // namespace error_test
