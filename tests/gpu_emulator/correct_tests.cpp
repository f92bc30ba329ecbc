// SPDX-License-Identifier: Apache-2.0
// Programs without a mistake: their numbers are right, and nothing is found.
#include <cstdint>
#include <cstring>
#include <numeric>

#include "support.hpp"

TEST_CASE("gpu emulator: a ring of 4 ranks averages, with a stream for messages and one for kernels") {
  emulator::reset();
  constexpr int rounds = 3;
  // W = I/2 + P/4 + P^T/4 on a ring of four, three times, computed here on its own.
  std::vector<double> expected{0, 10, 20, 60};
  for (int round = 0; round < rounds; ++round) {
    const std::vector<double> x = expected;
    for (std::size_t i = 0; i < 4; ++i) expected[i] = x[i] / 2 + (x[(i + 1) % 4] + x[(i + 3) % 4]) / 4;
  }
  const std::vector<float> initial{0, 10, 20, 60};
  on_ranks(4, [&](Rank& mine) {
    const int next = (mine.rank + 1) % 4;
    const int last = (mine.rank + 3) % 4;
    const Floats x(std::vector<float>(1000, initial[static_cast<std::size_t>(mine.rank)]));
    const Floats copy(std::vector<float>(1000));
    const Floats from_next(std::vector<float>(1000));
    const Floats from_last(std::vector<float>(1000));
    const Stream compute;
    const Stream messages;
    const Event ready;
    const Event arrived;
    for (int round = 0; round < rounds; ++round) {
      good(cudaEventRecord(ready, compute));
      good(cudaStreamWaitEvent(messages, ready, 0));
      good(ncclGroupStart());
      good(ncclSend(x.data(), x.size(), ncclFloat32, next, mine.comm, messages));
      good(ncclSend(x.data(), x.size(), ncclFloat32, last, mine.comm, messages));
      good(ncclRecv(from_next.data(), x.size(), ncclFloat32, next, mine.comm, messages));
      good(ncclRecv(from_last.data(), x.size(), ncclFloat32, last, mine.comm, messages));
      good(ncclGroupEnd());
      good(cudaEventRecord(arrived, messages));
      good(cudaStreamWaitEvent(compute, arrived, 0));
      good(cudaMemcpyAsync(copy.data(), x.data(), x.bytes(), cudaMemcpyDeviceToDevice, compute));
      good(launch_add_scaled(x, copy, -0.5F, compute));
      good(launch_add_scaled(x, from_next, 0.25F, compute));
      good(launch_add_scaled(x, from_last, 0.25F, compute));
    }
    std::vector<float> result(1000);
    good(cudaMemcpyAsync(result.data(), x.data(), x.bytes(), cudaMemcpyDeviceToHost, compute));
    good(cudaStreamSynchronize(compute));
    good(cudaStreamSynchronize(messages));
    for (const float value : result) CHECK(static_cast<double>(value) == expected[static_cast<std::size_t>(mine.rank)]);
  });
  check_nothing_found();
  CHECK(emulator::leaks().empty());
}

TEST_CASE("gpu emulator: messages of one pair match first to first") {
  emulator::reset();
  on_ranks(2, [](Rank& mine) {
    const Stream stream;
    const Floats first(std::vector<float>{1});
    const Floats second(std::vector<float>{2});
    const Floats third(std::vector<float>{3});
    const auto move = [&](const Floats& x) {
      return mine.rank == 0 ? ncclSend(x.data(), 1, ncclFloat32, 1, mine.comm, stream)
                            : ncclRecv(x.data(), 1, ncclFloat32, 0, mine.comm, stream);
    };
    if (mine.rank == 1)
      for (const Floats* x : {&first, &second, &third}) good(cudaMemsetAsync(x->data(), 0, 4, stream));
    // One rank groups what the other does call by call; groups nest.
    const bool groups = mine.rank == 0;
    if (groups) good(ncclGroupStart());
    if (groups) good(ncclGroupStart());
    good(move(first));
    good(move(second));
    if (groups) good(ncclGroupEnd());
    good(move(third));
    if (groups) {
      CHECK(cudaStreamQuery(stream) == cudaSuccess);  // nothing is there before the outermost end
      good(ncclGroupEnd());
    }
    good(cudaStreamSynchronize(stream));
    CHECK(first.read()[0] == 1);
    CHECK(second.read()[0] == 2);
    CHECK(third.read()[0] == 3);
    CHECK(ncclGroupEnd() == ncclInvalidUsage);
  });
  check_nothing_found();
}

