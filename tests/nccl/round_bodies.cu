// SPDX-License-Identifier: Apache-2.0
// What the two kernels of a round do on the emulator: the same functions, with addresses that the host can work on.
#include <cstddef>
#include <vector>

#include <kith/cuda/round.hpp>

#include "../gpu_emulator/emulator.hpp"

namespace {

using kith::cuda::RoundHeader;
using kith::cuda::RoundState;
using kith::gpu_emulator::Range;
using kith::gpu_emulator::Translate;

template <class T>
T* translated(T* address, Translate translate) {
  return address == nullptr ? nullptr : static_cast<T*>(translate(address));
}

RoundState translated(RoundState state, Translate translate) {
  state.sent = translated(state.sent, translate);
  state.received = translated(state.received, translate);
  state.go = translated(state.go, translate);
  state.finding = state.finding == nullptr ? nullptr : static_cast<const std::uint64_t*>(translate(state.finding));
  return state;
}

template <class Step, class Accesses>
void bind(const void* kernel, Step step, Accesses accesses) {
  kith::gpu_emulator::KernelBody body;
  body.argument_bytes = {sizeof(RoundState), sizeof(RoundHeader)};
  body.accesses = [accesses](void** arguments, dim3, dim3, std::vector<Range>& reads, std::vector<Range>& writes) {
    accesses(*static_cast<const RoundState*>(arguments[0]), reads, writes);
  };
  body.run = [step](void** arguments, dim3, dim3, Translate translate) {
    step(translated(*static_cast<const RoundState*>(arguments[0]), translate),
         *static_cast<const RoundHeader*>(arguments[1]));
  };
  kith::gpu_emulator::bind(kernel, body);
}

const bool bound = [] {
  if (!kith::gpu_emulator::available()) return false;
  bind(
      reinterpret_cast<const void*>(&kith::cuda::detail::begin_round_kernel<0>),
      [](const RoundState& state, const RoundHeader& header) { kith::cuda::detail::begin_round(state, header); },
      [](const RoundState& state, std::vector<Range>& reads, std::vector<Range>& writes) {
        if (state.finding != nullptr) reads.push_back({state.finding, sizeof *state.finding});
        writes.push_back({state.sent, sizeof(RoundHeader)});
        if (state.sources > 0) writes.push_back({state.received, state.sources * sizeof(RoundHeader)});
      });
  bind(
      reinterpret_cast<const void*>(&kith::cuda::detail::relay_round_kernel<0>),
      [](const RoundState& state, const RoundHeader& header) { kith::cuda::detail::relay_round(state, header); },
      [](const RoundState& state, std::vector<Range>& reads, std::vector<Range>& writes) {
        if (state.sources > 0) reads.push_back({state.received, state.sources * sizeof(RoundHeader)});
        writes.push_back({state.sent, sizeof(RoundHeader)});
      });
  bind(
      reinterpret_cast<const void*>(&kith::cuda::detail::settle_round_kernel<0>),
      [](const RoundState& state, const RoundHeader& header) { kith::cuda::detail::settle_round(state, header); },
      [](const RoundState& state, std::vector<Range>& reads, std::vector<Range>& writes) {
        reads.push_back({state.sent, sizeof(RoundHeader)});
        if (state.sources > 0) reads.push_back({state.received, state.sources * sizeof(RoundHeader)});
        writes.push_back({state.go, sizeof *state.go});
      });
  return true;
}();

}  // namespace
