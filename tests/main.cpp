// SPDX-License-Identifier: Apache-2.0
// The one main of kith_tests; doctest finds the cases of every *_test.cpp.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
