// SPDX-License-Identifier: Apache-2.0
// kith_bench codec: encoding and decoding on one core, beside a copy of the same values.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <kith/codec.hpp>
#include <kith/codec/cast.hpp>
#include <kith/codec/cyclic_mask.hpp>
#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/min_max_uint8.hpp>
#include <kith/codec/qsgd.hpp>
#include <kith/codec/random_k.hpp>
#include <kith/codec/sign_mean.hpp>
#include <kith/codec/top_k.hpp>
#include <kith/error.hpp>
#include <kith/numeric/convert.hpp>

#include "commands.hpp"
#include "report.hpp"
#include "statistics.hpp"
#include "sweep.hpp"

namespace bench {
namespace {

using kith::BufferView;
using kith::DType;

// A codec whose type is forgotten.
struct AnyCodec {
  std::string name;
  std::function<std::size_t(std::size_t count, DType dtype)> wire_bytes;
  std::function<void(const BufferView&, std::span<std::byte>)> encode;
  std::function<void(std::span<const std::byte>, const BufferView&)> decode;
  std::function<void(double weight, std::span<const std::byte>, const BufferView&)> decode_add;
};

template <kith::Codec C>
AnyCodec any(C codec) {
  return {codec_name(codec), [codec](std::size_t count, DType dtype) { return codec.wire_bytes(count, dtype); },
          [codec](const BufferView& values, std::span<std::byte> wire) { codec.encode(values, wire, {}); },
          [codec](std::span<const std::byte> wire, const BufferView& values) { codec.decode(wire, values, {}); },
          [codec](double weight, std::span<const std::byte> wire, const BufferView& accumulator) {
            codec.decode_add(weight, wire, accumulator, {});
          }};
}

std::vector<AnyCodec> all_codecs() {
  return {any(kith::Cast<kith::bfloat16>{}),
          any(kith::Cast<kith::float16>{}),
          any(kith::Int8Block{}),
          any(kith::Int4Block{}),
          any(kith::MinMaxUInt8{}),
          any(kith::QSGD{}),
          any(kith::SignMean{}),
          any(kith::TopK{}),
          any(kith::RandomK{}),
          any(kith::CyclicMask{})};
}

std::string names_of(const std::vector<AnyCodec>& codecs) {
  std::string names;
  for (const AnyCodec& codec : codecs) names.append(names.empty() ? "" : ", ").append(codec.name);
  return names;
}

// Those of a list, by full name or family: "int8-block,top-k:0.01"; all for an empty one.
std::vector<AnyCodec> parse_codecs(const std::string& list) {
  std::vector<AnyCodec> all = all_codecs();
  if (list.empty()) return all;
  std::vector<AnyCodec> chosen;
  for (const std::string& name : split(list)) {
    const auto found = std::find_if(all.begin(), all.end(), [&](const AnyCodec& codec) {
      return codec.name == name || codec.name.substr(0, codec.name.find(':')) == name;
    });
    if (found == all.end()) {
      throw kith::UsageError("\"" + name + "\" is not a codec; there are " + names_of(all));
    }
    chosen.push_back(*found);
  }
  return chosen;
}

double load(const BufferView& values, std::size_t index) {
  switch (values.dtype) {
    case DType::f64:
      return static_cast<const double*>(values.data)[index];
    case DType::f16:
      return static_cast<double>(to_float(static_cast<const kith::float16*>(values.data)[index]));
    case DType::bf16:
      return static_cast<double>(to_float(static_cast<const kith::bfloat16*>(values.data)[index]));
    case DType::f32:
      break;
  }
  return static_cast<double>(static_cast<const float*>(values.data)[index]);
}

void store(const BufferView& values, std::size_t index, float value) {
  switch (values.dtype) {
    case DType::f64:
      static_cast<double*>(values.data)[index] = static_cast<double>(value);
      break;
    case DType::f16:
      static_cast<kith::float16*>(values.data)[index] = kith::to_float16(value);
      break;
    case DType::bf16:
      static_cast<kith::bfloat16*>(values.data)[index] = kith::to_bfloat16(value);
      break;
    case DType::f32:
      static_cast<float*>(values.data)[index] = value;
  }
}

// A buffer and the memory that it lies in.
struct Buffer {
  Buffer(std::size_t bytes, DType dtype)
      : memory(own_memory(bytes)), view{memory.get(), bytes / size_of(dtype), dtype} {}
  [[nodiscard]] BufferView first(std::size_t count) const { return {view.data, count, view.dtype}; }

