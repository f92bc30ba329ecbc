// SPDX-License-Identifier: Apache-2.0
// Hidden rounds on device buffers, against the same rounds one element after another, to the bit.
#include <kith/exchange/device/hidden.hpp>

#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "../gpu_emulator/emulator.hpp"
#include "gpu_ranks.hpp"

namespace nccl_hidden_test {

using gpu_ranks::DeviceModel;
using gpu_ranks::expect;
using gpu_ranks::Stream;
using kith::DType;
using kith::Rank;
using kith::Round;
using kith::nccl::Communicator;

namespace {

// What the host's step makes of a model.
reference::Model stepped(reference::Model model, std::size_t rank, Round round) {
  for (std::size_t b = 0; b < model.buffers(); ++b)
    for (std::size_t i = 0; i < model.shape(b).count; ++i)
      model.set(b, i, model.get(b, i) + 0.01 * std::sin(static_cast<double>(rank * 31 + round * 7 + i)));
  return model;
}

template <class T>
double combined(double x, double y, double s) {
  volatile T difference = static_cast<T>(y) - static_cast<T>(s);
  volatile T sum = static_cast<T>(x) + difference;
  return static_cast<double>(sum);
}

// x + (y - s)
reference::Model combine(reference::Model x, const reference::Model& y, const reference::Model& s) {
  for (std::size_t b = 0; b < x.buffers(); ++b)
    for (std::size_t i = 0; i < x.shape(b).count; ++i)
      x.set(b, i,
            x.shape(b).dtype == DType::f64 ? combined<double>(x.get(b, i), y.get(b, i), s.get(b, i))
                                           : combined<float>(x.get(b, i), y.get(b, i), s.get(b, i)));
  return x;
}

template <class F>
void refuses(const F& f, const char* what) {
  bool refused = false;
  try {
    f();
  } catch (const kith::UsageError&) {
    refused = true;
  }
  expect(refused, std::string{what} + " is refused");
}

}  // namespace

TEST_CASE("nccl hidden: rounds are those of combine-then-adapt, packed or sent from where they are") {
  const std::vector<reference::Shape> shapes = {{DType::f32, 1000, 1},  {DType::f64, 64}, {DType::f16, 3, 1},
                                                {DType::bf16, 5000, 3}, {DType::f32, 0},  {DType::f32, 1},
                                                {DType::f16, 64, 7}};
  for (const Rank size : {1, 2, 3, 5})
    gpu_ranks::run(size, [&](Communicator& communicator) {
      const auto r = static_cast<std::size_t>(communicator.rank());
      for (const std::size_t pack_below : {std::size_t{0}, std::size_t{500}, std::size_t{1}}) {
        const kith::AnyTopology topology = kith::parse_topology(pack_below == 0 ? "one-peer-exponential" : "ring");
        auto models = reference::random_models(size, shapes, 5 + pack_below);
        const Stream stream;
        DeviceModel model{models[r], stream};
        kith::AveragerOptions options;
        options.every = 2;
        options.bucket_bytes = pack_below;
        kith::DecentralizedAverager averager{communicator, topology, model.views(), options};
        const std::size_t before = averager.staging_bytes();
        for (Round t = 0; t < 6; ++t) {
          const auto snapshots = models;
          if (t % 2 == 1) reference::round(models, topology, t / 2);
          for (std::size_t j = 0; j < models.size(); ++j)
            models[j] = combine(stepped(snapshots[j], j, t), models[j], snapshots[j]);
          averager.begin(stream);
          model.set(stepped(snapshots[r], r, t), stream);
          refuses([&] { averager.average(stream); }, "a round in between");
          averager.finish(stream);
          expect(model.get(stream) == models[r], "the bits of the reference");
        }
        averager.synchronize();
        expect(averager.metrics().rounds == 3, "three rounds");
        expect(averager.staging_bytes() > before, "the copies are counted");
        // What the session keeps is as it was: open rounds go on.
        averager.average(stream);
        averager.average(stream);
        reference::round(models, topology, 3);
        expect(model.get(stream) == models[r], "an open round after hidden ones");
      }
    });
}

TEST_CASE("nccl hidden: sharded rounds, beside those of average()") {
  const std::vector<reference::Shape> shapes = {{DType::f32, 1003, 1}, {DType::f64, 77}, {DType::f32, 20000, 3}};
  for (const std::vector<Rank>& map : {std::vector<Rank>{0, 0, 1, 1}, std::vector<Rank>{0, 1, 0, 2, 1}})
    gpu_ranks::run(static_cast<Rank>(map.size()), [&](Communicator& communicator) {
      const auto r = static_cast<std::size_t>(communicator.rank());
      const kith::Hierarchical topology{map, kith::parse_topology("ring")};
      const Stream stream;
      const reference::Model initial = reference::random_models(communicator.size(), shapes, 4)[r];
      DeviceModel model{initial, stream};
      DeviceModel twin{initial, stream};
      kith::DecentralizedAverager averager{communicator, topology, model.views(), kith::Sharded{}};
      kith::DecentralizedAverager plain{communicator, topology, twin.views(), kith::Sharded{}};
      for (Round t = 0; t < 4; ++t) {
        const reference::Model snapshot = model.get(stream);
        twin.set(snapshot, stream);
        averager.begin(stream);
        const reference::Model step = stepped(snapshot, r, t);
        model.set(step, stream);
        averager.finish(stream);
        plain.average(stream);
        expect(model.get(stream) == combine(step, twin.get(stream), snapshot), "the difference is added");
      }
      averager.synchronize();
      expect(averager.metrics().bytes_sent == plain.metrics().bytes_sent, "and as many bytes are sent");
    });
}

TEST_CASE("nccl hidden: global means, other averagers meanwhile, and ends in flight") {
  gpu_ranks::run(3, [](Communicator& communicator) {
    const Stream stream;
    const auto initial = reference::random_models(3, {{DType::f64, 100}, {DType::f32, 4001, 1}}, 8);
    const auto r = static_cast<std::size_t>(communicator.rank());
    const reference::Model mean = reference::mean(initial);
    reference::Model kept = initial[r];
    DeviceModel model{initial[r], stream};
    DeviceModel other{initial[r], stream};
    {
      kith::AveragerOptions options;
      options.warmup_rounds = 1;
      options.bucket_bytes = 1000;
      kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views(), options};
      kith::DecentralizedAverager second{communicator, kith::Complete{}, other.views()};
      averager.begin(stream);
      second.begin(stream);
      const reference::Model step = stepped(initial[r], r, 0);
      model.set(step, stream);
      averager.finish(stream);
      second.finish(stream);
      const reference::Model expected = combine(step, mean, initial[r]);
      const reference::Model result = model.get(stream);
      double worst = 0;
      for (std::size_t i = 0; i < 4001; ++i) worst = std::max(worst, std::fabs(result.get(1, i) - expected.get(1, i)));
      expect(worst < 1e-3, "the mean is added as a difference");
      for (std::size_t i = 0; i < 100; ++i)
        expect(std::fabs(other.get(stream).get(0, i) - mean.get(0, i)) < 1e-12, "the other averager's round");
      expect(averager.metrics().global_rounds == 1, "it is counted as a global mean");
      kept = result;
      averager.begin(stream);
      second.begin(stream);
      second.finish(stream);
    }
    // Nothing of the round that was left in flight has come to the model.
    expect(model.get(stream) == kept, "a round that nobody finished leaves the model alone");
  });
}

