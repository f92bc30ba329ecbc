// SPDX-License-Identifier: Apache-2.0
// For programs whose other translation units are not nvcc's: all kernels and the functions that launch them.
#include <kith/cuda/kernels.hpp>
#include <kith/cuda/round.hpp>
