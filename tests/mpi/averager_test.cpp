// SPDX-License-Identifier: Apache-2.0
// The averager over MPI, against the same rounds one element after another and against the thread engine, to the bit.
#include <kith/mpi/stream.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <sys/statvfs.h>

#include <kith/mpi.hpp>

#include <doctest/doctest.h>

#include "../reference.hpp"

namespace mpi_averager_test {

using kith::AnyTopology;
using kith::DType;
using kith::Rank;
using kith::UsageError;
using kith::mpi::Communicator;

namespace {

// How the ranks get at each other's models.
struct Way {
  bool shared_memory;
  bool allocated;
};
constexpr Way every_way[] = {{true, false}, {true, true}, {false, false}, {false, true}};

// A model in ordinary memory or in memory of the communicator.
class Placed {
public:
  Placed(Communicator& communicator, bool allocated, const reference::Model& from) : model_(from) {
    if (!allocated) return;
    for (std::size_t b = 0; b < from.buffers(); ++b) {
      const auto& shape = from.shape(b);
      const std::size_t bytes = (shape.count + shape.shift) * size_of(shape.dtype);
      memory_.push_back(communicator.allocate<double>(bytes / sizeof(double) + 1));
      if (shape.count > 0) std::memcpy(place(b), model_.views()[b].data, shape.count * size_of(shape.dtype));
    }
  }
  std::vector<kith::BufferView> views() {
    std::vector<kith::BufferView> views = model_.views();
    for (std::size_t b = 0; b < memory_.size(); ++b) views[b].data = place(b);
    return views;
  }
  const reference::Model& get() {
    const std::vector<kith::BufferView> to = model_.views();
    for (std::size_t b = 0; b < memory_.size(); ++b)
      if (to[b].count > 0) std::memcpy(to[b].data, place(b), to[b].bytes());
    return model_;
  }

private:
  std::byte* place(std::size_t b) {
    return reinterpret_cast<std::byte*>(memory_[b].data()) + model_.shape(b).shift * size_of(model_.shape(b).dtype);
  }
  reference::Model model_;
  std::vector<kith::mpi::Memory<double>> memory_;
};

struct Case {
  AnyTopology topology;
  std::vector<reference::Shape> shapes;
  double mixing = 1;
  kith::Round rounds = 3;
  std::size_t bucket_bytes = 0;
};

void check(Communicator& communicator, Way way, const Case& c, std::uint64_t seed) {
  const std::string name = c.topology.full_name();
  CAPTURE(name);
  CAPTURE(way.shared_memory);
  CAPTURE(way.allocated);
  CAPTURE(c.bucket_bytes);
  const auto r = static_cast<std::size_t>(communicator.rank());
  auto expected = reference::random_models(communicator.size(), c.shapes, seed);
  Placed model{communicator, way.allocated, expected[r]};
  for (kith::Round t = 0; t < c.rounds; ++t) reference::round(expected, c.topology, t, c.mixing);
  kith::AveragerOptions options;
  options.mixing = c.mixing;
  options.bucket_bytes = c.bucket_bytes;
  kith::DecentralizedAverager averager{communicator, c.topology, model.views(), options};
  for (kith::Round t = 0; t < c.rounds; ++t) averager.average();
  CHECK(model.get() == expected[r]);
}

// Bytes in /dev/shm; unlimited where there is none.
double available_shared_memory() {
  struct statvfs space {};
  if (statvfs("/dev/shm", &space) != 0) return std::numeric_limits<double>::infinity();
  return static_cast<double>(space.f_bavail) * static_cast<double>(space.f_frsize);
}

const std::vector<reference::Shape>& every_dtype() {
  static const std::vector<reference::Shape> shapes = {
      {DType::f32, 1000, 1}, {DType::f64, 64}, {DType::f16, 3, 1}, {DType::bf16, 1000, 3}, {DType::f32, 0},
      {DType::f16, 1000},    {DType::f32, 1},  {DType::bf16, 1},   {DType::f64, 0},        {DType::f16, 64, 7}};
  return shapes;
}

}  // namespace

TEST_CASE("mpi averager: the arithmetic is pinned, for every topology and every way to the others") {
  for (const Way way : every_way) {
    Communicator communicator{MPI_COMM_WORLD, {.shared_memory = way.shared_memory, .in_place_from_bytes = 0}};
    for (const std::string& name :
         way.allocated ? std::vector<std::string>{"ring", "complete"} : kith::topology_names()) {
      const AnyTopology topology = kith::parse_topology(name);
      try {
        kith::require_size(topology, communicator.size());
      } catch (const UsageError&) {
        continue;
      }
      check(communicator, way, {topology, every_dtype()}, 17);
    }
    check(communicator, way, {kith::Ring{}, every_dtype(), 0.3}, 18);
  }
}

TEST_CASE("mpi averager: models of many pieces, whatever they are cut into") {
  const std::vector<reference::Shape> shapes = {
      {DType::f32, 9003, 1}, {DType::bf16, 6001}, {DType::f64, 2011, 3}, {DType::f16, 7021, 1}};
  for (const Way way : every_way) {
    Communicator communicator{MPI_COMM_WORLD, {.shared_memory = way.shared_memory, .in_place_from_bytes = 0}};
    for (const std::size_t bucket : {std::size_t{1}, std::size_t{10000}, std::size_t{0}}) {
      check(communicator, way, {kith::OnePeerExponential{}, shapes, 1, 3, bucket}, bucket);
      check(communicator, way, {kith::Ring{}, shapes, 1, 2, bucket}, bucket);
    }
    check(communicator, way, {kith::RandomMatching{.seed = 5}, {{DType::f32, 40001}}, 1, 3, 8192}, 9);
  }
}

TEST_CASE("mpi averager: a single buffer, an empty one, and none at all") {
  for (const Way way : every_way) {
    Communicator communicator{MPI_COMM_WORLD, {.shared_memory = way.shared_memory, .in_place_from_bytes = 0}};
    for (const DType dtype : {DType::f32, DType::bf16})
      for (const std::size_t count : {0U, 1U, 1000U, 4064U, 4065U})  // 16256 bytes go with the header
        check(communicator, way, {kith::OnePeerExponential{}, {{dtype, count, 1}}}, count);
    check(communicator, way, {kith::Ring{}, {}}, 1);
    check(communicator, way, {kith::Ring{}, {{DType::f32, 3000}}, 1, 2, 4096},
          2);  // pieces of what goes in one message
  }
}

TEST_CASE("mpi averager: random shapes, topologies and cuts") {
  std::uint64_t seed = std::random_device{}();
  MPI_Bcast(&seed, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
  CAPTURE(seed);
  std::mt19937_64 random{seed};
  constexpr DType dtypes[] = {DType::f32, DType::f64, DType::f16, DType::bf16};
  const std::vector<std::string> names = kith::topology_names();
  for (const Way way : every_way) {
    Communicator communicator{MPI_COMM_WORLD, {.shared_memory = way.shared_memory, .in_place_from_bytes = 0}};
    for (int repeat = 0; repeat < 6;) {
      Case c{kith::parse_topology(names[random() % names.size()]), {}};
      try {
        kith::require_size(c.topology, communicator.size());
      } catch (const UsageError&) {
        continue;
      }
      for (std::size_t b = random() % 5; b > 0; --b)
        c.shapes.push_back({dtypes[random() % 4], random() % 5000, random() % 9});
      c.mixing = random() % 2 == 0 ? 1 : static_cast<double>(random() % 1000) / 500;
      c.rounds = 1 + random() % 4;
      c.bucket_bytes = random() % 3 * 5000;
      check(communicator, way, c, random());
      ++repeat;
    }
  }
}

// Everything but the plain round goes the way of exchange(): rounds, means and distances as the thread engine has them.
TEST_CASE("mpi averager: a schedule with everything in it gives the bits of the thread engine") {
  int size = 0;
  int rank = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const auto train = [&](auto& communicator) {
    const auto initial = reference::random_models(size, {{DType::f32, 50001, 1}, {DType::bf16, 777}}, 4);
    std::pair<reference::Model, std::vector<double>> end{initial[static_cast<std::size_t>(communicator.rank())], {}};
    auto& [model, distances] = end;
    reference::Model merged = model;
    kith::AveragerOptions options;
    options.every = 2;
    options.warmup_rounds = 1;
    options.global_every = 4;
    options.check_finite = true;
    kith::DecentralizedAverager averager{communicator, kith::OnePeerExponential{}, model.views(), options};
    CHECK(averager.buffers_agree() == (size == 1));
    for (int step = 0; step < 12; ++step) {
      averager.average();
      model.set(0, static_cast<std::size_t>(step), step + communicator.rank());
      distances.push_back(averager.consensus_distance());
    }
    averager.mean_into(merged.views());
    distances.push_back(merged.get(0, 5));
    averager.broadcast(size - 1);
    CHECK(averager.buffers_agree());
    CHECK(averager.agree_on_steps(static_cast<std::uint64_t>(10 + communicator.rank())) ==
          static_cast<std::uint64_t>(9 + size));
    averager.average_globally();
    return end;
  };
  std::vector<std::pair<reference::Model, std::vector<double>>> expected(
      static_cast<std::size_t>(size), {reference::Model{std::vector<reference::Shape>{}}, {}});
  kith::thread::run(size, [&](auto& communicator) {
    auto end = train(communicator);
    if (communicator.rank() == rank) expected[0] = std::move(end);
  });
  for (const bool shared : {true, false}) {
    Communicator communicator{MPI_COMM_WORLD, {.shared_memory = shared}};
    const auto end = train(communicator);
    CHECK(end.first == expected[0].first);
    CHECK(end.second == expected[0].second);
  }
}

TEST_CASE("mpi averager: buffers that move, within their kind of memory") {
  for (const bool allocated : {false, true}) {
    Communicator communicator{MPI_COMM_WORLD, {.in_place_from_bytes = 0}};
    const std::vector<reference::Shape> shapes = {{DType::f32, 50001}, {DType::f64, 1003}};
    auto expected = reference::random_models(communicator.size(), shapes, 3);
    const auto r = static_cast<std::size_t>(communicator.rank());
    Placed first{communicator, allocated, expected[r]};
    kith::DecentralizedAverager averager{communicator, kith::OnePeerExponential{}, first.views(),
                                         kith::AveragerOptions{.bucket_bytes = 16384}};
    averager.average();
    Placed second{communicator, allocated, first.get()};
    averager.rebind(second.views());
    averager.average();
    int most_here = communicator.ranks_here();
    MPI_Allreduce(MPI_IN_PLACE, &most_here, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    averager.average();
    for (kith::Round t = 0; t < 3; ++t) reference::round(expected, kith::OnePeerExponential{}, t);
    CHECK(second.get() == expected[r]);
    Placed outside{communicator, false, second.get()};
    const bool in_place = allocated && most_here > 1 && available_shared_memory() > 1e8;
    if (in_place) CHECK_THROWS_AS(averager.rebind(outside.views()), UsageError);
  }
}

TEST_CASE("mpi averager: several on one communicator, together and one after the other") {
  Communicator communicator{MPI_COMM_WORLD};
  const auto r = static_cast<std::size_t>(communicator.rank());
  for (int repeat = 0; repeat < 3; ++repeat) {
    auto first = reference::random_models(communicator.size(), {{DType::f32, 3001}}, 1);
    auto second = reference::random_models(communicator.size(), {{DType::f32, 20001}}, 2);
    reference::Model a = first[r];
    reference::Model b = second[r];
    kith::DecentralizedAverager weights{communicator, kith::Ring{}, a.views()};
    kith::DecentralizedAverager moments{communicator, kith::OnePeerExponential{}, b.views()};
    for (kith::Round t = 0; t < 4; ++t) {
      weights.average();
      reference::round(first, kith::Ring{}, t);
      if (t % 2 == 0) continue;
      moments.average();
      reference::round(second, kith::OnePeerExponential{}, t / 2);
    }
    CHECK(a == first[r]);
    CHECK(b == second[r]);
  }
}

TEST_CASE("mpi averager: what differs between ranks is refused on every rank, and the communicator goes on") {
  Communicator communicator{MPI_COMM_WORLD};
  if (communicator.size() < 2) return;
  const bool odd = communicator.rank() == 1;
  std::vector<float> model(100);
  std::vector<double> wide(100);
  CHECK_THROWS_AS((kith::DecentralizedAverager{communicator, kith::Ring{}, {kith::view(model.data(), odd ? 99 : 100)}}),
                  UsageError);
  CHECK_THROWS_AS(
      (kith::DecentralizedAverager{communicator, kith::Ring{}, {odd ? kith::view(wide) : kith::view(model)}}),
      UsageError);
  CHECK_THROWS_AS(
      (kith::DecentralizedAverager{
          communicator, odd ? AnyTopology{kith::Complete{}} : AnyTopology{kith::Ring{}}, {kith::view(model)}}),
      UsageError);
  CHECK_THROWS_AS((kith::DecentralizedAverager{
                      communicator, kith::Ring{}, {kith::view(model)}, kith::AveragerOptions{.every = odd ? 2U : 1U}}),
                  UsageError);
  kith::DecentralizedAverager averager{communicator, kith::Ring{}, {kith::view(model)}};
  CHECK_NOTHROW(averager.average());
}

TEST_CASE("mpi averager: a NaN stops the round where it would have gone, and only there") {
  for (const bool shared : {true, false}) {
    Communicator communicator{MPI_COMM_WORLD, {.shared_memory = shared}};
    std::vector<float> model(2000, 1.0F);
    if (communicator.rank() == 0) model[1234] = std::numeric_limits<float>::quiet_NaN();
    kith::DecentralizedAverager averager{
        communicator, kith::Ring{}, {kith::view(model)}, kith::AveragerOptions{.check_finite = true}};
    const Rank size = communicator.size();
    const bool hears = communicator.rank() <= 1 || communicator.rank() == size - 1;
    if (hears)
      CHECK_THROWS_AS(averager.average(), kith::NonFiniteError);
    else
      CHECK_NOTHROW(averager.average());
    model[1234] = 1.0F;
    CHECK_NOTHROW(averager.average());
    CHECK(model[0] == 1.0F);
  }
}

// Runs with a small /dev/shm (launch/small_shm.sh): a model for which there is no room in it. Otherwise nothing is
// tested.
TEST_CASE("mpi averager: ranks that have too little shared memory agree to send messages") {
  double available = available_shared_memory();
  MPI_Bcast(&available, 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
  constexpr double small = 1 << 26;
  if (available > small) return;
  Communicator communicator{MPI_COMM_WORLD};
  const auto count = static_cast<std::size_t>(available / sizeof(float) / communicator.size()) + 1000;
  auto memory = communicator.allocate<float>(count);
  const reference::Shape element{DType::f32, 1};
  auto expected = reference::random_models(communicator.size(), {element}, 8);
  const auto r = static_cast<std::size_t>(communicator.rank());
  for (float& value : memory) value = static_cast<float>(expected[r].get(0, 0));
  kith::DecentralizedAverager averager{communicator, kith::OnePeerExponential{}, {kith::view(memory)}};
  for (kith::Round t = 0; t < 3; ++t) {
    averager.average();
    reference::round(expected, kith::OnePeerExponential{}, t);
  }
  std::size_t wrong = 0;
  for (const float value : memory) wrong += static_cast<double>(value) != expected[r].get(0, 0);
  CHECK(wrong == 0);
}

}  // namespace mpi_averager_test
