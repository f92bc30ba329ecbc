// SPDX-License-Identifier: Apache-2.0
#include <kith/codec.hpp>

#include <cstddef>
#include <string>
#include <vector>

#include <kith/codec/cast.hpp>
#include <kith/codec/cyclic_mask.hpp>
#include <kith/codec/detail/tiles.hpp>
#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/min_max_uint8.hpp>
#include <kith/codec/qsgd.hpp>
#include <kith/codec/random_k.hpp>
#include <kith/codec/sign_mean.hpp>
#include <kith/codec/top_k.hpp>

#include <doctest/doctest.h>

namespace codec_test {

using kith::codec_name;

TEST_CASE("codec: full names have every parameter, and doubles to the last bit") {
  CHECK(codec_name(kith::Cast<kith::bfloat16>{}) == "cast-bf16");
  CHECK(codec_name(kith::Cast<kith::float16>{}) == "cast-f16");
  CHECK(codec_name(kith::Int8Block{}) == "int8-block:256");
  CHECK(codec_name(kith::Int4Block{.block = 32}) == "int4-block:32");
  CHECK(codec_name(kith::MinMaxUInt8{.chunk = 7}) == "min-max-uint8:7");
  CHECK(codec_name(kith::TopK{}) == "top-k:0.01");
  CHECK(codec_name(kith::TopK{.fraction = 1.0 / 3}) == "top-k:0.3333333333333333");
  CHECK(codec_name(kith::RandomK{.fraction = 0.5, .seed = 9}) == "random-k:0.5,9");
  CHECK(codec_name(kith::CyclicMask{.fraction = 1, .seed = 2}) == "cyclic-mask:1,2");
  CHECK(codec_name(kith::SignMean{}) == "sign-mean");
  CHECK(codec_name(kith::QSGD{.levels = 100, .seed = 3}) == "qsgd:100,3");
}

namespace {

// A buffer of two segments of three granules and a tail, encoded whole and in these pieces.
template <class Q>
void check_pieces(const Q& codec, kith::DType dtype) {
  const std::size_t granule = kith::detail::granule_of(codec);
  const std::size_t piece = 3 * granule;
  const std::size_t count = 2 * piece + 5;
  const std::string name = codec_name(codec);
  CAPTURE(name);
  CAPTURE(to_string(dtype));
  const std::size_t width = size_of(dtype);
  std::vector<std::byte> values(count * width);
  for (std::size_t i = 0; i < count; ++i)
    kith::detail::store_element(dtype, values.data(), static_cast<float>(static_cast<int>(i * 37 % 101) - 50) / 8, i);
  if (dtype == kith::DType::f64)
    for (std::size_t i = 0; i < count; ++i)
      kith::detail::store_element(dtype, values.data(), static_cast<double>(i * 37 % 101) - 50.3, i);
  const auto coded = [&](std::size_t first, std::size_t elements, std::vector<std::byte>& decoded) {
    std::vector<std::byte> wire(codec.wire_bytes(elements, dtype));
    codec.encode({values.data() + first * width, elements, dtype}, wire, {});
    codec.check(wire, elements, dtype);
    codec.decode(wire, {decoded.data() + first * width, elements, dtype}, {.checked = true});
    return wire.size();
  };
  std::vector<std::byte> whole(values.size());
  std::vector<std::byte> pieces(values.size());
  const std::size_t bytes = coded(0, count, whole);
  CHECK(coded(0, piece, pieces) + coded(piece, piece, pieces) + coded(2 * piece, 5, pieces) == bytes);
  CHECK(whole == pieces);
}

}  // namespace

TEST_CASE("codec: pieces of whole granules decode to the same values, from as many bytes") {
  for (const kith::DType dtype : {kith::DType::f32, kith::DType::f64, kith::DType::f16, kith::DType::bf16}) {
    check_pieces(kith::Cast<kith::bfloat16>{}, dtype);
    check_pieces(kith::Cast<kith::float16>{}, dtype);
    check_pieces(kith::Int8Block{}, dtype);
    check_pieces(kith::Int8Block{.block = 7}, dtype);
    check_pieces(kith::Int4Block{}, dtype);
    check_pieces(kith::Int4Block{.block = 6}, dtype);
    check_pieces(kith::MinMaxUInt8{.chunk = 33}, dtype);
  }
  CHECK(kith::detail::granule_of(kith::MinMaxUInt8{}) == 0);
  CHECK(kith::detail::granule_of(kith::TopK{}) == 0);
  CHECK(kith::detail::granule_of(kith::RandomK{}) == 0);
  CHECK(kith::detail::granule_of(kith::CyclicMask{}) == 0);
  CHECK(kith::detail::granule_of(kith::SignMean{}) == 0);
  CHECK(kith::detail::granule_of(kith::QSGD{}) == 0);
}

TEST_CASE("codec: the shortest text of a number") {
  CHECK(kith::detail::number_to_text(1) == "1");
  CHECK(kith::detail::number_to_text(0.05) == "0.05");
  CHECK(kith::detail::number_to_text(-1e-300) == "-1e-300");
  CHECK(std::stod(kith::detail::number_to_text(0.1 + 0.2)) == 0.1 + 0.2);
}

}  // namespace codec_test
