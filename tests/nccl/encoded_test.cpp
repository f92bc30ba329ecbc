// SPDX-License-Identifier: Apache-2.0
// Exchanges that encode, between devices: to the bit what the engine of threads does, which has tests of its own.
#include <kith/exchange/device/codecs.hpp>
#include <kith/exchange/device/encoded.hpp>
#include <kith/exchange/device/wires.hpp>

#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "../gpu_emulator/emulator.hpp"
#include "gpu_ranks.hpp"

namespace nccl_encoded_test {

using gpu_ranks::DeviceModel;
using gpu_ranks::expect;
using gpu_ranks::Stream;
using kith::AnyTopology;
using kith::DType;
using kith::Rank;
using kith::nccl::Communicator;

namespace {

using Models = std::vector<reference::Model>;

const std::vector<reference::Shape> every_dtype = {{DType::f32, 1100, 1}, {DType::f64, 65, 1}, {DType::f16, 330, 3},
                                                   {DType::bf16, 2257},   {DType::f32, 0},     {DType::f32, 1},
                                                   {DType::f16, 20, 1},   {DType::f64, 1030}};

kith::AveragerOptions options(bool check_finite = false) {
  kith::AveragerOptions result;
  result.mixing = 0.7;
  result.encode_from_bytes = 100;
  result.check_finite = check_finite;
  return result;
}

/// What a scenario does with a rank of either engine. average() says whether a value was not finite.
template <class Averager>
struct OnHost {
  Averager& averager;
  reference::Model& model;

  bool average() const {
    try {
      averager.average();
    } catch (const kith::NonFiniteError&) {
      return false;
    }
    return true;
  }
  /// A hidden round, in which the host makes the model what `values` are.
  void hide(const reference::Model& values) const {
    averager.begin();
    set(values);
    averager.finish();
  }
  void broadcast(Rank root) const { averager.broadcast(root); }
  void set(const reference::Model& values) const {
    for (std::size_t b = 0; b < model.buffers(); ++b)
      for (std::size_t i = 0; i < model.shape(b).count; ++i) model.set(b, i, values.get(b, i));
  }
  [[nodiscard]] const reference::Model& get() const { return model; }
};
template <class Averager>
struct OnDevice {
  Averager& averager;
  DeviceModel& model;
  const Stream& stream;

