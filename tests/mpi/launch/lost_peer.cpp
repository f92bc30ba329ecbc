// SPDX-License-Identifier: Apache-2.0
// usage: lost_peer FOLDER stop|kill own|allocated|messages|hidden
// One rank is stopped or killed in the middle of a round. The others must say so in time, and hold what they held
// before the call, or what the host has made of it in a hidden round. What each rank finds goes into a file of its own
// in FOLDER: who starts this (lost_peer.py) reads them.
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <unistd.h>

#include <kith/mpi.hpp>

namespace {

using Clock = std::chrono::steady_clock;
constexpr kith::Rank victim = 1;
constexpr kith::Seconds deadline{0.5};
constexpr std::size_t count = 1'000'000;

class Test {
public:
  Test(kith::mpi::Communicator& communicator, std::string folder, const std::string& way)
      : communicator_(communicator),
        folder_(std::move(folder)),
        hidden_(way == "hidden"),
        own_(count),
        shared_(communicator.allocate<float>(count)) {
    model_ = way == "allocated" ? kith::view(shared_) : kith::view(own_);
    values_ = static_cast<float*>(model_.data);
    for (std::size_t i = 0; i < count; ++i)
      values_[i] = static_cast<float>(communicator.rank()) + 1e-6F * float(i % 1000);
  }

  // Rounds until one fails; returns what is wrong with how it fails.
  std::string run() {
    kith::DecentralizedAverager averager{
        communicator_, kith::OnePeerExponential{}, {model_}, kith::AveragerOptions{.deadline = deadline}};
    if (communicator_.rank() == victim) report("pid", std::to_string(getpid()));
    std::vector<float> before(count);
    for (int round = 0;; ++round) {
      for (std::size_t i = 0; i < count; ++i) values_[i] += 1e-3F;  // so that rounds make a difference
      before.assign(values_, values_ + count);
      const Clock::time_point start = Clock::now();
      try {
        if (hidden_) averager.begin();
        if (hidden_) values_[0] = before[0] = 7;
        hidden_ ? averager.finish() : averager.average();
      } catch (const kith::PeerError& error) {
        const kith::Seconds took = Clock::now() - start;
        report("took", std::to_string(took.count()) + " s: " + error.what());
        if (!unchanged(before)) return "the parameters have changed";
        if (communicator_.rank() == victim) return {};  // it has slept: what it says of the others does not matter
        if (error.peer() != victim) return std::string{"the wrong rank is named: "} + error.what();
        if (took > deadline + kith::Seconds{1}) return "too late";  // on time is 0.1; the machine may be busy
        return check_failed(averager, before);
      }
      if (round > 100000) return "nobody was missed";
    }
  }

  void report(const std::string& what, const std::string& text) const {
    const std::string name = folder_ + "/" + what + "." + std::to_string(communicator_.rank());
    std::ofstream{name + ".new"} << text;
    std::filesystem::rename(name + ".new", name);  // whoever waits for the file finds it complete
  }

private:
  bool unchanged(const std::vector<float>& before) const { return std::equal(before.begin(), before.end(), values_); }

  template <class Averager>
  std::string check_failed(Averager& averager, const std::vector<float>& before) {
    const Clock::time_point start = Clock::now();
    try {
      averager.average();
      return "a call after the failure succeeded";
    } catch (const kith::PeerError&) {
    }
    if (Clock::now() - start > deadline / 2) return "a call after the failure waited";
    return unchanged(before) ? "" : "a call after the failure has changed the parameters";
  }

  kith::mpi::Communicator& communicator_;
  std::string folder_;
  bool hidden_;
  std::vector<float> own_;
  kith::mpi::Memory<float> shared_;
  kith::BufferView model_;
  float* values_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  int provided = 0;
  MPI_Init_thread(&argc, &argv, std::string{argv[3]} == "hidden" ? MPI_THREAD_MULTIPLE : MPI_THREAD_SINGLE, &provided);
  const std::string folder = argv[1];
  const int signal = std::string{argv[2]} == "kill" ? SIGKILL : SIGSTOP;
  const std::string way = argv[3];
  auto* const communicator =
      new kith::mpi::Communicator{MPI_COMM_WORLD, {.shared_memory = way != "messages", .in_place_from_bytes = 0}};
  auto* const test = new Test{*communicator, folder, way};  // neither ends: MPI could not be ended either
  std::thread fate;
  if (communicator->rank() == victim)
    fate = std::thread{[signal] {
      std::this_thread::sleep_for(std::chrono::microseconds{200000 + std::random_device{}() % 20000});
      kill(getpid(), signal);
    }};
  std::string finding;
  try {
    finding = test->run();
  } catch (const std::exception& error) {
    finding = error.what();
  }
  test->report("done", finding.empty() ? "ok" : finding);
  while (!std::filesystem::exists(folder + "/end")) std::this_thread::sleep_for(std::chrono::milliseconds{10});
  _exit(0);
}
