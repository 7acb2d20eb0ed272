// Names of kernels and labels, as they are kept.
#include "pool/kernel_table.h"

#include <string>
#include <utility>

#include "check.h"

namespace jax_bfc::testing {
namespace {

TEST(ALabelTakesThePlaceOfTheLast) {
  const KernelId kernel = InternKernel("solve");
  const KernelId first = InternLabel(kernel, "first");
  CHECK_EQ(KernelName(first), "solve:first");
  const KernelId second = InternLabel(first, "second");
  CHECK_EQ(KernelName(second), "solve:second");
  CHECK(KernelAndLabel(second) ==
        std::make_pair(std::string("solve"), std::string("second")));
  CHECK_EQ(InternLabel(second, ""), kernel);
  CHECK_EQ(InternLabel(kernel, ""), kernel);
}

TEST(LabelsInALoopMakeNoNewRows) {
  const KernelId kernel = InternKernel("loop");
  KernelId row = kernel;
  for (int i = 0; i < 2; ++i) {
    row = InternLabel(row, "a");
    row = InternLabel(row, "b");
  }
  const uint32_t count = KernelCount();
  for (int i = 0; i < 1000; ++i) {
    row = InternLabel(row, "a");
    row = InternLabel(row, "b");
  }
  CHECK_EQ(KernelCount(), count);
  CHECK_EQ(KernelName(row), "loop:b");
}

TEST(WhatIsNoUtf8IsEscaped) {
  CHECK_EQ(KernelName(InternKernel("caf\xC3\xA9")), "caf\xC3\xA9");
  CHECK_EQ(KernelName(InternKernel("caf\xE9")), "caf\\xe9");
  CHECK_EQ(KernelName(InternKernel("cut\xC3")), "cut\\xc3");
  CHECK_EQ(KernelName(InternKernel("\xC0\xAF")), "\\xc0\\xaf");  // overlong
  CHECK_EQ(KernelName(InternKernel("\xE0\x80\xAF")), "\\xe0\\x80\\xaf");
  CHECK_EQ(KernelName(InternKernel("\xED\xA0\x80")), "\\xed\\xa0\\x80");
  CHECK_EQ(KernelName(InternKernel("\xF4\x90\x80\x80")),
           "\\xf4\\x90\\x80\\x80");
  CHECK_EQ(KernelName(InternKernel("\xF0\x9F\x98\x80")), "\xF0\x9F\x98\x80");
  CHECK_EQ(KernelName(InternKernel("a\nb")), "a\\x0ab");
}

TEST(LongNamesAreCutBetweenCharacters) {
  std::string name;
  for (int i = 0; i < 1000; ++i) name += "\xC3\xA9";
  const std::string kept = KernelName(InternKernel(name));
  CHECK_EQ(kept.size(), 259u);
  CHECK_EQ(kept, name.substr(0, 256) + "...");
}

// The last, since it fills the table of the process.
TEST(WhereNoRowIsLeftALabelCountsForItsKernel) {
  const KernelId kernel = InternKernel("many");
  while (KernelCount() < kMaxKernels) {
    InternLabel(kernel, std::to_string(KernelCount()));
  }
  CHECK_EQ(InternLabel(kernel, "one more"), kernel);
  CHECK_EQ(InternKernel("another"), kOtherKernels);
}

}  // namespace
}  // namespace jax_bfc::testing
