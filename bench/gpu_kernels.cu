// SPDX-License-Identifier: Apache-2.0
// How near to the speed of memory the weighted average is: beside a copy within the device, the same formula by CUB's
// DeviceTransform, and one pass per source (an axpy each), all on the same buffers in the same run. GB/s counts the
// (k + 2) bytes per byte of model that one pass has to move, whatever a method really moves; of the copy, 2. Buffers
// that fit into the L2 cache stay there: look at the large ones.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <CLI/CLI.hpp>
#include <cub/device/device_transform.cuh>
#include <cuda/std/tuple>
#include <nlohmann/json.hpp>

#include <kith/cuda/error.hpp>
#include <kith/cuda/kernels.hpp>
#include <kith/cuda/resources.hpp>
#include <kith/numeric/kernels.hpp>
#include <kith/view.hpp>

#include "gpu_time.hpp"

namespace {

using kith::DType;
using kith::cuda::check;
using kith::cuda::DeviceMemory;
using kith::cuda::Source;
using kith::cuda::detail::Number;

constexpr std::size_t most_sources = 3;
constexpr double target = 0.92;                  // of the copy's bandwidth,
constexpr std::size_t target_bytes = 64U << 20;  // for buffers longer than this

struct Setup {
  std::size_t max_count = std::size_t{256} << 20;
  std::size_t repetitions = 5;
  std::string json;
};

/// The types that CUB's users have.
template <DType D>
using Native = std::conditional_t<
    D == DType::f64, double,
    std::conditional_t<D == DType::f32, float, std::conditional_t<D == DType::f16, __half, __nv_bfloat16>>>;

template <DType D>
struct Formula {
  using Real = typename Number<D>::Real;
  Real weights[most_sources];
  template <class... Rest>
  __device__ Native<D> operator()(Native<D> x, Rest... rest) const {
    const Real own = static_cast<Real>(x);
    Real sum{};
    unsigned k = 0;
    ((sum += weights[k++] * (static_cast<Real>(rest) - own)), ...);
    return static_cast<Native<D>>(own + sum);
  }
};

template <DType D, std::size_t... K>
void transform(const Formula<D>& formula, void* values, const std::vector<Source>& sources, std::size_t count,
               cudaStream_t stream, std::index_sequence<K...>) {
  auto* x = static_cast<Native<D>*>(values);
  check(cub::DeviceTransform::Transform(cuda::std::make_tuple(static_cast<const Native<D>*>(x),
                                                              static_cast<const Native<D>*>(sources[K].values)...),
                                        x, static_cast<std::int64_t>(count), formula, stream),
        "run DeviceTransform");
}

/// A pseudo-random number between -1 and 1 for each element.
template <DType D>
__global__ void fill(typename Number<D>::Stored* values, std::size_t count, unsigned seed) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    const std::uint64_t bits = kith::cuda::detail::mixed(seed, i);
    values[i] = Number<D>::narrow(static_cast<typename Number<D>::Real>(static_cast<int>(bits)) * 0x1p-31F);
  }
}

/// Elements whose bits are not those of the host.
template <DType D>
std::size_t wrong_elements(std::size_t k, cudaStream_t stream) {
  using Stored = typename Number<D>::Stored;
  using Real = typename Number<D>::Real;
  constexpr std::size_t count = 100'003;
  std::vector<DeviceMemory> memory;
  std::vector<std::vector<Real>> wide;
  std::vector<Source> sources;
  std::vector<kith::detail::Weighted<Real>> host_sources;
  std::vector<Stored> expected(count);
  std::vector<Stored> found(count);
  for (std::size_t row = 0; row <= k; ++row) {
    auto* values = memory.emplace_back(count * sizeof(Stored)).template as<Stored>();
    fill<D><<<256, 256, 0, stream>>>(values, count, static_cast<unsigned>(row));
    check(cudaMemcpyAsync(found.data(), values, count * sizeof(Stored), cudaMemcpyDeviceToHost, stream), "copy");
    check(cudaStreamSynchronize(stream), "fill a buffer");
    std::vector<Real>& as_real = wide.emplace_back(count);
    for (std::size_t i = 0; i < count; ++i) as_real[i] = Number<D>::widen(found[i]);
    if (row > 0) sources.push_back({values, 1.0 / static_cast<double>(k + 1)});
  }
  for (std::size_t row = 1; row <= k; ++row)
    host_sources.push_back({wide[row].data(), static_cast<Real>(sources[row - 1].weight)});
  const std::span<const kith::detail::Weighted<Real>> all(host_sources.data(), host_sources.size());
  if constexpr (std::is_same_v<Stored, Real>)
    kith::detail::combine(expected.data(), wide[0].data(), all, Real{1}, count);
  else
    kith::detail::combine_narrow(D, expected.data(), wide[0].data(), all, Real{1}, count);
  check(kith::cuda::weighted_average(D, memory[0].data(), sources, 1, count, nullptr, stream), "average");
  check(cudaMemcpyAsync(found.data(), memory[0].data(), count * sizeof(Stored), cudaMemcpyDeviceToHost, stream),
        "copy");
  check(cudaStreamSynchronize(stream), "average");
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < count; ++i) wrong += std::memcmp(&expected[i], &found[i], sizeof(Stored)) == 0 ? 0 : 1;
  return wrong;
}

