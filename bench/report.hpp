// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "command_line.hpp"

namespace bench {

/// @brief What a sub-command leaves behind: the lines on the screen and, on request, a JSON file.
///
/// The keys are defined in bench/README.md.
class Report {
public:
  /// Prints what the run was made with, as '#' lines. `json`: the file to write, or empty. Throws kith::UsageError at
  /// once if that file cannot be written: not after an hour of measuring. A process that does not speak writes none.
  Report(const Invocation& invocation, const std::string& json);

  /// Prints a line of the table or, beginning with '#', a remark.
  static void line(const std::string& text);

  void add(nlohmann::ordered_json result) { results_.push_back(std::move(result)); }
  [[nodiscard]] bool empty() const noexcept { return results_.empty(); }

  /// Prints the footer and writes the file. The exit status: 1 if an element was wrong.
  [[nodiscard]] int finish(std::size_t wrong);
  /// Writes the file; for a sub-command that has checked no elements.
  void write();

private:
  std::string json_;
  nlohmann::ordered_json context_;
  nlohmann::ordered_json results_ = nlohmann::ordered_json::array();
};

}  // namespace bench
