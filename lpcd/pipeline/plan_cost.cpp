#include "lpcd/pipeline/plan_cost.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "lpcd/base/raise.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/submodules/relax.h"

namespace lpcd::pipeline {

using arch::Role;
using submodules::CrossMoments;

namespace {

// What the process needs before it does anything: code, BLAS buffers, tokenizer tables.
constexpr uint64_t kBaseBytes = 160ULL << 20;

// FLOPs of the moments at one input of K features.
void add_site_flops(const arch::ModelConfig& c, const Plan& plan, Site site, double tokens,
                    std::map<std::string, double>& flops, double solves = 1) {
  const LayerPlan& first = plan.layer(0, roles_of(site)[0]);
  const auto shape = c.shape(first.role);
  const auto n = static_cast<double>(shape[0]);
  const auto k = static_cast<double>(shape[1]);
  double moments = tokens * k * (k + 1);
  if (first.cross.input) moments += 2 * tokens * k * k;
  if (first.cross.output != CrossMoments::Output::kNone) moments += 4 * tokens * n * k;
  flops["moments"] += moments;
  double solve = 0;
  for (const Role role : roles_of(site)) {
    const LayerPlan& layer = plan.layer(0, role);
    solve += solve_flops(plan, layer, c.shape(role)[0], c.shape(role)[1]);
  }
  // As a rule four of many dampings are tried.
  flops["solve"] += solves * solve * std::min(4.0, static_cast<double>(plan.dampings.size()));
}

// Later cycles solve the layer that closes a half block again, from new activations.
void add_cycle_flops(const arch::ModelConfig& c, const arch::BlockForward& forward,
                     const Plan& plan, double tokens, std::map<std::string, double>& flops) {
  const auto count = static_cast<double>(plan.options.alt_steps - 1);
  if (count == 0 || plan.solver.reference) return;
  const auto closes = [&](Role role) {
    return std::ranges::any_of(plan.coupled,
                               [&](const auto* info) { return info->closing == role; });
  };
  if (closes(Role::kO)) {
    add_site_flops(c, plan, Site::kAttentionOutput, count * tokens, flops, count);
    flops["forward quantized"] += count * tokens * forward.attention_flops();
  }
  if (closes(Role::kDown)) {
    add_site_flops(c, plan, Site::kFfnOutput, count * tokens, flops, count);
    flops["forward quantized"] += count * tokens * forward.ffn_activation_flops();
    if (plan.options.token_weights) {
      // What the half block makes of its input, as in the first cycle.
      const double projection = forward.projection_flops(Role::kDown);
      const double closing = plan.layer(0, Role::kDown).residual() ? 0 : projection;
      flops["forward quantized"] +=
          count * tokens * (forward.ffn_activation_flops() + projection + closing);
    }
  }
}

}  // namespace

double solve_flops(const Plan& plan, const LayerPlan& layer, int64_t outputs, int64_t inputs) {
  const QuantizeOptions& o = plan.options;
  const auto n = static_cast<double>(outputs);
  const auto k = static_cast<double>(inputs);
  const int64_t group = layer.grid.group_length(inputs);
  double per_weight = k;  // GPTQ: each error goes to the columns behind
  if (o.method == Method::kRtn) per_weight = 0;
  // Each candidate rounds the group with error feedback inside it.
  constexpr double kCandidates = 24;
  if (o.scale_search && group <= 256) per_weight += kCandidates * static_cast<double>(group);
  // The gradient, then a product per sweep: after scale and codes of a group; two for long groups.
  const bool together = layer.grid.block || group <= 128;
  if (o.refine > 0 && o.method == Method::kGptq) {
    per_weight += 2 * k * (1 + (together ? 1 : 2) * o.refine);
  }
  if (layer.cross.input) per_weight += 2 * k;
  if (layer.cross.input || layer.cross.output != CrossMoments::Output::kNone) per_weight += 2 * k;
  const double cholesky = k * k * k;  // with inverse, and reading them once
  return cholesky + n * k * per_weight;
}

double relax_flops(const Plan& plan, const submodules::Coupled& coupled, Role role) {
  const QuantizeOptions& o = plan.options;
  const auto solved = static_cast<double>(plan.tokens(submodules::Part::kSolve));
  // On held-out sequences, or all if there are none: descent, curvature and candidates.
  double tokens = 4 * static_cast<double>(plan.tokens(submodules::Part::kHeldOut));
  if (plan.held_out_sequences == 0 && !plan.solver.reference) tokens = 4 * solved;
  double factors = 0;
  if (o.solver == Solver::kGd) {
    tokens += o.gd_steps * solved;
  } else {
    tokens +=
        solved + o.cg_iterations * static_cast<double>(plan.tokens(submodules::Part::kSample));
    factors = coupled.factor_flops(role) * solved;
  }
  return coupled.flops(role) * tokens + factors;
}

void plan_flops(const arch::ModelConfig& c, const arch::BlockForward& forward, Plan& plan) {
  if (!plan.needs_calibration) return;
  const auto tokens = static_cast<double>(plan.tokens());
  const double pass =
      tokens * (forward.attention_flops() + forward.projection_flops(Role::kO) +
                forward.ffn_activation_flops() + forward.projection_flops(Role::kDown));
  std::map<std::string, double> block;
  if (plan.original_stream) block["forward original"] += pass;
  if (plan.quantized_stream) {
    block["forward quantized"] += pass;
    if (!plan.keep_ffn_activations)
      block["forward quantized"] += tokens * forward.ffn_activation_flops();
    if (plan.original_stream && plan.options.token_weights) {
      // What the half block makes of its input, for the weights of tokens; on the residual path
      // counted with the moments already.
      const double projection = forward.projection_flops(Role::kDown);
      if (!plan.layer(0, Role::kDown).residual()) {
        block["forward quantized"] += tokens * projection;
      }
      if (plan.relaxes(submodules::Half::kFfn)) {
        block["forward quantized"] += tokens * (forward.ffn_activation_flops() + projection);
      }
    }
  }
  for (const Site site :
       {Site::kAttentionInput, Site::kAttentionOutput, Site::kFfnInput, Site::kFfnOutput}) {
    add_site_flops(c, plan, site, tokens, block);
  }
  const arch::BlockWeights none;
  for (const auto* info : plan.coupled) {
    const auto coupled = info->make(forward, none);
    double& flops = block["relax " + std::string(info->name)];
    for (const Role role : info->relaxed) {
      flops += plan.options.alt_steps * relax_flops(plan, *coupled, role);
    }
  }
  add_cycle_flops(c, forward, plan, tokens, block);
  for (const auto& [name, count] : block) {
    plan.flops[name] = count * static_cast<double>(plan.blocks);
    plan.total_flops += plan.flops[name];
  }
}

void plan_memory(const arch::ModelConfig& c, const arch::SequenceTiling& tiling, Plan& plan) {
  const auto f32 = [](int64_t rows, int64_t cols) {
    return 4 * static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols);
  };
  const auto weights = static_cast<uint64_t>(c.linear_parameters()) * 4;
  const int64_t widest = std::max(c.ffn, c.heads * c.head_dim);
  int64_t chunk = tiling.chunk_rows;
  if (plan.options.solver == Solver::kGd && !plan.coupled.empty()) {
    chunk = std::max(chunk, submodules::kAdamChunk * plan.seq_len);
  }
  chunk = std::min(chunk, plan.tokens());
  std::vector<std::pair<std::string, uint64_t>> fixed = {
      {"program", kBaseBytes}, {"weights of a block, twice", 2 * weights}};
  if (plan.needs_calibration) {
    // H, its factor and the workspace of the factorisation, or H, C and R before that; the same
    // again for held-out sequences, without factors.
    const uint64_t held_out =
        plan.held_out_sequences > 0 ? f32(widest, widest) + f32(c.hidden, widest) : 0;
    // With act-order H in the order of the columns as well.
    const uint64_t squares = plan.options.act_order ? 4 : 3;
    fixed.emplace_back("moments and factors",
                       squares * f32(widest, widest) + f32(c.hidden, widest) + held_out);
    // While the widest layer is projected: what is missing at its output on both parts, the best
    // candidate so far with its target, and the codes of the layers before it, a byte each.
    fixed.emplace_back("candidates and codes",
                       4 * f32(c.hidden, widest) + static_cast<uint64_t>(c.linear_parameters()));
    // Rows in work, three times, and what a BLAS packs into; that of a few threads is in the
    // program's.
    constexpr uint64_t kBlasBytes = 16ULL << 20;
    constexpr uint64_t kThreadsOfBase = 4;
    const auto threads = static_cast<uint64_t>(
        plan.options.threads > 0 ? plan.options.threads : linalg::available_threads());
    if (plan.options.alt_steps > 1 && !plan.coupled.empty() && !plan.solver.reference) {
      // What a later cycle starts from and may come back to: moments, and the codes of two
      // solutions; and a target more than the first has.
      fixed.emplace_back("cycles", f32(c.hidden, c.hidden) + f32(c.hidden, widest) +
                                       2 * static_cast<uint64_t>(c.linear_parameters()));
    }
    fixed.emplace_back("buffers of the threads",
                       threads * 3 * f32(solve::kRowsPerTask, widest) +
                           (std::max(threads, kThreadsOfBase) - kThreadsOfBase) * kBlasBytes);
    const int64_t attention = 2 * c.hidden + 2 * c.heads * c.head_dim + 2 * c.kv_heads * c.head_dim;
    const int64_t ffn = 4 * c.hidden + (plan.coupled.empty() ? 3 : 4) * c.ffn;
    // Token weights: the inputs of the layer and what is missing at its output, once more.
    const bool weighs = plan.options.token_weights && plan.original_stream && plan.quantized_stream;
    const int64_t weighted = weighs ? widest + c.hidden : 0;
    fixed.emplace_back("temporaries of a chunk", f32(chunk, std::max(attention, ffn) + weighted));
  }
  // As floats and, when it is written, as it is stored.
  const uint64_t embedding = kBaseBytes + 2 * f32(c.vocab_size, c.hidden);
  const uint64_t fixed_sum =
      std::accumulate(fixed.begin(), fixed.end(), uint64_t{0},
                      [](uint64_t sum, const auto& part) { return sum + part.second; });

