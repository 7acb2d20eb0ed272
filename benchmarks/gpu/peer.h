// An allocator outside XLA in a process of its own, told what to do by lines on
// the standard input (see ../_workers.py) and answering each with a JSON object:
//
//   batch WORKLOAD SAMPLES PAIRS    {"ns": [...]}       ns per pair
//   threads WORKLOAD COUNT PAIRS    {"wall_ns": ...}    per pair and thread
//   hold, release                   {}                  the free chunks
//
// A failure ends the process, with what failed on the standard error.
#ifndef JAX_BFC_BENCHMARKS_GPU_PEER_H_
#define JAX_BFC_BENCHMARKS_GPU_PEER_H_

#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "gpu/streams.h"
#include "gpu/workload.h"

namespace jax_bfc::bench {

// `make_side(stream)` gives a side on that stream.
template <typename MakeSide>
int ServePeer(MakeSide make_side) {
  try {
    auto side = make_side(Streams(1)[0]);
    std::optional<Background<decltype(side)>> background;
    std::string line;
    while (std::getline(std::cin, line)) {
      std::istringstream words(line);
      std::string command;
      std::string workload;
      int count = 0;
      int64_t pairs = 0;
      words >> command >> workload >> count >> pairs;
      if (command == "hold") {
        background.emplace(side);
        std::printf("{}\n");
      } else if (command == "release") {
        background.reset();
        std::printf("{}\n");
      } else if (command == "batch") {
        const Workload named = WorkloadNamed(workload);
        if (NeedsBackground(named) && !background) {
          throw std::runtime_error(workload + " without `hold` before it");
        }
        const char* separator = "";
        std::printf("{\"ns\": [");
        for (const double ns : TimeSamples(count, pairs, [&](int64_t n) {
               return RunPairs(side, named, n);
             })) {
          std::printf("%s%.3f", separator, ns);
          separator = ", ";
        }
        std::printf("]}\n");
      } else if (command == "threads") {
        const auto& streams = Streams(count);
        const double ns =
            TimeThreads(count, WorkloadNamed(workload), pairs, [&](int thread) {
              CHECK_CUDA(cudaSetDevice(0));
              return make_side(streams[thread]);
            });
        std::printf("{\"wall_ns\": %.3f}\n", ns);
      } else {
        throw std::runtime_error("no command '" + line + "'");
      }
      std::fflush(stdout);
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

}  // namespace jax_bfc::bench

#endif  // JAX_BFC_BENCHMARKS_GPU_PEER_H_
