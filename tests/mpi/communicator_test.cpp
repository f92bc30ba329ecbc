// SPDX-License-Identifier: Apache-2.0
#include <kith/mpi/communicator.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>

#include <kith/mpi.hpp>
#include <kith/testing/conformance.hpp>

#include <doctest/doctest.h>

namespace mpi_communicator_test {

using kith::PeerError;
using kith::Rank;
using kith::Seconds;
using kith::UsageError;
using kith::mpi::Communicator;

namespace {

int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

// After a failure no rank may run ahead into the next test: MPI itself is well, and can still hold them up.
template <class F>
void spoiled(const F& f) {
  for (const bool shared : {true, false}) {
    std::optional<Communicator> communicator{std::in_place, MPI_COMM_WORLD,
                                             kith::mpi::CommunicatorOptions{.shared_memory = shared}};
    CHECK_NOTHROW(f(*communicator));
    MPI_Barrier(MPI_COMM_WORLD);
    communicator.reset();
  }
}

}  // namespace

TEST_CASE("mpi communicator: conforms, with shared memory and without") {
  for (const bool shared : {true, false}) {
    Communicator communicator{MPI_COMM_WORLD, {.shared_memory = shared}};
    CHECK_NOTHROW(kith::testing::check_communicator(communicator));
  }
}

TEST_CASE("mpi communicator: a rank that does not come is named by the deadline, first or last") {
  if (world_size() < 2) return;
  const Rank absent = world_size() % 2 == 0 ? 0 : world_size() - 1;  // the test waits for it four times as long
  spoiled([&](Communicator& communicator) { kith::testing::check_deadline(communicator, absent, Seconds{0.3}); });
}

TEST_CASE("mpi communicator: a rank that ends when the others have given up does not wait for them") {
  if (world_size() < 2) return;
  std::optional<Communicator> communicator{std::in_place, MPI_COMM_WORLD,
                                           kith::mpi::CommunicatorOptions{.deadline = Seconds{0.5}}};
  { const auto memory = communicator->allocate<float>(1000); }  // which would be given back to MPI, by all together
  if (communicator->rank() == world_size() - 1) std::this_thread::sleep_for(Seconds{1.2});
  const auto start = std::chrono::steady_clock::now();
  communicator.reset();
  CHECK(std::chrono::steady_clock::now() - start < Seconds{10});
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST_CASE("mpi communicator: ranks that make different calls all hear of it") {
  using kith::testing::CallPart;
  if (world_size() < 2) return;
  for (const CallPart part : {CallPart::what, CallPart::channel, CallPart::sequence, CallPart::agreement})
    spoiled([&](Communicator& communicator) { kith::testing::check_protocol(communicator, world_size() / 2, part); });
}

TEST_CASE("mpi communicator: a message of another length than expected is refused") {
  if (world_size() < 2) return;
  for (const std::size_t expected : {std::size_t{10}, std::size_t{5000}, std::size_t{1000000}}) {
    spoiled([&](Communicator& communicator) {
      std::vector<std::byte> memory(expected + 1);
      std::vector<kith::Outgoing> outgoing;
      std::vector<kith::Incoming> incoming;
      if (communicator.rank() == 1) outgoing.push_back({0, memory.data(), expected + 1});
      if (communicator.rank() == 0) incoming.push_back({1, memory.data(), expected});
      kith::Call call;
      call.what = "lengths";
      call.deadline = Seconds{5};
      if (communicator.rank() == 0) {
        try {
          communicator.exchange(call, outgoing, incoming);
          FAIL("accepted");
        } catch (const PeerError& error) {
          CHECK(error.reason() == PeerError::Reason::protocol);
          CHECK(error.peer() == 1);
          const std::string text = error.what();
          CHECK(text.find("sent " + std::to_string(expected + 1) + " bytes") != std::string::npos);
        }
      } else {
        try {
          communicator.exchange(call, outgoing, incoming);
        } catch (const PeerError& error) {  // a short message has gone before anybody could complain
          CHECK(error.reason() == PeerError::Reason::protocol);
        }
      }
    });
  }
}

TEST_CASE("mpi communicator: lives beside the user's own messages") {
  Communicator communicator{MPI_COMM_WORLD};
  int mine = 0;
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Irecv(&mine, 1, MPI_INT, MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &request);
  CHECK_NOTHROW(kith::testing::check_communicator(communicator));
  const int sent = 42;
  MPI_Send(&sent, 1, MPI_INT, communicator.rank(), 7, MPI_COMM_WORLD);
  MPI_Wait(&request, MPI_STATUS_IGNORE);
  CHECK(mine == 42);
}

TEST_CASE("mpi communicator: of a part of the ranks, and several at a time") {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm half = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &half);
  {
    Communicator part{half};
    MPI_Comm_free(&half);  // it is the caller's, and no longer needed
    Communicator all{MPI_COMM_WORLD};
    CHECK(part.size() == (world_size() + (rank % 2 == 0 ? 1 : 0)) / 2);
    CHECK_NOTHROW(kith::testing::check_communicator(part));
    CHECK_NOTHROW(kith::testing::check_communicator(all));
  }
}

TEST_CASE("mpi communicator: refuses what it cannot work with") {
  CHECK_THROWS_AS(Communicator{MPI_COMM_NULL}, UsageError);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (world_size() < 2) return;
  MPI_Comm half = MPI_COMM_NULL;
  MPI_Comm between = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank == 0 ? 0 : 1, rank, &half);
  MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, rank == 0 ? 1 : 0, 1, &between);
  CHECK_THROWS_WITH_AS(Communicator{between}, doctest::Contains("MPI_Intercomm_merge"), UsageError);
  MPI_Comm_free(&between);
  MPI_Comm_free(&half);
}

