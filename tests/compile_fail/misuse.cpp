// SPDX-License-Identifier: Apache-2.0
// Mistakes that must not compile, one at a time: the build that defines none of the sections must compile. Each test
// looks for the name of the concept in the compiler's message, because that is what tells the user what to mend.
#include <vector>

#include <kith/kith.hpp>

namespace {

// Models nothing.
struct Pebble {};

// A topology but for the type of its period.
struct Almost : kith::OnePeerExponential {
  static kith::Rank period(kith::Rank) { return 1; }
};

// Spelled out, because where clang 14 deduces the arguments it says that constraints are not satisfied, but not which.
template <class T>
using Averager = kith::DecentralizedAverager<kith::thread::Communicator, T>;

[[maybe_unused]] void average(kith::thread::Communicator& communicator) {
  std::vector<float> weights(4);

#if defined(NOT_A_COMMUNICATOR)
  Pebble pebble;
  kith::DecentralizedAverager<Pebble, kith::OnePeerExponential> averager{pebble, {}, {kith::view(weights)}};
#elif defined(NOT_A_TOPOLOGY)
  Averager<Pebble> averager{communicator, {}, {kith::view(weights)}};
#elif defined(NEARLY_A_TOPOLOGY)
  Averager<Almost> averager{communicator, {}, {kith::view(weights)}};
#elif defined(CONST_BUFFER)
  const std::vector<float> frozen(4);
  Averager<kith::Ring> averager{communicator, {}, {kith::view(frozen)}};
#elif defined(NOT_AN_ELEMENT)
  std::vector<int> counters(4);
  Averager<kith::Ring> averager{communicator, {}, {kith::view(counters)}};
#elif defined(NOT_A_CODEC)
  const kith::Choco<Pebble> exchange{};
  kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(weights)}, exchange};
#elif defined(NOT_A_MASK)
  const kith::MaskedMean<kith::Int8Block> exchange{};
  kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(weights)}, exchange};
#else
  kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(weights)}};
#endif
  averager.average();
}

}  // namespace