  bool average() const {
    try {
      averager.average(stream);
      averager.synchronize();
    } catch (const kith::NonFiniteError&) {
      stream.synchronize();
      return false;
    }
    return true;
  }
  void hide(const reference::Model& values) const {
    averager.begin(stream);
    set(values);
    averager.finish(stream);
  }
  void broadcast(Rank root) const { averager.broadcast(root, stream); }
  void set(const reference::Model& values) const { model.set(values, stream); }
  [[nodiscard]] const reference::Model& get() const { return model.get(stream); }
};

/// The same by both engines.
template <class E, class Scenario>
void compare(Rank size, const AnyTopology& topology, const E& exchange, const Scenario& scenario,
             bool check_finite = false) {
  const Models initial = reference::random_models(size, every_dtype, 23);
  Models expected = initial;
  kith::Metrics metrics;
  kith::thread::run(size, [&](kith::thread::Communicator& communicator) {
    reference::Model& model = expected[static_cast<std::size_t>(communicator.rank())];
    kith::DecentralizedAverager averager{communicator, topology, model.views(), exchange, options(check_finite)};
    scenario(OnHost<decltype(averager)>{averager, model}, communicator.rank());
    if (communicator.rank() == 0) metrics = averager.metrics();
  });
  gpu_ranks::run(size, [&](Communicator& communicator) {
    const auto r = static_cast<std::size_t>(communicator.rank());
    const Stream stream;
    DeviceModel model{initial[r], stream};
    kith::DecentralizedAverager averager{communicator, topology, model.views(), exchange, options(check_finite)};
    scenario(OnDevice<decltype(averager)>{averager, model, stream}, communicator.rank());
    const std::string what = exchange_name(exchange) + " on " + topology.full_name() + " of " + std::to_string(size);
    expect(model.get(stream) == expected[r], what + " gives the bits of threads");
    const kith::Metrics mine = averager.metrics();
    // A device counts the rounds that are enqueued.
    expect(r != 0 || check_finite ||
               (mine.bytes_sent == metrics.bytes_sent && mine.messages_sent == metrics.messages_sent &&
                mine.bytes_received == metrics.bytes_received),
           what + " counts what threads count");
    expect(averager.staging_bytes() > 0, "there is staging memory");
  });
}

/// Rounds from different models, steps of an optimizer between them, and a broadcast in the middle.
template <class E>
void check(const E& exchange, const std::vector<std::string>& topologies, const std::vector<Rank>& sizes) {
  for (const std::string& topology : topologies)
    for (const Rank size : sizes) {
      const Models steps = reference::random_models(size, every_dtype, 29);
      compare(size, kith::parse_topology(topology), exchange, [&](const auto& rank, Rank r) {
        for (int t = 0; t < 4; ++t) rank.average();
        rank.broadcast(size - 1);
        rank.average();
        rank.set(steps[static_cast<std::size_t>(r)]);
        for (int t = 0; t < 4; ++t) rank.average();
      });
    }
}

const std::vector<std::string> static_and_not = {"ring", "one-peer-exponential"};
const std::vector<Rank> every_size = {1, 2, 3, 5};

}  // namespace

TEST_CASE("nccl encoded: Choco with codecs that decode everything") {
  check(kith::Choco{kith::Int8Block{64}}, static_and_not, every_size);
  check(kith::Choco{kith::SignMean{}}, {"ring"}, {3});
}
TEST_CASE("nccl encoded: hidden rounds work on the copy, also where small buffers travel unencoded") {
  const auto scenario = [](const auto& mine, Rank rank) {
    for (std::uint64_t t = 0; t < 3; ++t)
      mine.hide(reference::random_models(3, every_dtype, 40 + t)[static_cast<std::size_t>(rank)]);
    expect(mine.average(), "an open round after hidden ones");
  };
  compare(3, kith::OnePeerExponential{}, kith::Choco{kith::Int8Block{64}}, scenario);
  compare(3, kith::Ring{}, kith::Direct{kith::Int4Block{}}, scenario);
}

TEST_CASE("nccl encoded: Choco with codecs that keep a few values") {
  check(kith::Choco{kith::TopK{.fraction = 0.1}}, static_and_not, {2, 5});
  check(kith::Choco{kith::RandomK{.fraction = 0.1, .seed = 4}}, {"one-peer-exponential"}, {3});
}
TEST_CASE("nccl encoded: Direct") {
  check(kith::Direct{kith::Cast<kith::bfloat16>{}}, {"ring", "random-matching"}, {1, 2, 5});
  check(kith::Direct{kith::TopK{.fraction = 0.2}}, static_and_not, {3});
}
TEST_CASE("nccl encoded: Difference") { check(kith::Difference{kith::MinMaxUInt8{}}, {"ring"}, every_size); }
TEST_CASE("nccl encoded: MaskedMean") {
  check(kith::MaskedMean{kith::CyclicMask{.fraction = 0.2, .seed = 5}}, static_and_not, every_size);
}

TEST_CASE("nccl encoded: of a round with a value that is not finite nobody commits anything, replicas neither") {
  for (const std::string& topology : static_and_not)
    compare(
        5, kith::parse_topology(topology), kith::Choco{kith::Int8Block{64}},
        [&](const auto& rank, Rank r) {
          for (int t = 0; t < 3; ++t) rank.average();
          const reference::Model sound = rank.get();
          reference::Model broken = sound;
          // In an encoded buffer, then in one that is not.
          for (const std::size_t buffer : {std::size_t{3}, std::size_t{6}}) {
            broken = sound;
            broken.set(buffer, 11, std::numeric_limits<double>::infinity());
            if (r == 1) rank.set(broken);
            expect(!rank.average(), "all ranks hear of it");
            expect(rank.get() == (r == 1 ? broken : sound), "nobody commits");
            if (r == 1) rank.set(sound);
          }
          for (int t = 0; t < 4; ++t) rank.average();
        },
        true);
}

TEST_CASE("nccl encoded: without replicas those commit who hear nothing of a value that is not finite") {
  gpu_ranks::run(5, [](Communicator& communicator) {
    const Stream stream;
    Models models = reference::random_models(5, every_dtype, 3);
    const auto r = static_cast<std::size_t>(communicator.rank());
    models[1].set(3, 7, std::numeric_limits<double>::quiet_NaN());
    DeviceModel model{models[r], stream};
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, model.views(),
                                         kith::Direct{kith::Cast<kith::bfloat16>{}}, options()};
    bool reported = false;
    try {
      averager.average(stream);
      averager.synchronize();
    } catch (const kith::NonFiniteError& error) {
      reported = error.rank() == 1 && error.buffer() == 3 && error.index() == 7;
    }
    expect(reported == (r <= 2), "rank 1 and its neighbours name the place");
    expect((model.get(stream) == models[r]) == (r <= 2), "and they alone keep their parameters");
  });
}

