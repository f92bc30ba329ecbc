// SPDX-License-Identifier: Apache-2.0
#include "launch.hpp"

#include <cstdio>

#if defined(KITH_BENCH_MPI)
#include <algorithm>
#include <chrono>
#include <string_view>
#include <thread>

#include <mpi.h>
#endif

namespace bench {

#if defined(KITH_BENCH_MPI)

namespace {

// Before the command line is parsed: a mistake in it is to be told once, by rank 0.
bool wants_mpi(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--engine=mpi") return true;
    if (argument == "--engine" && i + 1 < argc && std::string_view{argv[i + 1]} == "mpi") return true;
  }
  return false;
}

// Hidden rounds go on beside the host only where MPI lets two threads in; that costs every call of MPI a little.
bool wants_threads(int argc, char** argv) {
  return std::any_of(argv + 1, argv + argc,
                     [](const char* argument) { return std::string_view{argument}.starts_with("--overlap"); });
}

int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

int world_size() {
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

// Whether all processes have come here; a process that has failed does not wait for long.
bool all_have_come(MPI_Comm all, bool patient) {
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Ibarrier(all, &request);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{1};
  for (int come = 0; come == 0;) {
    MPI_Test(&request, &come, MPI_STATUS_IGNORE);
    if (come == 0 && !patient && std::chrono::steady_clock::now() > deadline) return false;
    if (come == 0) std::this_thread::sleep_for(std::chrono::milliseconds{1});
  }
  return true;
}

}  // namespace

Launch::Launch(int& argc, char**& argv) {
  if (!wants_mpi(argc, argv)) return;
  int provided = 0;
  MPI_Init_thread(&argc, &argv, wants_threads(argc, argv) ? MPI_THREAD_MULTIPLE : MPI_THREAD_FUNNELED, &provided);
  MPI_Comm_dup(MPI_COMM_WORLD, &all_);
  if (world_rank() != 0 && std::freopen("/dev/null", "w", stdout) == nullptr) std::fclose(stdout);
}

void Launch::describe(Invocation& invocation) const {
  if (all_ == MPI_COMM_NULL) return;
  char library[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(library, &length);
  invocation.mpi_library = library;
  invocation.mpi_library.erase(std::min(invocation.mpi_library.find('\n'), invocation.mpi_library.size()));
  for (char& c : invocation.mpi_library) c = c == '\t' ? ' ' : c;
  invocation.processes = world_size();
  invocation.speaks = world_rank() == 0;
}

int Launch::end(int status, const std::string& message) {
  if (all_ == MPI_COMM_NULL) {
    std::fputs(message.c_str(), stderr);
    return status;
  }
  if (!all_have_come(all_, status == 0)) {
    std::fprintf(stderr, "rank %d: %s", world_rank(), message.c_str());
    MPI_Abort(MPI_COMM_WORLD, status);
  }
  const int mine[] = {-status, message.empty() ? world_size() : world_rank()};
  int least[] = {0, 0};  // the worst status, and the first rank that has something to say
  MPI_Allreduce(mine, least, 2, MPI_INT, MPI_MIN, all_);
  if (least[1] == world_rank()) std::fputs(message.c_str(), stderr);
  MPI_Comm_free(&all_);
  MPI_Finalize();
  return -least[0];
}

#else

Launch::Launch(int&, char**&) {}

void Launch::describe(Invocation&) const {}

int Launch::end(int status, const std::string& message) {
  std::fputs(message.c_str(), stderr);
  return status;
}

#endif

}  // namespace bench