TEST_CASE("gpu emulator: one group on two communicators and two streams, by one thread for all ranks") {
  emulator::reset();
  good(cudaSetDevice(0));
  ncclComm_t comms[2][2];  // by communicator, by rank
  for (auto& comm : comms) {
    ncclUniqueId id;
    good(ncclGetUniqueId(&id));
    good(ncclGroupStart());
    for (int rank = 0; rank < 2; ++rank) good(ncclCommInitRank(&comm[rank], 2, id, rank));
    good(ncclGroupEnd());
  }
  const Stream streams[2][2];
  const Floats out(std::vector<float>{1, 2, 3, 4});
  const Floats in(std::vector<float>(4));
  good(ncclGroupStart());
  for (std::size_t c = 0; c < 2; ++c)
    for (std::size_t rank = 0; rank < 2; ++rank) {
      const int peer = rank == 0 ? 1 : 0;
      good(ncclSend(out.data() + 2 * c + rank, 1, ncclFloat32, peer, comms[c][rank], streams[c][rank]));
      good(ncclRecv(in.data() + 2 * c + rank, 1, ncclFloat32, peer, comms[c][rank], streams[c][rank]));
    }
  good(ncclGroupEnd());
  good(cudaDeviceSynchronize());
  CHECK(in.read() == std::vector<float>{2, 1, 4, 3});
  for (auto& comm : comms)
    for (ncclComm_t rank : comm) good(ncclCommDestroy(rank));
  check_nothing_found();
}

TEST_CASE("gpu emulator: 8 ranks exchange 500 times with a kernel each") {
  emulator::reset();
  on_ranks(8, [](Rank& mine) {
    const Floats x(std::vector<float>(256, static_cast<float>(mine.rank)));
    const Floats in(std::vector<float>(256));
    const Stream stream;
    for (int round = 0; round < 500; ++round) {
      exchange(mine, x, (mine.rank + 1) % 8, in, (mine.rank + 7) % 8, stream);
      good(launch_add_scaled(x, in, 0.0F, stream));
    }
    good(cudaStreamSynchronize(stream));
    CHECK(in.read() == std::vector<float>(256, static_cast<float>((mine.rank + 7) % 8)));
  });
  check_nothing_found();
}

namespace {

// The value of rank r at position i: small, so that every type holds the sums exactly.
double input(int rank, std::size_t i) { return (rank + 1) * 2 + static_cast<int>(i % 3); }

template <class T>
double to_double(T value) {
  return static_cast<double>(value);
}
double to_double(__half value) { return static_cast<double>(__half2float(value)); }
double to_double(__nv_bfloat16 value) { return static_cast<double>(__bfloat162float(value)); }

template <class T, class Convert>
void check_all_reduce(ncclDataType_t type, ncclRedOp_t op, double (*expected)(std::size_t), const Convert& convert) {
  on_ranks(4, [&](Rank& mine) {
    std::vector<T> host(7);
    for (std::size_t i = 0; i < host.size(); ++i) host[i] = convert(input(mine.rank, i));
    void* data = nullptr;
    const std::size_t bytes = host.size() * sizeof(T);
    good(cudaMalloc(&data, bytes));
    good(cudaMemcpy(data, host.data(), bytes, cudaMemcpyHostToDevice));
    const Stream stream;
    good(ncclAllReduce(data, data, host.size(), type, op, mine.comm, stream));
    good(cudaMemcpyAsync(host.data(), data, bytes, cudaMemcpyDeviceToHost, stream));
    good(cudaStreamSynchronize(stream));
    for (std::size_t i = 0; i < host.size(); ++i) CHECK(to_double(host[i]) == expected(i));
    good(cudaFree(data));
  });
}

template <class T, class Convert>
void check_type(ncclDataType_t type, const Convert& convert) {
  // The ranks' inputs are 2 + k, 4 + k, 6 + k and 8 + k, where k = i % 3.
  check_all_reduce<T>(
      type, ncclSum, [](std::size_t i) { return 20 + 4 * static_cast<double>(i % 3); }, convert);
  check_all_reduce<T>(
      type, ncclAvg, [](std::size_t i) { return 5 + static_cast<double>(i % 3); }, convert);
  check_all_reduce<T>(
      type, ncclMin, [](std::size_t i) { return 2 + static_cast<double>(i % 3); }, convert);
  check_all_reduce<T>(
      type, ncclMax, [](std::size_t i) { return 8 + static_cast<double>(i % 3); }, convert);
}

}  // namespace

