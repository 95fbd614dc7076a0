#pragma once

#include <string>
#include <vector>

namespace lpcd {

/// Files that may limit a resource of this process: of its control group and of all groups around
/// it, and of a container's own root. `v2_file` in groups of version 2 ("memory.max"); in those of
/// version 1 `v1_file` of `controller` ("memory", "memory.limit_in_bytes"). Not all of them need
/// exist. `root`: what stands before /proc and /sys; for tests.
[[nodiscard]] std::vector<std::string> control_group_files(const std::string& root,
                                                           const std::string& controller,
                                                           const std::string& v2_file,
                                                           const std::string& v1_file);

/// Processors whose time the control groups grant (cpu.max; cfs_quota_us over cfs_period_us),
/// rounded up; 0: no limit.
[[nodiscard]] int control_group_processors(const std::string& root = "");

}  // namespace lpcd
