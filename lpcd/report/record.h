#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace lpcd::report {

/// What happened to one layer.
struct LayerRecord {
  std::string name;                    ///< tensor name, "model.layers.3.self_attn.q_proj.weight"
  std::string submodule;               ///< which submodule solved it: "single", "residual"
  std::string grid;                    ///< "3 bits, groups of 64, symmetric"
  double damping = 0;                  ///< lambda that was added to the diagonal of H
  std::vector<double> damping_raised;  ///< lambdas at which the factorisation failed before
  double strength = 0;                 ///< share of the correction that was applied to the target
  /// Mean squared error per token of the objective, relative to the mean square of what the layer
  /// (single) or the residual path (residual) gives in the original model. -1: not measured.
  double objective_before = -1;     ///< with the original weights on the quantized inputs
  double objective_relaxed = -1;    ///< with the real-valued target
  double objective_projected = -1;  ///< with the weights on the grid
  /// ||W - W^||^2 / ||W||^2.
  double weight_error = 0;
  double seconds = 0;
};

/// Time and arithmetic of one kind of work.
struct StageCost {
  double seconds = 0;
  double flops = 0;
};

/// What happened to one block.
struct BlockRecord {
  int64_t block = 0;
  std::vector<LayerRecord> layers;
  /// ||X_q - X_f||^2 / ||X_f||^2 of the block's output on the calibration tokens; -1: not measured.
  double output_error = -1;
  std::map<std::string, StageCost> stages;
  double seconds = 0;
};

[[nodiscard]] std::string to_json_text(const BlockRecord& record);

}  // namespace lpcd::report
