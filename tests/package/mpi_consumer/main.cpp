// SPDX-License-Identifier: Apache-2.0
// The program of somebody who uses the MPI engine: as 4 ranks, after 2 rounds every element is exactly the mean, 1.5.
#include <cstdio>
#include <vector>

#include <kith/mpi.hpp>

struct MPI {};  // MPI's C++ bindings have a namespace of this name: they must not come along

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  {
    kith::mpi::Communicator communicator{MPI_COMM_WORLD};
    std::vector<float> weights(1000, float(communicator.rank()));
    kith::DecentralizedAverager averager{communicator, kith::OnePeerExponential{}, {kith::view(weights)}};
    for (int step = 0; step < 2; ++step) averager.average();
    for (const float weight : weights)
      if (weight != 1.5F) MPI_Abort(MPI_COMM_WORLD, 1);
    if (communicator.rank() == 0) std::puts("every element is 1.5");
  }
  MPI_Finalize();
}
