#pragma once

#include <cstdint>

#include "lpcd/base/context.h"
#include "lpcd/base/json.h"

namespace lpcd::api {

/// A copy of the context with `threads` resolved (0: all processors) and the BLAS set up.
[[nodiscard]] RunContext prepared(const RunContext& ctx, int threads);

/// Largest resident size of this process so far, in bytes.
[[nodiscard]] uint64_t peak_memory();

/// CPU, BLAS, threads: what a record says about where it was made.
[[nodiscard]] Json describe_machine(const RunContext& ctx);

}  // namespace lpcd::api
