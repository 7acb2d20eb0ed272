// The streams of a FakeCuda: their handles and ids, what is captured on them,
// and what work is queued.
//
// A handle is used again by the next stream after its own was destroyed; an id
// never is, in the whole process. Work stays pending until a test finishes it,
// also when its stream is destroyed first.
//
// Not thread-safe: FakeCuda locks. Knows nothing of memory and contexts.
#ifndef JAX_BFC_TESTS_CPP_FAKE_CUDA_STREAMS_H_
#define JAX_BFC_TESTS_CPP_FAKE_CUDA_STREAMS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "fake_cuda_log.h"
#include "source/cuda_driver.h"

namespace jax_bfc::testing {

// What a captured kernel touches, again at each launch of its graph.
struct FakeTouch {
  cuda::Address address;
  size_t bytes;
  bool operator==(const FakeTouch&) const = default;
};
using FakeGraph = std::vector<FakeTouch>;

struct FakeCapture {
  FakeGraph graph;
  bool invalidated = false;
};

class FakeCudaStreams {
 public:
  struct State {
    uint64_t id;
    int device;
    std::optional<FakeCapture> capture;
  };

  FakeCudaStreams(int devices, FakeCudaLog& log) : log_(log) {
    for (int i = 0; i < devices; ++i) defaults_.push_back({NextId(), i, {}});
  }

  cuda::Stream Create(int device) {
    cuda::Stream stream;
    if (dead_.empty()) {
      stream = reinterpret_cast<cuda::Stream>(next_handle_);
      next_handle_ += 0x400;
    } else {
      stream = dead_.back();
      dead_.pop_back();
    }
    live_[stream] = {NextId(), device, {}};
    return stream;
  }

  void Destroy(cuda::Stream stream) {
    const State* const state = Find(stream, "DestroyStream", -1);
    if (!state) return;
    if (!stream || state->capture) {
      log_.Broken(kCudaInvalidHandle, "DestroyStream",
                  stream ? "the stream is captured" : "the default stream");
      return;
    }
    live_.erase(stream);
    dead_.push_back(stream);
  }

  // Null, and logged, where there is no such stream. The default stream is
  // that of the device of the current context; -1: there is none.
  State* Find(cuda::Stream stream, const char* call, int current_device) {
    if (!stream && current_device >= 0) return &defaults_[current_device];
    const auto state = live_.find(stream);
    if (state != live_.end()) return &state->second;
    log_.Broken(kCudaInvalidHandle, call, reinterpret_cast<uintptr_t>(stream),
                0,
                !stream ? "the default stream of no context"
                        : "a destroyed stream, or none at all");
    return nullptr;
  }

  bool AnyCaptured() const {
    for (const auto& [stream, state] : live_) {
      if (state.capture) return true;
    }
    return false;
  }
  void InvalidateCaptures() {
    for (auto& [stream, state] : live_) {
      if (state.capture) state.capture->invalidated = true;
    }
  }

  void Queue(const State& state, FakeTouch touch) {
    pending_.push_back({state.id, state.device, touch});
  }
  void FinishAll() { pending_.clear(); }
  void FinishId(uint64_t id) {
    std::erase_if(pending_, [&](const Work& work) { return work.id == id; });
  }
  void FinishDevice(int device) {
    std::erase_if(pending_,
                  [&](const Work& work) { return work.device == device; });
  }

  size_t pending() const { return pending_.size(); }

  // The ids of the streams with pending work that touches it.
  std::set<uint64_t> UsersOf(cuda::Address address, size_t bytes) const {
    std::set<uint64_t> users;
    for (const Work& work : pending_) {
      const FakeTouch& touch = work.touch;
      if (touch.address < address + bytes &&
          address < touch.address + touch.bytes) {
        users.insert(work.id);
      }
    }
    return users;
  }

 private:
  struct Work {
    uint64_t id;
    int device;
    FakeTouch touch;
  };

  static uint64_t NextId() {
    static std::atomic<uint64_t> next{1};
    return next++;
  }

  FakeCudaLog& log_;
  std::vector<State> defaults_;  // by device
  std::map<cuda::Stream, State> live_;
  std::vector<cuda::Stream> dead_;  // the last one is the next to come back
  std::vector<Work> pending_;
  uintptr_t next_handle_ = 0x5f0000001000;
};

}  // namespace jax_bfc::testing

#endif  // JAX_BFC_TESTS_CPP_FAKE_CUDA_STREAMS_H_
