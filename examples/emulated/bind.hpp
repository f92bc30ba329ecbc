// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "emulator.hpp"

/// @file
/// The CUDA examples on the emulated GPU of tests/gpu_emulator, for a build with tests: what their kernels do there.
namespace emulated {

using Ranges = std::vector<kith::gpu_emulator::Range>;

/// Elements of memory of the GPU, as a kernel reads or writes them.
template <class T>
kith::gpu_emulator::Range range(T* data, std::size_t count) {
  return {data, count * sizeof(T)};
}

/// The pointer with which the host can work on it.
template <class T>
T* translated(T* data, kith::gpu_emulator::Translate translate) {
  return static_cast<T*>(translate(data));
}

/// Says what a kernel does: accesses(reads, writes, arguments...) lists the memory, run(translate, arguments...) does
/// it.
template <class... A, class Accesses, class Run>
void bind(void (*kernel)(A...), Accesses accesses, Run run) {
  const auto apply = [](void** arguments, const auto& f) {
    [&]<std::size_t... I>(std::index_sequence<I...>) { f(*static_cast<A*>(arguments[I])...); }
    (std::index_sequence_for<A...>{});
  };
  kith::gpu_emulator::KernelBody body;
  body.argument_bytes = {sizeof(A)...};
  body.accesses = [=](void** arguments, dim3, dim3, Ranges& reads, Ranges& writes) {
    apply(arguments, [&](const A&... a) { accesses(reads, writes, a...); });
  };
  body.run = [=](void** arguments, dim3, dim3, kith::gpu_emulator::Translate translate) {
    apply(arguments, [&](const A&... a) { run(translate, a...); });
  };
  kith::gpu_emulator::bind(reinterpret_cast<const void*>(kernel), std::move(body));
}

}  // namespace emulated
