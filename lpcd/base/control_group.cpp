#include "lpcd/base/control_group.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <vector>

namespace lpcd {
namespace {

// Files that may limit a resource of this process: of its control group and of all groups around
// it, and of a container's own root. `v2_file` in groups of version 2 ("memory.max"); in those of
// version 1 `v1_file` of `controller` ("memory", "memory.limit_in_bytes"). Not all of them need
// exist.
std::vector<std::string> control_group_files(const std::string& root, const std::string& controller,
                                             const std::string& v2_file,
                                             const std::string& v1_file) {
  const std::string v2_mount = root + "/sys/fs/cgroup";
  const std::string v1_mount = v2_mount + "/" + controller;
  // A container's own, whether it has a /proc or not.
  std::vector<std::string> files = {v2_mount + "/" + v2_file, v1_mount + "/" + v1_file};
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // ID:CONTROLLERS:PATH
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    const bool v2 = controllers == ",,";
    if (!v2 && controllers.find("," + controller + ",") == std::string::npos) continue;
    std::string path = line.substr(second + 1);
    while (!path.empty() && path != "/") {
      files.push_back((v2 ? v2_mount : v1_mount) + path + "/" + (v2 ? v2_file : v1_file));
      path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
    }
  }
  return files;
}

// The least memory limit of the control group of this process and of all groups around it.
uint64_t control_group_memory(const std::string& root) {
  uint64_t least = ~uint64_t{0};
  for (const std::string& path :
       control_group_files(root, "memory", "memory.max", "memory.limit_in_bytes")) {
    std::ifstream file(path);
    uint64_t limit = 0;
    if (file >> limit && limit > 0) least = std::min(least, limit);  // "max" does not parse
  }
  return least;
}

}  // namespace

uint64_t available_memory(const std::string& root) {
  const uint64_t bytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                         static_cast<uint64_t>(sysconf(_SC_PAGE_SIZE));
  return std::min(bytes, control_group_memory(root));
}

int control_group_processors(const std::string& root) {
  constexpr std::string_view kQuota = "cpu.cfs_quota_us";
  double least = 0;
  for (const std::string& path : control_group_files(root, "cpu", "cpu.max", std::string(kQuota))) {
    double quota = 0;  // "max 100000" does not parse, -1 is no limit either
    double period = 0;
    std::ifstream file(path);
    if (!(file >> quota) || quota <= 0) continue;
    if (path.ends_with(kQuota)) {
      file = std::ifstream(path.substr(0, path.size() - kQuota.size()) + "cpu.cfs_period_us");
    }
    if (!(file >> period) || period <= 0) continue;
    const double processors = std::max(1.0, std::ceil(quota / period));
    least = least == 0 ? processors : std::min(least, processors);
  }
  return static_cast<int>(std::min(least, 1e6));
}

}  // namespace lpcd
