// SPDX-License-Identifier: Apache-2.0
// A training that is stopped and resumed ends with the same bits as one that is not. A checkpoint holds, for each rank,
// the parameters and the averager's state; the model to deploy is the mean of all, which mean_into() writes.

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <vector>

#include <kith/kith.hpp>

namespace {

constexpr kith::Rank ranks = 6;

/// What a rank keeps. A real trainer keeps its optimizer and its data loader as well, and writes all of it to a file.
struct Checkpoint {
  int step = 0;
  std::vector<float> weights = std::vector<float>(100);
  std::vector<std::byte> averager;  // what state() returned; empty before the start
};

/// Continues every rank's training up to `last_step` and returns the new checkpoints; writes the merged model.
std::vector<Checkpoint> train(std::vector<Checkpoint> group, int last_step, std::vector<float>& merged) {
  kith::thread::run(ranks, [&](kith::thread::Communicator& communicator) {
    Checkpoint& mine = group[static_cast<std::size_t>(communicator.rank())];

    // Where the schedule stands matters: partners are drawn for each round, and only every second call averages.
    const kith::AveragerOptions options{.every = 2, .warmup_rounds = 3};
    kith::DecentralizedAverager averager{communicator, kith::RandomMatching{7}, {kith::view(mine.weights)}, options};
    if (!mine.averager.empty()) averager.restore(mine.averager);

    for (; mine.step < last_step; ++mine.step) {
      for (std::size_t i = 0; i < mine.weights.size(); ++i)
        mine.weights[i] += 0.1F * std::sin(static_cast<float>(mine.step * (communicator.rank() + 1)) + mine.weights[i]);
      averager.average();
    }
    mine.averager = averager.state();

    // The merged model, written without touching the ranks' own. Collective, so every rank has room for it.
    std::vector<float> model(mine.weights.size());
    averager.mean_into({kith::view(model)});
    if (communicator.rank() == 0) merged = model;
  });
  return group;
}

bool same_weights(const std::vector<Checkpoint>& a, const std::vector<Checkpoint>& b) {
  bool same = true;
  for (std::size_t rank = 0; rank < a.size(); ++rank) same = same && a[rank].weights == b[rank].weights;
  return same;
}

}  // namespace

int main() {
  const std::vector<Checkpoint> fresh(ranks);
  std::vector<float> merged;
  std::vector<float> merged_of_resumed;

  const std::vector<Checkpoint> uninterrupted = train(fresh, 101, merged);

  const std::vector<Checkpoint> checkpoint = train(fresh, 37, merged_of_resumed);  // stops in the middle of everything
  const std::vector<Checkpoint> resumed = train(checkpoint, 101, merged_of_resumed);

  std::vector<Checkpoint> forgetful = checkpoint;  // restores the parameters, but not the averager
  for (Checkpoint& mine : forgetful) mine.averager.clear();
  std::vector<float> merged_of_forgetful;
  forgetful = train(forgetful, 101, merged_of_forgetful);

  const bool identical = same_weights(uninterrupted, resumed) && merged == merged_of_resumed;
  const bool needed = !same_weights(uninterrupted, forgetful);
  std::printf("rank 0 after 101 steps: %.9f, the merged model: %.9f\n", double{uninterrupted[0].weights[0]},
              double{merged[0]});
  std::printf("resumed at step 37:     %.9f, the merged model: %.9f: %s\n", double{resumed[0].weights[0]},
              double{merged_of_resumed[0]}, identical ? "the same bits on every rank" : "DIFFERENT");
  std::printf("without state():        %.9f, the merged model: %.9f: %s\n", double{forgetful[0].weights[0]},
              double{merged_of_forgetful[0]}, needed ? "different, as expected" : "THE SAME");
  std::printf("the averager's state is %zu bytes\n", checkpoint[0].averager.size());
  return identical && needed ? 0 : 1;
}
