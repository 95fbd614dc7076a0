#include "lpcd/linalg/blas.h"
#include "lpcd/solve/projector.h"

namespace lpcd::solve {

Mat propagate_error(const RunContext& ctx, ConstView weight, ConstView cross, const Metric& metric,
                    double strength) {
  Mat correction = Mat::uninitialized(weight.rows(), weight.cols());
  linalg::gemm_nn(ctx, static_cast<float>(strength), weight, cross, 0.0F, correction);
  solve_in_metric(ctx, metric, correction);
  for (int64_t n = 0; n < weight.rows(); ++n) {
    for (int64_t k = 0; k < weight.cols(); ++k) correction(n, k) += weight(n, k);
  }
  return correction;
}

}  // namespace lpcd::solve
