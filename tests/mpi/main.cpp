// SPDX-License-Identifier: Apache-2.0
// The main of the tests that run as several MPI processes. All ranks run the same cases in the same order; a failure on
// any rank is a failure of all of them. A test may go on after a CHECK that failed, together with the other ranks.
// After REQUIRE, or an exception that nobody caught, its rank cannot: then the job is aborted, or the others would wait
// for it.

// mpirun ends its ranks by SIGTERM, which is no failure of the case that is running.
#define DOCTEST_CONFIG_NO_POSIX_SIGNALS
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>

#include <mpi.h>

namespace {

int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

/// Rank 0 prints what doctest prints. The others print what failed, each failure in one piece and with their rank.
class RankReporter : public doctest::ConsoleReporter {
public:
  explicit RankReporter(const doctest::ContextOptions& options)
      : ConsoleReporter(options, world_rank() == 0 ? *options.cout : others()) {}

  void test_case_start(const doctest::TestCaseData& data) override {
    others().str({});  // drops the heading of the whole run
    ConsoleReporter::test_case_start(data);
  }

  void log_assert(const doctest::AssertData& data) override {
    ConsoleReporter::log_assert(data);
    relay();
    if (data.m_failed && (data.m_at & doctest::assertType::is_require) != 0) abort_job();
  }

  void log_message(const doctest::MessageData& data) override {
    ConsoleReporter::log_message(data);
    relay();
    if ((data.m_severity & doctest::assertType::is_require) != 0) abort_job();
  }

  void test_case_exception(const doctest::TestCaseException& exception) override {
    ConsoleReporter::test_case_exception(exception);
    relay();
    abort_job();
  }

private:
  // What the ranks other than 0 would print.
  static std::ostringstream& others() {
    static std::ostringstream stream;
    return stream;
  }

  static void relay() {
    if (others().str().empty()) return;
    const std::string text = "[rank " + std::to_string(world_rank()) + "]\n" + others().str();
    others().str({});
    std::fputs(text.c_str(), stderr);
  }

  [[noreturn]] static void abort_job() {
    std::cout.flush();
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, 1);
    std::abort();
  }
};

DOCTEST_REGISTER_REPORTER("rank", 0, RankReporter);

/// Whether the launcher has started the ranks that it should have. That of another MPI starts as many programs, each of
/// which is alone, and would pass.
bool as_many_as_expected() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const char* expected = std::getenv("KITH_TEST_RANKS");
  if (expected == nullptr || std::to_string(size) == expected) return true;
  std::fprintf(stderr, "[rank %d] there are %d ranks instead of %s: this is not the launcher of this program's MPI\n",
               world_rank(), size, expected);
  return false;
}

}  // namespace

// Stands in front of MPI's own: with KITH_TEST_RANKS_PER_MACHINE one machine passes for several.
int MPI_Comm_split_type(MPI_Comm comm, int type, int key, MPI_Info info, MPI_Comm* part) {
  const char* ranks = std::getenv("KITH_TEST_RANKS_PER_MACHINE");
  if (ranks == nullptr) return PMPI_Comm_split_type(comm, type, key, info, part);
  int rank = 0;
  MPI_Comm_rank(comm, &rank);
  return MPI_Comm_split(comm, rank / std::atoi(ranks), key, part);
}

int main(int argc, char** argv) {
  int provided = 0;
  const bool single = std::getenv("KITH_TEST_THREAD_SINGLE") != nullptr;
  MPI_Init_thread(&argc, &argv, single ? MPI_THREAD_SINGLE : MPI_THREAD_MULTIPLE, &provided);
  int failed_here = 1;
  if (as_many_as_expected()) {
    doctest::Context context{argc, argv};
    context.setOption("reporters", "rank");
    context.setOption("no-colors", true);  // mpirun gives its ranks a terminal even if it has none itself
    failed_here = context.run();
  }
  int failed = 0;
  MPI_Allreduce(&failed_here, &failed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  if (world_rank() == 0 && failed_here != failed) std::puts("[rank 0] the failure is another rank's");
  MPI_Finalize();
  return failed;
}
