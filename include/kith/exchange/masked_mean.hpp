// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include <kith/codec.hpp>
#include <kith/communicator.hpp>
#include <kith/exchange/encoded.hpp>
#include <kith/exchange/encoded_part.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/wire_layout.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

/// A codec that keeps the same elements on every rank, bit for bit, and says which: CyclicMask, RandomK.
template <class M>
concept Mask = Codec<M> &&
    requires(const M& mask, std::span<const std::byte> wire, std::size_t count, DType dtype, Round round) {
  mask.for_each_index(count, round, [](std::size_t) {});
  mask.check(wire, count, dtype);
};

template <Mask M>
struct MaskedMean;

namespace detail {

/// See MaskedMean.
template <Mask M>
class MaskedMeanRule {
public:
  using Exchange = MaskedMean<M>;

  MaskedMeanRule(const Exchange& exchange, const WireLayout&, const SessionOptions& options, Rank rank)
      : mask_(exchange.mask), rank_(rank), period_(std::max<Round>(options.period.rounds, 1)) {}

  // Of the others it does not matter whether they are finite.
  static constexpr bool every_value = false;
  [[nodiscard]] static Workspace workspace(const WireLayout& layout, std::size_t max_degree) {
    return {max_degree, 1, layout.longest_encoded()};
  }

  [[nodiscard]] static std::size_t staging_bytes() noexcept { return 0; }
  [[nodiscard]] static std::size_t begin(const Neighborhood&) noexcept { return 1; }
  [[nodiscard]] static std::size_t most_messages() noexcept { return 1; }

  void encode(const EncodedPart& part, std::size_t, std::span<std::byte> wire, Workspace&) const {
    mask_.encode(part.values(), wire, context(part, rank_));
  }

  void check(const EncodedPart& part, std::span<const std::byte> wire, Rank, Workspace&) const {
    mask_.check(wire, part.segment.count, part.values().dtype);
  }

  void apply(const EncodedPart& part, Workspace& workspace) const {
    if (part.received.empty()) return;
    const BufferView values = part.values();
    const std::size_t width = size_of(values.dtype);
    auto* const averaged = workspace.row<std::byte>(0);
    average_values(workspace.average, part.round, values.dtype, part.segment.bytes / width, averaged, part.own().data(),
                   [&](std::size_t k) { return part.source(k).data(); });
    const std::byte* from = averaged;
    auto* const to = static_cast<std::byte*>(values.data);
    mask_.for_each_index(values.count, context(part, rank_).round, [&](std::size_t index) {
      std::memcpy(to + index * width, from, width);
      from += width;
    });
  }

private:
  // The mask stays for a period of the topology: if both changed together, an element might meet the same phase of the
  // topology for ever.
  [[nodiscard]] CodecContext context(const EncodedPart& part, Rank rank) const noexcept {
    CodecContext context = part.context(rank);
    context.round = part.round.call.sequence / period_;
    return context;
  }

  M mask_;
  Rank rank_;
  Round period_;
};

}  // namespace detail

/// @brief A slice of the values travels, the same on every rank, and is averaged as with FullPrecision; the other
/// values stay as they are: x_i[m] <- x_i[m] + a sum_j w_ij (x_j[m] - x_i[m]) for the elements m that the mask keeps.
///
/// No state and no loss: what is averaged is averaged exactly, in the same bits as with FullPrecision. With CyclicMask
/// every element has its turn. The mask changes when the topology's period is over (each round where that is 1, or the
/// schedule is random): if both changed together, an element might meet the same phase of the topology for ever, and
/// never mix.
///
/// Buffers smaller than AveragerOptions::encode_from_bytes travel whole.
///
/// @par Topologies All.
/// @par Errors     NonFiniteError for a NaN or an infinity among the values that are kept, before anything is sent: the
///                 round has not begun on this rank. Mend the values and call again; the others wait, up to their
///                 deadline.
/// @par Cost       One message of wire_bytes() for each buffer per edge: `fraction` of a model. Staging: the largest
///                 buffer's slice, the own message (twice where it goes to other machines), and those of the
///                 in-neighbours unless they are read where they are.
/// @par Source     SPARTA (sparse parameter averaging, 2025), which averages a random slice over all ranks.
template <Mask M>
struct MaskedMean {
  static constexpr std::string_view name = "masked-mean";

  M mask;

  [[nodiscard]] std::size_t wire_bytes(std::size_t count, DType dtype) const { return mask.wire_bytes(count, dtype); }
  [[nodiscard]] std::string parameters() const { return codec_name(mask); }

  template <Communicator C>
  using Session = detail::EncodedSession<C, detail::MaskedMeanRule<M>>;
};

template <class M>
MaskedMean(M) -> MaskedMean<M>;

}  // namespace kith
