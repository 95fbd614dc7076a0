#include "lpcd/linalg/blas.h"
#include "lpcd/solve/projector.h"

namespace lpcd::solve {

Mat correct_output(const RunContext& ctx, ConstView weight, ConstView missing, const Metric& metric,
                   double strength) {
  Mat target = Mat::uninitialized(weight.rows(), weight.cols());
  copy(missing, target);
  solve_in_metric(ctx, metric, target);
  const auto s = static_cast<float>(strength);
  for (int64_t n = 0; n < weight.rows(); ++n) {
    for (int64_t k = 0; k < weight.cols(); ++k) target(n, k) = weight(n, k) + s * target(n, k);
  }
  return target;
}

Mat propagate_error(const RunContext& ctx, ConstView weight, ConstView cross, const Metric& metric,
                    double strength) {
  Mat missing = Mat::uninitialized(weight.rows(), weight.cols());
  linalg::gemm_nn(ctx, 1.0F, weight, cross, 0.0F, missing);
  return correct_output(ctx, weight, missing, metric, strength);
}

}  // namespace lpcd::solve
