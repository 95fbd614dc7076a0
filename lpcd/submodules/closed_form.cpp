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
  for_rows(ctx, step.rows(), [&](int64_t r0, int64_t count) {
    for (int64_t n = r0; n < r0 + count; ++n) {
      const ConstView row = step.rows_range(n, 1);
      slopes[static_cast<size_t>(n)] = nn::inner_product(row, missing.rows_range(n, 1));
      bends[static_cast<size_t>(n)] = nn::inner_product(row, product.view().rows_range(n, 1));
    }
  });
  for (size_t n = 0; n < outputs; ++n) {
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

ConstView missing_output(const RunContext& ctx, const LayerProblem& problem,
                         const LayerMoments& moments, Mat& product) {
  if (!moments.cross_output.empty()) return moments.cross_output;
  if (moments.cross_input.empty()) return {};
  product = Mat::uninitialized(problem.weight.rows(), problem.weight.cols());
  linalg::gemm_nn(ctx, 1.0F, problem.weight, moments.cross_input, 0.0F, product);
  return product;
}

double layer_error(const RunContext& ctx, const LayerProblem& problem, const LayerMoments& moments,
                   ConstView missing, ConstView weight) {
  double cross = 0;
  if (!missing.empty()) {
    std::vector<double> sums(static_cast<size_t>(weight.rows()));
    for_rows(ctx, weight.rows(), [&](int64_t r0, int64_t count) {
      for (int64_t n = r0; n < r0 + count; ++n) {
        double& sum = sums[static_cast<size_t>(n)];
        for (int64_t k = 0; k < weight.cols(); ++k) {
          const double step =
              static_cast<double>(weight(n, k)) - static_cast<double>(problem.weight(n, k));
          sum += step * static_cast<double>(missing(n, k));
        }
      }
    });
    for (const double sum : sums) cross += sum;
  }
  return std::max(0.0, moments.missing_energy) - cross +
         solve::output_error(ctx, weight, problem.weight, moments.h);
}

Target correct(const RunContext& ctx, const LayerProblem& problem, const solve::Metric& metric,
               std::optional<double> strength, ConstView missing, ConstView held_out_missing) {
  const ConstView w = problem.weight;
  Target target{.weight = copied(ctx, w)};
  if (missing.empty() || strength == 0.0) return target;
  Mat step = copied(ctx, missing);
  solve::solve_in_metric(ctx, metric, step);
  std::vector<double> shares(static_cast<size_t>(w.rows()), strength.value_or(kDefaultStrength));
  target.strength = strength.value_or(kDefaultStrength);
  if (!strength && problem.has_held_out()) {
    target.strength = best_shares(ctx, step, held_out_missing, problem.held_out.h, shares);
  }
  for_rows(ctx, w.rows(), [&](int64_t r0, int64_t count) {
    for (int64_t n = r0; n < r0 + count; ++n) {
      const auto share = static_cast<float>(shares[static_cast<size_t>(n)]);
      for (int64_t k = 0; k < w.cols(); ++k) target.weight(n, k) += share * step(n, k);
    }
  });
  return target;
}

}  // namespace lpcd::submodules
