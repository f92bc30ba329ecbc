// SPDX-License-Identifier: Apache-2.0
#include "../train_digits_cuda/kernels.cu"

#include "bind.hpp"

namespace digits {
namespace {

using emulated::range;
using emulated::Ranges;
using emulated::translated;
using kith::gpu_emulator::Translate;

Step translated_step(Step s, Translate translate) {
  const auto move = [&](auto*& pointer) { pointer = translated(pointer, translate); };
  move(s.images);
  move(s.labels);
  move(s.batch);
  move(s.parameters);
  move(s.gradient);
  move(s.velocity);
  move(s.activation);
  move(s.hidden_error);
  move(s.logit_error);
  return s;
}

/// A kernel whose thread i does thread(step, i), for i below threads(step).
template <class Threads, class Accesses>
void bind_step(void (*kernel)(Step), void (*thread)(const Step&, std::size_t), Threads threads, Accesses accesses) {
  emulated::bind(
      kernel,
      [accesses](Ranges& reads, Ranges& writes, const Step& s) {
        reads.push_back(range(s.batch, s.batch_rows));  // the images and labels never change
        accesses(reads, writes, s);
      },
      [thread, threads](Translate translate, const Step& s) {
        const Step here = translated_step(s, translate);
        for (std::size_t i = 0; i < threads(s); ++i) thread(here, i);
      });
}

void bind_kernels() {
  const auto of_rows = [](const Step& s) { return s.batch_rows; };
  const auto of_neurons = [](const Step& s) { return s.batch_rows * s.hidden; };
  const auto of_parameters = [](const Step& s) { return s.parameter_count; };
  bind_step(activate_kernel, activate, of_neurons, [=](Ranges& reads, Ranges& writes, const Step& s) {
    reads.push_back(range(s.parameters, s.parameter_count));
    writes.push_back(range(s.activation, of_neurons(s)));
  });
  bind_step(compare_kernel, compare, of_rows, [=](Ranges& reads, Ranges& writes, const Step& s) {
    reads.push_back(range(s.parameters, s.parameter_count));
    reads.push_back(range(s.activation, of_neurons(s)));
    writes.push_back(range(s.logit_error, s.batch_rows * classes));
  });
  bind_step(propagate_kernel, propagate, of_neurons, [=](Ranges& reads, Ranges& writes, const Step& s) {
    reads.push_back(range(s.parameters, s.parameter_count));
    reads.push_back(range(s.activation, of_neurons(s)));
    reads.push_back(range(s.logit_error, s.batch_rows * classes));
    writes.push_back(range(s.hidden_error, of_neurons(s)));
  });
  bind_step(differentiate_kernel, differentiate, of_parameters, [=](Ranges& reads, Ranges& writes, const Step& s) {
    reads.push_back(range(s.activation, of_neurons(s)));
    reads.push_back(range(s.hidden_error, of_neurons(s)));
    reads.push_back(range(s.logit_error, s.batch_rows * classes));
    writes.push_back(range(s.gradient, s.parameter_count));
  });
  bind_step(update_kernel, update, of_parameters, [](Ranges& reads, Ranges& writes, const Step& s) {
    reads.push_back(range(s.gradient, s.parameter_count));
    writes.push_back(range(s.velocity, s.parameter_count));
    writes.push_back(range(s.parameters, s.parameter_count));
  });
}

const bool bound = [] {
  if (kith::gpu_emulator::available()) bind_kernels();
  return true;
}();

}  // namespace
}  // namespace digits
