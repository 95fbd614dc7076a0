#include <algorithm>

#include "lpcd/linalg/blas.h"
#include "lpcd/nn/ops.h"
#include "lpcd/submodules/submodule.h"
#include "lpcd/submodules/sums.h"

namespace lpcd::submodules {
namespace {

// f(W + s D) = f(W) - s <D, R> + s^2 tr(D H D^T) / 2 is a sum over outputs, so each may take a
// share of its own: outputs whose error the inputs do not predict keep their weights. The shares
// lean towards the one that is best for all, with the weight of an average output. Returns the
// mean.
double best_shares(const RunContext& ctx, ConstView step, ConstView missing, ConstView h,
                   std::vector<double>& shares) {
  Mat product = Mat::uninitialized(step.rows(), step.cols());
  linalg::gemm_nn(ctx, 1.0F, step, h, 0.0F, product);
  const auto outputs = static_cast<size_t>(step.rows());
  std::vector<double> slopes(outputs);
  std::vector<double> bends(outputs);
  double slope = 0;
  double bend = 0;
  for (size_t n = 0; n < outputs; ++n) {
    const ConstView row = step.rows_range(static_cast<int64_t>(n), 1);
    slopes[n] = nn::inner_product(row, missing.rows_range(static_cast<int64_t>(n), 1));
    bends[n] = nn::inner_product(row, product.view().rows_range(static_cast<int64_t>(n), 1));
    slope += slopes[n];
    bend += bends[n];
  }
  if (!(bend > 0)) {
    std::ranges::fill(shares, 0.0);
    return 0;
  }
  const double common = std::clamp(slope / bend, 0.0, 1.0);
  const double lean = bend / static_cast<double>(outputs);
  double taken = 0;
  for (size_t n = 0; n < outputs; ++n) {
    shares[n] = std::clamp((slopes[n] + common * lean) / (bends[n] + lean), 0.0, 1.0);
    taken += shares[n] * bends[n];
  }
  return taken / bend;
}

}  // namespace

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
  std::vector<double> shares(static_cast<size_t>(w.rows()), strength.value_or(kDefaultStrength));
  target.strength = strength.value_or(kDefaultStrength);
  if (!strength && problem.has_held_out()) {
    target.strength = best_shares(ctx, step, missing_output(ctx, problem, problem.held_out),
                                  problem.held_out.h, shares);
  }
  for (int64_t n = 0; n < w.rows(); ++n) {
    const auto share = static_cast<float>(shares[static_cast<size_t>(n)]);
    for (int64_t k = 0; k < w.cols(); ++k) target.weight(n, k) += share * step(n, k);
  }
  return target;
}

}  // namespace lpcd::submodules
