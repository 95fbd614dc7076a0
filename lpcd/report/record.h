#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace lpcd::report {

/// One way of putting a layer on its grid that was tried.
struct Candidate {
  /// What was projected: "layer" or "submodule"; "codes": those of the cycle before, refined
  /// towards the same target; "kept": those as they are.
  std::string target;
  std::string metric;   ///< "inputs" (H), or "submodule" (weighted as the submodule sees them)
  double percdamp = 0;  ///< damping relative to the mean diagonal
  double strength = 0;  ///< share of the correction or relaxation in the target (mean over outputs)
  double held_out = 0;  ///< objective on the held-out sequences (on all of a run that has none);
                        ///< comparable within a list only
  double held_out_face_value = -1;  ///< the same without weights of tokens; -1: not measured
  bool chosen = false;  ///< is what the layer came to: one of a list, and of all cycles, at most
};

/// Before another one is chosen, or when the layer is what it was before all of them.
inline void choose_none(std::vector<Candidate>& candidates) {
  for (Candidate& candidate : candidates) candidate.chosen = false;
}

/// How a submodule's relaxation of one layer went.
struct RelaxationRecord {
  std::string submodule;  ///< "qk", "vo", "gate", "ud"
  int cycle = 0;
  double strength = 0;           ///< share of the step to the optimum that was taken
  double objective_before = -1;  ///< relative error of the submodule, held out where possible
  double objective_relaxed = -1;
  double baseline = -1;             ///< with the layer-wise solution on its grid
  double baseline_face_value = -1;  ///< the same without weights of tokens
  double projected = -1;            ///< with the best candidate; the baseline is one
  double residual = 0;              ///< of the normal equations, relative to its start
  bool rolled_back = false;         ///< undone with the submodule's other layers, see JointRecord
  std::vector<Candidate> candidates;
};

/// What all layers of a submodule came to together, each having been judged beside the others as
/// they were then; in later cycles with the layer that closes it.
struct JointRecord {
  std::string submodule;
  int cycle = 0;
  /// Relative error of the submodule with the layer-wise solutions, or with what the cycle before
  /// came to.
  double baseline = -1;
  double baseline_face_value = -1;
  double projected = -1;  ///< with what was chosen for each layer
  double projected_face_value = -1;
  bool rolled_back = false;  ///< the baseline was better
};

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
  std::vector<Candidate> candidates;          ///< of the layer-wise solution; empty: no choice
  std::vector<RelaxationRecord> relaxations;  ///< by the submodules that the layer belongs to
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
  double held_out_error = -1;  ///< the same on the held-out sequences
  /// Mean over tokens of the squared distance of x_q / ||x_q|| and x_f / ||x_f||, which is what the
  /// next norm sees; and the same on the held-out sequences.
  double token_error = -1;
  double held_out_token_error = -1;
  /// Submodules that relaxed several layers, and later cycles ("gate+ud": of one half block)
  std::vector<JointRecord> joint;
  std::map<std::string, StageCost> stages;
  double seconds = 0;
};

[[nodiscard]] std::string to_json_text(const BlockRecord& record);

}  // namespace lpcd::report
