// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include <kith/communicator.hpp>
#include <kith/numeric/kernels.hpp>
#include <kith/topology.hpp>
#include <kith/types.hpp>
#include <kith/view.hpp>

namespace kith::detail {

/// The first NaN or infinity of a rank's model: where it is.
struct NonFinite {
  Rank rank;
  std::size_t buffer;
  std::size_t index;
};

/// Looks through a model for the first value that is not finite.
[[nodiscard]] inline std::optional<NonFinite> find_non_finite(Rank rank, std::span<const BufferView> buffers) noexcept {
  for (std::size_t b = 0; b < buffers.size(); ++b) {
    const std::size_t index = first_non_finite(buffers[b].dtype, buffers[b].data, buffers[b].count);
    if (index < buffers[b].count) return NonFinite{rank, b, index};
  }
  return std::nullopt;
}

/// Tells every rank of a round whether it, or one of those it hears, holds a value that is not finite: one pass over
/// the own model, and 16 bytes along every edge. Nothing of the models is sent or changed.
template <Communicator C>
class FiniteCheck {
public:
  FiniteCheck(C& communicator, std::size_t max_degree) : communicator_(communicator), received_(max_degree) {
    outgoing_.reserve(max_degree);
    incoming_.reserve(max_degree);
    everybody_.resize(static_cast<std::size_t>(communicator.size()));
  }

  /// For a gossip round: this rank's own finding, else that of the lowest of its in-neighbours.
  std::optional<NonFinite> along(const Neighborhood& plan, Call call, std::span<const BufferView> buffers,
                                 Seconds& waited) {
    call.what = "check for NaN and Inf before gossip round";
    const std::optional<NonFinite> own = find_non_finite(communicator_.rank(), buffers);
    const Finding mine = encode(own);
    outgoing_.clear();
    incoming_.clear();
    for (const Rank to : plan.targets()) outgoing_.push_back({to, &mine, sizeof mine});
    for (const auto& source : plan.sources())
      incoming_.push_back({source.rank, &received_[incoming_.size()], sizeof(Finding)});
    waited += communicator_.exchange(call, outgoing_, incoming_);
    if (own) return own;
    for (std::size_t k = 0; k < plan.sources().size(); ++k)
      if (received_[k].buffer != nothing) return decode(plan.sources()[k].rank, received_[k]);
    return std::nullopt;
  }

  /// For a global mean: the finding of the lowest rank that has one.
  std::optional<NonFinite> everywhere(Call call, std::span<const BufferView> buffers, Seconds& waited) {
    call.what = "check for NaN and Inf before global mean";
    const Finding mine = encode(find_non_finite(communicator_.rank(), buffers));
    waited += communicator_.all_gather(call, std::as_bytes(std::span{&mine, 1}),
                                       std::as_writable_bytes(std::span{everybody_}));
    for (std::size_t r = 0; r < everybody_.size(); ++r)
      if (everybody_[r].buffer != nothing) return decode(static_cast<Rank>(r), everybody_[r]);
    return std::nullopt;
  }

private:
  struct Finding {
    std::uint64_t buffer;
    std::uint64_t index;
  };
  static constexpr std::uint64_t nothing = std::numeric_limits<std::uint64_t>::max();

  static Finding encode(const std::optional<NonFinite>& finding) noexcept {
    return finding ? Finding{finding->buffer, finding->index} : Finding{nothing, 0};
  }
  static NonFinite decode(Rank rank, const Finding& finding) noexcept {
    return {rank, static_cast<std::size_t>(finding.buffer), static_cast<std::size_t>(finding.index)};
  }

  C& communicator_;
  std::vector<Finding> received_;
  std::vector<Finding> everybody_;
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
};

}  // namespace kith::detail
