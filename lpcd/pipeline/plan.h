#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lpcd/arch/block_forward.h"
#include "lpcd/arch/model.h"
#include "lpcd/base/json.h"
#include "lpcd/calib/self_sample.h"
#include "lpcd/format/grid.h"
#include "lpcd/pipeline/options.h"
#include "lpcd/submodules/coupled.h"
#include "lpcd/submodules/submodule.h"

namespace lpcd::pipeline {

/// Layers of a block that read the same activations, in the order they are computed.
enum class Site { kAttentionInput, kAttentionOutput, kFfnInput, kFfnOutput };
[[nodiscard]] std::span<const arch::Role> roles_of(Site site);

/// One linear layer's part in the plan.
struct LayerPlan {
  arch::Role role = arch::Role::kQ;
  std::string name;  ///< Hugging Face tensor name
  format::GridSpec grid;
  const submodules::Submodule* submodule = nullptr;
  submodules::CrossMoments cross;

  /// Solved as the end of a residual path.
  [[nodiscard]] bool residual() const {
    return cross.output == submodules::CrossMoments::Output::kResidual;
  }
};

/// What a run will do, worked out from options and model before anything is computed.
struct Plan {
  QuantizeOptions options;
  int64_t blocks = 0;
  int64_t sequences = 0;
  int64_t seq_len = 0;
  std::vector<std::vector<LayerPlan>> layers;  ///< [blocks][7]
  submodules::SolverOptions solver;
  std::vector<double> dampings;  ///< relative; more than one: chosen on held-out sequences
  /// Submodules of several layers, in the order in which they are visited.
  std::vector<const submodules::CoupledInfo*> coupled;
  int64_t held_out_sequences = 0;  ///< the last ones; they enter no solve
  int64_t sample_sequences = 0;    ///< the first ones; curvature is measured on them

  bool needs_calibration = false;
  bool original_stream = false;   ///< X_f is carried along
  bool quantized_stream = false;  ///< X_q is carried along

  std::map<std::string, double> flops;  ///< per kind of work, whole run
  double total_flops = 0;

  std::vector<std::pair<std::string, uint64_t>> memory;  ///< parts of the peak
  uint64_t peak_memory = 0;
  uint64_t memory_limit = 0;
  bool keep_ffn_activations = false;  ///< else gate and up are computed a second time
  bool activations_on_disk = false;

  /// Where the model writes the calibration text itself.
  std::optional<calib::SamplingCost> sampling;
  uint64_t sampling_memory = 0;
  bool sampling_keeps_weights = false;  ///< in memory; else they are read again for each pass

  std::vector<std::string> notes;  ///< what is done in another way than asked for, and why

  uint64_t quantized_bytes = 0;  ///< of the codes, scales and zeros of all layers
  /// At most in the output directory while the run lasts: journal and activations. Whoever knows
  /// the formats adds the outputs.
  uint64_t disk_bytes = 0;

  [[nodiscard]] int64_t tokens() const { return sequences * seq_len; }
  [[nodiscard]] int64_t tokens(submodules::Part part) const {
    switch (part) {
      case submodules::Part::kHeldOut:
        return held_out_sequences * seq_len;
      case submodules::Part::kSample:
        return sample_sequences * seq_len;
      case submodules::Part::kSolve:
        break;
    }
    return (sequences - held_out_sequences) * seq_len;
  }
  /// The order in which activations are worked on: body(part, first row, rows) for all tokens,
  /// `chunk_rows` at most at a time, parts never mixed. Everything that computes streams cuts them
  /// like this, so that a resumed run gets the same bits.
  template <typename Body>
  void for_chunks(int64_t chunk_rows, const Body& body) const {
    int64_t begin = 0;
    for (const submodules::Part part : {submodules::Part::kSolve, submodules::Part::kHeldOut}) {
      const int64_t end = begin + tokens(part);
      for (int64_t r0 = begin; r0 < end; r0 += chunk_rows) {
        body(part, r0, std::min(chunk_rows, end - r0));
      }
      begin = end;
    }
  }
  [[nodiscard]] const LayerPlan& layer(int64_t block, arch::Role role) const;
  /// Some submodule of several layers lies in that half of a block.
  [[nodiscard]] bool relaxes(submodules::Half half) const;
};

/// Checks the options against each other and the model, resolves grids and submodules, and adds up
/// arithmetic, memory and disk. With `has_calibration` the token ids are those of an earlier run:
/// the model writes no text.
///
/// Errors    kBadOption for options that contradict each other; kMemoryBudget when even with
///           activations on disk the limit is too low (the message says how much is needed).
[[nodiscard]] Plan make_plan(const arch::Model& model, const QuantizeOptions& options,
                             uint64_t machine_memory, bool has_calibration = false);

/// FLOPs of correcting and projecting one layer with one damping.
[[nodiscard]] double solve_flops(const Plan& plan, const LayerPlan& layer, int64_t outputs,
                                 int64_t inputs);

/// FLOPs of relaxing one layer of a submodule.
[[nodiscard]] double relax_flops(const Plan& plan, const submodules::Coupled& coupled,
                                 arch::Role role);

/// What was measured on the machine that is to carry out a plan.
struct MachineSpeed {
  double flops_per_second = 0;  ///< of a large product
  double read_seconds = 0;      ///< of reading the weights of all blocks once
};

/// Seconds that a run is likely to take, from and to; nothing without a speed, or without
/// arithmetic.
[[nodiscard]] std::optional<std::pair<double, double>> estimate_seconds(const Plan& plan,
                                                                        const MachineSpeed& speed);

/// The plan as the dry run prints it. Without a speed there is no estimate of the time.
[[nodiscard]] std::string describe(const Plan& plan, const MachineSpeed& speed);
/// The same for programs: bytes, FLOPs, seconds.
[[nodiscard]] Json to_json(const Plan& plan, const MachineSpeed& speed);

}  // namespace lpcd::pipeline
