// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>

#include <kith/codec.hpp>
#include <kith/cuda/codec_kernels.hpp>
#include <kith/error.hpp>
#include <kith/types.hpp>

namespace kith::detail {

/// What kernels make of a codec: its name decides, so that no codec need be included here.
[[nodiscard]] constexpr bool has_kernels(std::string_view codec) noexcept {
  for (const std::string_view name : {"cast-bf16", "cast-f16", "int8-block", "int4-block", "min-max-uint8", "sign-mean",
                                      "qsgd", "random-k", "cyclic-mask", "top-k"})
    if (codec == name) return true;
  return false;
}

/// Whether what a codec writes depends on the round: a graph that is replayed would write the same for ever.
template <Codec Q>
inline constexpr bool draws = Q::name == std::string_view{"qsgd"} || Q::name == std::string_view{"random-k"} ||
                              Q::name == std::string_view{"cyclic-mask"};

/// Whether a codec looks at some of the values only.
template <Codec Q>
inline constexpr bool is_mask = Q::name == std::string_view{"random-k"} || Q::name == std::string_view{"cyclic-mask"};

/// Whether a wire stands for a few values only, which are added to replicas one by one.
template <Codec Q>
inline constexpr bool is_sparse = is_mask<Q> || Q::name == std::string_view{"top-k"};

/// The codec for a buffer of `count` elements.
template <Codec Q>
[[nodiscard]] cuda::DeviceCodec device_codec(const Q& codec, std::size_t count) {
  constexpr std::string_view name = Q::name;
  static_assert(has_kernels(name), "this codec has no kernels: on a GPU take one of Kith's");
  using Family = cuda::DeviceCodec::Family;
  cuda::DeviceCodec result;
  if constexpr (name == "cast-bf16" || name == "cast-f16") {
    result.to = name == "cast-f16" ? DType::f16 : DType::bf16;
  } else if constexpr (name == "int8-block" || name == "int4-block") {
    result.family = Family::absmax_block;
    result.nibbles = name == "int4-block";
    result.block = codec.block;
  } else if constexpr (name == "min-max-uint8") {
    result.family = Family::min_max;
    result.block = codec.chunk;
  } else if constexpr (name == "sign-mean") {
    result.family = Family::sign_mean;
  } else if constexpr (name == "qsgd") {
    result.family = Family::qsgd;
    result.levels = codec.levels;
    result.seed = codec.seed;
  } else {
    result.family = name == "top-k" ? Family::top_k : name == "random-k" ? Family::random_k : Family::cyclic_mask;
    result.kept = codec.kept(count);
    if constexpr (is_mask<Q>) result.seed = codec.seed;
  }
  return result;
}

/// Throws UsageError for parameters that the host's codec takes and kernels do not.
template <Codec Q>
void require_on_device(const Q& codec) {
  const cuda::DeviceCodec mine = device_codec(codec, 1);
  if (mine.block % 8 != 0)
    throw UsageError(codec_name(codec) + " on a GPU: it takes blocks of a multiple of 8 elements there");
}

}  // namespace kith::detail
