// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <kith/codec.hpp>
#include <kith/codec/cast.hpp>
#include <kith/codec/cyclic_mask.hpp>
#include <kith/codec/int4_block.hpp>
#include <kith/codec/int8_block.hpp>
#include <kith/codec/min_max_uint8.hpp>
#include <kith/codec/top_k.hpp>
#include <kith/error.hpp>
#include <kith/exchange/choco.hpp>
#include <kith/exchange/difference.hpp>
#include <kith/exchange/direct.hpp>
#include <kith/exchange/full_precision.hpp>
#include <kith/exchange/masked_mean.hpp>
#include <kith/exchange/sharded.hpp>
#include <kith/types.hpp>  // bfloat16
#include <kith/view.hpp>

// An exchange is a type, chosen when a program is compiled, and so is its codec. This lets a command line choose among
// some of them.

namespace digits {

/// One of several codecs, chosen when the program runs: then each exchange need be compiled for one codec only.
class AnyCodec {
public:
  static constexpr std::string_view name = "any";

  using Held = std::variant<kith::Cast<kith::bfloat16>, kith::Int8Block, kith::Int4Block, kith::TopK>;

  explicit AnyCodec(const Held& codec) : codec_(codec) {}

  [[nodiscard]] std::size_t wire_bytes(std::size_t count, kith::DType dtype) const {
    return std::visit([&](const auto& codec) { return codec.wire_bytes(count, dtype); }, codec_);
  }
  void encode(kith::BufferView values, std::span<std::byte> wire, kith::CodecContext context = {}) const {
    std::visit([&](const auto& codec) { codec.encode(values, wire, context); }, codec_);
  }
  void decode(std::span<const std::byte> wire, kith::BufferView values, kith::CodecContext context = {}) const {
    std::visit([&](const auto& codec) { codec.decode(wire, values, context); }, codec_);
  }
  void decode_add(double weight, std::span<const std::byte> wire, kith::BufferView accumulator,
                  kith::CodecContext context = {}) const {
    std::visit([&](const auto& codec) { codec.decode_add(weight, wire, accumulator, context); }, codec_);
  }
  void check(std::span<const std::byte> wire, std::size_t count, kith::DType dtype) const {
    std::visit([&](const auto& codec) { codec.check(wire, count, dtype); }, codec_);
  }
  [[nodiscard]] std::string parameters() const {
    return std::visit([](const auto& codec) { return kith::codec_name(codec); }, codec_);
  }
  [[nodiscard]] std::size_t granule() const {
    return std::visit([](const auto& codec) { return kith::detail::granule_of(codec); }, codec_);
  }

private:
  Held codec_;
};

/// Choco with the gamma that it takes for the codec.
inline kith::Choco<AnyCodec> choco(const kith::Codec auto& codec) {
  return {AnyCodec{codec}, kith::Choco{codec}.gamma};
}

using AnyExchange =
    std::variant<kith::FullPrecision, kith::Direct<AnyCodec>, kith::Choco<AnyCodec>,
                 kith::Difference<kith::MinMaxUInt8>, kith::MaskedMean<kith::CyclicMask>, kith::Sharded>;

struct NamedExchange {
  std::string name;
  AnyExchange exchange;
};

/// All that there is to choose from. The names are those of the exchange and its codec in Kith.
inline const std::vector<NamedExchange>& exchanges() {
  static const std::vector<NamedExchange> all{
      {"full-precision", kith::FullPrecision{}},
      {"direct:cast-bf16", kith::Direct{AnyCodec{kith::Cast<kith::bfloat16>{}}}},
      {"direct:int8-block", kith::Direct{AnyCodec{kith::Int8Block{}}}},
      {"direct:int4-block", kith::Direct{AnyCodec{kith::Int4Block{}}}},
      {"choco:cast-bf16", choco(kith::Cast<kith::bfloat16>{})},
      {"choco:int8-block", choco(kith::Int8Block{})},
      {"choco:int4-block", choco(kith::Int4Block{})},
      {"choco:top-k:0.01", choco(kith::TopK{0.01})},
      {"difference:min-max-uint8", kith::Difference{kith::MinMaxUInt8{}}},
      {"masked-mean:cyclic-mask:0.1", kith::MaskedMean{kith::CyclicMask{0.1}}},
      {"sharded", kith::Sharded{}},
  };
  return all;
}

/// Their names, with `separator` between them.
inline std::string names_of(const std::vector<NamedExchange>& exchanges, std::string_view separator) {
  std::string names;
  for (const NamedExchange& one : exchanges) names.append(names.empty() ? "" : separator).append(one.name);
  return names;
}

/// The exchanges of a list such as "full-precision,choco:int8-block". Throws UsageError for other names.
inline std::vector<NamedExchange> parse_exchanges(std::string_view list) {
  std::vector<NamedExchange> found;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const std::string_view name = list.substr(begin, end - begin);
    const auto one = std::find_if(exchanges().begin(), exchanges().end(),
                                  [&](const NamedExchange& known) { return known.name == name; });
    if (one == exchanges().end())
      throw kith::UsageError("\"" + std::string{name} + "\" is not an exchange; there are " +
                             names_of(exchanges(), ", "));
    found.push_back(*one);
    begin = end + 1;
  }
  return found;
}

}  // namespace digits
