// SPDX-License-Identifier: Apache-2.0
// The quickstart as processes that mpirun starts, on one machine or many: mpirun -n 4 build/release/bin/06_mpi

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <vector>

#include <kith/mpi.hpp>

namespace {

/// Returns on how many ranks all weights have come to the mean.
int average() {
  kith::mpi::Communicator communicator{MPI_COMM_WORLD};
  std::vector<float> weights(100'000, static_cast<float>(communicator.rank()));
  kith::DecentralizedAverager averager{communicator, kith::OnePeerExponential{}, {kith::view(weights)}};
  for (int step = 0; step < 50; ++step) {
    // forward, backward, optimizer step on `weights` ...
    averager.average();
  }

  const float mean = 0.5F * static_cast<float>(communicator.size() - 1);  // of 0, 1, ..., size - 1
  const bool here = std::all_of(weights.begin(), weights.end(), [&](float w) { return std::abs(w - mean) < 1e-4F; });
  int ranks_at_the_mean = here ? 1 : 0;
  MPI_Allreduce(MPI_IN_PLACE, &ranks_at_the_mean, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  if (communicator.rank() == 0)
    std::printf("%d of %d ranks hold the mean, %g\n", ranks_at_the_mean, communicator.size(), double{mean});
  return ranks_at_the_mean;
}

}  // namespace

int main(int argc, char** argv) {
  int thread_level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &thread_level);  // only this thread calls MPI, and Kith
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  bool done = false;
  try {
    done = average() == size;
  } catch (const std::exception& error) {
    // Some peer did not come, say. The others would wait for this rank in turn, and MPI_Finalize too: end the whole
    // job.
    std::fprintf(stderr, "%s\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return done ? 0 : 1;
}
