// SPDX-License-Identifier: Apache-2.0
// The averager on device buffers, against the same rounds one element after another, to the bit.
#include <kith/exchange/device/full_precision.hpp>
#include <kith/exchange/device/global_mean.hpp>
#include <kith/exchange/device/staging.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "../gpu_emulator/emulator.hpp"
#include "gpu_ranks.hpp"

namespace nccl_averager_test {

using gpu_ranks::DeviceModel;
using gpu_ranks::expect;
using gpu_ranks::Stream;
using kith::AnyTopology;
using kith::DType;
using kith::Rank;
using kith::nccl::Communicator;

namespace {

const std::vector<reference::Shape>& every_dtype() {
  static const std::vector<reference::Shape> shapes = {
      {DType::f32, 1000, 1}, {DType::f64, 64}, {DType::f16, 3, 1}, {DType::bf16, 1000, 3}, {DType::f32, 0},
      {DType::f16, 1000},    {DType::f32, 1},  {DType::bf16, 1},   {DType::f64, 0},        {DType::f16, 64, 7}};
  return shapes;
}

struct Case {
  AnyTopology topology;
  std::vector<reference::Shape> shapes;
  double mixing = 1;
  kith::Round rounds = 3;
};

// A case and what comes out of it, once for all ranks: the reference is slow.
struct Scenario {
  Case c;
  std::vector<reference::Model> initial;
  std::vector<reference::Model> expected;

  Scenario(Case given, Rank size, std::uint64_t seed)
      : c(std::move(given)), initial(reference::random_models(size, c.shapes, seed)), expected(initial) {
    for (kith::Round t = 0; t < c.rounds; ++t) reference::round(expected, c.topology, t, c.mixing);
  }
};

void check(Communicator& communicator, const Scenario& scenario, std::size_t bucket_bytes) {
  const Case& c = scenario.c;
  const auto r = static_cast<std::size_t>(communicator.rank());
  // Ranks need not have equal addresses.
  std::vector<reference::Shape> shapes = c.shapes;
  for (reference::Shape& shape : shapes) shape.shift = (shape.shift + 3 * r) % 8;
  reference::Model initial{shapes};
  for (std::size_t b = 0; b < initial.buffers(); ++b)
    for (std::size_t i = 0; i < initial.shape(b).count; ++i) initial.set(b, i, scenario.initial[r].get(b, i));
  const Stream stream;
  DeviceModel model{initial, stream};
  kith::AveragerOptions options;
  options.mixing = c.mixing;
  options.bucket_bytes = bucket_bytes;
  kith::DecentralizedAverager averager{communicator, c.topology, model.views(), options};
  for (kith::Round t = 0; t < c.rounds; ++t) averager.average(stream);
  expect(model.get(stream) == scenario.expected[r],
         "rounds of " + c.topology.full_name() + " give the bits of the reference");
  averager.synchronize();
}

void check(Rank size, const Case& c, std::uint64_t seed, const std::vector<std::size_t>& bucket_bytes = {0}) {
  const Scenario scenario{c, size, seed};
  gpu_ranks::run(size, [&](Communicator& communicator) {
    for (const std::size_t bytes : bucket_bytes) check(communicator, scenario, bytes);
  });
}

// Largest absolute difference between two models of one shape.
double difference(const reference::Model& a, const reference::Model& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.buffers(); ++i)
    for (std::size_t j = 0; j < a.shape(i).count; ++j) most = std::max(most, std::fabs(a.get(i, j) - b.get(i, j)));
  return most;
}

}  // namespace

