// SPDX-License-Identifier: Apache-2.0
// What goes wrong: peers that do not come, errors of NCCL and CUDA. Nothing hangs, and no model is half averaged.
#include <kith/nccl/watch.hpp>

#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include <signal.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include "../gpu_emulator/emulator.hpp"
#include "gpu_ranks.hpp"

namespace nccl_failure_test {

using gpu_ranks::DeviceModel;
using gpu_ranks::expect;
using gpu_ranks::Stream;
using kith::DType;
using kith::Rank;
using kith::Seconds;
using kith::nccl::Communicator;
namespace emulator = kith::gpu_emulator;

namespace {

const std::vector<reference::Shape> shapes = {{DType::f32, 1000, 1}, {DType::bf16, 5000}};

// A rank that is waited for for so long. Real ones, several to a GPU, are slow.
Seconds deadline() { return Seconds{gpu_ranks::emulated() ? 0.5 : 4.0}; }

// What f throws: the class's name and the text; empty if nothing.
std::string thrown(const std::function<void()>& f) {
  try {
    f();
  } catch (const kith::PeerError& error) {
    return std::string{"PeerError: "} + error.what();
  } catch (const kith::BackendError& error) {
    return std::string{"BackendError: "} + error.what();
  } catch (const kith::Error& error) {
    return std::string{"Error: "} + error.what();
  }
  return {};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Round 0 of the ring is done by all, round 1 not by `absent`, or long after the others have given up.
void lose(Communicator& communicator, Rank absent, const std::function<void()>& leave, bool comes_back = false) {
  const Stream stream;
  auto models = reference::random_models(communicator.size(), shapes, 1);
  const auto r = static_cast<std::size_t>(communicator.rank());
  DeviceModel model{models[r], stream};
  kith::AveragerOptions options;
  options.deadline = deadline();
  kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views(), options};
  averager.average(stream);
  averager.synchronize();
  reference::round(models, kith::Ring{}, 0, 1);
  if (communicator.rank() == absent) {
    leave();
    if (!comes_back) return;
    const std::string text = thrown([&] {
      averager.average(stream);
      averager.synchronize();
    });
    expect(contains(text, "BackendError"), "nobody is there any more: " + text);
    expect(model.get(stream) == models[r], "and its own parameters hold what they held");
    return;
  }
  const auto begin = std::chrono::steady_clock::now();
  const std::string at_once = thrown([&] { averager.average(stream); });
  expect(at_once.empty(), "the call itself does not wait: " + at_once);
  const std::string text = thrown([&] { averager.synchronize(); });
  const Seconds took = std::chrono::steady_clock::now() - begin;
  expect(contains(text, "BackendError"), "the failure is a BackendError: " + text);
  expect(contains(text, "gossip round 1") && contains(text, kith::detail::to_text(deadline())),
         "it names round and deadline: " + text);
  expect(contains(text, "rank " + std::to_string(absent) + " did not come"), "and who is missing: " + text);
  expect(took > deadline() * 0.9 && took < deadline() + Seconds{4}, "it comes by the deadline");
  expect(communicator.failed(), "the communicator says that it has failed");
  const std::string later = thrown([&] { averager.average(stream); });
  expect(contains(later, "BackendError"), "later calls throw: " + later);
  expect(model.get(stream) == models[r], "the parameters hold what they held before the round");
}

}  // namespace

TEST_CASE("nccl failures: a rank that leaves is named, nothing is averaged by half") {
  gpu_ranks::expect_deadlocks();
  gpu_ranks::run(3, [](Communicator& communicator) {  // everybody hears everybody
    lose(communicator, 2, [] { std::this_thread::sleep_for(deadline() * 4); });
  });
  gpu_ranks::forget_findings();  // what was sent to the rank that left
}

TEST_CASE("nccl failures: so is one that dies") {
  gpu_ranks::expect_deadlocks();
  gpu_ranks::run(3, [](Communicator& communicator) {
    lose(communicator, 1, [] {
      if (!gpu_ranks::emulated()) std::_Exit(0);
      emulator::kill_rank(1);
    });
  });
  gpu_ranks::forget_findings();
}

TEST_CASE("nccl failures: so is one that is stopped, and when it goes on it harms nobody") {
  gpu_ranks::expect_deadlocks();
  gpu_ranks::run(3, [](Communicator& communicator) {
    const auto stop = [] {
      if (gpu_ranks::emulated()) return std::this_thread::sleep_for(deadline() * 3);
      if (const pid_t stopped = getpid(); fork() == 0) {
        std::this_thread::sleep_for(deadline() * 3);
        kill(stopped, SIGCONT);
        std::_Exit(0);
      }
      raise(SIGSTOP);
    };
    lose(communicator, 0, stop, true);
  });
  gpu_ranks::forget_findings();
}

TEST_CASE("nccl failures: an asynchronous error is reported by the next call") {
  if (!gpu_ranks::emulated()) return gpu_ranks::skip("needs the emulator");
  gpu_ranks::expect_deadlocks();
  gpu_ranks::run(2, [](Communicator& communicator) {
    const Stream stream;
    auto models = reference::random_models(2, shapes, 1);
    const auto r = static_cast<std::size_t>(communicator.rank());
    DeviceModel model{models[r], stream};
    kith::AveragerOptions averaging;
    averaging.deadline = Seconds{1};
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views(), averaging};
    if (communicator.rank() == 1) return std::this_thread::sleep_for(std::chrono::seconds{2});
    averager.average(stream);
    emulator::async_error(0, ncclRemoteError);
    const std::string text = thrown([&] { averager.synchronize(); });
    expect(contains(text, "BackendError") && contains(text, "remote process"), "NCCL's error is told: " + text);
    expect(model.get(stream) == models[r], "the parameters hold what they held before the round");
  });
  gpu_ranks::forget_findings();
}

