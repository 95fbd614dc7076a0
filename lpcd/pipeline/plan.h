#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "lpcd/arch/block_forward.h"
#include "lpcd/arch/model.h"
#include "lpcd/format/grid.h"
#include "lpcd/pipeline/options.h"
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
};

/// What a run will do, worked out from options and model before anything is computed.
struct Plan {
  QuantizeOptions options;
  int64_t blocks = 0;
  int64_t sequences = 0;
  int64_t seq_len = 0;
  std::vector<std::vector<LayerPlan>> layers;  ///< [blocks][7]
  submodules::SolverOptions solver;

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

  uint64_t quantized_bytes = 0;  ///< of the codes, scales and zeros of all layers
  uint64_t disk_bytes =
      0;  ///< at most in the output directory while the run lasts, outputs included

  [[nodiscard]] int64_t tokens() const { return sequences * seq_len; }
  [[nodiscard]] const LayerPlan& layer(int64_t block, arch::Role role) const;
};

/// Checks the options against each other and the model, resolves grids and submodules, and adds up
/// arithmetic, memory and disk.
///
/// Errors    kBadOption for options that contradict each other; kMemoryBudget when even with
///           activations on disk the limit is too low (the message says how much is needed).
[[nodiscard]] Plan make_plan(const arch::Model& model, const QuantizeOptions& options,
                             uint64_t machine_memory);

/// The plan as the dry run prints it. `flops_per_second` 0: no estimate of the time.
[[nodiscard]] std::string describe(const Plan& plan, double flops_per_second);

/// Memory of the machine or of the control group this process lives in, whichever is less.
[[nodiscard]] uint64_t available_memory();

}  // namespace lpcd::pipeline