TEST_CASE("nccl averager: the arithmetic is pinned, for every topology, packed or sent from where it is") {
  for (const Rank size : {1, 2, 3, 5, 8}) {
    std::vector<Scenario> scenarios;
    for (const std::string& name : kith::topology_names()) {
      const AnyTopology topology = kith::parse_topology(name);
      try {
        kith::require_size(topology, size);
      } catch (const kith::UsageError&) {
        continue;
      }
      scenarios.push_back({{topology, every_dtype()}, size, 17});
    }
    gpu_ranks::run(size, [&](Communicator& communicator) {
      for (const Scenario& scenario : scenarios)
        for (const std::size_t pack_below : {std::size_t{0}, std::size_t{500}, std::size_t{1}})
          check(communicator, scenario, pack_below);
    });
    check(size, {kith::Ring{}, every_dtype(), 0.3}, 18);
  }
}

TEST_CASE("nccl averager: many in-neighbours are still one sum") {
  check(12, {kith::Complete{}, {{DType::bf16, 1003, 1}, {DType::f32, 77}}, 1, 2}, 5, {100});
}

TEST_CASE("nccl averager: models larger than a bucket, and a thousand small tensors") {
  std::vector<reference::Shape> many;
  for (std::size_t i = 0; i < 1000; ++i) many.push_back({i % 2 == 0 ? DType::f32 : DType::bf16, i % 67, i % 5});
  check(3, {kith::OnePeerExponential{}, {{DType::f32, 40001, 1}, {DType::f16, 70003}}, 1, 2}, 6, {50000});
  check(3, {kith::Ring{}, many}, 7);
}

TEST_CASE("nccl averager: the mean, the distance, the broadcast and the comparison") {
  const std::vector<reference::Shape> shapes = {{DType::f32, 1001, 1}, {DType::f64, 65}, {DType::f32, 4000}};
  for (const std::size_t pack_below : {std::size_t{0}, std::size_t{5000}})
    for (const Rank size : {1, 2, 3, 5})
      gpu_ranks::run(size, [&](Communicator& communicator) {
        const Stream stream;
        auto models = reference::random_models(size, shapes, 3);
        const auto r = static_cast<std::size_t>(communicator.rank());
        DeviceModel model{models[r], stream};
        DeviceModel merged{reference::Model{shapes}, stream};
        kith::AveragerOptions options;
        options.bucket_bytes = pack_below;
        kith::DecentralizedAverager averager{communicator, kith::Isolated{}, model.views(), options};
        expect(averager.buffers_agree(stream) == (size == 1), "random models differ");
        reference::Model mean = models[0];
        double distance = 0;
        for (std::size_t b = 0; b < shapes.size(); ++b)
          for (std::size_t i = 0; i < shapes[b].count; ++i) {
            double sum = 0;
            for (const auto& other : models) sum += other.get(b, i);
            mean.set(b, i, sum / size);
            for (const auto& other : models) distance += std::pow(other.get(b, i) - sum / size, 2);
          }
        distance = std::sqrt(distance / size);
        expect(std::fabs(averager.consensus_distance(stream) - distance) <= 1e-5 * distance + 1e-12,
               "the consensus distance is right");
        averager.mean_into(merged.views(), stream);
        expect(difference(merged.get(stream), mean) < 1e-3, "mean_into gives the mean");
        expect(model.get(stream) == models[r], "and leaves the model alone");
        averager.average_globally(stream);
        expect(difference(model.get(stream), mean) < 1e-3, "average_globally gives the mean");
        expect(averager.buffers_agree(stream), "on all ranks the same bits");
        expect(averager.consensus_distance(stream) < 1e-3, "no distance is left");
        model.set(models[r], stream);
        averager.broadcast(size - 1, stream);
        expect(model.get(stream) == models.back(), "broadcast brings the model of its root");
        expect(averager.agree_on_steps(100 - r) == 100, "agree_on_steps gives the largest, here of rank 0");
        averager.synchronize();
      });
}