TEST_CASE("nccl failures: every call of CUDA and NCCL in a round may fail") {
  if (!gpu_ranks::emulated()) return gpu_ranks::skip("needs the emulator");
  gpu_ranks::expect_deadlocks();
  struct Fault {
    std::string function;
    int code;
  };
  for (const Fault& fault : std::vector<Fault>{{"cudaEventRecord", cudaErrorInvalidResourceHandle},
                                               {"cudaStreamWaitEvent", cudaErrorInvalidValue},
                                               {"cudaLaunchKernel", cudaErrorLaunchFailure},
                                               {"ncclGroupStart", ncclInternalError},
                                               {"ncclSend", ncclInvalidArgument},
                                               {"ncclRecv", ncclSystemError},
                                               {"ncclGroupEnd", ncclUnhandledCudaError}})
    for (const int nth : {1, 2}) {
      if (nth == 2 && fault.function.find("Group") != std::string::npos) continue;
      std::barrier together{2};
      gpu_ranks::run(2, [&](Communicator& communicator) {
        const Stream stream;
        auto models = reference::random_models(2, shapes, 1);
        const auto r = static_cast<std::size_t>(communicator.rank());
        DeviceModel model{models[r], stream};
        kith::AveragerOptions averaging;
        averaging.deadline = Seconds{0.3};
        kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views(), averaging};
        std::string text;
        together.arrive_and_wait();
        if (r == 0) {
          emulator::fail_call(fault.function, nth, fault.code);
          text = thrown([&] { averager.average(stream); });
          together.arrive_and_wait();
          expect(contains(text, "BackendError"), fault.function + " fails at once: " + text);
        } else {
          together.arrive_and_wait();
          text = thrown([&] {
            averager.average(stream);
            averager.synchronize();
          });
        }
        const bool untouched = model.get(stream) == models[r];
        reference::round(models, kith::Ring{}, 0, 1);
        if (r == 0 || !text.empty())
          expect(untouched, fault.function + ": the parameters hold what they held: " + text);
        else
          expect(model.get(stream) == models[r], fault.function + ": a rank that saw no error has averaged");
      });
      gpu_ranks::forget_findings();
    }
}

