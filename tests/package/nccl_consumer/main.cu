// SPDX-License-Identifier: Apache-2.0
// The same program, for nvcc: it needs the headers and nothing else.
#include "main.cpp"
