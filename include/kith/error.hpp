// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include <kith/types.hpp>

namespace kith {

/// @brief The base of everything that Kith throws.
///
/// Whatever is thrown, the parameters of the rank that catches it hold what they held before the call, bit for bit.
class Error : public std::runtime_error {
public:
  explicit Error(const std::string& message) : std::runtime_error(std::string{prefix} + message) {}

  /// what() without the library's name in front.
  [[nodiscard]] std::string_view message() const noexcept { return std::string_view{what()}.substr(prefix.size()); }

private:
  static constexpr std::string_view prefix = "kith: ";
};

/// The caller asked for something that cannot be: found before anything was sent. Mend the call and go on.
class UsageError : public Error {
public:
  using Error::Error;
};

/// @brief A peer did not do its part. The communicator has failed: every later call on it throws.
class PeerError : public Error {
public:
  /// timeout: it did not arrive by the deadline. lost: it has left or died. protocol: it made a different call.
  enum class Reason : std::uint8_t { timeout, lost, protocol };
  // Not `using enum`: g++ 12 breaks off with an internal error where a template names the enumerators through it.
  static constexpr Reason timeout = Reason::timeout;
  static constexpr Reason lost = Reason::lost;
  static constexpr Reason protocol = Reason::protocol;

  PeerError(const std::string& message, Rank peer, Reason reason) : Error(message), peer_(peer), reason_(reason) {}

  /// The rank at fault, as far as this rank can tell.
  [[nodiscard]] Rank peer() const noexcept { return peer_; }
  [[nodiscard]] Reason reason() const noexcept { return reason_; }

private:
  Rank peer_;
  Reason reason_;
};

/// The engine below (MPI, CUDA, NCCL) reported an error. The communicator has failed: every later call on it throws.
class BackendError : public Error {
public:
  BackendError(const std::string& message, int code) : Error(message), code_(code) {}

  /// The engine's own code.
  [[nodiscard]] int code() const noexcept { return code_; }

private:
  int code_;
};

/// @brief A NaN or an infinity was about to be averaged (see AveragerOptions::check_finite), or to be encoded.
///
/// Thrown on the rank that holds the value and on every rank that would have received it; where it was to be encoded,
/// on the holder alone, before it has met the others. The communicator goes on.
class NonFiniteError : public Error {
public:
  NonFiniteError(const std::string& message, Rank rank, std::size_t buffer, std::size_t index)
      : Error(message), rank_(rank), buffer_(buffer), index_(index) {}

  /// The rank that holds the value, which of its buffers, and which element of that buffer (the first one).
  [[nodiscard]] Rank rank() const noexcept { return rank_; }
  [[nodiscard]] std::size_t buffer() const noexcept { return buffer_; }
  [[nodiscard]] std::size_t index() const noexcept { return index_; }

private:
  Rank rank_;
  std::size_t buffer_;
  std::size_t index_;
};

/// @brief Encoded bytes that the codec's encoder cannot have written: too few, too many, or an impossible value in
/// them.
///
/// Nothing has been decoded: the values that they were meant for hold what they held.
class WireError : public Error {
public:
  using Error::Error;
};

}  // namespace kith