  uint64_t stores = 0;
  if (plan.needs_calibration) {
    // With both there is a third for the original's output of the half block in work.
    const int streams = plan.original_stream && plan.quantized_stream ? 3 : 1;
    stores = static_cast<uint64_t>(streams) * f32(plan.tokens(), c.hidden);
    if (plan.quantized_stream) stores += f32(plan.tokens(), c.heads * c.head_dim);
  }
  const uint64_t ffn_store = plan.quantized_stream ? f32(plan.tokens(), c.ffn) : 0;
  const uint64_t limit = plan.memory_limit;
  plan.activations_on_disk = std::max(fixed_sum, embedding) + stores > limit;
  plan.memory = std::move(fixed);
  if (plan.activations_on_disk) {
    plan.disk_bytes += stores;
  } else if (stores > 0) {
    plan.memory.emplace_back("activations", stores);
  }
  const uint64_t in_memory = plan.activations_on_disk ? 0 : stores;
  plan.keep_ffn_activations = plan.quantized_stream && fixed_sum + in_memory + ffn_store <= limit;
  if (plan.keep_ffn_activations) plan.memory.emplace_back("feed-forward activations", ffn_store);
  plan.peak_memory = std::max(fixed_sum + in_memory + (plan.keep_ffn_activations ? ffn_store : 0),
                              embedding + in_memory);
  if (plan.peak_memory > limit) {
    raise(
        ErrorCode::kMemoryBudget,
        "--max-memory {} is too little: this model needs at least {} even with activations on disk",
        format_bytes(limit), format_bytes(plan.peak_memory));
  }
}

