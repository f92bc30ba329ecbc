// SPDX-License-Identifier: Apache-2.0
// How near to the speed of memory codecs are on a GPU: encode, and decode-and-accumulate, beside a copy within the
// device on the same buffers in the same run. GB/s counts the bytes that a kernel has to move: the values once for each
// pass over them (MinMaxUInt8 makes two to encode), read and written where they are added to, and the wire; of the
// copy, twice its bytes. Buffers that fit into the L2 cache stay there: look at the large ones.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <kith/codec/cast.hpp>
#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/min_max_uint8.hpp>
#include <kith/cuda/codec_kernels.hpp>
#include <kith/cuda/error.hpp>
#include <kith/cuda/resources.hpp>
#include <kith/exchange/device/codecs.hpp>

#include "gpu_time.hpp"

namespace {

using kith::DType;
using kith::cuda::check;
using kith::cuda::DeviceMemory;

constexpr double target = 0.8;                               // of the copy's bandwidth,
constexpr std::size_t target_bytes = std::size_t{64} << 20;  // for buffers longer than this

struct Setup {
  std::size_t max_count = std::size_t{128} << 20;
  std::size_t repetitions = 5;
  std::string json;
};

/// The memory of all measurements: f32 values, others of the same number, a wire, what was found.
struct Buffers {
  DeviceMemory values;
  DeviceMemory others;
  DeviceMemory wire;
  DeviceMemory finding;

  Buffers(std::size_t count, cudaStream_t stream)
      : values(count * sizeof(float)), others(count * sizeof(float)), wire(2 * count + 4096), finding(8) {
    std::mt19937 random{1};
    std::normal_distribution<float> normal;
    std::vector<float> piece(std::min<std::size_t>(count, std::size_t{1} << 20));
    for (float& value : piece) value = normal(random);
    for (std::size_t i = 0; i < count; i += piece.size())
      for (const DeviceMemory* memory : {&values, &others})
        check(cudaMemcpyAsync(memory->as<float>() + i, piece.data(), std::min(piece.size(), count - i) * sizeof(float),
                              cudaMemcpyHostToDevice, stream),
              "fill a buffer");
    check(cudaMemsetAsync(finding.data(), 0xff, finding.bytes(), stream), "clear a word");
    check(cudaStreamSynchronize(stream), "fill buffers");
  }
};

struct Measurement {
  const Setup& setup;
  const Buffers& buffers;
  cudaStream_t stream;
  std::size_t count;
  double copy_us;
};

double gb_per_s(std::size_t bytes, double us) { return static_cast<double>(bytes) / us / 1e3; }

/// `passes`: how often encode() reads the values.
template <class Q>
nlohmann::ordered_json measure(const Q& codec, std::size_t passes, const Measurement& m) {
  const std::size_t bytes = m.count * sizeof(float);
  const std::size_t wire = codec.wire_bytes(m.count, DType::f32);
  const kith::cuda::DeviceCodec kernels = kith::detail::device_codec(codec, m.count);
  kith::cuda::Encoding encoding;
  encoding.values = m.buffers.values.data();
  encoding.count = m.count;
  encoding.wire = m.buffers.wire.data();
  encoding.finding = m.buffers.finding.as<std::uint64_t>();
  const kith::cuda::Decoding decoding{
      m.buffers.wire.data(), DType::f32, m.buffers.others.data(), m.count, DType::f32, 0};
  const double encode_us = bench::time_us(m.setup.repetitions, passes * bytes + wire, m.stream,
                                          [&] { check(kith::cuda::encode(kernels, encoding, m.stream), "encode"); });
  const double decode_us = bench::time_us(m.setup.repetitions, 2 * bytes + wire, m.stream, [&] {
    check(kith::cuda::decode_add(kernels, 1e-6, decoding, nullptr, m.stream), "decode and accumulate");
  });
  const double copy = gb_per_s(2 * bytes, m.copy_us);
  const double encoded = gb_per_s(passes * bytes + wire, encode_us);
  const double decoded = gb_per_s(2 * bytes + wire, decode_us);
  const std::string name = codec_name(codec);
  std::printf("%-16s %10zu %11.1f %9.1f %7.1f %% %11.1f %9.1f %7.1f %%\n", name.c_str(), m.count, encode_us, encoded,
              100 * encoded / copy, decode_us, decoded, 100 * decoded / copy);
  return {{"codec", name},
          {"count", m.count},
          {"bytes", bytes},
          {"wire_bytes", wire},
          {"encode_us", encode_us},
          {"decode_add_us", decode_us},
          {"copy_us", m.copy_us},
          {"encode_gb_per_s", encoded},
          {"decode_add_gb_per_s", decoded},
          {"copy_gb_per_s", copy},
          {"encode_of_copy", encoded / copy},
          {"decode_add_of_copy", decoded / copy}};
}

void run(const Setup& setup) {
  cudaDeviceProp device{};
  check(cudaGetDeviceProperties(&device, 0), "describe the device");
  std::printf("# %s; f32, GB/s, and its share of a copy's in the same run\n", device.name);
  std::printf("codec                 count   encode/us      GB/s   of copy decode_add/us    GB/s   of copy\n");
  const kith::cuda::Stream stream;
  const Buffers buffers{setup.max_count, stream.get()};
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  for (std::size_t count = std::min<std::size_t>(1024, setup.max_count); count <= setup.max_count; count *= 8) {
    const std::size_t bytes = count * sizeof(float);
    const double copy_us = bench::time_us(setup.repetitions, 2 * bytes, stream.get(), [&] {
      check(
          cudaMemcpyAsync(buffers.others.data(), buffers.values.data(), bytes, cudaMemcpyDeviceToDevice, stream.get()),
          "copy");
    });
    const Measurement m{setup, buffers, stream.get(), count, copy_us};
    results.push_back(measure(kith::Int8Block{}, 1, m));
    results.push_back(measure(kith::Int4Block{}, 1, m));
    results.push_back(measure(kith::MinMaxUInt8{}, 2, m));
    results.push_back(measure(kith::Cast<kith::bfloat16>{}, 1, m));
  }
  std::size_t missed = 0;
  for (const auto& result : results)
    for (const char* of_copy : {"encode_of_copy", "decode_add_of_copy"})
      if (result["bytes"] > target_bytes && result[of_copy] < target) ++missed;
  std::printf("# %zu results for buffers over 64 MiB are below %.0f %% of the copy\n", missed, 100 * target);
  if (setup.json.empty()) return;
  nlohmann::ordered_json all = nlohmann::ordered_json::object();
  if (std::ifstream old{setup.json}) all = nlohmann::ordered_json::parse(old);
  all["codecs"] = {{"device", std::string{device.name}},
                   {"target_of_copy", target},
                   {"targets_missed", missed},
                   {"results", results}};
  std::ofstream{setup.json} << all.dump(2) << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  Setup setup;
  CLI::App app{"Bandwidth of codecs on a GPU, beside a copy"};
  app.add_option("--max-count", setup.max_count, "the longest buffers, in elements")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--repetitions", setup.repetitions, "of which the median is taken")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--json", setup.json, "a file whose entry \"codecs\" becomes the results");
  CLI11_PARSE(app, argc, argv);
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: there is no GPU\n");
    return 77;
  }
  try {
    run(setup);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
