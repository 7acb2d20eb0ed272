// What an event costs while somebody watches the pool: watching [FOLDER].
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "pool/registry.h"

namespace jax_bfc {
namespace {

constexpr int kBatches = 21;
constexpr int kPairs = 100'000;

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "watching: %s\n", why.c_str());
  std::exit(1);
}

// Nanoseconds for each allocation and each free.
double Batch(Pool& pool) {
  using Clock = std::chrono::steady_clock;
  std::unique_ptr<OomReport> report;
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < kPairs; ++i) {
    Allocation made;
    if (!pool.Allocate({kUnregistered, size_t{1} << 20, kQuantum}, &made,
                       &report) ||
        !pool.Free(made.ptr, made.id)) {
      Die("1 MiB does not fit");
    }
  }
  const std::chrono::duration<double, std::nano> took = Clock::now() - start;
  return took.count() / (2 * kPairs);
}

double Recorded(Pool& pool, const Recorder::Options& options) {
  if (StartRecording(options)) Die("a recording runs");
  const double ns = Batch(pool);
  const Recorder::Blocks blocks = *StopRecording();
  if (blocks.error != 0) Die(std::strerror(blocks.error));
  if (options.file >= 0 && blocks.dropped > 0) Die("events were lost");
  return ns;
}

int OpenUnnamed(const std::string& folder) {
  std::string name = folder + "/watching_XXXXXX";
  const int file = mkstemp(name.data());
  if (file < 0) Die(name + ": " + std::strerror(errno));
  unlink(name.c_str());
  return file;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void Run(const std::string& folder) {
  Pool& pool = HostPool(0);
  const int file = OpenUnnamed(folder);
  std::vector<double> nobody, peak, memory, disk;
  Batch(pool);
  for (int i = 0; i < kBatches; ++i) {
    nobody.push_back(Batch(pool));
    const uint64_t block = pool.OpenPeak();
    peak.push_back(Batch(pool));
    pool.ClosePeak(block);
    memory.push_back(Recorded(pool, {}));
    disk.push_back(Recorded(pool, {.file = file}));
  }
  const auto print = [&](const char* name, const std::vector<double>& values) {
    std::printf("%-22s %6.1f ns an event, %+6.1f\n", name, Median(values),
                Median(values) - Median(nobody));
  };
  print("nobody watches", nobody);
  print("peak()", peak);
  print("record(), in memory", memory);
  print("record(), to a file", disk);
}

}  // namespace
}  // namespace jax_bfc

int main(int argc, char** argv) {
  jax_bfc::Run(argc > 1 ? argv[1] : ".");
  return 0;
}