TEST_CASE("gpu emulator: all-reduce of every type and operator") {
  emulator::reset();
  check_type<float>(ncclFloat32, [](double x) { return static_cast<float>(x); });
  check_type<double>(ncclFloat64, [](double x) { return x; });
  check_type<__half>(ncclFloat16, [](double x) { return __float2half_rn(static_cast<float>(x)); });
  check_type<__nv_bfloat16>(ncclBfloat16, [](double x) { return __float2bfloat16_rn(static_cast<float>(x)); });
  check_type<std::int8_t>(ncclInt8, [](double x) { return static_cast<std::int8_t>(x); });
  check_type<std::int32_t>(ncclInt32, [](double x) { return static_cast<std::int32_t>(x); });
  check_type<std::uint64_t>(ncclUint64, [](double x) { return static_cast<std::uint64_t>(x); });
  check_nothing_found();
}

TEST_CASE("gpu emulator: the other collectives") {
  emulator::reset();
  on_ranks(4, [](Rank& mine) {
    const auto r = static_cast<float>(mine.rank);
    const Stream stream;
    const Floats four(std::vector<float>{r, r + 10, r + 20, r + 30});
    const Floats one(std::vector<float>{r});
    const Floats scattered(std::vector<float>(1));
    const Floats gathered(std::vector<float>(4));
    const Floats reduced(std::vector<float>{-1});
    const Floats root(std::vector<float>{r});
    const Floats weighted(std::vector<float>{r});
    good(ncclReduceScatter(four.data(), scattered.data(), 1, ncclFloat32, ncclSum, mine.comm, stream));
    good(ncclAllGather(one.data(), gathered.data(), 1, ncclFloat32, mine.comm, stream));
    good(ncclReduce(one.data(), reduced.data(), 1, ncclFloat32, ncclSum, 2, mine.comm, stream));
    good(ncclBroadcast(root.data(), root.data(), 1, ncclFloat32, 3, mine.comm, stream));
    float factor = r * 2;
    ncclRedOp_t scale;
    good(ncclRedOpCreatePreMulSum(&scale, &factor, ncclFloat32, ncclScalarHostImmediate, mine.comm));
    good(ncclAllReduce(weighted.data(), weighted.data(), 1, ncclFloat32, scale, mine.comm, stream));
    good(ncclRedOpDestroy(scale, mine.comm));
    good(cudaStreamSynchronize(stream));
    CHECK(scattered.read() == std::vector<float>{6 + 40 * r});  // 0+1+2+3 and four times ten per step
    CHECK(gathered.read() == std::vector<float>{0, 1, 2, 3});
    CHECK(reduced.read() == std::vector<float>{mine.rank == 2 ? 6.0F : -1.0F});
    CHECK(root.read() == std::vector<float>{3});
    CHECK(weighted.read() == std::vector<float>{28});  // 2 (0 + 1 + 4 + 9)
  });
  check_nothing_found();
}

TEST_CASE("gpu emulator: a split communicator has its own ranks") {
  emulator::reset();
  on_ranks(4, [](Rank& mine) {
    ncclComm_t part = nullptr;
    // Odd ranks in reverse order; rank 0 stays out.
    const int color = mine.rank == 0 ? NCCL_SPLIT_NOCOLOR : mine.rank % 2;
    good(ncclCommSplit(mine.comm, color, -mine.rank, &part, nullptr));
    CHECK((part == nullptr) == (mine.rank == 0));
    if (part == nullptr) return;
    int size = 0;
    int rank = -1;
    good(ncclCommCount(part, &size));
    good(ncclCommUserRank(part, &rank));
    CHECK(size == (mine.rank % 2 == 1 ? 2 : 1));
    CHECK(rank == (mine.rank == 1 ? 1 : 0));
    good(ncclCommDestroy(part));
  });
  check_nothing_found();
}