TEST_CASE("nccl failures: ranks that are in different rounds all learn of it, and commit nothing") {
  gpu_ranks::run(2, [](Communicator& communicator) {
    const Stream stream;
    auto models = reference::random_models(2, shapes, 1);
    const auto r = static_cast<std::size_t>(communicator.rank());
    DeviceModel model{models[r], stream};
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views()};
    if (communicator.rank() == 1) averager.set_mixing(0.5);
    averager.average(stream);
    const std::string text = thrown([&] { averager.synchronize(); });
    expect(contains(text, "PeerError") && contains(text, "made a different call"), "both are told: " + text);
    expect(contains(text, "rank " + std::to_string(1 - r) + " made"), "and by whom: " + text);
    expect(model.get(stream) == models[r], "the parameters hold what they held");
    expect(!thrown([&] { averager.average(stream); }).empty(), "later calls throw");
  });
  gpu_ranks::forget_findings();
}

TEST_CASE("nccl failures: another averager of the communicator learns of it too, a report of values does not hide it") {
  gpu_ranks::run(2, [](Communicator& communicator) {
    const Stream stream;
    auto models = reference::random_models(2, shapes, 1);
    const auto r = static_cast<std::size_t>(communicator.rank());
    models[0].set(0, 5, std::numeric_limits<double>::infinity());
    DeviceModel model{models[r], stream};
    DeviceModel other{models[r], stream};
    kith::AveragerOptions options;
    options.check_finite = true;
    kith::DecentralizedAverager first{communicator, kith::Ring{}, model.views(), options};
    kith::DecentralizedAverager second{communicator, kith::Ring{}, other.views()};
    std::string text = thrown([&] {
      first.average(stream);
      stream.synchronize();
    });
    if (communicator.rank() == 1) first.set_mixing(0.5);
    text += thrown([&] {
      first.average(stream);
      stream.synchronize();
    });
    text = thrown([&] {
      second.average(stream);
      second.synchronize();
    });
    expect(contains(text, "PeerError") && contains(text, "gossip round 1 of averager 0"), "it is told: " + text);
    expect(contains(thrown([&] { first.synchronize(); }), "PeerError"), "to all averagers");
    expect(other.get(stream) == models[r], "nothing is averaged after that");
  });
  gpu_ranks::forget_findings();
}

TEST_CASE("nccl failures: a deadline does not run while the device is busy with the caller's work") {
  if (!gpu_ranks::emulated()) return gpu_ranks::skip("needs the emulator");
  std::barrier together{2};
  gpu_ranks::run(2, [&](Communicator& communicator) {
    const Stream stream;
    auto models = reference::random_models(2, shapes, 1);
    const auto r = static_cast<std::size_t>(communicator.rank());
    DeviceModel model{models[r], stream};
    kith::AveragerOptions averaging;
    averaging.deadline = Seconds{0.2};
    kith::DecentralizedAverager averager{communicator, kith::Ring{}, model.views(), averaging};
    together.arrive_and_wait();
    averager.average(stream);
    // The emulator's streams are lazy: nothing has begun while nobody asks, as on a GPU that is busy for so long.
    std::this_thread::sleep_for(std::chrono::milliseconds{600});
    expect(!communicator.failed(), "no round has begun, none is late");
    together.arrive_and_wait();
    averager.synchronize();
  });
}

TEST_CASE("nccl failures: first contacts that do not come end at the deadline too") {
  if (!gpu_ranks::emulated()) return gpu_ranks::skip("needs the emulator");
  gpu_ranks::expect_deadlocks();
  auto options = emulator::options();
  options.first_contact_blocks = true;
  emulator::set_options(options);
  gpu_ranks::run(2, [](Communicator& communicator) {
    if (communicator.rank() == 1) return std::this_thread::sleep_for(std::chrono::seconds{2});
    const std::string text = thrown([&] {
      kith::testing::detail::meet(communicator, kith::testing::detail::test_call("meeting", 1, Seconds{0.3}));
    });
    expect(contains(text, "meeting") && contains(text, "0.3 s"), "the call and its deadline are named: " + text);
  });
  gpu_ranks::forget_findings();
}

}  // namespace nccl_failure_test
