// SPDX-License-Identifier: Apache-2.0
// The codecs' kernels against the codecs of the host, which have tests of their own: byte for byte, bit for bit.
#include <kith/cuda/codec_kernels.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include "../codec/checks.hpp"
#include "device_array.hpp"

#include <kith/codec/cast.hpp>
#include <kith/codec/cyclic_mask.hpp>
#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/min_max_uint8.hpp>
#include <kith/codec/qsgd.hpp>
#include <kith/codec/random_k.hpp>
#include <kith/codec/sign_mean.hpp>
#include <kith/codec/top_k.hpp>
#include <kith/exchange/device/codecs.hpp>
#include <kith/numeric/compute_type.hpp>

namespace {

using codec_checks::context;
using codec_checks::Values;
using codec_checks::Wire;
using kith::BufferView;
using kith::DType;
using kith::cuda::DeviceCodec;

/// A codec of the host, and its kernels.
struct Codec {
  std::string name;
  std::function<DeviceCodec(std::size_t)> on_device;
  std::function<std::size_t(std::size_t, DType)> wire_bytes;
  std::function<void(BufferView, Wire&)> encode;
  std::function<void(const Wire&, BufferView)> decode;
  std::function<void(double, const Wire&, BufferView)> decode_add;
  bool mask;

  template <class Q>
  explicit Codec(Q codec)
      : name(codec_name(codec)),
        on_device([=](std::size_t count) { return kith::detail::device_codec(codec, count); }),
        wire_bytes([=](std::size_t count, DType dtype) { return codec.wire_bytes(count, dtype); }),
        encode([=](BufferView values, Wire& wire) { codec.encode(values, wire, context); }),
        decode([=](const Wire& wire, BufferView values) { codec.decode(wire, values, context); }),
        decode_add([=](double weight, const Wire& wire, BufferView values) {
          codec.decode_add(weight, wire, values, context);
        }),
        mask(kith::detail::is_mask<Q>) {}
};

std::vector<std::byte> bytes_of(const BufferView& view) {
  std::vector<std::byte> bytes(view.bytes());
  if (!bytes.empty()) std::memcpy(bytes.data(), view.data, bytes.size());
  return bytes;
}

/// What is on the device: the values, `shift` bytes behind an aligned address, and what encode() makes of them.
struct OnDevice {
  DeviceArray<std::byte> values;
  DeviceArray<std::byte> wire;
  DeviceArray<std::uint64_t> finding{1, kith::cuda::no_finding};
  kith::cuda::Stream stream;