TEST_CASE("nccl hidden: calls that do not fit, and a graph, are refused") {
  gpu_ranks::run(2, [](Communicator& communicator) {
    const Stream stream;
    const auto initial = reference::random_models(2, {{DType::f32, 100}}, 8);
    DeviceModel model{initial[static_cast<std::size_t>(communicator.rank())], stream};
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views()};
    refuses([&] { averager.finish(stream); }, "finish without begin");
    averager.begin(stream);
    refuses([&] { averager.begin(stream); }, "begin twice");
    refuses([&] { averager.average_globally(stream); }, "a global mean");
    refuses([&] { averager.broadcast(0, stream); }, "a broadcast");
    refuses([&] { averager.mean_into(model.views(), stream); }, "mean_into");
    refuses([&] { (void)averager.buffers_agree(stream); }, "a comparison");
    refuses([&] { (void)averager.consensus_distance(stream); }, "a distance");
    refuses([&] { averager.advance(1); }, "advance");
    refuses([&] { averager.synchronize(); }, "synchronize");
    refuses([&] { averager.rebind(model.views()); }, "rebind");
    averager.finish(stream);
    averager.synchronize();
    expect(averager.metrics().rounds == 1, "the round has gone on");
    kith::cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    refuses([&] { averager.begin(stream); }, "begin in a graph");
    cudaGraph_t graph = nullptr;
    kith::cuda::check(cudaStreamEndCapture(stream, &graph), "end a capture");
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
  });
}

TEST_CASE("nccl hidden: a NaN in the snapshot changes nothing where it would have gone") {
  gpu_ranks::run(4, [](Communicator& communicator) {
    const Stream stream;
    const Rank rank = communicator.rank();
    auto initial = reference::random_models(4, {{DType::f32, 300}, {DType::bf16, 3000}}, 8);
    initial[0].set(1, 7, std::numeric_limits<double>::quiet_NaN());
    const reference::Model& mine = initial[static_cast<std::size_t>(rank)];
    DeviceModel model{mine, stream};
    kith::AveragerOptions options;
    options.check_finite = true;
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views(), options};
    averager.begin(stream);
    const reference::Model step =
        stepped(reference::random_models(4, {{DType::f32, 300}, {DType::bf16, 3000}}, 9)[0], 0, 0);
    model.set(step, stream);
    bool thrown = false;
    try {
      averager.finish(stream);
      averager.synchronize();
    } catch (const kith::NonFiniteError& error) {
      thrown = error.rank() == 0 && error.buffer() == 1 && error.index() == 7;
    }
    expect(thrown == (rank != 2), "those that hear of it throw");
    expect((model.get(stream) == step) == (rank != 2), "and have kept their parameters");
    averager.begin(stream);
    averager.finish(stream);
    averager.synchronize();
  });
}

}  // namespace nccl_hidden_test