void plan_sampling(const arch::ModelConfig& c, Plan& plan) {
  if (!plan.needs_calibration || plan.options.calib != "self") return;
  plan.sampling = calib::sampling_cost(c, plan.sequences, plan.seq_len);
  const uint64_t least = kBaseBytes + plan.sampling->bytes;
  const uint64_t limit = plan.memory_limit;
  if (least > limit) {
    raise(ErrorCode::kMemoryBudget,
          "--max-memory {} is too little for --calib self: writing its own text takes this model "
          "{}; give it a text with --calib FILE",
          format_bytes(limit), format_bytes(least));
  }
  const uint64_t weights = plan.sampling->weight_bytes;
  plan.sampling_keeps_weights = weights <= limit / 2 && least + weights <= limit;
  plan.sampling_memory = least + (plan.sampling_keeps_weights ? weights : 0);
  plan.peak_memory = std::max(plan.peak_memory, plan.sampling_memory);
}

void plan_journal(const arch::ModelConfig& c, Plan& plan) {
  // Of a block, with the header of the file beside it; half of that is usual.
  constexpr uint64_t kRecordBytes = 32U << 10;
  constexpr uint64_t kScaleBytes = 2 + 1;  // with its zero
  // Of a token: its id, and as text in sample.json, where new text stands beside old.
  constexpr uint64_t kIdBytes = 4 + 2 * 8;
  for (const auto& block : plan.layers) {
    plan.disk_bytes += kRecordBytes;
    for (const LayerPlan& layer : block) {
      const auto shape = c.shape(layer.role);
      const auto weights = static_cast<uint64_t>(shape[0] * shape[1]);
      if (layer.grid.block) {
        const DTypeInfo& type = dtype_info(*layer.grid.block);
        plan.disk_bytes += weights / static_cast<uint64_t>(type.block_elems) *
                           static_cast<uint64_t>(type.block_bytes);
      } else {
        plan.disk_bytes +=
            (weights * static_cast<uint64_t>(layer.grid.bits) + 7) / 8 +
            kScaleBytes * static_cast<uint64_t>(shape[0] * layer.grid.groups(shape[1]));
      }
    }
  }
  if (!plan.needs_calibration) return;
  // Saved streams stand beside those saved before them.
  const uint64_t streams = (plan.original_stream ? 1 : 0) + (plan.quantized_stream ? 1 : 0);
  const uint64_t row = 2 * streams * sizeof(float) * static_cast<uint64_t>(c.hidden);
  plan.disk_bytes += static_cast<uint64_t>(plan.tokens()) * (kIdBytes + row);
}

}  // namespace lpcd::pipeline