  OnDevice(const Codec& codec, const BufferView& given, std::size_t shift, const void* minus = nullptr)
      : values(bytes_of(given), shift),
        wire(codec.wire_bytes(given.count, minus == nullptr ? given.dtype : kith::detail::compute_dtype(given.dtype)),
             std::byte{0xEE}) {
    const DeviceCodec kernels = codec.on_device(given.count);
    const kith::cuda::DeviceMemory scratch{kith::cuda::encode_scratch_bytes(kernels, given.count, given.dtype)};
    kith::cuda::Encoding encoding;
    encoding.values = values.data();
    encoding.minus = minus;
    encoding.count = given.count;
    encoding.dtype = given.dtype;
    encoding.wire_dtype = minus == nullptr ? given.dtype : kith::detail::compute_dtype(given.dtype);
    encoding.wire = wire.data();
    encoding.scratch = scratch.data();
    encoding.round = context.round;
    encoding.rank = static_cast<std::uint32_t>(context.rank);
    encoding.buffer = static_cast<std::uint32_t>(context.buffer);
    encoding.finding = finding.data();
    REQUIRE(kith::cuda::encode(kernels, encoding, stream.get()) == cudaSuccess);
    REQUIRE(cudaStreamSynchronize(stream.get()) == cudaSuccess);
  }
};

/// The wire of the host, from both; and what both decode it to, over what was there and added to it.
void check_values(const Codec& codec, Values& values, std::size_t shift) {
  const DType dtype = values.dtype();
  const std::size_t count = values.count();
  Wire expected(codec.wire_bytes(count, dtype));
  codec.encode(values.view(), expected);
  const OnDevice here{codec, values.view(), shift};
  const Wire wire = here.wire.values();
  CHECK(wire == expected);
  CHECK(here.finding.values()[0] == kith::cuda::no_finding);

  kith::cuda::Decoding decoding{here.wire.data(), dtype, here.values.data(), count, dtype, context.round};
  const DeviceCodec kernels = codec.on_device(count);
  const DeviceArray<std::uint32_t> no(1, 0U);
  REQUIRE(kith::cuda::decode_add(kernels, -0.3, decoding, no.data(), here.stream.get()) == cudaSuccess);
  bool same = here.values.values() == bytes_of(values.view());
  CHECK(same);  // not to be
  REQUIRE(kith::cuda::decode_add(kernels, -0.3, decoding, nullptr, here.stream.get()) == cudaSuccess);
  codec.decode_add(-0.3, expected, values.view());
  same = here.values.values() == bytes_of(values.view());
  CHECK(same);
  REQUIRE(kith::cuda::decode(kernels, decoding, here.stream.get()) == cudaSuccess);
  codec.decode(expected, values.view());
  same = here.values.values() == bytes_of(values.view());
  CHECK(same);
}

/// A difference to a replica, encoded in the type that it is computed in.
void check_difference(const Codec& codec, Values& values) {
  const DType real = kith::detail::compute_dtype(values.dtype());
  Values replica = codec_checks::make(codec_checks::inputs(real)[0], real, values.count(), 9);
  Values difference{real, values.count()};
  for (std::size_t i = 0; i < values.count(); ++i)
    difference.set(i, real == DType::f64
                          ? values[i] - replica[i]
                          : static_cast<double>(static_cast<float>(values[i]) - static_cast<float>(replica[i])));
  Wire expected(codec.wire_bytes(values.count(), real));
  codec.encode(difference.view(), expected);
  const DeviceArray<std::byte> minus(bytes_of(replica.view()));
  const OnDevice here{codec, values.view(), 0, minus.data()};
  const Wire wire = here.wire.values();
  CHECK(wire == expected);
}

/// The first value that is not finite, by its index.
void check_finding(const Codec& codec, DType dtype, std::size_t count) {
  for (const std::size_t index : {std::size_t{0}, count / 2, count - 1}) {
    Values values{dtype, std::vector<double>(count, -0.25)};
    values.set(count - 1, std::numeric_limits<double>::infinity());
    values.set(index,
               index % 2 == 0 ? std::numeric_limits<double>::quiet_NaN() : -std::numeric_limits<double>::infinity());
    const OnDevice here{codec, values.view(), 0};
    CHECK(here.finding.values()[0] == (std::uint64_t{context.buffer} << kith::cuda::finding_index_bits | index));
  }
}

void check(const Codec& codec, const std::vector<std::size_t>& counts) {
  constexpr std::uint64_t seed = 31;
  CAPTURE(codec.name);
  CAPTURE(seed);
  for (const DType dtype : codec_checks::dtypes) {
    const auto inputs = codec_checks::inputs(dtype);
    CAPTURE(kith::to_string(dtype));
    for (std::size_t c = 0; c < counts.size(); ++c) {
      CAPTURE(counts[c]);
      for (std::size_t k = 0; k < inputs.size(); ++k) {
        if (counts[c] > 60 && k % 5 != c % 5) continue;  // of the long ones, a few for each count
        CAPTURE(inputs[k].name);
        Values values = codec_checks::make(inputs[k], dtype, counts[c], seed + c);
        check_values(codec, values, (k + c) % 3 * kith::size_of(dtype));
      }
      Values values = codec_checks::make(inputs[0], dtype, counts[c], seed);
      check_difference(codec, values);
    }
    if (!codec.mask) check_finding(codec, dtype, 2100);
  }
}

/// More than one block has to do.
void check_long(const Codec& codec, std::size_t count) {
  Values values = codec_checks::make(codec_checks::inputs(DType::f32)[0], DType::f32, count, 5);
  check_values(codec, values, 0);
}

const std::vector<std::size_t> counts = {0, 1, 8, 60, 257, 2047, 2560};

}  // namespace

