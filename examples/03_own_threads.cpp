// SPDX-License-Identifier: Apache-2.0
// A trainer that has worker threads of its own: it makes a World, and each thread takes its place in it.

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <thread>
#include <vector>

#include <kith/kith.hpp>

namespace {

constexpr kith::Rank workers = 4;

/// Stands for the trainer's own worker: it owns a model and is driven by a thread that Kith knows nothing about.
struct Worker {
  std::vector<double> model = std::vector<double>(1000);
  std::exception_ptr failure;
  double distance = 0;

  void work(kith::thread::World& world, kith::Rank rank) {
    try {
      kith::thread::Communicator communicator{world, rank};  // this thread is the rank from now on
      kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(model)}};
      for (int step = 0; step < 60; ++step) {
        // Gradient descent on (x - rank)^2 / 2: alone, each worker would end at its own rank.
        for (double& x : model) x -= 0.05 * (x - rank);
        averager.average();
      }
      distance = averager.consensus_distance();
    } catch (...) {
      // By now the communicator has been destroyed: whoever waits for this rank has been told, and throws PeerError.
      failure = std::current_exception();
    }
  }
};

}  // namespace

int main() {
  std::vector<Worker> pool(workers);
  kith::thread::World world{workers};  // outlives the threads
  std::vector<std::thread> threads;
  threads.reserve(workers);
  for (kith::Rank rank = 0; rank < workers; ++rank)
    threads.emplace_back([&, rank] { pool[static_cast<std::size_t>(rank)].work(world, rank); });
  for (std::thread& thread : threads) thread.join();

  for (const Worker& worker : pool)
    if (worker.failure) std::rethrow_exception(worker.failure);

  double mean = 0;
  for (const Worker& worker : pool) {
    std::printf("a worker ended at %.4f\n", worker.model[0]);
    mean += worker.model[0] / workers;
  }
  std::printf(
      "their mean is %.4f, their distance from it %.2f over 1000 elements; alone they would head for 0, 1, 2, 3\n",
      mean, pool[0].distance);

  // The common minimum is at 1.5. Averaging keeps the mean, so it gets as near as plain gradient descent in 60 steps.
  const double descended = 1.5 * (1 - std::pow(0.95, 60));
  return std::abs(mean - descended) < 1e-9 && std::abs(pool[0].model[0] - mean) < 0.05 ? 0 : 1;
}
