#include "lpcd/pipeline/plan.h"

#include <algorithm>
#include <cmath>

#include "lpcd/base/checked.h"
#include "lpcd/base/raise.h"
#include "lpcd/pipeline/plan_cost.h"
#include "lpcd/pipeline/plan_layers.h"
#include "lpcd/pipeline/plan_options.h"
#include "lpcd/submodules/relax.h"

namespace lpcd::pipeline {

using arch::Role;
using submodules::CrossMoments;

std::span<const Role> roles_of(Site site) {
  static constexpr std::array<Role, 3> kQkv = {Role::kQ, Role::kK, Role::kV};
  static constexpr std::array<Role, 1> kO = {Role::kO};
  static constexpr std::array<Role, 2> kGateUp = {Role::kGate, Role::kUp};
  static constexpr std::array<Role, 1> kDown = {Role::kDown};
  switch (site) {
    case Site::kAttentionInput:
      return kQkv;
    case Site::kAttentionOutput:
      return kO;
    case Site::kFfnInput:
      return kGateUp;
    case Site::kFfnOutput:
      return kDown;
  }
  return {};
}

const LayerPlan& Plan::layer(int64_t block, Role role) const {
  for (const LayerPlan& layer : layers.at(static_cast<size_t>(block))) {
    if (layer.role == role) return layer;
  }
  LPCD_CHECK(false);
  return layers[0][0];
}

bool Plan::relaxes(submodules::Half half) const {
  return std::ranges::any_of(coupled, [&](const auto* info) { return info->half == half; });
}

namespace {

// Sequences are held out only where there is something to choose.
void plan_held_out(Plan& plan) {
  const bool chooses = plan.dampings.size() > 1 || !plan.coupled.empty() ||
                       !plan.solver.qep_strength || !plan.solver.lpcd_strength ||
                       std::ranges::any_of(plan.layers[0], &LayerPlan::residual);
  const double share = plan.options.holdout;
  if (!plan.needs_calibration || plan.solver.reference || !chooses || share <= 0) {
    plan.dampings = {plan.dampings[(plan.dampings.size() - 1) / 2]};
    return;
  }
  if (plan.sequences < 2) {
    raise(ErrorCode::kBadOption,
          "--holdout {} needs at least 2 calibration sequences; raise --samples, or give "
          "--holdout 0",
          share);
  }
  const int64_t count = std::llround(share * static_cast<double>(plan.sequences));
  plan.held_out_sequences = std::clamp<int64_t>(count, 1, plan.sequences - 1);
}

// A step of gradient descent that needs more sequences than there are is never taken.
void check_gd_batch(const Plan& plan) {
  const int64_t solved = plan.sequences - plan.held_out_sequences;
  const int64_t batch = plan.options.gd_batch_size;
  if (plan.options.solver != Solver::kGd || plan.coupled.empty() ||
      batch <= submodules::kAdamChunk) {
    return;
  }
  if (ceil_div(solved, submodules::kAdamChunk) * submodules::kAdamChunk < batch) {
    raise(ErrorCode::kBadOption,
          "--gd-batch-size {} is more than the {} sequences that are solved on; lower it, or raise "
          "--samples",
          batch, solved);
  }
}

void plan_sample(const arch::ModelConfig& c, Plan& plan) {
  constexpr int64_t kTokensPerInput = 4;
  const int64_t solved = plan.sequences - plan.held_out_sequences;
  const auto share =
      static_cast<int64_t>(std::ceil(plan.options.cg_sample * static_cast<double>(solved)));
  const int64_t least = (kTokensPerInput * c.hidden + plan.seq_len - 1) / plan.seq_len;
  plan.sample_sequences = std::min(solved, std::max(share, least));
}

}  // namespace

Plan make_plan(const arch::Model& model, const QuantizeOptions& options, uint64_t machine_memory,
               bool has_calibration) {
  check_options(options);
  const arch::ModelConfig& c = model.config();
  Plan plan;
  plan.options = options;
  plan.blocks = c.blocks;
  plan.sequences = options.samples;
  plan.seq_len = options.seq_len;
  if (options.seq_len > c.max_positions) {
    raise(ErrorCode::kBadOption, "--seq-len {} is beyond the model's {} positions", options.seq_len,
          c.max_positions);
  }
  plan.memory_limit = options.max_memory.empty()
                          ? static_cast<uint64_t>(0.8 * static_cast<double>(machine_memory))
                          : parse_bytes(options.max_memory, "max-memory");

  plan.solver = submodules::SolverOptions{
      .qep = options.qep,
      .qep_strength = parse_strength(options.qep_strength, "qep-strength"),
      .lpcd_strength = parse_strength(options.lpcd_strength, "lpcd-strength"),
      .alt_steps = options.alt_steps,
      .reference = options.preset == Preset::kOnecomp};
  plan.dampings = parse_dampings(options.percdamp);
  plan_layers(model, plan);
  bool crosses = !plan.coupled.empty();
  for (const LayerPlan& layer : plan.layers[0]) {
    crosses = crosses || layer.cross.input || layer.cross.output != CrossMoments::Output::kNone;
  }
  plan.needs_calibration = options.method == Method::kGptq || crosses;
  const bool original_only = options.hessian_from == HessianFrom::kOriginal;
  plan.original_stream = plan.needs_calibration && (crosses || original_only);
  plan.quantized_stream = plan.needs_calibration && !original_only;
  plan_held_out(plan);
  check_gd_batch(plan);
  plan_sample(c, plan);

  const arch::BlockForward forward(c, options.seq_len);
  plan_memory(c, forward.tiling(), plan);
  if (!has_calibration) plan_sampling(c, plan);
  plan_flops(c, forward, plan);
  plan_journal(c, plan);
  return plan;
}

}  // namespace lpcd::pipeline