TEST_CASE("cuda codecs: Cast has the bytes of the host") {
  check(Codec{kith::Cast<kith::bfloat16>{}}, counts);
  check(Codec{kith::Cast<kith::float16>{}}, counts);
  // On either side of a tie by less than a float can tell.
  Values values{DType::f64, {1 + 0x1p-8 + 0x1p-40, 1 + 0x1p-8 - 0x1p-40, -1 - 0x1p-11 - 0x1p-40, 1 + 0x1p-11, 1e300}};
  check_values(Codec{kith::Cast<kith::bfloat16>{}}, values, 0);
  values = {DType::f64, {1 + 0x1p-11 + 0x1p-40, -1 - 0x1p-11 + 0x1p-40, 1 + 0x1p-11, -1e300, 0x1p-25 + 0x1p-60}};
  check_values(Codec{kith::Cast<kith::float16>{}}, values, 0);
}
TEST_CASE("cuda codecs: Int8Block and Int4Block have the bytes of the host") {
  check(Codec{kith::Int8Block{}}, counts);
  check(Codec{kith::Int4Block{}}, counts);
  for (const std::size_t block : {std::size_t{8}, std::size_t{40}, std::size_t{1024}, std::size_t{1} << 40}) {
    check(Codec{kith::Int8Block{block}}, {5, 250, 3333});
    check(Codec{kith::Int4Block{block}}, {5, 250, 3333});
  }
}
TEST_CASE("cuda codecs: MinMaxUInt8 has the bytes of the host") {
  check(Codec{kith::MinMaxUInt8{}}, {0, 1, 8, 65, 2047, 9001});
  check(Codec{kith::MinMaxUInt8{.chunk = 40}}, {1, 39, 250, 2100});
  check(Codec{kith::MinMaxUInt8{.chunk = 2048}}, {3, 9001});
}
TEST_CASE("cuda codecs: SignMean and QSGD have the bytes of the host") {
  check(Codec{kith::SignMean{}}, counts);
  check(Codec{kith::QSGD{.levels = 127, .seed = 3}}, counts);
  check(Codec{kith::QSGD{.levels = 4, .seed = 4}}, {65});
  check_long(Codec{kith::SignMean{}}, 300'001);  // more tiles than a block has threads
  check_long(Codec{kith::QSGD{}}, 300'001);
}
TEST_CASE("cuda codecs: the masks and TopK have the bytes of the host") {
  check(Codec{kith::CyclicMask{.fraction = 0.03, .seed = 5}}, counts);
  check(Codec{kith::RandomK{.fraction = 0.3, .seed = 6}}, counts);
  check(Codec{kith::TopK{.fraction = 0.3}}, counts);
  check_long(Codec{kith::TopK{}}, 40'001);
}

TEST_CASE("cuda codecs: what kernels cannot work on is refused") {
  const DeviceArray<float> values(64, 1.0F);
  const DeviceArray<std::byte> wire(1024, std::byte{7});
  const DeviceArray<std::uint64_t> finding{1, kith::cuda::no_finding};
  const kith::cuda::Stream stream;
  kith::cuda::Encoding encoding;
  encoding.values = values.data();
  encoding.count = 64;
  encoding.wire = wire.data();
  encoding.finding = finding.data();
  DeviceCodec codec = kith::detail::device_codec(kith::Int8Block{}, 64);
  const auto status = [&] { return kith::cuda::encode(codec, encoding, stream.get()); };
  encoding.wire = wire.data() + 8;
  CHECK(status() == cudaErrorInvalidValue);
  encoding.wire = wire.data();
  encoding.wire_dtype = DType::f64;
  CHECK(status() == cudaErrorInvalidValue);
  encoding.wire_dtype = DType::f32;
  codec.block = 12;
  CHECK(status() == cudaErrorInvalidValue);
  CHECK_THROWS_AS(kith::detail::require_on_device(kith::Int8Block{12}), kith::UsageError);
  codec = kith::detail::device_codec(kith::SignMean{}, 64);
  CHECK(status() == cudaErrorInvalidValue);  // no scratch memory
  CHECK(wire.values() == std::vector<std::byte>(1024, std::byte{7}));
  encoding.count = 0;
  CHECK(status() == cudaSuccess);
}
