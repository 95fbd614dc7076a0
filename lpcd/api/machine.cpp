#include "lpcd/api/machine.h"

#include <sys/resource.h>

#include "lpcd/base/control_group.h"
#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/cpu.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/lpcd.h"

namespace lpcd {

std::string version() { return LPCD_VERSION; }

std::string recommended_openblas_core() { return linalg::better_openblas_core(); }

namespace api {

RunContext prepared(const RunContext& ctx, int threads) {
  linalg::use_single_threaded_blas();
  RunContext copy = ctx;
  copy.threads = threads > 0 ? threads : linalg::available_threads();
  return copy;
}

uint64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;  // Linux counts in KiB
}

Json describe_machine(const RunContext& ctx) {
  const linalg::BlasInfo blas = linalg::blas_info();
  return {{"cpu", linalg::cpu_name()},
          {"simd", linalg::simd_name()},
          {"blas", blas.library},
          {"blas_core", blas.core},
          {"arithmetic", linalg::arithmetic(ctx)},
          {"threads", ctx.threads},
          {"memory_bytes", available_memory()}};
}

}  // namespace api
}  // namespace lpcd
