#include <algorithm>
#include <array>

#include "lpcd/linalg/blas.h"
#include "lpcd/submodules/submodule.h"

// Residual paths (LoaQ, arXiv 2509.06297; LPCD, arXiv 2512.01546): for a layer that ends in a
// residual sum y = h + W x the closest output on the quantized path is reached by
//   W' = W + R (H + lambda I)^-1,  R = (2/T) sum (y_f - h_q - W x_q) x_q^T.

namespace lpcd::submodules {
namespace {

constexpr std::array<arch::Role, 2> kRoles = {arch::Role::kO, arch::Role::kDown};

// Mean squared error per token of h_q + W^ x_q against y_f, from the moments: with E = W^ - W it is
// m - tr(E R^T) + tr(E H E^T) / 2, where m is that of the original W.
double objective(const RunContext& ctx, const LayerProblem& problem, ConstView weight) {
  if (problem.missing_energy < 0 || !(problem.output_energy > 0)) return -1;
  double cross = 0;
  for (int64_t n = 0; n < weight.rows(); ++n) {
    for (int64_t k = 0; k < weight.cols(); ++k) {
      const double step =
          static_cast<double>(weight(n, k)) - static_cast<double>(problem.weight(n, k));
      cross += step * static_cast<double>(problem.cross_output(n, k));
    }
  }
  const double quadratic = solve::output_error(ctx, weight, problem.weight, problem.metric->h);
  return std::max(0.0, problem.missing_energy - cross + quadratic) / problem.output_energy;
}

class Residual final : public Submodule {
 public:
  std::string_view name() const override { return "residual"; }
  std::span<const arch::Role> roles() const override { return kRoles; }

  CrossMoments cross_moments(arch::Role /*role*/, const SolverOptions& options,
                             bool /*excluded*/) const override {
    return {.input = options.reference && options.alt_steps > 1,
            .output = CrossMoments::Output::kResidual};
  }

  format::QuantizedMatrix solve(const RunContext& ctx, const LayerProblem& problem,
                                const SolverOptions& options, const Project& project,
                                report::LayerRecord& record) const override {
    if (options.reference) return solve_as_reference(ctx, problem, options, project, record);
    // One layer, solved exactly: further cycles would start from the same optimum.
    const Mat target = solve::correct_output(ctx, problem.weight, problem.cross_output,
                                             *problem.metric, options.lpcd_strength);
    record.strength = options.lpcd_strength;
    record.objective_before = objective(ctx, problem, problem.weight);
    record.objective_relaxed = objective(ctx, problem, target);
    format::QuantizedMatrix result = project(target);
    record.objective_projected = objective(ctx, problem, result.decode());
    return result;
  }

 private:
  // The closed form applies the strength s, and the blend with the original weight applies it
  // again. From the second cycle on it starts from the quantized weight Q, whose own error it takes
  // for the original's: R + (Q - W) C.
  static format::QuantizedMatrix solve_as_reference(const RunContext& ctx,
                                                    const LayerProblem& problem,
                                                    const SolverOptions& options,
                                                    const Project& project,
                                                    report::LayerRecord& record) {
    const ConstView w = problem.weight;
    const auto s = static_cast<float>(options.lpcd_strength);
    record.strength = options.lpcd_strength * options.lpcd_strength;
    record.objective_before = objective(ctx, problem, w);
    Mat current = Mat::uninitialized(w.rows(), w.cols());
    copy(w, current);
    format::QuantizedMatrix result;
    for (int cycle = 0; cycle < options.alt_steps; ++cycle) {
      Mat missing = Mat::uninitialized(w.rows(), w.cols());
      copy(problem.cross_output, missing);
      if (cycle > 0) {
        Mat moved = Mat::uninitialized(w.rows(), w.cols());
        for (int64_t i = 0; i < moved.size(); ++i) {
          moved.data()[i] = current.data()[i] - w(i / w.cols(), i % w.cols());
        }
        linalg::gemm_nn(ctx, 1.0F, moved, problem.cross_input, 1.0F, missing);
      }
      Mat target = solve::correct_output(ctx, current, missing, *problem.metric, s);
      for (int64_t n = 0; n < w.rows(); ++n) {
        for (int64_t k = 0; k < w.cols(); ++k) {
          target(n, k) = (1.0F - s) * w(n, k) + s * target(n, k);
        }
      }
      record.objective_relaxed = objective(ctx, problem, target);
      result = project(target);
      current = result.decode();
    }
    record.objective_projected = objective(ctx, problem, current);
    return result;
  }
};

}  // namespace

const Submodule& residual_submodule() {
  static const Residual kResidual;
  return kResidual;
}

}  // namespace lpcd::submodules