template <DType D, std::size_t K>
nlohmann::ordered_json measure(const Setup& setup, std::size_t count, const std::vector<DeviceMemory>& memory,
                               cudaStream_t stream) {
  const std::size_t bytes = count * size_of(D);
  void* values = memory[0].data();
  std::vector<Source> sources;
  Formula<D> formula{};
  for (std::size_t k = 0; k < K; ++k) {
    sources.push_back({memory[k + 1].data(), 1.0 / (K + 1)});
    formula.weights[k] = static_cast<typename Number<D>::Real>(sources[k].weight);
  }
  const double average_us = bench::time_us(setup.repetitions, (K + 2) * bytes, stream, [&] {
    check(kith::cuda::weighted_average(D, values, sources, 1, count, nullptr, stream), "average");
  });
  const double copy_us = bench::time_us(setup.repetitions, 2 * bytes, stream, [&] {
    check(cudaMemcpyAsync(values, memory[1].data(), bytes, cudaMemcpyDeviceToDevice, stream), "copy");
  });
  const double transform_us = bench::time_us(setup.repetitions, (K + 2) * bytes, stream, [&] {
    transform<D>(formula, values, sources, count, stream, std::make_index_sequence<K>{});
  });
  const double axpy_us = bench::time_us(setup.repetitions, 3 * K * bytes, stream, [&] {
    for (const Source& source : sources)
      check(kith::cuda::weighted_average(D, values, {&source, 1}, 1, count, nullptr, stream), "average");
  });
  const auto gb_per_s = [&](std::size_t moved, double us) { return static_cast<double>(moved * bytes) / us / 1e3; };
  const double copy = gb_per_s(2, copy_us);
  const double average = gb_per_s(K + 2, average_us);
  std::printf("%5s %1zu %10zu %12.1f %8.1f %9.1f %9.1f %9.1f %7.1f %%\n", kith::to_string(D).data(), K, count,
              average_us, average, copy, gb_per_s(K + 2, transform_us), gb_per_s(K + 2, axpy_us), 100 * average / copy);
  return {{"dtype", std::string{kith::to_string(D)}},
          {"sources", K},
          {"count", count},
          {"bytes", bytes},
          {"average_us", average_us},
          {"copy_us", copy_us},
          {"device_transform_us", transform_us},
          {"axpy_us", axpy_us},
          {"average_gb_per_s", average},
          {"copy_gb_per_s", copy},
          {"of_copy", average / copy}};
}

template <DType D>
std::size_t measure(const Setup& setup, cudaStream_t stream, nlohmann::ordered_json& results) {
  std::size_t wrong = 0;
  for (const std::size_t k : {1, 2, 3, 5, 9}) wrong += wrong_elements<D>(k, stream);
  if (wrong != 0) std::printf("# %s: %zu elements are wrong\n", kith::to_string(D).data(), wrong);
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "tell how much memory is free");
  std::size_t most = 1024;
  while (4 * most <= setup.max_count && 4 * most * size_of(D) * (most_sources + 1) < free / 10 * 9) most *= 4;
  std::vector<DeviceMemory> memory;
  for (std::size_t row = 0; row <= most_sources; ++row) {
    auto* values = memory.emplace_back(most * size_of(D)).template as<typename Number<D>::Stored>();
    fill<D><<<1024, 256, 0, stream>>>(values, most, static_cast<unsigned>(row));
  }
  for (std::size_t count = 1024; count <= most; count *= 4) {
    results.push_back(measure<D, 1>(setup, count, memory, stream));
    results.push_back(measure<D, 2>(setup, count, memory, stream));
    results.push_back(measure<D, 3>(setup, count, memory, stream));
  }
  return wrong;
}

int run(const Setup& setup) {
  cudaDeviceProp device{};
  check(cudaGetDeviceProperties(&device, 0), "describe the device");
  int driver = 0;
  int runtime = 0;
  check(cudaDriverGetVersion(&driver), "tell the driver's version");
  check(cudaRuntimeGetVersion(&runtime), "tell the runtime's version");
  std::printf("# %s, driver %d, runtime %d\n", device.name, driver, runtime);
  std::printf(
      "# GB/s of the average, a copy, DeviceTransform, an axpy for each source; the average's share of the copy's\n");
  std::printf("dtype k      count   average/us  average      copy transform      axpy  of copy\n");
  const kith::cuda::Stream stream;
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  std::size_t wrong = 0;
  wrong += measure<DType::f32>(setup, stream.get(), results);
  wrong += measure<DType::f64>(setup, stream.get(), results);
  wrong += measure<DType::f16>(setup, stream.get(), results);
  wrong += measure<DType::bf16>(setup, stream.get(), results);
  std::size_t missed = 0;
  for (const auto& result : results)
    if (result["bytes"] > target_bytes && result["of_copy"] < target) ++missed;
  std::printf("# %zu elements wrong; %zu results for buffers over 64 MiB are below %.0f %% of the copy\n", wrong,
              missed, 100 * target);
  if (!setup.json.empty()) {
    const nlohmann::ordered_json report{
        {"device", std::string{device.name}}, {"driver", driver},        {"runtime", runtime},
        {"l2_bytes", device.l2CacheSize},     {"elements_wrong", wrong}, {"target_of_copy", target},
        {"targets_missed", missed},           {"kernels", results}};
    std::ofstream(setup.json) << report.dump(2) << '\n';
  }
  return wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Setup setup;
  CLI::App app{"Bandwidth of the weighted average on a GPU, beside a copy, DeviceTransform and axpy passes"};
  app.add_option("--max-count", setup.max_count, "the longest buffers, in elements")->capture_default_str();
  app.add_option("--repetitions", setup.repetitions, "of which the median is taken")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--json", setup.json, "a file to write the results to");
  CLI11_PARSE(app, argc, argv);
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: there is no GPU\n");
    return 77;
  }
  try {
    return run(setup);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