TEST_CASE("nccl averager: a call returns without waiting for the device, and allocates nothing there") {
  if (!gpu_ranks::emulated()) return gpu_ranks::skip("needs the emulator");
  gpu_ranks::run(4, [](Communicator& communicator) {
    const Stream stream;
    auto models = reference::random_models(4, {{DType::f32, 30000}, {DType::bf16, 333}}, 3);
    DeviceModel model{models[static_cast<std::size_t>(communicator.rank())], stream};
    kith::AveragerOptions options;
    options.global_every = 5;
    options.check_finite = true;
    options.bucket_bytes = 10000;
    kith::DecentralizedAverager averager{communicator, kith::OnePeerExponential{}, model.views(), options};
    const std::size_t begin = kith::gpu_emulator::mark();
    for (int i = 0; i < 10; ++i) averager.average(stream);
    expect(kith::gpu_emulator::synchronizations(begin).empty(), "nothing waits and nothing is allocated");
    averager.synchronize();
  });
}

TEST_CASE("nccl averager: all edges of a schedule have met before its first round") {
  if (!gpu_ranks::emulated()) return gpu_ranks::skip("needs the emulator");
  for (const std::string name : {"one-peer-exponential", "ring", "random-matching"}) {
    gpu_ranks::run(20, [&](Communicator& communicator) {  // more than all_gather connects
      const Stream stream;
      auto models = reference::random_models(20, {{DType::f32, 10}}, 3);
      DeviceModel model{models[static_cast<std::size_t>(communicator.rank())], stream};
      kith::DecentralizedAverager averager{communicator, kith::parse_topology(name), model.views()};
      kith::testing::detail::meet(communicator, kith::testing::detail::test_call("all are there", 1));
      const std::size_t before = kith::gpu_emulator::edges_connected();
      for (int i = 0; i < 12; ++i) averager.average(stream);
      averager.synchronize();
      expect(kith::gpu_emulator::first_contacts_since(before) == 0, "no round of " + name + " connects anybody");
      kith::testing::detail::meet(communicator, kith::testing::detail::test_call("all are done", 2));
    });
  }
}

TEST_CASE("nccl averager: rounds can be captured in graphs, one for each of a period, and replayed") {
  gpu_ranks::run(4, [](Communicator& communicator) {
    const std::vector<reference::Shape> shapes = {{DType::f32, 1000, 1}, {DType::bf16, 30000}};
    const auto r = static_cast<std::size_t>(communicator.rank());
    auto expected = reference::random_models(4, shapes, 9);
    const Stream stream;
    DeviceModel model{expected[r], stream};
    const kith::OnePeerExponential topology;
    kith::AveragerOptions options;
    options.bucket_bytes = 10000;
    options.mixing = 0.7;  // with 1 all rounds from the second one on would do the same: nothing
    kith::DecentralizedAverager averager{communicator, topology, model.views(), options};
    averager.average(stream);  // round 0; the graphs begin with round 1
    stream.synchronize();
    std::vector<cudaGraphExec_t> graphs;
    for (int i = 0; i < 2; ++i) {
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t executable = nullptr;
      kith::cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin a capture");
      averager.average(stream);
      kith::cuda::check(cudaStreamEndCapture(stream, &graph), "end a capture");
      kith::cuda::check(cudaGraphInstantiate(&executable, graph, 0), "instantiate a graph");
      kith::cuda::check(cudaGraphDestroy(graph), "destroy a graph");
      graphs.push_back(executable);
    }
    expect(averager.metrics().rounds == 1, "what is recorded has not been performed");
    for (int i = 0; i < 5; ++i)
      kith::cuda::check(cudaGraphLaunch(graphs[static_cast<std::size_t>(i % 2)], stream), "launch a graph");
    averager.advance(5);
    expect(averager.metrics().rounds == 6, "advance() counts the replays");
    averager.average(stream);  // round 6
    for (kith::Round t = 0; t < 7; ++t) reference::round(expected, topology, t, options.mixing);
    expect(model.get(stream) == expected[r], "replayed rounds give the bits of the reference");
    averager.synchronize();
    for (cudaGraphExec_t graph : graphs) (void)cudaGraphExecDestroy(graph);
  });
}

