// Gauges: sums are exact, peaks as exact as gauge.h says.
#include "pool/gauge.h"

#include <algorithm>
#include <array>
#include <random>
#include <thread>
#include <vector>

#include "check.h"

namespace jax_bfc::testing {
namespace {

constexpr int64_t kGaugeQuantum = 1000;

int64_t Value(const GaugeSum& sum, const SharedGauge& shared) {
  return static_cast<int64_t>(sum.Value(shared));
}
int64_t Peak(const GaugeSum& sum, const SharedGauge& shared) {
  return static_cast<int64_t>(sum.Peak(shared));
}

template <typename Slots>
GaugeSum Sum(const Slots& slots) {
  GaugeSum sum;
  for (const LocalGauge& slot : slots) sum.Add(slot);
  return sum;
}

TEST(ChangesBelowTheQuantumStayInTheSlot) {
  SharedGauge shared;
  LocalGauge local;
  local.Add(kGaugeQuantum, kGaugeQuantum, shared);
  CHECK_EQ(shared.value.load(), 0);
  CHECK_EQ(local.delta, kGaugeQuantum);
  local.Add(1, kGaugeQuantum, shared);
  CHECK_EQ(shared.value.load(), kGaugeQuantum + 1);
  CHECK_EQ(shared.peak.load(), kGaugeQuantum + 1);
  CHECK_EQ(local.delta, 0);
  local.Add(-kGaugeQuantum - 1, kGaugeQuantum, shared);
  CHECK_EQ(shared.value.load(), 0);
}

TEST(ThePeakOfOneSlotIsExactAtEveryMoment) {
  for (const uint64_t seed : Seeds({1, 2, 3})) {
    std::mt19937_64 random(seed);
    SharedGauge shared;
    std::array<LocalGauge, 1> slots;
    int64_t value = 0;
    int64_t peak = 0;
    for (int i = 0; i < 10'000; ++i) {
      const int64_t change = static_cast<int64_t>(random() % 1501) - 750;
      if (value + change < 0) continue;
      value += change;
      peak = std::max(peak, value);
      slots[0].Add(change, kGaugeQuantum, shared);
      const GaugeSum sum = Sum(slots);
      CHECK_EQ(Value(sum, shared), value);
      CHECK_EQ(Peak(sum, shared), peak);
    }
  }
}

TEST(ThePeakOfSeveralSlotsIsWithinAQuantumForEach) {
  constexpr int kGauges = 4;
  for (const uint64_t seed : Seeds({1, 2, 3})) {
    std::mt19937_64 random(seed);
    SharedGauge shared;
    std::array<LocalGauge, kGauges> slots;
    int64_t value = 0;
    int64_t peak = 0;
    for (int i = 0; i < 10'000; ++i) {
      const int64_t change = static_cast<int64_t>(random() % 1501) - 750;
      if (value + change < 0) continue;
      value += change;
      peak = std::max(peak, value);
      slots[random() % kGauges].Add(change, kGaugeQuantum, shared);
      const GaugeSum sum = Sum(slots);
      CHECK_EQ(Value(sum, shared), value);
      CHECK(Peak(sum, shared) >= value);
      CHECK(Peak(sum, shared) >= peak - kGauges * kGaugeQuantum);
      CHECK(Peak(sum, shared) <= peak + kGauges * kGaugeQuantum);
    }
  }
}

TEST(ASlotMayFreeWhatAnotherAllocated) {
  SharedGauge shared;
  std::array<LocalGauge, 2> slots;
  slots[0].Add(700, kGaugeQuantum, shared);
  slots[1].Add(-700, kGaugeQuantum, shared);
  CHECK_EQ(Sum(slots).Value(shared), 0);
  CHECK_EQ(Sum(slots).Peak(shared), 700);
}

TEST(PublishingChangesNeitherValueNorPeak) {
  SharedGauge shared;
  std::array<LocalGauge, 1> slots;
  slots[0].Add(900, kGaugeQuantum, shared);
  slots[0].Add(-400, kGaugeQuantum, shared);
  CHECK_EQ(Sum(slots).Peak(shared), 900);
  slots[0].Publish(shared);
  CHECK_EQ(Sum(slots).Value(shared), 500);
  CHECK_EQ(Sum(slots).Peak(shared), 900);
}

TEST(SlotsOfSeveralThreadsAddUp) {
  constexpr int kThreads = 4;
  constexpr int kPairs = 20'000;
  constexpr int64_t kChange = 300;
  SharedGauge shared;
  std::array<LocalGauge, kThreads> slots;
  std::vector<std::thread> threads;
  for (LocalGauge& slot : slots) {
    threads.emplace_back([&] {
      for (int i = 0; i < kPairs; ++i) {
        slot.Add(kChange, kGaugeQuantum, shared);
        if (i % 8 != 0) slot.Add(-kChange, kGaugeQuantum, shared);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const int64_t value = kThreads * (kPairs / 8) * kChange;
  CHECK_EQ(Sum(slots).Value(shared), value);
  CHECK(Sum(slots).Peak(shared) >= value);
  CHECK(Sum(slots).Peak(shared) <=
        value + kThreads * (kChange + kGaugeQuantum));
}

}  // namespace
}  // namespace jax_bfc::testing
