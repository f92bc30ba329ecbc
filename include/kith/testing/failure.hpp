// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>

namespace kith::testing {

/// @brief What a check of kith::testing throws when the thing under test breaks a rule; the message says which, and
/// where. Any test framework reports it, as it does every exception.
class Failure : public std::runtime_error {
public:
  explicit Failure(const std::string& message) : std::runtime_error(message) {}
};

/// @brief Throws Failure with `message` unless `holds`.
inline void expect(bool holds, const std::string& message) {
  if (!holds) throw Failure(message);
}

}  // namespace kith::testing
