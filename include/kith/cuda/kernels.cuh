// SPDX-License-Identifier: Apache-2.0
#pragma once

// The definitions behind kith/cuda/kernels.hpp. The launch functions are weak: any number of translation units may have
// them, and each has them whether it calls them or not, so that others can link to them.
#include <kith/cuda/add_difference.cuh>
#include <kith/cuda/copy.cuh>
#include <kith/cuda/sums.cuh>
#include <kith/cuda/weighted_average.cuh>
