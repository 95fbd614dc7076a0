#include <array>

#include "lpcd/linalg/blas.h"
#include "lpcd/submodules/submodule.h"

// Residual paths (LoaQ, arXiv 2509.06297; LPCD, arXiv 2512.01546): for a layer that ends in a
// residual sum y = h + W x the closest output on the quantized path is reached by
//   W' = W + R (H + lambda I)^-1,  R = (2/T) sum (y_f - h_q - W x_q) x_q^T.

namespace lpcd::submodules {
namespace {

constexpr std::array<arch::Role, 2> kRoles = {arch::Role::kO, arch::Role::kDown};

class Residual final : public Submodule {
 public:
  std::string_view name() const override { return "residual"; }
  std::span<const arch::Role> roles() const override { return kRoles; }

  CrossMoments cross_moments(arch::Role /*role*/, const SolverOptions& options,
                             bool /*excluded*/) const override {
    return {.input = options.reference && options.alt_steps > 1,
            .output = CrossMoments::Output::kResidual};
  }

  std::optional<double> strength(const SolverOptions& options) const override {
    return options.lpcd_strength;
  }

  // The closed form applies the strength s, and the blend with the original weight applies it
  // again. From the second cycle on it starts from the quantized weight Q, whose own error it takes
  // for the original's: R + (Q - W) C.
  format::QuantizedMatrix solve_as_reference(const RunContext& ctx, const LayerProblem& problem,
                                             const solve::Metric& metric,
                                             const SolverOptions& options, const Project& project,
                                             report::LayerRecord& record) const override {
    const ConstView w = problem.weight;
    const auto s = static_cast<float>(options.lpcd_strength.value_or(kDefaultStrength));
    record.strength = static_cast<double>(s) * static_cast<double>(s);
    Mat current = Mat::uninitialized(w.rows(), w.cols());
    copy(w, current);
    format::QuantizedMatrix result;
    for (int cycle = 0; cycle < options.alt_steps; ++cycle) {
      Mat missing = Mat::uninitialized(w.rows(), w.cols());
      copy(problem.solve.cross_output, missing);
      if (cycle > 0) {
        Mat moved = Mat::uninitialized(w.rows(), w.cols());
        for (int64_t i = 0; i < moved.size(); ++i) {
          moved.data()[i] = current.data()[i] - w(i / w.cols(), i % w.cols());
        }
        linalg::gemm_nn(ctx, 1.0F, moved, problem.solve.cross_input, 1.0F, missing);
      }
      solve::solve_in_metric(ctx, metric, missing);
      Mat target = Mat::uninitialized(w.rows(), w.cols());
      for (int64_t n = 0; n < w.rows(); ++n) {
        for (int64_t k = 0; k < w.cols(); ++k) {
          const float relaxed = current(n, k) + s * missing(n, k);
          target(n, k) = (1.0F - s) * w(n, k) + s * relaxed;
        }
      }
      result = project(target, metric);
      current = result.decode();
    }
    return result;
  }
};

}  // namespace

const Submodule& residual_submodule() {
  static const Residual kResidual;
  return kResidual;
}

}  // namespace lpcd::submodules