// Reserved, but not readable by the processor: what the memory of a GPU is to it.
TEST_CASE("mpi communicator: refuses device buffers on every rank, and names the engine for them") {
  constexpr std::size_t count = 1024;
  void* const device = mmap(nullptr, count * sizeof(float), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(device != MAP_FAILED);
  Communicator communicator{MPI_COMM_WORLD};
  std::vector<float> host(count);
  const bool odd_one_out = communicator.rank() == communicator.size() - 1;
  const kith::BufferView buffer = odd_one_out ? kith::view(static_cast<float*>(device), count) : kith::view(host);
  CHECK_THROWS_WITH_AS((kith::DecentralizedAverager{communicator, kith::Ring{}, {buffer}}),
                       doctest::Contains("kith::nccl::Communicator"), UsageError);
  kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(host)}};
  CHECK_THROWS_AS(averager.rebind({kith::view(static_cast<float*>(device), count)}), UsageError);
  averager.average();
  munmap(device, count * sizeof(float));
}

TEST_CASE("mpi communicator: allocates memory of zeros that others can see, and uses it again") {
  for (const bool shared : {true, false}) {
    Communicator communicator{MPI_COMM_WORLD, {.shared_memory = shared}};
    const double* first = nullptr;
    for (int repeat = 0; repeat < 3; ++repeat) {
      auto memory = communicator.allocate<double>(1000);
      CHECK(memory.size() == 1000);
      for (const double value : memory) CHECK(value == 0.0);
      for (double& value : memory) value = 1 + communicator.rank();
      if (repeat == 0) first = memory.data();
      if (shared && communicator.ranks_here() > 1) CHECK(memory.data() == first);
    }
    CHECK(communicator.allocate<float>(0).size() == 0);
  }
}

TEST_CASE("mpi communicator: ranks that allocate different lengths are told so, and go on") {
  if (world_size() < 2) return;
  Communicator communicator{MPI_COMM_WORLD};
  int most_here = communicator.ranks_here();
  MPI_Allreduce(MPI_IN_PLACE, &most_here, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  if (most_here < 2) return;  // nothing is shared: everybody gets what he asks for
  const std::size_t count = communicator.rank() == 1 ? 20 : 10;
  CHECK_THROWS_AS((void)communicator.allocate<float>(count), UsageError);
  CHECK(communicator.allocate<float>(10).size() == 10);
}

TEST_CASE("mpi communicator: a rank that is unwound by an exception is missed at once, not at the deadline") {
  if (world_size() < 2) return;
  const auto start = std::chrono::steady_clock::now();
  try {
    Communicator communicator{MPI_COMM_WORLD};
    std::vector<float> model(100);
    kith::DecentralizedAverager averager{communicator, kith::Complete{}, {kith::view(model)}};
    averager.average();
    if (communicator.rank() == 1) throw std::domain_error("of this rank");
    while (true) averager.average();
  } catch (const PeerError& error) {
    CHECK(error.peer() == 1);
    CHECK(error.reason() == PeerError::Reason::lost);
  } catch (const std::domain_error&) {
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds{30});
  MPI_Barrier(MPI_COMM_WORLD);
}

}  // namespace mpi_communicator_test