TEST_CASE("gpu emulator: a communicator shrinks without the rank that was lost") {
  emulator::reset();
  on_ranks(3, [](Rank& mine) {
    if (mine.rank == 1) return;
    int lost = 1;
    ncclComm_t rest = nullptr;
    const Floats x(std::vector<float>(4, 1));
    cudaStream_t stream = nullptr;
    good(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    good(ncclAllReduce(x.data(), x.data(), 4, ncclFloat32, ncclSum, mine.comm, stream));  // never ends
    good(ncclCommShrink(mine.comm, &lost, 1, &rest, nullptr, NCCL_SHRINK_ABORT));
    good(ncclAllReduce(x.data(), x.data(), 4, ncclFloat32, ncclSum, rest, stream));
    good(cudaStreamSynchronize(stream));
    CHECK(x.read() == std::vector<float>(4, 2));
    good(ncclCommDestroy(rest));
    good(cudaStreamDestroy(stream));
  });
  check_nothing_found();
}

TEST_CASE("gpu emulator: a communicator that does not block is to be polled") {
  emulator::reset();
  emulator::Options options;
  options.first_contact_blocks = true;
  emulator::set_options(options);
  ncclUniqueId id;
  good(ncclGetUniqueId(&id));
  const auto poll = [](ncclComm_t comm) {
    ncclResult_t state = ncclInProgress;
    int polls = 0;
    while (state == ncclInProgress) {
      good(ncclCommGetAsyncError(comm, &state));
      ++polls;
      std::this_thread::yield();
    }
    CHECK(state == ncclSuccess);
    return polls;
  };
  const auto rank_main = [&](int rank) {
    good(cudaSetDevice(rank));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t comm = nullptr;
    CHECK(ncclCommInitRankConfig(&comm, 2, id, rank, &config) == ncclInProgress);
    CHECK(poll(comm) > options.in_progress_polls);
    const Floats out(std::vector<float>(5, static_cast<float>(rank)));
    const Floats in(std::vector<float>(5));
    const Stream stream;
    good(ncclGroupStart());
    good(ncclSend(out.data(), 5, ncclFloat32, 1 - rank, comm, stream));
    good(ncclRecv(in.data(), 5, ncclFloat32, 1 - rank, comm, stream));
    CHECK(ncclGroupEnd() == ncclInProgress);
    poll(comm);
    good(cudaStreamSynchronize(stream));
    CHECK(in.read() == std::vector<float>(5, static_cast<float>(1 - rank)));
    good(ncclCommDestroy(comm));
  };
  std::thread other{rank_main, 1};
  rank_main(0);
  other.join();
  check_nothing_found();
}

TEST_CASE("gpu emulator: memory knows what it is") {
  emulator::reset();
  void* device = nullptr;
  void* pinned = nullptr;
  float plain = 0;
  good(cudaSetDevice(3));
  good(cudaMalloc(&device, 100));
  good(cudaHostAlloc(&pinned, 100, cudaHostAllocMapped | cudaHostAllocPortable));
  cudaPointerAttributes attributes;
  good(cudaPointerGetAttributes(&attributes, static_cast<char*>(device) + 99));
  CHECK(attributes.type == cudaMemoryTypeDevice);
  CHECK(attributes.device == 3);
  CHECK(attributes.hostPointer == nullptr);
  good(cudaPointerGetAttributes(&attributes, pinned));
  CHECK(attributes.type == cudaMemoryTypeHost);
  void* mapped = nullptr;
  good(cudaHostGetDevicePointer(&mapped, pinned, 0));
  CHECK(mapped == attributes.devicePointer);
  good(cudaPointerGetAttributes(&attributes, &plain));
  CHECK(attributes.type == cudaMemoryTypeUnregistered);

  const Stream stream;
  std::memset(pinned, 7, 100);  // the host may, at any time
  good(cudaMemcpyAsync(device, pinned, 100, cudaMemcpyHostToDevice, stream));
  good(cudaMemsetAsync(device, 1, 50, stream));
  good(cudaStreamSynchronize(stream));
  std::vector<unsigned char> bytes(100);
  good(cudaMemcpy(bytes.data(), device, 100, cudaMemcpyDeviceToHost));
  CHECK(std::accumulate(bytes.begin(), bytes.end(), 0) == 50 * 1 + 50 * 7);
  good(cudaFree(device));
  good(cudaFreeHost(pinned));
  good(cudaSetDevice(0));
  check_nothing_found();
}

TEST_CASE("gpu emulator: memory that is allocated and freed in stream order") {
  emulator::reset();
  const Stream stream;
  void* memory = nullptr;
  std::vector<unsigned char> host(10);
  good(cudaMallocAsync(&memory, 10, stream));
  good(cudaMemsetAsync(memory, 5, 10, stream));
  good(cudaMemcpyAsync(host.data(), memory, 10, cudaMemcpyDeviceToHost, stream));
  good(cudaFreeAsync(memory, stream));
  good(cudaStreamSynchronize(stream));
  CHECK(host == std::vector<unsigned char>(10, 5));
  CHECK(cudaFree(memory) == cudaErrorInvalidValue);
  CHECK(emulator::findings().size() == 1);
  emulator::clear_findings();
}

TEST_CASE("gpu emulator: the real libraries name the codes") {
  CHECK(std::string{cudaGetErrorName(cudaErrorNotReady)} == "cudaErrorNotReady");
  CHECK(std::string{cudaGetErrorString(cudaErrorInvalidValue)} == "invalid argument");
  CHECK(std::string{ncclGetErrorString(ncclInvalidUsage)} != std::string{ncclGetErrorString(ncclSuccess)});
  int version = 0;
  good(ncclGetVersion(&version));
  CHECK(version == NCCL_VERSION_CODE);
}

TEST_CASE("gpu emulator: work on blocking streams and on the default stream is in order") {
  emulator::reset();
  cudaStream_t blocking = nullptr;
  good(cudaStreamCreate(&blocking));
  const Floats x(std::vector<float>(10, 1));
  const Floats y(std::vector<float>(10, 2));
  good(launch_add_scaled(x, y, 1, blocking));
  good(launch_add_scaled(y, x, 1, nullptr));
  good(launch_add_scaled(x, y, 1, blocking));
  CHECK(x.read() == std::vector<float>(10, 8));  // 3, then y = 5, then 8
  good(cudaStreamDestroy(blocking));
  check_nothing_found();
}

TEST_CASE("gpu emulator: events tell when, queries do not wait") {
  emulator::reset();
  const Floats x(std::vector<float>(10, 1));
  const Stream stream;
  cudaEvent_t start = nullptr;
  cudaEvent_t end = nullptr;
  good(cudaEventCreate(&start));
  good(cudaEventCreate(&end));
  CHECK(cudaEventQuery(start) == cudaSuccess);  // never recorded
  good(cudaEventRecord(start, stream));
  good(launch_add_scaled(x, x, 1, stream));
  good(cudaEventRecord(end, stream));
  good(cudaEventSynchronize(end));
  CHECK(cudaEventQuery(end) == cudaSuccess);
  float milliseconds = -1;
  good(cudaEventElapsedTime(&milliseconds, start, end));
  CHECK(milliseconds >= 0);
  good(cudaEventDestroy(start));
  good(cudaEventDestroy(end));
  check_nothing_found();
}

TEST_CASE("gpu emulator: the record of calls names those that wait for the device") {
  emulator::reset();
  const Floats x(std::vector<float>(10, 1));
  const Stream stream;
  std::size_t mark = emulator::mark();
  good(launch_add_scaled(x, x, 1, stream));
  CHECK(emulator::calls(mark) == std::vector<std::string>{"cudaLaunchKernel"});
  CHECK(emulator::synchronizations(mark).empty());
  mark = emulator::mark();
  float first = 0;
  good(cudaMemcpyAsync(&first, x.data(), sizeof first, cudaMemcpyDeviceToHost, stream));
  good(cudaStreamSynchronize(stream));
  CHECK(emulator::synchronizations(mark) ==
        std::vector<std::string>{"cudaMemcpyAsync (pageable)", "cudaStreamSynchronize"});
  CHECK(first == 2);
  check_nothing_found();
}

TEST_CASE("gpu emulator: edges are connected at their first use") {
  emulator::reset();
  emulator::Options options;
  options.first_contact_blocks = true;
  emulator::set_options(options);
  std::size_t before = emulator::edges_connected();
  std::size_t warm = 0;
  on_ranks(3, [&](Rank& mine) {
    const Floats out(std::vector<float>(4, 1));
    const Floats in(std::vector<float>(4));
    const Stream stream;
    exchange(mine, out, (mine.rank + 1) % 3, in, (mine.rank + 2) % 3, stream);
    good(cudaStreamSynchronize(stream));
    const Floats sum(std::vector<float>(1));  // a barrier
    good(ncclAllReduce(sum.data(), sum.data(), 1, ncclFloat32, ncclSum, mine.comm, stream));
    good(cudaStreamSynchronize(stream));
    if (mine.rank == 0) warm = emulator::edges_connected();
    good(ncclAllReduce(sum.data(), sum.data(), 1, ncclFloat32, ncclSum, mine.comm, stream));
    good(cudaStreamSynchronize(stream));
    exchange(mine, out, (mine.rank + 1) % 3, in, (mine.rank + 2) % 3, stream);
    good(cudaStreamSynchronize(stream));
  });
  CHECK(warm - before == 3);
  CHECK(emulator::first_contacts_since(warm) == 0);
  check_nothing_found();
}
