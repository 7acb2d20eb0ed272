// A FakeCuda is a CUDA driver in memory, for tests on machines without a GPU.
//
//   FakeCuda fake;
//   SetCudaDriverForTest(fake.driver());
//   ...
//   SetCudaDriverForTest(nullptr);
//   fake.CheckClean();
//
// It keeps the driver's rules on memory (fake_cuda_memory.h), streams
// (fake_cuda_streams.h), contexts, and stream capture. A call that breaks one
// is a violation: recorded for CheckClean, and refused with an error where the
// real driver would refuse it, or crash, or let the device fault.
//
// Device work is what the test says it is: Launch() queues it, and it touches
// its memory until the test finishes it or a barrier does. Freeing plain memory
// is a barrier; unmapping is not. A launch on a stream that is captured goes
// into its graph instead.
//
// The driver is initialised from the start. The last FakeCuda that was made
// gets the calls; where there is none any more, they answer that the driver has
// shut down. Thread-safe; a check that fails throws, as in check.h, and so
// belongs on the test's own thread.
#ifndef JAX_BFC_TESTS_CPP_FAKE_CUDA_H_
#define JAX_BFC_TESTS_CPP_FAKE_CUDA_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "check.h"
#include "fake_cuda_calls.h"
#include "fake_cuda_faults.h"
#include "fake_cuda_log.h"
#include "fake_cuda_streams.h"
#include "source/cuda_driver.h"

namespace jax_bfc::testing {

class FakeCuda : public FakeCudaCalls {
 public:
  using Address = cuda::Address;

  // What a handler finds: the device's context is current on the thread. Not
  // counted among the calls.
  class CurrentContext {
   public:
    CurrentContext(FakeCuda& fake, int device) : fake_(fake) {
      const std::lock_guard lock(fake_.mutex_);
      fake_.ThisThread().contexts.push_back({device, /*by_test=*/true});
    }
    ~CurrentContext() {
      const std::lock_guard lock(fake_.mutex_);
      // What the library left above it is a leak, which Leaks() tells.
      auto& contexts = fake_.ThisThread().contexts;
      const auto ours =
          std::find_if(contexts.rbegin(), contexts.rend(),
                       [](const Entered& entered) { return entered.by_test; });
      contexts.erase(std::next(ours).base());
    }
    CurrentContext(const CurrentContext&) = delete;
    CurrentContext& operator=(const CurrentContext&) = delete;

   private:
    FakeCuda& fake_;
  };

  FakeCuda() : FakeCuda(Options()) {}
  explicit FakeCuda(const Options& options) : FakeCudaCalls(options) {}

  // --- Streams and device work. All of these take null as the default stream
  // of the current context's device.

  cuda::Stream CreateStream(int device = 0) {
    const std::lock_guard lock(mutex_);
    return streams_.Create(device);
  }
  void DestroyStream(cuda::Stream stream) {
    const std::lock_guard lock(mutex_);
    streams_.Destroy(stream);
  }
  uint64_t StreamId(cuda::Stream stream) {
    const std::lock_guard lock(mutex_);
    const auto* state = FindStream(stream, "StreamId");
    return state ? state->id : 0;
  }

  void BeginCapture(cuda::Stream stream) {
    const std::lock_guard lock(mutex_);
    auto* state = FindStream(stream, "BeginCapture");
    if (!state) return;
    if (!stream || state->capture) {
      log_.Broken(kCudaInvalidValue, "BeginCapture",
                  stream ? "captured already" : "the default stream");
      return;
    }
    state->capture.emplace();
  }
  // What was launched under the capture; nothing if it was invalidated.
  std::optional<FakeGraph> EndCapture(cuda::Stream stream) {
    const std::lock_guard lock(mutex_);
    auto* state = FindStream(stream, "EndCapture");
    if (!state) return std::nullopt;
    if (!state->capture) {
      log_.Broken(kCudaInvalidValue, "EndCapture", "not captured");
      return std::nullopt;
    }
    const FakeCapture capture = *std::move(state->capture);
    state->capture.reset();
    if (capture.invalidated) return std::nullopt;
    return capture.graph;
  }

  // Queues work that touches [address, address + bytes).
  void Launch(cuda::Stream stream, Address address, size_t bytes) {
    LaunchGraph(stream, {{address, bytes}});
  }
  void LaunchGraph(cuda::Stream stream, const FakeGraph& graph) {
    const std::lock_guard lock(mutex_);
    auto* state = FindStream(stream, "Launch");
    if (!state) return;
    for (const FakeTouch& touch : graph) {
      if (!memory_.IsWritable(touch.address, touch.bytes, state->device)) {
        log_.Broken(kCudaInvalidValue, "Launch", touch.address, touch.bytes,
                    "a fault: memory that device " +
                        std::to_string(state->device) + " cannot write");
      }
      if (state->capture) {
        state->capture->graph.push_back(touch);
      } else {
        streams_.Queue(*state, touch);
      }
    }
  }

  void FinishStream(cuda::Stream stream) {
    const std::lock_guard lock(mutex_);
    if (const auto* state = FindStream(stream, "FinishStream")) {
      streams_.FinishId(state->id);
    }
  }
  // Also where the stream has been destroyed.
  void FinishId(uint64_t id) {
    const std::lock_guard lock(mutex_);
    streams_.FinishId(id);
  }
  void Synchronize() {
    const std::lock_guard lock(mutex_);
    streams_.FinishAll();
  }

