// SPDX-License-Identifier: Apache-2.0
#pragma once

/// @file
/// The NCCL engine: models in the memory of GPUs. Needs the CUDA toolkit and NCCL 2.18.1 or newer; every C++20 compiler
/// can include it. Programs that nvcc never sees link kith/cuda/kernels.cu, and all that use an exchange which encodes
/// link kith/cuda/codec_kernels.cu: the CMake target kith::nccl brings both.

#include <kith/exchange/device/encoded.hpp>
#include <kith/exchange/device/full_precision.hpp>
#include <kith/exchange/device/global_mean.hpp>
#include <kith/exchange/device/hidden.hpp>
#include <kith/exchange/device/sharded.hpp>
#include <kith/kith.hpp>
#include <kith/nccl/communicator.hpp>
#include <kith/nccl/unique_id.hpp>
