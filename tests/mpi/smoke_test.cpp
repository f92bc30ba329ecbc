// SPDX-License-Identifier: Apache-2.0
// That MPI, the averager and this way to test go together. What the engine promises is in the files beside this one.
#include <kith/mpi.hpp>

#include <bit>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

namespace mpi_smoke_test {

TEST_CASE("mpi: one-peer exponential comes to the mean of all ranks, exactly if their number is a power of two") {
  kith::mpi::Communicator communicator{MPI_COMM_WORLD};
  const kith::Rank size = communicator.size();
  std::vector<float> weights(1000, static_cast<float>(communicator.rank()));
  kith::DecentralizedAverager averager{communicator, kith::OnePeerExponential{}, {kith::view(weights)}};
  const auto rounds = static_cast<int>(std::bit_width(static_cast<std::uint32_t>(size - 1)));  // ceil(log2 n)
  const bool exact = std::has_single_bit(static_cast<std::uint32_t>(size));
  for (int step = 0; step < (exact ? rounds : 40 * rounds); ++step) averager.average();
  const float mean = 0.5F * static_cast<float>(size - 1);
  for (const float weight : weights) {
    if (exact)
      CHECK(weight == mean);
    else
      CHECK(weight == doctest::Approx(mean));
  }
}

}  // namespace mpi_smoke_test
