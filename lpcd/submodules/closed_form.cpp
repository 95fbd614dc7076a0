#include <algorithm>

#include "lpcd/linalg/blas.h"
#include "lpcd/submodules/submodule.h"
#include "lpcd/submodules/sums.h"

namespace lpcd::submodules {

Mat missing_output(const RunContext& ctx, const LayerProblem& problem,
                   const LayerMoments& moments) {
  const int64_t rows = problem.weight.rows();
  const int64_t cols = problem.weight.cols();
  if (!moments.cross_output.empty()) {
    Mat missing = Mat::uninitialized(rows, cols);
    copy(moments.cross_output, missing);
    return missing;
  }
  if (moments.cross_input.empty()) return {};
  Mat missing = Mat::uninitialized(rows, cols);
  linalg::gemm_nn(ctx, 1.0F, problem.weight, moments.cross_input, 0.0F, missing);
  return missing;
}

double layer_error(const RunContext& ctx, const LayerProblem& problem, const LayerMoments& moments,
                   ConstView missing, ConstView weight) {
  double cross = 0;
  if (!missing.empty()) {
    for (int64_t n = 0; n < weight.rows(); ++n) {
      for (int64_t k = 0; k < weight.cols(); ++k) {
        const double step =
            static_cast<double>(weight(n, k)) - static_cast<double>(problem.weight(n, k));
        cross += step * static_cast<double>(missing(n, k));
      }
    }
  }
  return std::max(0.0, moments.missing_energy) - cross +
         solve::output_error(ctx, weight, problem.weight, moments.h);
}

Target correct(const RunContext& ctx, const LayerProblem& problem, const solve::Metric& metric,
               std::optional<double> strength) {
  const ConstView w = problem.weight;
  Target target{.weight = Mat::uninitialized(w.rows(), w.cols())};
  copy(w, target.weight);
  Mat step = missing_output(ctx, problem, problem.solve);
  if (step.empty()) return target;
  solve::solve_in_metric(ctx, metric, step);
  double s = strength.value_or(kDefaultStrength);
  if (!strength && problem.has_held_out()) {
    // f(W + s D) = f(W) - s <D, R> + s^2 tr(D H D^T) / 2
    const Mat missing = missing_output(ctx, problem, problem.held_out);
    const Mat zero(w.rows(), w.cols());
    const double bend = 2 * solve::output_error(ctx, step, zero, problem.held_out.h);
    s = bend > 0 ? std::clamp(inner_product(step, missing) / bend, 0.0, 1.0) : 0.0;
  }
  const auto share = static_cast<float>(s);
  for (int64_t i = 0; i < step.size(); ++i) {
    target.weight.data()[i] += share * step.data()[i];
  }
  target.strength = s;
  return target;
}

}  // namespace lpcd::submodules
