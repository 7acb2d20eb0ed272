// The command line of every test program.
//
//   arena_test [--list] [--seed N] [TEST...]
//
// Exit status: 0 when all tests that ran passed, 1 when one failed, 2 when the
// command line makes no sense.
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "check.h"

namespace {

using jax_bfc::testing::Failure;
using jax_bfc::testing::SeedOption;
using jax_bfc::testing::Test;
using jax_bfc::testing::Tests;

bool ParseSeed(std::string_view text) {
  uint64_t seed = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, seed);
  if (error != std::errc() || stop != end) {
    std::fprintf(stderr, "seed '%.*s' is not a number in [0, 2^64)\n",
                 static_cast<int>(text.size()), text.data());
    return false;
  }
  SeedOption() = seed;
  return true;
}

const Test* FindTest(std::string_view name) {
  for (const Test& test : Tests()) {
    if (test.name == name) return &test;
  }
  return nullptr;
}

bool Run(const Test& test) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  std::string text;
  try {
    test.body();
  } catch (const Failure& failure) {
    text = failure.text;
  } catch (const std::exception& error) {
    text = std::string("exception: ") + error.what();
  }
  const double seconds =
      std::chrono::duration<double>(Clock::now() - start).count();
  if (!text.empty()) std::printf("%s\n", text.c_str());
  std::printf("%s %s (%.3f s)\n", text.empty() ? "ok    " : "FAILED", test.name,
              seconds);
  std::fflush(stdout);
  return text.empty();
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Test> chosen;
  const char* environment = std::getenv("JAX_BFC_TEST_SEED");
  if (environment && *environment && !ParseSeed(environment)) return 2;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--list") {
      for (const Test& test : Tests()) std::printf("%s\n", test.name);
      return 0;
    }
    if (argument == "--seed" && i + 1 < argc) {
      if (!ParseSeed(argv[++i])) return 2;
    } else if (const Test* test = FindTest(argument)) {
      chosen.push_back(*test);
    } else {
      std::fprintf(stderr,
                   "'%s' is no test here; valid: --list, --seed N, or a name "
                   "that --list prints\n",
                   argv[i]);
      return 2;
    }
  }
  if (chosen.empty()) chosen = Tests();

  std::vector<const char*> failed;
  for (const Test& test : chosen) {
    if (!Run(test)) failed.push_back(test.name);
  }
  std::printf("%zu tests, %zu failed\n", chosen.size(), failed.size());
  for (const char* name : failed) std::printf("FAILED %s\n", name);
  return failed.empty() ? 0 : 1;
}
