// SPDX-License-Identifier: Apache-2.0
// The one main of the tests of the NCCL engine. On the emulator each case ends without a finding that it did not
// expect.
#define DOCTEST_CONFIG_IMPLEMENT
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include <doctest/doctest.h>

#include "../gpu_emulator/emulator.hpp"
#include "gpu_ranks.hpp"

namespace {

struct Findings : doctest::IReporter {
  explicit Findings(const doctest::ContextOptions&) {}
  void test_case_start(const doctest::TestCaseData&) override {
    if (gpu_ranks::emulated()) kith::gpu_emulator::reset();
  }
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats&) override {
    if (!gpu_ranks::emulated()) return;
    for (const auto& finding : kith::gpu_emulator::findings()) {
      std::fprintf(stderr, "finding of the emulator: %s: %s\n", finding.kind.c_str(), finding.text.c_str());
      ++total;
    }
  }
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats& stats) override {
    all_skipped = static_cast<int>(stats.numTestCasesPassingFilters) == gpu_ranks::skipped();
  }
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}

  static inline int total = 0;
  static inline bool all_skipped = false;
};

// Asked in a child: a process that has called CUDA cannot fork any more.
bool has_gpu() { return std::system("nvidia-smi -L >/dev/null 2>&1") == 0; }

}  // namespace

int main(int argc, char** argv) {
  doctest::Context context{argc, argv};
  doctest::registerReporter<Findings>("findings", 0, false);
  bool lists = false;
  for (int i = 1; i < argc; ++i) lists = lists || std::string_view{argv[i]}.find("list") != std::string_view::npos;
  if (!lists && !gpu_ranks::emulated() && !has_gpu()) {
    std::printf("skipped: no GPU here, and the emulator is not preloaded\n");
    return 77;
  }
  const int status = context.run();
  if (context.shouldExit() || status != 0) return status;
  if (Findings::total > 0) return 1;
  return Findings::all_skipped ? 77 : 0;
}