TEST_CASE("nccl averager: a value that is not finite is reported by those that hold it or would hear it") {
  for (const std::size_t pack_below : {std::size_t{0}, std::size_t{1}})
    gpu_ranks::run(4, [pack_below](Communicator& communicator) {
      const Stream stream;
      auto models = reference::random_models(4, {{DType::f32, 100}, {DType::bf16, 1000}}, 3);
      const auto r = static_cast<std::size_t>(communicator.rank());
      models[1].set(1, 777, std::numeric_limits<double>::infinity());
      DeviceModel model{models[r], stream};
      kith::AveragerOptions options;
      options.check_finite = true;
      options.bucket_bytes = pack_below;
      kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views(), options};
      bool reported = false;
      try {
        averager.average(stream);  // may know it already: another rank's thread may have driven the emulated device
        averager.synchronize();
      } catch (const kith::NonFiniteError& error) {
        reported = error.rank() == 1 && error.buffer() == 1 && error.index() == 777;
      }
      expect(reported == (r != 3), "rank 1 and its neighbours name the place");
      const bool same = model.get(stream) == models[r];
      expect(same == (r != 3), "and keep their parameters; rank 3, which has heard nothing of it, commits");
      // All are in step, and go on.
      models[r].set(1, 777, 1.0);
      model.set(models[r], stream);
      averager.average(stream);
      averager.synchronize();
    });
}

TEST_CASE("nccl averager: of many ranks, and in a replay, it is the right one that is named") {
  gpu_ranks::run(36, [](Communicator& communicator) {
    const Stream stream;
    auto models = reference::random_models(36, {{DType::f32, 10}}, 3);
    const auto r = static_cast<std::size_t>(communicator.rank());
    models[34].set(0, 7, std::numeric_limits<double>::quiet_NaN());
    DeviceModel model{models[r], stream};
    kith::AveragerOptions options;
    options.check_finite = true;
    kith::DecentralizedAverager averager{communicator, kith::Complete{}, model.views(), options};
    Rank named = -1;
    const auto look = [&](const auto& call) {
      try {
        call();
        averager.synchronize();
      } catch (const kith::NonFiniteError& error) {
        named = error.rank();
      }
    };
    look([&] { averager.average(stream); });
    expect(named == 34, "everybody hears of rank 34, not of " + std::to_string(named));
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    kith::cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin a capture");
    averager.average(stream);
    kith::cuda::check(cudaStreamEndCapture(stream, &graph), "end a capture");
    kith::cuda::check(cudaGraphInstantiate(&executable, graph, 0), "instantiate a graph");
    named = -1;
    look([&] {
      kith::cuda::check(cudaGraphLaunch(executable, stream), "launch a graph");
      stream.synchronize();
    });
    expect(named == 34, "also where a replay has found it");
    (void)cudaGraphExecDestroy(executable);
    (void)cudaGraphDestroy(graph);
    expect(model.get(stream) == models[r], "nobody has averaged");
  });
}

TEST_CASE("nccl averager: what the caller has asked of CUDA before does not matter") {
  gpu_ranks::run(2, [](Communicator& communicator) {
    const Stream stream;
    auto models = reference::random_models(2, {{DType::f32, 10}}, 3);
    DeviceModel model{models[static_cast<std::size_t>(communicator.rank())], stream};
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views()};
    void* nothing = nullptr;
    expect(cudaMalloc(&nothing, std::size_t{1} << 60) != cudaSuccess, "there is not so much memory");
    averager.average(stream);
    averager.synchronize();
    (void)cudaGetLastError();
  });
}

