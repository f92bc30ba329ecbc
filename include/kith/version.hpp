// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !defined(__cpp_concepts) || __cpp_concepts < 201907L
#error "Kith needs C++20: compile with -std=c++20 (nvcc: -std=c++20 as well, its default is C++17)"
#endif

/// The version of the library. CMake reads these three lines, so this is the only place that states it.
#define KITH_VERSION_MAJOR 0
#define KITH_VERSION_MINOR 1
#define KITH_VERSION_PATCH 0

namespace kith {

/// The version as one number, for comparison: 0.1.0 is 100, 1.2.3 is 10203.
inline constexpr int version = KITH_VERSION_MAJOR * 10000 + KITH_VERSION_MINOR * 100 + KITH_VERSION_PATCH;

}  // namespace kith
