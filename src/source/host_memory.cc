#include "source/host_memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

namespace jax_bfc {
namespace {

constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();

// The value of a line "Name:  123 kB" of /proc/meminfo, in bytes.
size_t MemInfo(const std::string& root, const std::string& name) {
  std::ifstream file(root + "/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, name.size(), name) != 0) continue;
    size_t kib = 0;
    if (std::istringstream(line.substr(name.size())) >> kib) return kib * 1024;
  }
  return kNoLimit;
}

// The number in a file; "max", and a file that is not there, are no limit.
size_t LimitIn(const std::string& path) {
  std::ifstream file(path);
  size_t bytes = kNoLimit;
  return file >> bytes ? bytes : kNoLimit;
}

// The smallest limit of `group` and its parents below `mount`. Inside a
// container the path may not exist; the mount point itself always counts.
size_t SmallestLimit(const std::string& mount, std::string group,
                     const std::string& file) {
  size_t smallest = LimitIn(mount + "/" + file);
  while (!group.empty() && group != "/") {
    smallest = std::min(smallest, LimitIn(mount + group + "/" + file));
    group.erase(group.find_last_of('/'));
  }
  return smallest;
}

}  // namespace

size_t HostTotalBytes(const std::string& root) {
  size_t total = MemInfo(root, "MemTotal:");
  std::ifstream groups(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {  // "id:controllers:/path"
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers =
        "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (path.empty() || path[0] != '/') continue;
    if (controllers == ",,") {
      total = std::min(
          total, SmallestLimit(root + "/sys/fs/cgroup", path, "memory.max"));
    } else if (controllers.find(",memory,") != std::string::npos) {
      total = std::min(total, SmallestLimit(root + "/sys/fs/cgroup/memory",
                                            path, "memory.limit_in_bytes"));
    }
  }
  return total;
}

size_t HostAddressBytes() {
  std::ifstream file("/proc/self/statm");
  size_t pages = 0;
  return file >> pages ? pages * static_cast<size_t>(sysconf(_SC_PAGESIZE)) : 0;
}

size_t HostAvailableBytes() { return MemInfo("", "MemAvailable:"); }

}  // namespace jax_bfc
