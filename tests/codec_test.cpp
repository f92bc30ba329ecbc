// SPDX-License-Identifier: Apache-2.0
#include <kith/codec.hpp>

#include <cstddef>
#include <string>

#include <kith/codec/cast.hpp>
#include <kith/codec/cyclic_mask.hpp>
#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/min_max_uint8.hpp>
#include <kith/codec/qsgd.hpp>
#include <kith/codec/random_k.hpp>
#include <kith/codec/sign_mean.hpp>
#include <kith/codec/top_k.hpp>

#include <doctest/doctest.h>

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

TEST_CASE("codec: the shortest text of a number") {
  CHECK(kith::detail::number_to_text(1) == "1");
  CHECK(kith::detail::number_to_text(0.05) == "0.05");
  CHECK(kith::detail::number_to_text(-1e-300) == "-1e-300");
  CHECK(std::stod(kith::detail::number_to_text(0.1 + 0.2)) == 0.1 + 0.2);
}
