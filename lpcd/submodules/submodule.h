#pragma once

#include <functional>
#include <span>
#include <string_view>

#include "lpcd/arch/arch.h"
#include "lpcd/report/record.h"
#include "lpcd/solve/projector.h"

namespace lpcd::submodules {

/// Which moments between what a layer should correct and its quantized-path input x_q a submodule
/// needs, besides H.
struct CrossMoments {
  /// C = (2/T) sum (x_f - x_q) x_q^T  [K, K], shared by the layers that read one input.
  bool input = false;
  /// R = (2/T) sum r x_q^T  [N, K] with r per token:
  enum class Output {
    kNone,
    kError,     ///< W (x_f - x_q): what the input error does to the layer's output (R = W C)
    kResidual,  ///< h_f + W x_f - h_q - W x_q: what is missing at the end of the residual path
  };
  Output output = Output::kNone;
};

/// What the pipeline knows about a layer when its inputs are fixed.
struct LayerProblem {
  arch::Role role = arch::Role::kQ;
  ConstView weight;  ///< the original W [N, K]
  const solve::Metric* metric = nullptr;
  ConstView cross_input;       ///< C, if asked for
  ConstView cross_output;      ///< R, if asked for
  double missing_energy = -1;  ///< (1/T) sum |r|^2 of the output that R was made of; -1: unknown
  double output_energy = -1;   ///< (1/T) sum |y_f|^2 of the original output; -1: unknown
};

/// Projects a target onto the layer's grid in the metric of its inputs.
using Project = std::function<format::QuantizedMatrix(ConstView target)>;

struct SolverOptions {
  bool qep = true;
  double qep_strength = 0.5;
  double lpcd_strength = 0.5;
  int alt_steps = 1;
  /// Repeat what the reference package does in closed-form layers: the strength enters twice, and
  /// later cycles start from the quantized weight.
  bool reference = false;
};

/// A part of a block whose output LPCD keeps close to the original's: which layers it owns, what
/// statistics it needs, and how it finds their weights.
class Submodule {
 public:
  virtual ~Submodule() = default;
  /// What --lpcd calls it.
  [[nodiscard]] virtual std::string_view name() const = 0;
  [[nodiscard]] virtual std::span<const arch::Role> roles() const = 0;
  /// `excluded`: error propagation is switched off for this layer (--qep-exclude).
  [[nodiscard]] virtual CrossMoments cross_moments(arch::Role role, const SolverOptions& options,
                                                   bool excluded) const = 0;
  /// Relaxes the layer to the reals, then projects it. Fills the objectives of the record.
  [[nodiscard]] virtual format::QuantizedMatrix solve(const RunContext& ctx,
                                                      const LayerProblem& problem,
                                                      const SolverOptions& options,
                                                      const Project& project,
                                                      report::LayerRecord& record) const = 0;
};

/// The layer on its own: RTN or GPTQ, with QEP's correction where it is on. Owns what no other
/// submodule claims.
const Submodule& single_submodule();
/// o_proj and down_proj, which end in a residual sum: closed form.
const Submodule& residual_submodule();

/// All submodules that --lpcd can name, in the order in which they claim layers.
[[nodiscard]] std::span<const Submodule* const> lpcd_submodules();

}  // namespace lpcd::submodules
