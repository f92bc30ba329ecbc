// SPDX-License-Identifier: Apache-2.0
// The program of somebody who uses Kith: 8 ranks, and after 3 rounds every element is exactly the mean, 3.5.
#include <cstdio>
#include <vector>

#include <kith/kith.hpp>

int main() {
  kith::thread::run(8, [](kith::thread::Communicator& communicator) {
    std::vector<float> weights(100'000, float(communicator.rank()));
    kith::DecentralizedAverager averager{communicator, kith::OnePeerExponential{}, {kith::view(weights)}};
    for (int step = 0; step < 3; ++step) averager.average();
    for (const float weight : weights) {
      if (weight != 3.5F) throw kith::UsageError("an element is not the mean");
    }
  });
  std::puts("every element is 3.5");
}
