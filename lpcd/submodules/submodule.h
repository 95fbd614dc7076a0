#pragma once

#include <functional>
#include <optional>
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

/// What was summed over one part of the calibration sequences at a layer's input.
struct LayerMoments {
  ConstView h;                 ///< H; may be empty for the part that weights are solved on
  ConstView cross_input;       ///< C, if asked for
  ConstView cross_output;      ///< R, if asked for
  double missing_energy = -1;  ///< (1/T) sum |r|^2 of the output that R was made of; -1: unknown
  double output_energy = -1;   ///< (1/T) sum |y_f|^2 of the original output; -1: unknown
};

/// What the pipeline knows about a layer when its inputs are fixed.
struct LayerProblem {
  arch::Role role = arch::Role::kQ;
  ConstView weight;  ///< the original W [N, K]
  LayerMoments solve;
  LayerMoments held_out;  ///< empty if no sequences are held out

  [[nodiscard]] bool has_held_out() const { return !held_out.h.empty(); }
};

/// Projects a target onto the layer's grid in a metric of its inputs.
using Project =
    std::function<format::QuantizedMatrix(ConstView target, const solve::Metric& metric)>;

struct SolverOptions {
  bool qep = true;
  /// Nothing: chosen on held-out sequences.
  std::optional<double> qep_strength;
  std::optional<double> lpcd_strength;
  int alt_steps = 1;
  /// Repeat what the reference package does in closed-form layers: the strength enters twice, and
  /// later cycles start from the quantized weight.
  bool reference = false;
};

/// Strength where nothing is held out and none was given.
constexpr double kDefaultStrength = 0.5;

/// A layer's weight before projection.
struct Target {
  Mat weight;
  double strength = 0;  ///< share of the correction in it, the mean over outputs
};

/// How the weight of one layer is found from moments of its inputs alone, in closed form: which
/// layers it serves, what statistics it needs, and what it corrects.
class Submodule {
 public:
  virtual ~Submodule() = default;
  /// What --lpcd calls it.
  [[nodiscard]] virtual std::string_view name() const = 0;
  [[nodiscard]] virtual std::span<const arch::Role> roles() const = 0;
  /// `excluded`: error propagation is switched off for this layer (--qep-exclude).
  [[nodiscard]] virtual CrossMoments cross_moments(arch::Role role, const SolverOptions& options,
                                                   bool excluded) const = 0;
  /// The given strength of the correction, if it is not to be chosen.
  [[nodiscard]] virtual std::optional<double> strength(const SolverOptions& options) const = 0;
  /// The layer as the reference package solves it.
  [[nodiscard]] virtual format::QuantizedMatrix solve_as_reference(
      const RunContext& ctx, const LayerProblem& problem, const solve::Metric& metric,
      const SolverOptions& options, const Project& project, report::LayerRecord& record) const = 0;
};

/// W + s D with D = R (H + lambda I)^-1, R the missing output as moments. Where the strength s is
/// not given, every output has one of its own that minimises its error on the held-out sequences, a
/// parabola in s, leaning towards the best common one; it stays in [0, 1].
///
/// Shapes    `missing` and `held_out_missing` as missing_output() gives them for the two parts.
[[nodiscard]] Target correct(const RunContext& ctx, const LayerProblem& problem,
                             const solve::Metric& metric, std::optional<double> strength,
                             ConstView missing, ConstView held_out_missing);

/// What is missing at the layer's output, as moments: R, or W C, which `product` then holds, or
/// empty.
[[nodiscard]] ConstView missing_output(const RunContext& ctx, const LayerProblem& problem,
                                       const LayerMoments& moments, Mat& product);

/// Squared error per token of the layer's output with another weight, from moments:
/// m - tr(E R^T) + tr(E H E^T) / 2 with E = weight - W. Where m is not known it counts as 0, so
/// that only differences mean something. Shapes    missing as missing_output gives it.
[[nodiscard]] double layer_error(const RunContext& ctx, const LayerProblem& problem,
                                 const LayerMoments& moments, ConstView missing, ConstView weight);

/// The layer on its own: RTN or GPTQ, with QEP's correction where it is on. Owns what no other
/// submodule claims.
const Submodule& single_submodule();
/// o_proj and down_proj, which end in a residual sum.
const Submodule& residual_submodule();

/// Closed-form submodules that --lpcd can name, in the order in which they claim layers.
[[nodiscard]] std::span<const Submodule* const> lpcd_submodules();

}  // namespace lpcd::submodules
