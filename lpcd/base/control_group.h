#pragma once

#include <cstdint>
#include <string>

namespace lpcd {

/// Memory of the machine or of the control groups (v1 or v2) this process lives in, whichever is
/// less. `root` stands in front of /proc and /sys; for tests.
[[nodiscard]] uint64_t available_memory(const std::string& root = "");

/// Processors whose time the control groups grant (cpu.max; cfs_quota_us over cfs_period_us),
/// rounded up; 0: no limit.
[[nodiscard]] int control_group_processors(const std::string& root = "");

}  // namespace lpcd
