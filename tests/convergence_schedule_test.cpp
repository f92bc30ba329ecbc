// SPDX-License-Identifier: Apache-2.0
// The schedules that AveragerOptions can express, against the algorithms they stand for, written out plainly for all
// workers in one loop. The workers' costs are not quadratic, and their gradients are noisy and pull to different
// places, so that averaging at another time, or with other weights, gives other numbers.
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <kith/topology/analysis.hpp>

#include "convergence.hpp"

namespace convergence_schedule_test {

namespace {

using namespace convergence;

constexpr std::size_t coordinates = 32;
constexpr int steps = 60;
constexpr double learning_rate = 0.1;
constexpr std::uint64_t seed = 77;

/// One optimizer step of a rank: SGD on (x - b)^2 / 2 - cos(2 x) / 4 with b = rank / 2 and a noisy gradient.
class Step {
public:
  explicit Step(Rank rank) : noise_(seed, rank), optimum_(0.5 * rank) {}
  void operator()(std::vector<double>& model) {
    for (double& x : model) x -= learning_rate * (x - optimum_ + 0.5 * std::sin(2 * x) + noise_());
  }

private:
  Signs noise_;
  double optimum_;
};

Models start(Rank size) { return Models(index(size), random_models(1, coordinates, seed).front()); }

Models trained(const std::string& topology, Rank size, const kith::AveragerOptions& options) {
  return on_ranks(topology, start(size), options, [](Rank rank, std::vector<double>& model, auto& averager) {
    Step step{rank};
    for (int t = 0; t < steps; ++t) {
      step(model);
      averager.average();
    }
  });
}

using Combine = std::function<void(int t, Models& models)>;

/// The same steps, and combine(t, models) after those of all ranks for t = 1, 2, ...
Models written_out(Rank size, const Combine& combine) {
  Models models = start(size);
  std::vector<Step> all;
  for (Rank rank = 0; rank < size; ++rank) all.emplace_back(rank);
  for (int t = 1; t <= steps; ++t) {
    for (Rank rank = 0; rank < size; ++rank) all[index(rank)](models[index(rank)]);
    combine(t, models);
  }
  return models;
}

void to_mean(Models& models) { models.assign(models.size(), mean_of(models)); }

/// x_i <- the plain mean of x_i and of the ranks at the given distances from it.
void to_mean_with(Models& models, const std::vector<Rank>& distances) {
  const Models old = models;
  const auto size = static_cast<Rank>(models.size());
  for (Rank i = 0; i < size; ++i)
    for (std::size_t d = 0; d < coordinates; ++d) {
      double sum = old[index(i)][d];
      for (const Rank distance : distances) sum += old[index((i + distance + size) % size)][d];
      models[index(i)][d] = sum / static_cast<double>(distances.size() + 1);
    }
}

/// Round `round` of the one-peer exponential graph of 2^hops ranks.
void one_peer(Models& models, int hops, int round) { to_mean_with(models, {-(1 << round % hops)}); }

void check_same(const Models& a, const Models& b) { CHECK(largest_difference(a, b) < 1e-12); }

/// That the comparison would notice: these runs differ visibly.
void check_differ(const Models& a, const Models& b) { CHECK(largest_difference(a, b) > 1e-3); }

}  // namespace

TEST_CASE("convergence: a global mean in every step is parallel SGD") {
  // Parallel SGD: one model, and the mean of the gradients that all workers have at it.
  constexpr Rank size = 6;
  std::vector<double> model = start(size).front();
  std::vector<Step> all;
  for (Rank rank = 0; rank < size; ++rank) all.emplace_back(rank);
  for (int t = 0; t < steps; ++t) {
    std::vector<double> update(coordinates);
    for (Step& step : all) {
      std::vector<double> moved = model;
      step(moved);
      for (std::size_t d = 0; d < coordinates; ++d) update[d] += (moved[d] - model[d]) / size;
    }
    for (std::size_t d = 0; d < coordinates; ++d) model[d] += update[d];
  }
  const Models parallel(index(size), model);
  for (const char* topology : {"one-peer-exponential", "ring", "isolated"}) {
    CAPTURE(std::string{topology});
    check_same(trained(topology, size, {.global_every = 1}), parallel);
    check_same(trained(topology, size, {.warmup_rounds = steps}), parallel);
    check_differ(trained(topology, size, {.global_every = 2}), parallel);
  }
  check_same(trained("complete", size, {}), parallel);
}

TEST_CASE("convergence: isolated workers with a global mean every H steps are local SGD") {
  // Local SGD (Stich, ICLR 2019): H steps alone, then everybody takes the mean.
  for (const int period : {2, 5, 7}) {
    CAPTURE(period);
    const auto every = static_cast<Round>(period);
    const Models local = written_out(6, [&](int t, Models& models) {
      if (t % period == 0) to_mean(models);
    });
    check_same(trained("isolated", 6, {.global_every = every}), local);
    check_same(trained("complete", 6, {.every = every}), local);
    check_same(trained("ring", 6, {.every = every, .global_every = 1}), local);
    check_differ(trained("isolated", 6, {.global_every = every + 1}), local);
  }
}

TEST_CASE("convergence: a global mean every H steps and gossip in the others is Gossip-PGA") {
  // Chen et al. 2021, arXiv:2105.09080, algorithm 1.
  check_same(trained("ring", 6, {.global_every = 5}), written_out(6, [](int t, Models& models) {
               if (t % 5 == 0)
                 to_mean(models);
               else
                 to_mean_with(models, {-1, 1});
             }));
  // The rounds of a changing topology count gossip rounds only: the global ones leave no hole in the cycle.
  int round = 0;
  check_same(trained("one-peer-exponential", 8, {.global_every = 3}), written_out(8, [&](int t, Models& models) {
               if (t % 3 == 0)
                 to_mean(models);
               else
                 one_peer(models, 3, round++);
             }));
}

TEST_CASE("convergence: warm-up, every and global_every together") {
  // Due calls are 2, 4, 6, ...; the first three of them, and every fifth, are global.
  int round = 0;
  check_same(trained("one-peer-exponential", 8, {.every = 2, .warmup_rounds = 3, .global_every = 5}),
             written_out(8, [&](int t, Models& models) {
               if (t % 2 != 0) return;
               if (t / 2 <= 3 || t / 2 % 5 == 0)
                 to_mean(models);
               else
                 one_peer(models, 3, round++);
             }));
}

TEST_CASE("convergence: mixing takes part of the step towards the neighbours") {
  check_same(trained("ring", 6, {.mixing = 0.4}), written_out(6, [](int, Models& models) {
               Models combined = models;
               to_mean_with(combined, {-1, 1});
               for (std::size_t i = 0; i < models.size(); ++i)
                 for (std::size_t d = 0; d < coordinates; ++d) models[i][d] = 0.6 * models[i][d] + 0.4 * combined[i][d];
             }));
}

TEST_CASE("convergence: averaging in every k-th call mixes as well as in each, whatever k and the period share") {
  // Were the round the number of the call, 16 ranks with k = 4 would meet the same peer every time and never mix. It is
  // the number of gossip rounds performed: they are exact after as many as the analysis says, and no sooner. One
  // averager for each k, one after the other on a communicator.
  for (const Rank size : {8, 16, 64}) {
    const Models models = random_models(size, coordinates, seed);
    const std::vector<double> exact = mean_of(models);
    for (const char* name : {"one-peer-exponential", "one-peer-hypercube", "base-graph:1", "base-graph:2",
                             "halving-shift", "cycle:[one-peer-exponential,isolated]"}) {
      const std::string topology{name};
      CAPTURE(topology);
      CAPTURE(size);
      const kith::AnyTopology chosen = kith::parse_topology(topology);
      const std::optional<Round> rounds = kith::analyze(chosen, size).exact_after;
      REQUIRE(rounds);
      std::array<std::atomic<Rank>, 9> moved_early{}, exact_early{}, inexact{};  // ranks, for each k
      kith::thread::run(size, [&](kith::thread::Communicator& communicator) {
        for (Round every = 1; every < moved_early.size(); ++every) {
          const std::vector<double>& initial = models[index(communicator.rank())];
          std::vector<double> model = initial;
          kith::DecentralizedAverager averager{
              communicator, chosen, {kith::view(model)}, kith::AveragerOptions{.every = every}};
          const auto calls = [&](Round times) {
            for (Round call = 0; call < times; ++call) averager.average();
          };
          calls(every - 1);
          moved_early[every] += model != initial;
          calls(every * (*rounds - 1));
          exact_early[every] += largest_difference(model, exact) < 0.01;
          calls(1);
          inexact[every] += !(largest_difference(model, exact) < 1e-14) || averager.metrics().rounds != *rounds;
        }
      });
      for (std::size_t every = 1; every < moved_early.size(); ++every) {
        CAPTURE(every);
        CHECK(moved_early[every] == 0);
        CHECK(exact_early[every] == 0);
        CHECK(inexact[every] == 0);
      }
    }
  }
}

}  // namespace convergence_schedule_test
