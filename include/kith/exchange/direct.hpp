// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include <kith/codec.hpp>
#include <kith/codec/detail/tiles.hpp>
#include <kith/communicator.hpp>
#include <kith/exchange/encoded.hpp>
#include <kith/exchange/encoded_part.hpp>
#include <kith/exchange/exchange.hpp>
#include <kith/exchange/wire_layout.hpp>
#include <kith/numeric/compute_type.hpp>
#include <kith/numeric/isa.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith {

template <Codec Q>
struct Direct;

namespace detail {

/// See Direct.
template <Codec Q>
class DirectRule {
public:
  using Exchange = Direct<Q>;

  DirectRule(const Exchange& exchange, const WireLayout&, const SessionOptions&, Rank rank)
      : codec_(exchange.codec), rank_(rank) {}

  static constexpr bool every_value = true;
  [[nodiscard]] static Workspace workspace(const WireLayout& layout, std::size_t max_degree) {
    return {max_degree, max_degree > 1 ? std::size_t{3} : 2, layout.longest_computed()};
  }

  [[nodiscard]] static std::size_t staging_bytes() noexcept { return 0; }
  [[nodiscard]] static std::size_t begin(const Neighborhood&) noexcept { return 1; }
  [[nodiscard]] static std::size_t most_messages() noexcept { return 1; }

  void encode(const EncodedPart& part, std::size_t, std::span<std::byte> wire, Workspace& workspace) const {
    BufferView values = part.values();
    if (values.dtype != compute_dtype(values.dtype)) {
      load_values(values, workspace.row<float>(0));
      values = workspace.view(0, values);
    }
    encode_part(codec_, values, wire, part.context(rank_), part.segment.first);
  }

  void check(const EncodedPart& part, std::span<const std::byte> wire, Rank sender, Workspace& workspace) const {
    check_part(codec_, wire, workspace.view(0, part.values()), part.context(sender));
  }

  void apply(const EncodedPart& part, Workspace& workspace) const {
    const auto sources = part.round.plan.sources();
    if (sources.empty()) return;
    const BufferView values = part.values();
    codec_.decode(part.own(), workspace.view(0, values), part.checked(rank_));
    const auto decode_source = [&](std::size_t k) {
      codec_.decode(part.source(k), workspace.view(1, values), part.checked(sources[k].rank));
    };
    with_compute_type(values.dtype, [&]<class T>() {
      const T* const own = workspace.row<T>(0);
      const T* const other = workspace.row<T>(1);
      if (sources.size() == 1) {
        decode_source(0);
        Weighted<T> term[] = {{other, static_cast<T>(sources[0].weight)}};
        return add_average<T>(values, own, term, part.round.mixing);
      }
      T* const sum = workspace.row<T>(2);
      std::fill_n(sum, values.count, T{0});
      for (std::size_t k = 0; k < sources.size(); ++k) {
        decode_source(k);
        Weighted<T> term[] = {{other, static_cast<T>(sources[k].weight)}};
        add_average<T>(workspace.view(2, values), own, term, 1);
      }
      Add{part.round.mixing}.tiles<T>(values, [&](T* to, std::size_t first, std::size_t count) {
        std::memcpy(to, sum + first, count * sizeof(T));
      });
    });
  }

private:
  Q codec_;
  Rank rank_;
};

}  // namespace detail

/// @brief The encoded values travel: x_i <- x_i + a sum_j w_ij (Q(x_j) - Q(x_i)).
///
/// What most systems do, and it does not converge: the models stop at a distance from each other of about the codec's
/// error, which is relative to the values and not to their differences, and wander there. Choco removes that for the
/// same bytes and the memory of replicas. The own value enters encoded as well, so that the mean of the models is kept
/// for every doubly stochastic W.
///
/// Buffers smaller than AveragerOptions::encode_from_bytes travel as they are. Values are encoded, and summed in
/// ascending rank from zero, in f32 (f64 for f64 buffers), every operation rounded on its own; f16 and bf16 are widened
/// first and rounded once at the end.
///
/// @par Topologies All.
/// @par Errors     NonFiniteError for a NaN or an infinity in this rank's values, before anything is sent: the round
///                 has not begun on this rank. Mend the values and call again; the others wait, up to their deadline.
/// @par Cost       One message of wire_bytes() for each buffer per edge. Staging: three segments (see
///                 detail::EncodedSession), the own message, and those of the in-neighbours unless they are read where
///                 they are.
template <Codec Q>
struct Direct {
  static constexpr std::string_view name = "direct";

  Q codec;

  [[nodiscard]] std::size_t wire_bytes(std::size_t count, DType dtype) const {
    return codec.wire_bytes(count, detail::compute_dtype(dtype));
  }
  [[nodiscard]] std::string parameters() const { return codec_name(codec); }

  template <Communicator C>
  using Session = detail::EncodedSession<C, detail::DirectRule<Q>>;
};

template <class Q>
Direct(Q) -> Direct<Q>;

}  // namespace kith
