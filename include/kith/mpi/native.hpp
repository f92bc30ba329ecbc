// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <mpi.h>

#include <kith/communicator.hpp>
#include <kith/error.hpp>
#include <kith/types.hpp>

namespace kith::mpi::detail {

/// Turns MPI's return code into an error that says what was being done.
inline void require_success(int code, std::string_view what) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  throw BackendError(std::string{what} + " failed: " + std::string(text.data(), static_cast<std::size_t>(length)),
                     code);
}

/// What a message is about; see kith::Call. One cache line: ranks that share memory look at each other's in every
/// round.
struct alignas(64) Stamp {
  std::array<char, 40> what{};
  std::uint32_t channel = 0;
  std::uint32_t reserved = 0;
  std::uint64_t sequence = 0;
  std::uint64_t agreement = 0;

  Stamp() = default;
  explicit Stamp(const Call& call) noexcept
      : channel(call.channel), sequence(call.sequence), agreement(call.agreement) {
    std::copy_n(call.what.begin(), std::min(call.what.size(), what.size() - 1), what.begin());
  }
  friend bool operator==(const Stamp&, const Stamp&) = default;
};
static_assert(sizeof(Stamp) == 64);

/// What comes first in every message: what it is about, and how long it is.
struct Header {
  Stamp stamp;
  std::uint64_t model_bytes = 0;
  std::uint64_t message_bytes = 0;
};

/// "gossip round 12 of averager 0", of another rank's call.
[[nodiscard]] inline std::string describe(const Stamp& stamp) {
  const auto* const end = std::find(stamp.what.begin(), stamp.what.end(), '\0');
  return std::string(stamp.what.begin(), end) + " " + std::to_string(stamp.sequence) + " of averager " +
         std::to_string(stamp.channel);
}

/// Why a call of another rank is not the one that this rank is in; empty if it is.
[[nodiscard]] inline std::string difference(Rank mine, const Stamp& own, Rank peer, const Stamp& theirs) {
  if (own == theirs) return {};
  std::string text = "rank " + std::to_string(peer) + " called " + describe(theirs) + " while rank " +
                     std::to_string(mine) + " called " + describe(own);
  if (describe(own) == describe(theirs)) text += ", with another setting";
  return text + ". All ranks make the same calls in the same order, with equal settings";
}

/// Messages of a kind share a tag: MPI then keeps those between two ranks in order.
enum class Tag : int { message = 1, chunk = 2, notice = 3 };

}  // namespace kith::mpi::detail
