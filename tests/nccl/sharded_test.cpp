// SPDX-License-Identifier: Apache-2.0
// Sharded rounds between devices give the bits of the thread engine, whose own tests compare with another computation.
#include <kith/exchange/device/sharded.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "gpu_ranks.hpp"

namespace nccl_sharded_test {

using gpu_ranks::DeviceModel;
using gpu_ranks::expect;
using gpu_ranks::Stream;
using kith::DType;
using kith::Rank;
using kith::nccl::Communicator;

namespace {

using Topology = kith::Hierarchical<kith::AnyTopology>;

Topology topology_of(const std::vector<Rank>& map, const std::string& inter) {
  return kith::Hierarchical{map, kith::parse_topology(inter)};
}

struct End {
  reference::Model model;
  kith::Metrics metrics{};
};

std::vector<End> on_threads(const std::vector<reference::Model>& initial, const Topology& topology,
                            const kith::AveragerOptions& options, kith::Round rounds) {
  std::vector<End> ends;
  for (const reference::Model& model : initial) ends.push_back({model});
  kith::thread::run(static_cast<Rank>(initial.size()), [&](kith::thread::Communicator& communicator) {
    End& end = ends[static_cast<std::size_t>(communicator.rank())];
    kith::DecentralizedAverager averager{communicator, topology, end.model.views(), kith::Sharded{}, options};
    for (kith::Round t = 0; t < rounds; ++t) averager.average();
    end.metrics = averager.metrics();
  });
  return ends;
}

}  // namespace

TEST_CASE("nccl sharded: the bits of the thread engine, on machines of any sizes") {
  const std::vector<reference::Shape> shapes = {{DType::f32, 1003, 1}, {DType::f64, 77}, {DType::f32, 0},
                                                {DType::f64, 1},       {DType::f32, 1},  {DType::f32, 20000, 3}};
  const std::vector<std::vector<Rank>> maps = {{0, 0, 0, 0, 1, 1, 1, 1}, {0, 1, 0, 2, 1, 2, 2}, {0, 0, 0}, {0, 1, 2}};
  for (const auto& map : maps)
    for (const std::string inter : {"one-peer-exponential", "ring", "random-matching"})
      for (const double mixing : {1.0, 0.3}) {
        kith::AveragerOptions options;
        options.mixing = mixing;
        const auto size = static_cast<Rank>(map.size());
        const auto initial = reference::random_models(size, shapes, 7);
        const Topology topology = topology_of(map, inter);
        const std::vector<End> expected = on_threads(initial, topology, options, 4);
        gpu_ranks::run(size, [&](Communicator& communicator) {
          const auto r = static_cast<std::size_t>(communicator.rank());
          const Stream stream;
          DeviceModel model{initial[r], stream};
          kith::DecentralizedAverager averager{communicator, topology, model.views(), kith::Sharded{}, options};
          for (int t = 0; t < 4; ++t) averager.average(stream);
          expect(model.get(stream) == expected[r].model, "rounds between devices give the bits of the thread engine");
          const kith::Metrics& found = averager.metrics();
          const kith::Metrics& wanted = expected[r].metrics;
          expect(found.rounds == 4 && found.messages_sent == wanted.messages_sent &&
                     found.bytes_sent == wanted.bytes_sent && found.bytes_received == wanted.bytes_received,
                 "and are counted as it counts them");
          averager.synchronize();
        });
      }
}

TEST_CASE("nccl sharded: rounds can be captured in graphs, one for each of a period, and replayed") {
  const std::vector<Rank> map = {0, 0, 1, 1, 2, 2, 3, 3};
  const Topology topology = topology_of(map, "one-peer-exponential");
  const auto initial = reference::random_models(8, {{DType::f32, 1003, 1}, {DType::f64, 77}}, 3);
  kith::AveragerOptions options;
  options.mixing = 0.7;  // with 1 all rounds from the second one on would do the same: nothing
  const std::vector<End> expected = on_threads(initial, topology, options, 7);
  gpu_ranks::run(8, [&](Communicator& communicator) {
    const auto r = static_cast<std::size_t>(communicator.rank());
    const Stream stream;
    DeviceModel model{initial[r], stream};
    kith::DecentralizedAverager averager{communicator, topology, model.views(), kith::Sharded{}, options};
    averager.average(stream);  // round 0; the graphs begin with round 1
    stream.synchronize();
    std::vector<cudaGraphExec_t> graphs;
    for (int i = 0; i < 2; ++i) {
      cudaGraph_t graph = nullptr;
      kith::cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin a capture");
      averager.average(stream);
      kith::cuda::check(cudaStreamEndCapture(stream, &graph), "end a capture");
      kith::cuda::check(cudaGraphInstantiate(&graphs.emplace_back(), graph, 0), "instantiate a graph");
      kith::cuda::check(cudaGraphDestroy(graph), "destroy a graph");
    }
    for (std::size_t i = 0; i < 5; ++i) kith::cuda::check(cudaGraphLaunch(graphs[i % 2], stream), "launch a graph");
    averager.advance(5);
    averager.average(stream);  // round 6
    expect(model.get(stream) == expected[r].model, "replayed rounds give the bits of the thread engine");
    expect(averager.metrics().rounds == 7, "advance() counts the replays");
    averager.synchronize();
    for (cudaGraphExec_t graph : graphs) (void)cudaGraphExecDestroy(graph);
  });
}

TEST_CASE("nccl sharded: what is not finite stays where it is, and others commit") {
  const std::vector<Rank> map = {0, 0, 1, 1, 2, 2, 3, 3};
  auto initial = reference::random_models(8, {{DType::f32, 500}}, 3);
  const Topology topology = topology_of(map, "one-peer-exponential");
  const std::vector<End> expected = on_threads(initial, topology, {}, 1);
  initial[1].set(0, 77, std::numeric_limits<double>::quiet_NaN());  // in the shard of rank 0
  gpu_ranks::run(8, [&](Communicator& communicator) {
    const auto r = static_cast<std::size_t>(communicator.rank());
    const Stream stream;
    DeviceModel model{initial[r], stream};
    kith::AveragerOptions options;
    options.check_finite = true;
    kith::DecentralizedAverager averager{communicator, topology, model.views(), kith::Sharded{}, options};
    Rank named = -1;
    try {
      averager.average(stream);
      averager.synchronize();
    } catch (const kith::NonFiniteError& error) {
      named = error.rank();
    }
    expect(named == (r < 4 ? 1 : -1), "the machine and the one that hears it name rank 1, rank " + std::to_string(r) +
                                          " names " + std::to_string(named));
    expect(model.get(stream) == (r < 4 ? initial[r] : expected[r].model), "and only the others have averaged");
    model.set(expected[r].model, stream);
    averager.average(stream);  // all are in step
    averager.synchronize();
  });
}

TEST_CASE("nccl sharded: 16-bit buffers are refused") {
  gpu_ranks::run(2, [](Communicator& communicator) {
    const Stream stream;
    const auto models = reference::random_models(2, {{DType::bf16, 10}}, 3);
    DeviceModel model{models[static_cast<std::size_t>(communicator.rank())], stream};
    std::string refusal;
    try {
      kith::DecentralizedAverager averager{communicator, kith::Hierarchical{2}, model.views(), kith::Sharded{}};
    } catch (const kith::UsageError& error) {
      refusal = error.what();
    }
    expect(refusal.find("f32 and f64") != std::string::npos, "and the message says what would do: " + refusal);
  });
}

}  // namespace nccl_sharded_test