TEST_CASE("nccl averager: a graph records rounds and nothing else") {
  gpu_ranks::run(1, [](Communicator& communicator) {
    const Stream stream;
    DeviceModel model{reference::Model{{{DType::f32, 10}}}, stream};
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views()};
    cudaGraph_t graph = nullptr;
    kith::cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin a capture");
    int refused = 0;
    const auto refuses = [&](const auto& call) {
      try {
        call();
      } catch (const kith::UsageError&) {
        ++refused;
      }
    };
    refuses([&] { averager.average_globally(stream); });
    refuses([&] { averager.mean_into(model.views(), stream); });
    refuses([&] { averager.broadcast(0, stream); });
    refuses([&] { (void)averager.buffers_agree(stream); });
    refuses([&] { (void)averager.consensus_distance(stream); });
    kith::cuda::check(cudaStreamEndCapture(stream, &graph), "end a capture");
    (void)cudaGraphDestroy(graph);
    expect(refused == 5, "the others are refused");
    averager.average_globally(stream);
    averager.synchronize();
  });
}

TEST_CASE("nccl averager: buffers may move") {
  gpu_ranks::run(3, [](Communicator& communicator) {
    const std::vector<reference::Shape> shapes = {{DType::f32, 100, 1}, {DType::f32, 3000}};
    auto expected = reference::random_models(3, shapes, 4);
    const auto r = static_cast<std::size_t>(communicator.rank());
    const Stream stream;
    DeviceModel first{expected[r], stream};
    kith::AveragerOptions options;
    options.bucket_bytes = 1000;
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, first.views(), options};
    averager.average(stream);
    reference::round(expected, kith::Ring{}, 0, 1);
    DeviceModel second{first.get(stream), stream};
    averager.rebind(second.views());
    averager.average(stream);
    reference::round(expected, kith::Ring{}, 1, 1);
    expect(second.get(stream) == expected[r], "rounds go on at the new place");
    averager.synchronize();
  });
}

TEST_CASE("nccl averager: several averagers share a communicator, and one can be moved") {
  gpu_ranks::run(3, [](Communicator& communicator) {
    const auto r = static_cast<std::size_t>(communicator.rank());
    auto a = reference::random_models(3, {{DType::f32, 50}}, 1);
    auto b = reference::random_models(3, {{DType::f64, 70}}, 2);
    const Stream stream;
    DeviceModel one{a[r], stream};
    DeviceModel two{b[r], stream};
    kith::DecentralizedAverager first{communicator, kith::Ring{}, one.views()};
    kith::DecentralizedAverager second{communicator, kith::OnePeerExponential{}, two.views()};
    auto moved = std::move(first);
    for (kith::Round t = 0; t < 4; ++t) {
      moved.average(stream);
      reference::round(a, kith::Ring{}, t, 1);
      if (t % 2 == 0) continue;
      second.average(stream);
      reference::round(b, kith::OnePeerExponential{}, t / 2, 1);
    }
    expect(one.get(stream) == a[r] && two.get(stream) == b[r], "each has a schedule of its own");
    expect(moved.staging_bytes() > 2 * 50 * 4, "staging holds the messages of two in-neighbours");
    second.synchronize();
  });
}

TEST_CASE("nccl averager: what ranks were given is compared before anything is averaged") {
  gpu_ranks::run(3, [](Communicator& communicator) {
    const Stream stream;
    const auto models = reference::random_models(3, {{DType::f32, 60}}, 1);
    DeviceModel model{models[0], stream};
    std::vector<kith::BufferView> views = model.views();
    if (communicator.rank() == 1) views[0].count = 59;
    std::string text;
    try {
      kith::DecentralizedAverager averager{communicator, kith::Ring{}, views};
    } catch (const kith::UsageError& error) {
      text = error.what();
    }
    expect(text.find("rank 1 differs from rank 0 in buffer 0") != std::string::npos, "the rank is named: " + text);
    std::vector<float> host(60);
    text.clear();
    try {
      kith::DecentralizedAverager averager{
          communicator, kith::Ring{}, {communicator.rank() == 2 ? kith::view(host) : model.views()[0]}};
    } catch (const kith::UsageError& error) {
      text = error.what();
    }
    expect(text.find("not in the memory of a GPU") != std::string::npos, "host memory is refused everywhere: " + text);
  });
}

}  // namespace nccl_averager_test
