// SPDX-License-Identifier: Apache-2.0
// The codecs' kernels, and the functions that launch them, for programs that use an encoding exchange on GPUs.
#include <kith/cuda/codec_kernels.cuh>
