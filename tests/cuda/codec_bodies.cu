// SPDX-License-Identifier: Apache-2.0
// What the codecs' kernels do where there is no GPU, as kernel_bodies.cu does for the others. It also has the functions
// that launch them: a program that links it need not compile kith/cuda/codec_kernels.cu.
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <gpu_emulator/emulator.hpp>
#include <kith/cuda/codec_kernels.cuh>

namespace {

using kith::gpu_emulator::KernelBody;
using kith::gpu_emulator::Range;
using kith::gpu_emulator::Translate;
namespace detail = kith::cuda::detail;

struct Accesses {
  std::vector<Range>& read;
  std::vector<Range>& written;
  template <class T>
  void reads(T* data, std::size_t bytes) {
    if (data != nullptr && bytes > 0) read.push_back({data, bytes});
  }
  template <class T>
  void writes(T* data, std::size_t bytes) {
    if (data != nullptr && bytes > 0) written.push_back({data, bytes});
  }
};

struct Translation {
  Translate translate;
  template <class T>
  void reads(T*& data, std::size_t) {
    if (data != nullptr) data = static_cast<T*>(translate(data));
  }
  template <class T>
  void writes(T*& data, std::size_t bytes) {
    reads(data, bytes);
  }
};

template <class Kernel>
void bind() {
  KernelBody body;
  body.argument_bytes = {sizeof(Kernel)};
  body.accesses = [](void** arguments, dim3, dim3, std::vector<Range>& reads, std::vector<Range>& writes) {
    Kernel kernel = *static_cast<const Kernel*>(arguments[0]);
    Accesses accesses{reads, writes};
    kernel.memory(accesses);
  };
  body.run = [](void** arguments, dim3 grid, dim3, Translate translate) {
    Kernel kernel = *static_cast<const Kernel*>(arguments[0]);
    Translation translation{translate};
    kernel.memory(translation);
    for (unsigned block = 0; block < grid.x; ++block) kernel.run(block);
  };
  void (*const address)(Kernel) = detail::codec_kernel<Kernel>;
  kith::gpu_emulator::bind(reinterpret_cast<const void*>(address), std::move(body));
}

template <class Real>
void bind_all() {
  bind<detail::EncodeCast<Real>>();
  bind<detail::EncodeBlocks<Real>>();
  bind<detail::ChunkHeaders<Real>>();
  bind<detail::FindBounds<Real>>();
  bind<detail::EncodeLevels<Real>>();
  bind<detail::SumTiles<Real>>();
  bind<detail::FinishSum<Real>>();
  bind<detail::EncodeSigns<Real>>();
  bind<detail::EncodeNoisy<Real>>();
  bind<detail::Gather<Real>>();
  bind<detail::Scatter<Real>>();
  bind<detail::ChooseDigit<Real>>();
  bind<detail::CountDigits<Real>>();
  bind<detail::KeepLargest<Real>>();
  bind<detail::SetReplicas<Real>>();
  bind<detail::ReplicaDistance<Real>>();
  bind<detail::Apply<Real, detail::NoDecoder<Real>>>();
  bind<detail::Apply<Real, detail::CastDecoder<Real>>>();
  bind<detail::Apply<Real, detail::BlockDecoder<Real>>>();
  bind<detail::Apply<Real, detail::LevelsDecoder<Real>>>();
  bind<detail::Apply<Real, detail::SignDecoder<Real>>>();
  bind<detail::Apply<Real, detail::NoisyDecoder<Real>>>();
}

const bool bound = [] {
  if (!kith::gpu_emulator::available()) return false;
  bind_all<float>();
  bind_all<double>();
  bind<detail::ScanTiles>();
  return true;
}();

}  // namespace