TEST_CASE("nccl encoded: replicas are part of the state, stay when pointers move, and tell their distance") {
  gpu_ranks::run(3, [](Communicator& communicator) {
    const auto r = static_cast<std::size_t>(communicator.rank());
    const Stream stream;
    const Models models = reference::random_models(3, every_dtype, 5);
    DeviceModel one{models[r], stream};
    const kith::Choco exchange{kith::Int8Block{64}};
    const AnyTopology topology = kith::OnePeerExponential{};
    kith::DecentralizedAverager first{communicator, topology, one.views(), exchange, options()};
    for (int t = 0; t < 3; ++t) first.average(stream);
    first.synchronize();
    const double distance = first.metrics().replica_distance;
    expect(distance > 0 && std::isfinite(distance), "replicas are at a distance");
    const reference::Model then = one.get(stream);
    const std::vector<std::byte> blob = first.state();
    DeviceModel two{then, stream};
    kith::DecentralizedAverager second{communicator, topology, two.views(), exchange, options()};
    second.restore(blob);
    for (int t = 0; t < 3; ++t) first.average(stream);
    DeviceModel three{then, stream};
    second.rebind(three.views());
    for (int t = 0; t < 3; ++t) second.average(stream);
    expect(three.get(stream) == one.get(stream), "a restored averager goes on with the same bits, at a new place");
    expect(two.get(stream) == then, "and has left the old one");
    second.average_globally(stream);
    second.synchronize();
    expect(second.metrics().replica_distance == 0, "a global mean sets every replica to it");
    first.synchronize();
    expect(first.state().size() == blob.size(), "states are of one size");
  });
}

TEST_CASE("nccl encoded: rounds can be captured, where a codec does not draw anew in each") {
  gpu_ranks::run(3, [](Communicator& communicator) {
    const auto r = static_cast<std::size_t>(communicator.rank());
    const Stream stream;
    const Models models = reference::random_models(3, every_dtype, 5);
    DeviceModel recorded{models[r], stream};
    DeviceModel performed{models[r], stream};
    const kith::Choco exchange{kith::Int8Block{64}};
    kith::DecentralizedAverager first{communicator, AnyTopology{kith::Ring{}}, recorded.views(), exchange, options()};
    kith::DecentralizedAverager second{communicator, AnyTopology{kith::Ring{}}, performed.views(), exchange, options()};
    kith::DecentralizedAverager drawn{communicator, AnyTopology{kith::Ring{}}, performed.views(),
                                      kith::MaskedMean{kith::CyclicMask{.fraction = 0.2}}, options()};
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    kith::cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin a capture");
    first.average(stream);
    std::string text;
    try {
      drawn.average(stream);
    } catch (const kith::UsageError& error) {
      text = error.what();
    }
    kith::cuda::check(cudaStreamEndCapture(stream, &graph), "end a capture");
    kith::cuda::check(cudaGraphInstantiate(&executable, graph, 0), "instantiate a graph");
    kith::cuda::check(cudaGraphDestroy(graph), "destroy a graph");
    expect(text.find("each replay would draw") != std::string::npos, "a mask is refused: " + text);
    for (int t = 0; t < 3; ++t) kith::cuda::check(cudaGraphLaunch(executable, stream), "launch a graph");
    first.advance(3);
    for (int t = 0; t < 3; ++t) second.average(stream);
    expect(recorded.get(stream) == performed.get(stream), "replays give the bits of calls");
    first.synchronize();
    (void)cudaGraphExecDestroy(executable);
  });
}

TEST_CASE("nccl encoded: a round waits for nothing and allocates nothing, and no round connects anybody") {
  if (!gpu_ranks::emulated()) return gpu_ranks::skip("needs the emulator");
  gpu_ranks::run(20, [](Communicator& communicator) {  // more than all_gather connects
    const Stream stream;
    const Models models = reference::random_models(1, every_dtype, 3);
    DeviceModel model{models[0], stream};
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::OnePeerExponential{}}, model.views(),
                                         kith::Choco{kith::Int8Block{64}}, options()};
    kith::testing::detail::meet(communicator, kith::testing::detail::test_call("all are there", 1));
    const std::size_t before = kith::gpu_emulator::edges_connected();
    const std::size_t begin = kith::gpu_emulator::mark();
    for (int i = 0; i < 6; ++i) averager.average(stream);
    expect(kith::gpu_emulator::synchronizations(begin).empty(), "nothing waits and nothing is allocated");
    averager.synchronize();
    expect(kith::gpu_emulator::first_contacts_since(before) == 0, "all edges have met");
    kith::testing::detail::meet(communicator, kith::testing::detail::test_call("all are done", 2));
  });
}