  std::shared_ptr<void> memory;
  BufferView view;
};

// What is measured of a codec with one buffer.
struct Measured {
  std::size_t iterations = 0;
  Quartiles both;  // encode and decode_add
  Quartiles copy;
  Quartiles encode;
  Quartiles decode_add;
  double relative_error = 0;
  double wire_bytes = 0;
  std::size_t wrong = 0;
};

// Buffers for all lines of one element type.
struct Workspace {
  Workspace(std::size_t bytes, DType dtype, std::uint64_t seed)
      : values(bytes, dtype), copy(bytes, dtype), sum(bytes, dtype) {
    std::mt19937_64 random{seed};
    std::normal_distribution<float> normal;  // what weights and their differences look like
    for (std::size_t i = 0; i < values.view.count; ++i) store(values.view, i, normal(random));
  }
  Buffer values;
  Buffer copy;
  Buffer sum;
};

// norm(x - Q(x)) / norm(x), and what decode_add leaves behind that is not sum + weight * Q(x): each of the two
// operations rounded, for 16 bits the decoded value as well.
void check(const AnyCodec& codec, const Workspace& work, std::size_t count, std::span<std::byte> wire,
           Measured& measured) {
  const BufferView values = work.values.first(count);
  const BufferView decoded = work.copy.first(count);
  const BufferView sum = work.sum.first(count);
  constexpr double weight = 0.375;
  for (std::size_t i = 0; i < count; ++i) store(sum, i, 1);
  codec.encode(values, wire);
  codec.decode(wire, decoded);
  codec.decode_add(weight, wire, sum);
  double epsilon = 0x1p-23;
  if (values.dtype == DType::f64) epsilon = 0x1p-52;
  if (values.dtype == DType::f16) epsilon = 0x1p-10;
  if (values.dtype == DType::bf16) epsilon = 0x1p-7;
  double lost = 0;
  double whole = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double x = load(values, i);
    const double q = load(decoded, i);
    lost += (x - q) * (x - q);
    whole += x * x;
    const double expected = 1 + weight * q;
    if (!(std::abs(load(sum, i) - expected) <= epsilon * (1 + std::abs(weight * q)))) ++measured.wrong;
  }
  measured.relative_error = std::sqrt(lost / whole);
}

Measured measure_codec(const AnyCodec& codec, const Workspace& work, std::size_t count, const SweepOptions& options) {
  using Clock = std::chrono::steady_clock;
  const BufferView values = work.values.first(count);
  const BufferView sum = work.sum.first(count);
  Measured measured;
  const std::size_t wire_bytes = codec.wire_bytes(count, values.dtype);
  measured.wire_bytes = static_cast<double>(wire_bytes);
  const std::shared_ptr<void> memory = own_memory(wire_bytes);
  const std::span<std::byte> wire{static_cast<std::byte*>(memory.get()), wire_bytes};
  check(codec, work, count, wire, measured);

  double weight = 0.5;
  const std::vector<std::function<void()>> all{[&] { std::memcpy(work.copy.view.data, values.data, values.bytes()); },
                                               [&] { codec.encode(values, wire); },
                                               [&] { codec.decode_add(weight = -weight, wire, sum); }};
  std::vector<std::vector<double>> times_us(all.size() + 1);
  std::size_t first = 0;
  const auto iterate = [&] {
    for (std::size_t k = 0; k < all.size(); ++k) {
      const std::size_t who = (first + k) % all.size();
      const auto begin = Clock::now();
      all[who]();
      times_us[who].push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
    }
    times_us[3].push_back(times_us[1].back() + times_us[2].back());
    ++first;
  };
  double spent_s = 0;
  for (std::size_t i = 0; i < std::max<std::size_t>(options.warmup, 1); ++i) {
    const auto begin = Clock::now();
    iterate();
    spent_s = std::chrono::duration<double>(Clock::now() - begin).count();
  }
  measured.iterations = options.iterations > 0 ? options.iterations : fitting_iterations(options.seconds, spent_s);
  for (std::vector<double>& samples : times_us) samples.clear();
  for (std::size_t i = 0; i < measured.iterations; ++i) iterate();
  measured.copy = quartiles(times_us[0]);
  measured.encode = quartiles(times_us[1]);
  measured.decode_add = quartiles(times_us[2]);
  measured.both = quartiles(times_us[3]);
  return measured;
}

void add_line(Report& report, const std::string& codec, const BufferView& values, const Measured& measured) {
  const auto bytes = static_cast<double>(values.bytes());
  const auto count = static_cast<double>(values.count);
  const auto speed = [&](const Quartiles& time) { return bytes / time.p50 / 1e3; };
  Report::line(fmt::format(
      "  {:>10} {:>5} {:>18} {:>8.2f} {:>8.2f} {:>8.3f} {:>8.2f} {:>8.3f} {:>10.2e} {:>8.4f} {:>7}", values.bytes(),
      to_string(values.dtype), codec, speed(measured.copy), speed(measured.encode),
      measured.copy.p50 / measured.encode.p50, speed(measured.decode_add), measured.copy.p50 / measured.decode_add.p50,
      measured.relative_error, measured.wire_bytes / count, measured.wrong));
  nlohmann::ordered_json result;
  result["name"] = "codec";
  result["engine"] = "none";
  result["ranks"] = 1;
  result["topology"] = "none";
  result["dtype"] = to_string(values.dtype);
  result["codec"] = codec;
  result["bytes"] = values.bytes();
  result["count"] = values.count;
  result["iterations"] = measured.iterations;
  add_quartiles(result, "time", measured.both);
  add_quartiles(result, "memcpy", measured.copy);
  add_quartiles(result, "encode", measured.encode);
  add_quartiles(result, "decode_add", measured.decode_add);
  result["algbw_GBps"] = speed(measured.both);
  result["busbw_GBps"] = 0;
  result["memcpy_GBps"] = speed(measured.copy);
  result["encode_GBps"] = speed(measured.encode);
  result["decode_add_GBps"] = speed(measured.decode_add);
  result["relative_error"] = measured.relative_error;
  result["wire_bytes"] = measured.wire_bytes;
  result["bytes_per_element"] = measured.wire_bytes / count;
  result["wrong"] = measured.wrong;
  report.add(std::move(result));
}

int run(const SweepOptions& options, const std::string& codecs, const Invocation& invocation) {
  const std::vector<AnyCodec> chosen = parse_codecs(codecs);
  const std::vector<std::size_t> sizes = sizes_of(options);
  const std::vector<DType> dtypes = parse_dtypes(options.dtypes);
  Report report{invocation, options.json};
  Report::line("#");
  Report::line(fmt::format("# {:>10} {:>5} {:>18} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10} {:>8} {:>7}", "size", "type",
                           "codec", "memcpy", "encode", "encode", "decode+", "decode+", "relative", "bytes/",
                           "#wrong"));
  Report::line(fmt::format("# {:>10} {:>5} {:>18} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10} {:>8}", "(B)", "", "", "(GB/s)",
                           "(GB/s)", "/memcpy", "(GB/s)", "/memcpy", "error", "element"));
  std::size_t wrong = 0;
  for (const DType dtype : dtypes) {
    const Workspace work{sizes.back(), dtype, options.seed};
    for (const std::size_t size : sizes) {
      const BufferView values = work.values.first(size / size_of(dtype));
      if (values.count == 0) throw kith::UsageError("-b: there is no element in " + std::to_string(size) + " bytes");
      for (const AnyCodec& codec : chosen) {
        const Measured measured = measure_codec(codec, work, values.count, options);
        wrong += measured.wrong;
        add_line(report, codec.name, values, measured);
      }
    }
  }
  return report.finish(wrong);
}

}  // namespace

void add_codec(CLI::App& app, Invocation& invocation) {
  auto* const command =
      app.add_subcommand("codec", "encoding and decoding on one core: speed beside memcpy, and error");
  const auto options = std::make_shared<SweepOptions>();
  const auto codecs = std::make_shared<std::string>();
  options->min_bytes = "64K";
  options->factor = 16;
  options->seconds = 1;
  add_measuring_options(*command, *options);
  command
      ->add_option("--codec", *codecs,
                   "codecs, with or without what follows the colon (default: all): " + names_of(all_codecs()))
      ->type_name("LIST");
  command->callback([options, codecs, &invocation] { invocation.status = run(*options, *codecs, invocation); });
}

}  // namespace bench
