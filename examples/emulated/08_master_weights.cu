// SPDX-License-Identifier: Apache-2.0
#include "../08_master_weights.cu"

#include "bind.hpp"

namespace {

using emulated::range;
using emulated::Ranges;
using kith::gpu_emulator::Translate;

Model translated(Model model, Translate translate) {
  return {emulated::translated(model.master, translate), emulated::translated(model.momentum, translate),
          emulated::translated(model.working, translate), emulated::translated(model.gradient, translate)};
}

void bind_kernels() {
  emulated::bind(
      backward_kernel,
      [](Ranges& reads, Ranges& writes, const Model& model, float) {
        reads.push_back(range(model.working, count));
        writes.push_back(range(model.gradient, count));
      },
      [](Translate translate, const Model& model, float own_target) {
        for (std::size_t i = 0; i < count; ++i) backward(translated(model, translate), own_target, i);
      });
  emulated::bind(
      update_kernel,
      [](Ranges& reads, Ranges& writes, const Model& model, float) {
        reads.push_back(range(model.gradient, count));
        writes.push_back(range(model.momentum, count));
        writes.push_back(range(model.master, count));
      },
      [](Translate translate, const Model& model, float rate) {
        for (std::size_t i = 0; i < count; ++i) update(translated(model, translate), rate, i);
      });
  emulated::bind(
      refresh_kernel,
      [](Ranges& reads, Ranges& writes, const Model& model) {
        reads.push_back(range(model.master, count));
        writes.push_back(range(model.working, count));
      },
      [](Translate translate, const Model& model) {
        for (std::size_t i = 0; i < count; ++i) refresh(translated(model, translate), i);
      });
}

const bool bound = [] {
  if (kith::gpu_emulator::available()) bind_kernels();
  return true;
}();

}  // namespace