TEST_CASE("nccl encoded: a rank that does not come is named, and the parameters hold what they held") {
  gpu_ranks::expect_deadlocks();
  gpu_ranks::run(3, [](Communicator& communicator) {
    const Stream stream;
    const Models models = reference::random_models(3, every_dtype, 3);
    const auto r = static_cast<std::size_t>(communicator.rank());
    DeviceModel model{models[r], stream};
    kith::AveragerOptions averaging = options();
    averaging.deadline = kith::Seconds{gpu_ranks::emulated() ? 0.3 : 4.0};
    kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, model.views(),
                                         kith::Choco{kith::Int8Block{64}}, averaging};
    averager.average(stream);
    averager.synchronize();
    const reference::Model then = model.get(stream);
    if (r == 2) return std::this_thread::sleep_for(averaging.deadline * 3);
    std::string text;
    try {
      averager.average(stream);
      averager.synchronize();
    } catch (const kith::BackendError& error) {
      text = error.what();
    }
    expect(text.find("gossip round 1") != std::string::npos, "the round is named: " + text);
    expect(text.find("rank 2 did not come") != std::string::npos, "and who is missing: " + text);
    expect(model.get(stream) == then, "nothing has been written");
  });
  gpu_ranks::forget_findings();
}

TEST_CASE("nccl encoded: any call of CUDA and NCCL in a round may fail: the parameters hold what they held") {
  if (!gpu_ranks::emulated()) return gpu_ranks::skip("needs the emulator");
  gpu_ranks::expect_deadlocks();
  for (const auto& [function, code] :
       std::vector<std::pair<std::string, int>>{{"cudaEventRecord", cudaErrorInvalidResourceHandle},
                                                {"cudaStreamWaitEvent", cudaErrorInvalidValue},
                                                {"cudaLaunchKernel", cudaErrorLaunchFailure},
                                                {"ncclGroupStart", ncclInternalError},
                                                {"ncclSend", ncclInvalidArgument},
                                                {"ncclRecv", ncclSystemError},
                                                {"ncclGroupEnd", ncclUnhandledCudaError}}) {
    std::barrier together{2};
    gpu_ranks::run(2, [&](Communicator& communicator) {
      const Stream stream;
      const auto r = static_cast<std::size_t>(communicator.rank());
      const Models models = reference::random_models(2, every_dtype, 3);
      DeviceModel model{models[r], stream};
      kith::AveragerOptions averaging = options();
      averaging.deadline = kith::Seconds{0.3};
      kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, model.views(),
                                           kith::Choco{kith::Int8Block{64}}, averaging};
      std::string text;
      together.arrive_and_wait();
      if (r == 0) kith::gpu_emulator::fail_call(function, 1, code);
      if (r == 1) together.arrive_and_wait();  // the call that fails has been rank 0's
      try {
        averager.average(stream);
        if (r == 1) averager.synchronize();
      } catch (const kith::Error& error) {
        text = error.what();
      }
      if (r == 0) together.arrive_and_wait();
      expect(r == 1 || !text.empty(), function + " fails at once on the rank that calls it");
      expect((model.get(stream) == models[r]) == !text.empty(), function + ": all or nothing: " + text);
    });
    gpu_ranks::forget_findings();
  }
}

TEST_CASE("nccl encoded: what kernels cannot do is refused on every rank") {
  gpu_ranks::run(2, [](Communicator& communicator) {
    const Stream stream;
    DeviceModel model{reference::Model{{{DType::f32, 3000}}}, stream};
    std::string text;
    try {
      kith::DecentralizedAverager averager{communicator, AnyTopology{kith::Ring{}}, model.views(),
                                           kith::Choco{kith::Int8Block{12}}};
    } catch (const kith::UsageError& error) {
      text = error.what();
    }
    expect(text.find("multiple of 8") != std::string::npos, "blocks of 12 are refused: " + text);
  });
}

}  // namespace nccl_encoded_test
