// Replays worked out by hand.
#include "core/simulate.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"

namespace jax_bfc {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

TEST(ReplayMeasuresPlacement) {
  // 0 in [0, 1024), 1 in [1024, 1280), 2 does not fit in [0, 1024).
  const std::vector<TraceEvent> trace = {
      {true, 0, 1000}, {true, 1, 100}, {false, 0, 0}, {true, 2, 2000}};
  const ReplayResult result = Replay(trace);
  CHECK_EQ(result.events, 4);
  CHECK_EQ(result.peak_live_bytes, 2100);
  CHECK_EQ(result.high_water_bytes, 3328);
  CHECK_EQ(result.premapped_high_water_bytes, 3328);
  CHECK_EQ(result.internal_fragmentation_bytes, 2304 - 2100);
  CHECK_EQ(result.mapped_bytes, 2 * kMiB);
  CHECK_EQ(result.ratio, 3328.0 / 2100.0);
  CHECK_EQ(result.external_fragmentation, 0.0);  // [0, 1024) alone
}

TEST(WhatWasFreedAtTheTopIsAChunkOfItsOwnSize) {
  // Holes [0, 1024) and, at the top, [1280, 2048): the request for 512 goes to
  // the smaller, which is part of the endless rest if that is a free chunk.
  const std::vector<TraceEvent> trace = {
      {true, 0, 1024}, {true, 1, 256}, {true, 2, 768}, {false, 0, 0},
      {false, 2, 0},   {true, 3, 512}, {true, 4, 1024}};
  const ReplayResult result = Replay(trace);
  CHECK_EQ(result.high_water_bytes, 2048);
  CHECK_EQ(result.premapped_high_water_bytes, 2304);
}

TEST(AnIdMayBeUsedAgainOnceItIsFree) {
  const std::vector<TraceEvent> trace = {{true, 4'000'000'000, 256},
                                         {false, 4'000'000'000, 0},
                                         {true, 4'000'000'000, 512},
                                         {false, 4'000'000'000, 0}};
  CHECK_EQ(Replay(trace).high_water_bytes, 512);
}

TEST(ATraceWithoutLiveBytesHasNoRatio) {
  CHECK_EQ(Replay({}).ratio, 0.0);
  CHECK_EQ(Replay({}).ns_per_event, 0.0);
  const std::vector<TraceEvent> trace = {{true, 0, 0}};
  CHECK_EQ(Replay(trace).ratio, 0.0);
  CHECK_EQ(Replay(trace).high_water_bytes, 256);
}

TEST(InvalidTracesAreRefusedByEvent) {
  const auto error = [](const std::vector<TraceEvent>& trace) {
    try {
      Replay(trace);
    } catch (const std::invalid_argument& refused) {
      return std::string(refused.what());
    }
    return std::string();
  };
  CHECK_EQ(error({{false, 7, 0}}),
           "replay: event 0 frees id 7, which is not live");
  CHECK_EQ(error({{true, 7, 1}, {false, 7, 0}, {false, 7, 0}}),
           "replay: event 2 frees id 7, which is not live");
  CHECK_EQ(error({{true, 7, 1}, {true, 7, 1}}),
           "replay: event 1 allocates id 7, which is live");
  CHECK(error({{true, 0, kReplayRangeBytes + 1}}).find("at most") !=
        std::string::npos);
  CHECK(error({{true, 0, kReplayRangeBytes}, {true, 1, 1}})
            .find("event 1 does not fit") != std::string::npos);
}

}  // namespace
}  // namespace jax_bfc
