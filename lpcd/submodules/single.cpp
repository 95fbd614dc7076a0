#include "lpcd/submodules/submodule.h"

namespace lpcd::submodules {
namespace {

class Single final : public Submodule {
 public:
  std::string_view name() const override { return "single"; }
  std::span<const arch::Role> roles() const override { return arch::kLinearRoles; }

  CrossMoments cross_moments(arch::Role role, const SolverOptions& options,
                             bool excluded) const override {
    if (!options.qep || excluded || options.qep_strength == 0.0) return {};
    // One C serves q, k, v (and gate, up). o_proj and down_proj have an input of their own, and for
    // them R is smaller and cheaper than C: down_proj has few outputs and many inputs.
    const bool shares_input = role != arch::Role::kO && role != arch::Role::kDown;
    if (shares_input) return {.input = true};
    return {.output = CrossMoments::Output::kError};
  }

  std::optional<double> strength(const SolverOptions& options) const override {
    return options.qep_strength;
  }

  format::QuantizedMatrix solve_as_reference(const RunContext& ctx, const LayerProblem& problem,
                                             const solve::Metric& metric,
                                             const SolverOptions& options, const Project& project,
                                             report::LayerRecord& record) const override {
    Mat product;
    const Target target = correct(ctx, problem, metric, options.qep_strength,
                                  missing_output(ctx, problem, problem.solve, product), {});
    record.strength = target.strength;
    return project(target.weight, metric);
  }
};

}  // namespace

const Submodule& single_submodule() {
  static const Single kSingle;
  return kSingle;
}

}  // namespace lpcd::submodules
