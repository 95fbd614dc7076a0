#include "lpcd/linalg/parallel.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "lpcd/base/checked.h"
#include "lpcd/base/control_group.h"

namespace lpcd::linalg {

void parallel_for(const RunContext& ctx, int64_t count, const std::function<void(int64_t)>& body) {
  // Always the same team, some of it idle where tasks are few: for one of another size libgomp ends
  // threads and starts new ones, every time.
  const int threads = std::max(ctx.threads, 1);
  if (threads == 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) {
      ctx.throw_if_cancelled();
      body(i);
    }
    return;
  }
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr first;
  std::mutex first_mutex;
#pragma omp parallel num_threads(threads)
  {
    while (!failed.load(std::memory_order_relaxed)) {
      const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) break;
      try {
        ctx.throw_if_cancelled();
        body(i);
      } catch (...) {
        const std::lock_guard lock(first_mutex);
        if (!first) first = std::current_exception();
        failed.store(true, std::memory_order_relaxed);
      }
    }
  }
  if (first) std::rethrow_exception(first);
}

void for_rows(const RunContext& ctx, int64_t rows,
              const std::function<void(int64_t, int64_t)>& body) {
  parallel_for(ctx, ceil_div(rows, kRowsPerTask), [&](int64_t task) {
    const int64_t r0 = task * kRowsPerTask;
    body(r0, std::min(kRowsPerTask, rows - r0));
  });
}

int available_threads() {
  const int processors = std::max(1, omp_get_num_procs());  // of the affinity mask
  const int granted = control_group_processors();
  return granted > 0 ? std::min(processors, granted) : processors;
}

}  // namespace lpcd::linalg
