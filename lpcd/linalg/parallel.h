#pragma once

#include <cstdint>
#include <functional>

#include "lpcd/base/context.h"

namespace lpcd::linalg {

/// Calls `body(i)` for every i in [0, count), on up to ctx.threads threads.
///
/// Threads   Tasks are handed out one at a time in rising order. To keep results independent of
///           the number of threads a task must not depend on another, and the split into tasks
///           must not depend on ctx.threads.
/// Errors    The first exception is rethrown here once all running tasks have ended; tasks not
///           yet started are dropped, those of a cancelled job as well (kCancelled). BLAS calls
///           inside a task run on that task's thread only.
void parallel_for(const RunContext& ctx, int64_t count, const std::function<void(int64_t)>& body);

/// Rows that one task of for_rows() takes.
constexpr int64_t kRowsPerTask = 64;

/// `body(first row, rows)` for all rows of a matrix, in tasks of kRowsPerTask.
void for_rows(const RunContext& ctx, int64_t rows,
              const std::function<void(int64_t, int64_t)>& body);

/// Number of processors this process may run on, by its affinity and its control groups.
[[nodiscard]] int available_threads();

}  // namespace lpcd::linalg