  // The ids of the streams with pending work that touches the range, also of
  // those that were destroyed.
  std::set<uint64_t> UsersOf(Address address, size_t bytes) {
    const std::lock_guard lock(mutex_);
    return streams_.UsersOf(address, bytes);
  }
  // That the stream may use the range: no other has pending work on it.
  void CheckNoForeignUser(cuda::Stream stream, Address address, size_t bytes,
                          const char* file = __builtin_FILE(),
                          int line = __builtin_LINE()) {
    const uint64_t id = StreamId(stream);
    std::vector<std::string> problems;
    for (const uint64_t user : UsersOf(address, bytes)) {
      if (user == id) continue;
      problems.push_back("stream id " + std::to_string(user) +
                         " still has work on memory that was given to "
                         "stream id " +
                         std::to_string(id));
    }
    FailIfAny(problems, file, line);
  }

  // --- Figures.

  size_t pending() const {
    return Locked([&] { return streams_.pending(); });
  }
  // How often the library waited for a device.
  int barriers() const {
    return Locked([&] { return barriers_; });
  }
  size_t FreeBytes(int device = 0) const {
    return Locked([&] { return memory_.FreeBytes(device); });
  }
  size_t mapped_bytes() const {
    return Locked([&] { return memory_.mapped_bytes(); });
  }
  size_t reserved_bytes() const {
    return Locked([&] { return memory_.reserved_bytes(); });
  }
  // Another process takes that much of the device; negative to give it back.
  void Occupy(int device, int64_t bytes) {
    Locked([&] { memory_.Occupy(device, bytes); });
  }

  // Driver calls so far, the failed ones too; of one function ("MemMap"), or
  // of all.
  int calls(std::string_view function = {}) const {
    const int index = Index(function);
    return Locked([&] { return index < 0 ? all_calls_ : calls_[index]; });
  }

  // --- Failures. The n-th driver call from now (1: the next), or the n-th of
  // `function`, returns `result` and does nothing.

  void FailCall(int n, cuda::Result result, std::string_view function = {}) {
    AddFault({Index(function), n, result, /*for_ever=*/false});
  }
  // That one and all that follow.
  void FailFrom(int n, cuda::Result result, std::string_view function = {}) {
    AddFault({Index(function), n, result, /*for_ever=*/true});
  }
  void StopFailing() {
    Locked([&] { faults_.Clear(); });
  }
  // How many calls failed because of the above.
  int failed_calls() const {
    return Locked([&] { return failed_calls_; });
  }

  // --- Checks.

  std::vector<std::string> violations() const {
    return Locked([&] { return log_.texts; });
  }
  // For a test that breaks a rule on purpose.
  std::vector<std::string> TakeViolations() {
    return Locked([&] { return std::exchange(log_.texts, {}); });
  }
  // That there is one violation, which says `part`; forgets it.
  void CheckViolated(std::string_view part, const char* file = __builtin_FILE(),
                     int line = __builtin_LINE()) {
    const std::vector<std::string> texts = TakeViolations();
    if (texts.size() == 1 && texts[0].find(part) != std::string::npos) return;
    std::string text = "FakeCuda: expected one violation, '";
    text.append(part).append("', not ").append(std::to_string(texts.size()));
    for (const std::string& problem : texts) text += "\n    " + problem;
    Fail(file, line, text);
  }
  // What has not been given back: memory, address ranges, contexts, modes. What
  // the fake refused to take back, because of FailCall, is left out.
  std::vector<std::string> Leaks() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> leaks;
    memory_.AppendLeaks(leaks);
    for (const auto& [number, thread] : threads_) {
      const auto contexts = std::count_if(
          thread.contexts.begin(), thread.contexts.end(),
          [](const Entered& entered) { return !entered.by_test; });
      const std::string name = "leak: thread " + std::to_string(number);
      if (contexts > thread.excused_contexts) {
        leaks.push_back(name + " has " + std::to_string(contexts) +
                        " contexts not popped");
      }
      if (thread.mode != kDefaultMode && !thread.excused_mode) {
        leaks.push_back(name + " is in capture mode " +
                        std::to_string(thread.mode));
      }
    }
    return leaks;
  }
  void CheckNoViolations(const char* file = __builtin_FILE(),
                         int line = __builtin_LINE()) const {
    FailIfAny(violations(), file, line);
  }
  void CheckClean(const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) const {
    std::vector<std::string> problems = violations();
    for (std::string& leak : Leaks()) problems.push_back(std::move(leak));
    FailIfAny(problems, file, line);
  }

 private:
  static void FailIfAny(const std::vector<std::string>& problems,
                        const char* file, int line) {
    if (problems.empty()) return;
    std::string text = "FakeCuda:";
    for (const std::string& problem : problems) text += "\n    " + problem;
    Fail(file, line, text);
  }

  FakeCudaStreams::State* FindStream(cuda::Stream stream, const char* call) {
    return streams_.Find(stream, call, CurrentDevice());
  }
  void AddFault(const FakeCudaFaults::Fault& fault) {
    Locked([&] { faults_.Add(fault); });
  }
};

}  // namespace jax_bfc::testing

#endif  // JAX_BFC_TESTS_CPP_FAKE_CUDA_H_
