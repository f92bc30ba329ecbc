// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <kith/communicator.hpp>
#include <kith/thread/communicator.hpp>
#include <kith/thread/run.hpp>
#include <kith/types.hpp>

namespace kith::testing {

/// @brief A communicator that hides that its ranks share memory, so that everything above it takes the path of engines
/// that pass messages. What such an engine will do can be tested in one process.
template <Communicator C>
class MessagePassing {
public:
  explicit MessagePassing(C& communicator) noexcept : communicator_(communicator) {}

  [[nodiscard]] Rank rank() const noexcept { return communicator_.rank(); }
  [[nodiscard]] Rank size() const noexcept { return communicator_.size(); }
  [[nodiscard]] std::uint32_t open_channel() { return communicator_.open_channel(); }
  Seconds exchange(const Call& call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming) {
    return communicator_.exchange(call, outgoing, incoming);
  }
  Seconds all_gather(const Call& call, std::span<const std::byte> mine, std::span<std::byte> all) {
    return communicator_.all_gather(call, mine, all);
  }
  void refuse(const Call& call, Rank peer, const std::string& text) requires requires(C& communicator) {
    communicator.refuse(call, peer, text);
  }
  { communicator_.refuse(call, peer, text); }
  [[nodiscard]] auto& background() requires requires(C& communicator) { communicator.background(); }
  { return communicator_.background(); }

private:
  C& communicator_;
};

static_assert(Communicator<MessagePassing<thread::Communicator>> &&
              !SharedAddressSpace<MessagePassing<thread::Communicator>>);

/// Runs `body(communicator)` on `size` ranks as threads, which share memory and know it, and a second time with ranks
/// that only pass messages. Rethrows the first failure, as kith::thread::run does.
template <class Body>
void run_both_ways(Rank size, const Body& body) {
  thread::run(size, body);
  thread::run(size, [&](thread::Communicator& communicator) {
    MessagePassing<thread::Communicator> messages{communicator};
    body(messages);
  });
}

}  // namespace kith::testing
