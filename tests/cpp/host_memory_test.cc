// How much memory the process may have, read from files of a made-up root.
#include "source/host_memory.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "check.h"

namespace jax_bfc::testing {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();

// A folder that stands for "/", removed with this.
class Root {
 public:
  Root() {
    std::string name = fs::temp_directory_path() / "jax_bfc_root_XXXXXX";
    CHECK(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Root() { fs::remove_all(path_); }
  Root(const Root&) = delete;
  Root& operator=(const Root&) = delete;

  Root& Write(const std::string& name, const std::string& text) {
    const fs::path file = path_.string() + name;
    fs::create_directories(file.parent_path());
    std::ofstream(file) << text;
    return *this;
  }
  // 1 GiB of physical memory.
  Root& WriteMemInfo() {
    return Write("/proc/meminfo",
                 "MemTotal:        1048576 kB\nMemFree:          1 kB\n");
  }
  Root& WriteCgroup(const std::string& text) {
    return Write("/proc/self/cgroup", text);
  }
  Root& WriteLimit(const std::string& name, const std::string& text) {
    return Write("/sys/fs/cgroup" + name, text);
  }
  size_t Total() const { return HostTotalBytes(path_.string()); }

 private:
  fs::path path_;
};

TEST(WithoutControlGroupsAllOfPhysicalMemoryCounts) {
  CHECK_EQ(Root().WriteMemInfo().Total(), 1024 * kMiB);
}

TEST(WhereNoFileIsThereNothingLimits) { CHECK_EQ(Root().Total(), kNoLimit); }

TEST(TheLimitOfAVersion2GroupCounts) {
  Root root;
  root.WriteMemInfo().WriteCgroup("0::/job\n");
  root.WriteLimit("/job/memory.max", "268435456\n");
  CHECK_EQ(root.Total(), 256 * kMiB);
}

TEST(TheLimitOfAVersion1GroupCounts) {
  Root root;
  root.WriteMemInfo().WriteCgroup("5:cpu:/x\n4:memory:/job\n0::/\n");
  root.WriteLimit("/memory/job/memory.limit_in_bytes", "134217728\n");
  CHECK_EQ(root.Total(), 128 * kMiB);
}

TEST(AVersion1ControllerMayShareItsHierarchy) {
  Root root;
  root.WriteMemInfo().WriteCgroup("4:cpuset,memory,pids:/job\n");
  root.WriteLimit("/memory/job/memory.limit_in_bytes", "134217728\n");
  CHECK_EQ(root.Total(), 128 * kMiB);
}

TEST(ControllersWithMemoryInTheirNameAreOthers) {
  Root root;
  root.WriteMemInfo().WriteCgroup("4:memoryless:/job\n3:name=memory:/job\n");
  root.WriteLimit("/memory/job/memory.limit_in_bytes", "134217728\n");
  CHECK_EQ(root.Total(), 1024 * kMiB);
}

TEST(ASmallerLimitOfAnyParentCounts) {
  for (const char* group : {"", "/a", "/a/b", "/a/b/c"}) {
    Root root;
    root.WriteMemInfo().WriteCgroup("0::/a/b/c\n");
    for (const char* each : {"", "/a", "/a/b", "/a/b/c"}) {
      root.WriteLimit(std::string(each) + "/memory.max", "536870912\n");
    }
    root.WriteLimit(std::string(group) + "/memory.max", "67108864\n");
    CHECK_EQ(root.Total(), 64 * kMiB);
  }
}

TEST(ALimitBesideTheGroupDoesNotCount) {
  Root root;
  root.WriteMemInfo().WriteCgroup("0::/a/b\n");
  root.WriteLimit("/a/other/memory.max", "4096\n");
  root.WriteLimit("/a/b/child/memory.max", "4096\n");
  CHECK_EQ(root.Total(), 1024 * kMiB);
}

TEST(MaxIsNoLimit) {
  Root root;
  root.WriteMemInfo().WriteCgroup("0::/a\n");
  root.WriteLimit("/memory.max", "max\n").WriteLimit("/a/memory.max", "max\n");
  CHECK_EQ(root.Total(), 1024 * kMiB);
}

TEST(InAContainerTheMountPointCounts) {
  Root root;
  // The path is the host's and does not exist here.
  root.WriteMemInfo().WriteCgroup("0::/system/container-1\n");
  root.WriteLimit("/memory.max", "67108864\n");
  CHECK_EQ(root.Total(), 64 * kMiB);
}

TEST(TheSmallerOfBothVersionsCounts) {
  Root root;
  root.WriteMemInfo().WriteCgroup("4:memory:/v1\n0::/v2\n");
  root.WriteLimit("/memory/v1/memory.limit_in_bytes", "134217728\n");
  root.WriteLimit("/v2/memory.max", "67108864\n");
  CHECK_EQ(root.Total(), 64 * kMiB);
}

TEST(ALimitAbovePhysicalMemoryDoesNotCount) {
  Root root;
  root.WriteMemInfo().WriteCgroup("4:memory:/job\n");
  // What version 1 says where there is no limit.
  root.WriteLimit("/memory/job/memory.limit_in_bytes", "9223372036854771712\n");
  CHECK_EQ(root.Total(), 1024 * kMiB);
}

TEST(LinesThatMakeNoSenseArePassedOver) {
  Root root;
  root.Write("/proc/meminfo",
             "\nMemTotal\nMemTotal: much kB\nMemTotal:  1048576 kB\n");
  root.WriteCgroup("\nnonsense\n0:\n0:memory\n4:memory:\n0::job\n::\n0::/a\n");
  root.WriteLimit("/memory.max", "");
  root.WriteLimit("/a/memory.max", "many\n");
  CHECK_EQ(root.Total(), 1024 * kMiB);
}

TEST(ThisMachineHasMemory) {
  CHECK(HostTotalBytes() > kMiB);
  CHECK(HostTotalBytes() < size_t{1} << 48);
  CHECK(HostAvailableBytes() > kMiB);
}

}  // namespace
}  // namespace jax_bfc::testing
