#include "lpcd/pipeline/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fnmatch.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <numeric>

#include "lpcd/base/checked.h"
#include "lpcd/base/control_group.h"
#include "lpcd/base/raise.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/pipeline/ggml_types.h"
#include "lpcd/submodules/relax.h"

namespace lpcd::pipeline {
namespace {

using arch::Role;
using submodules::CrossMoments;
using submodules::Submodule;

// What the process needs before it does anything: code, BLAS buffers, tokenizer tables.
constexpr uint64_t kBaseBytes = 160ULL << 20;

bool is_ffn(Role role) { return role == Role::kGate || role == Role::kUp || role == Role::kDown; }

std::vector<std::string> layer_names() {
  std::vector<std::string> names;
  names.reserve(arch::kLinearRoles.size());
  for (const Role role : arch::kLinearRoles) names.emplace_back(arch::role_name(role));
  return names;
}

// Submodules that --lpcd names.
struct Chosen {
  std::vector<const submodules::CoupledInfo*> coupled;
  std::vector<const Submodule*> closed;

  [[nodiscard]] bool empty() const { return coupled.empty() && closed.empty(); }
};

Chosen chosen_submodules(const QuantizeOptions& options) {
  const std::vector<std::string>& names = options.lpcd;
  const bool reference = options.preset == Preset::kOnecomp;
  std::vector<std::string_view> known = {"none", "all"};
  for (const auto& c : submodules::coupled_submodules()) known.push_back(c.name);
  for (const Submodule* s : submodules::lpcd_submodules()) known.push_back(s->name());
  for (const std::string& name : names) {
    if (std::ranges::find(known, name) == known.end()) {
      raise(ErrorCode::kBadOption,
            "--lpcd: unknown submodule \"{}\", did you mean \"{}\"? Known are: {}", name,
            nearest(name, known), fmt::join(known, ", "));
    }
    if (name == "none" && names.size() > 1) {
      raise(ErrorCode::kBadOption, "--lpcd: none cannot be combined with other submodules");
    }
  }
  const auto named = [&](std::string_view what) {
    return std::ranges::any_of(names, [&](const auto& n) { return n == "all" || n == what; });
  };
  Chosen chosen;
  for (const auto& c : submodules::coupled_submodules()) {
    if (!named(c.name)) continue;
    if (reference && c.make_reference == nullptr) {
      if (std::ranges::find(names, c.name) == names.end()) continue;
      raise(ErrorCode::kBadOption,
            "--lpcd {}: the package that --preset onecomp reproduces has no "
            "such submodule; leave it out, or leave out the preset",
            c.name);
    }
    chosen.coupled.push_back(&c);
  }
  if (reference && !chosen.coupled.empty() && options.alt_steps > 1) {
    raise(ErrorCode::kBadOption,
          "--preset onecomp repeats cycles (--alt-steps {}) for --lpcd residual only",
          options.alt_steps);
  }
  for (const Submodule* s : submodules::lpcd_submodules()) {
    if (named(s->name())) chosen.closed.push_back(s);
  }
  return chosen;
}

// "auto" is nothing.
std::optional<double> parse_strength(const std::string& text, std::string_view flag) {
  if (text == "auto") return {};
  double value = -1;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size() || !(value >= 0 && value <= 1)) {
    raise(ErrorCode::kBadOption, "--{}: \"{}\" must be auto or a number from 0 to 1", flag, text);
  }
  return value;
}

std::vector<double> parse_dampings(const std::vector<std::string>& texts) {
  std::vector<double> values;
  for (const std::string& text : texts) {
    double value = -1;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || stop != text.data() + text.size() ||
        !(value >= 0 && value <= 100)) {
      raise(ErrorCode::kBadOption, "--percdamp: \"{}\" must be a number from 0 to 100", text);
    }
    values.push_back(value);
  }
  if (values.empty()) raise(ErrorCode::kBadOption, "--percdamp needs at least one number");
  std::ranges::sort(values);
  return values;
}

// "PATTERN=BITS"
std::pair<std::string, int> parse_bits_for(const std::string& text) {
  const size_t equals = text.rfind('=');
  int bits = 0;
  if (equals != std::string::npos) {
    const char* begin = text.data() + equals + 1;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(begin, end, bits);
    if (error != std::errc() || stop != end) bits = 0;
  }
  if (bits < 2 || bits > 8 || equals == 0) {
    raise(ErrorCode::kBadOption,
          "--bits-for: \"{}\" must be PATTERN=BITS with 2 to 8 bits, for example '*down_proj*=4'",
          text);
  }
  return {text.substr(0, equals), bits};
}

void check_options(const QuantizeOptions& o) {
  if (o.group_size == 0 || o.group_size < -1) {
    raise(ErrorCode::kBadOption, "--group-size must be positive, or -1 for one scale per row");
  }
  if (o.solver == Solver::kGd && o.gd_batch_size % submodules::kAdamChunk != 0) {
    raise(ErrorCode::kBadOption, "--gd-batch-size must be a multiple of {}, found {}",
          submodules::kAdamChunk, o.gd_batch_size);
  }
  if (o.mlp_bits == 1) raise(ErrorCode::kBadOption, "--mlp-bits must be 2 to 8, or 0 for --bits");
  const std::vector<std::string> layers = layer_names();
  for (const std::string& name : o.qep_exclude) {
    if (name == "none" && o.qep_exclude.size() == 1) continue;
    if (std::ranges::find(layers, name) == layers.end()) {
      const std::vector<std::string_view> views(layers.begin(), layers.end());
      raise(ErrorCode::kBadOption, "--qep-exclude: unknown layer \"{}\", did you mean \"{}\"?",
            name, nearest(name, views));
    }
  }
  if (o.holdout == 0 && o.percdamp.size() > 1 && o.was_given("percdamp")) {
    raise(
        ErrorCode::kBadOption,
        "--percdamp: several values are chosen from on held-out sequences, and --holdout 0 leaves "
        "none; give one value");
  }
  if (!o.own_metric && o.output_feedback && o.was_given("output-feedback")) {
    raise(ErrorCode::kBadOption, "--output-feedback on has no effect with --own-metric off");
  }
  if (o.mse && o.scale_search && o.was_given("scale-search")) {
    raise(ErrorCode::kBadOption,
          "--scale-search on and --mse choose scales in two ways; leave one of them out");
  }
  const bool lpcd = !chosen_submodules(o).empty();
  if (o.hessian_from == HessianFrom::kOriginal && (o.qep || lpcd)) {
    raise(
        ErrorCode::kBadOption,
        "--hessian-from original carries no quantized activations; it needs --qep off --lpcd none");
  }
}

format::GridSpec grid_of(const QuantizeOptions& o, Role role, const std::string& name,
                         const std::vector<std::pair<std::string, int>>& bits_for) {
  format::GridSpec grid{.bits = o.bits, .group_size = o.group_size, .symmetric = o.symmetric};
  if (is_ffn(role)) {
    if (o.mlp_bits != 0) grid.bits = o.mlp_bits;
    if (o.mlp_group_size != 0) grid.group_size = o.mlp_group_size;
  }
  for (const auto& [pattern, bits] : bits_for) {
    if (fnmatch(pattern.c_str(), name.c_str(), 0) == 0) grid.bits = bits;
  }
  return grid;
}

// Grids of ggml blocks, and what fell back to another type.
void plan_blocks(const arch::Model& model, Plan& plan) {
  const QuantizeOptions& o = plan.options;
  const TensorTypes types(o.tensor_types);
  if (o.grid == "int") {
    if (o.tensor_types.empty()) return;
    const auto is_gguf = [](const std::string& f) { return f.starts_with("gguf:"); };
    if (std::ranges::none_of(o.formats, is_gguf)) {
      raise(ErrorCode::kBadOption,
            "--tensor-type is for types of ggml; add --format gguf:q4_k_m, or leave it out");
    }
    types.check_used(model);
    for (const auto& block : plan.layers) {
      for (const LayerPlan& layer : block) {
        const auto b = static_cast<int64_t>(&block - plan.layers.data());
        if (!types.find(model, layer.role, b)) continue;
        raise(ErrorCode::kBadOption,
              "--tensor-type: {} is on a grid of whole numbers, its type in the file follows from "
              "that; name embedding and head only, or add --format gguf:q4_k_m",
              layer.name);
      }
    }
    return;
  }
  if (!o.bits_for.empty() || o.mlp_bits != 0 || o.mlp_group_size != 0) {
    raise(ErrorCode::kBadOption,
          "--bits-for, --mlp-bits and --mlp-group-size are for integer grids; use --tensor-type "
          "PATTERN=TYPE");
  }
  if (plan.solver.reference) {
    raise(ErrorCode::kBadOption, "--preset onecomp has no grids of ggml blocks; leave it out");
  }
  const format::Recipe recipe = parse_recipe(o.grid);
  types.check_used(model);
  std::map<std::string, int> fallbacks;
  for (auto& block : plan.layers) {
    for (LayerPlan& layer : block) {
      const auto b = static_cast<int64_t>(&block - plan.layers.data());
      const DType type = ggml_type_of(model, recipe, types, layer.role, b);
      layer.grid = format::GridSpec::of_block(type);
      format::TensorPlace place = place_of(model.config(), layer.role, b);
      const int64_t cols = place.cols;
      place.cols = 0;  // divisible by anything
      const DType wanted = recipe.type(place);
      if (types.find(model, layer.role, b) || wanted == type) continue;
      ++fallbacks[fmt::format("rows of {} hold no {} blocks: {} as llama-quantize does", cols,
                              dtype_info(wanted).name, dtype_info(type).name)];
    }
  }
  for (const auto& [text, count] : fallbacks) {
    plan.notes.push_back(fmt::format("{}, in {} layers", text, count));
  }
}

void plan_layers(const arch::Model& model, Plan& plan) {
  const QuantizeOptions& o = plan.options;
  std::vector<std::pair<std::string, int>> bits_for;
  bits_for.reserve(o.bits_for.size());
  for (const std::string& text : o.bits_for) bits_for.push_back(parse_bits_for(text));
  const Chosen chosen = chosen_submodules(o);
  plan.coupled = chosen.coupled;
  std::vector<bool> pattern_used(bits_for.size());
  for (int64_t b = 0; b < plan.blocks; ++b) {
    auto& block = plan.layers.emplace_back();
    for (const Role role : arch::kLinearRoles) {
      LayerPlan layer{.role = role, .name = model.name(role, b)};
      layer.grid = grid_of(o, role, layer.name, bits_for);
      layer.submodule = &submodules::single_submodule();
      // Behind a coupled submodule stands a residual sum.
      bool closes = false;
      for (const auto* c : chosen.coupled) {
        closes = closes || std::ranges::find(c->closed, role) != c->closed.end();
      }
      if (closes) layer.submodule = &submodules::residual_submodule();
      for (const Submodule* s : chosen.closed) {
        if (std::ranges::find(s->roles(), role) != s->roles().end()) {
          layer.submodule = s;
          break;
        }
      }
      const bool excluded =
          std::ranges::find(o.qep_exclude, arch::role_name(role)) != o.qep_exclude.end();
      layer.cross = layer.submodule->cross_moments(role, plan.solver, excluded);
      for (size_t i = 0; i < bits_for.size(); ++i) {
        if (fnmatch(bits_for[i].first.c_str(), layer.name.c_str(), 0) == 0) pattern_used[i] = true;
      }
      block.push_back(std::move(layer));
    }
  }
  plan_blocks(model, plan);
  for (const auto& block : plan.layers) {
    for (const LayerPlan& layer : block) {
      const auto shape = model.config().shape(layer.role);
      plan.quantized_bytes += static_cast<uint64_t>(layer.grid.bits_per_weight(shape[1]) *
                                                    static_cast<double>(shape[0] * shape[1]) / 8);
    }
  }
  for (size_t i = 0; i < bits_for.size(); ++i) {
    if (!pattern_used[i]) {
      raise(ErrorCode::kBadOption, "--bits-for: no layer matches \"{}\"; names look like \"{}\"",
            bits_for[i].first, plan.layers[0][0].name);
    }
  }
}

// FLOPs of the moments at one input of K features.
void add_site_flops(const arch::ModelConfig& c, const Plan& plan, Site site, double tokens,
                    std::map<std::string, double>& flops) {
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
  flops["solve"] += solve * std::min(4.0, static_cast<double>(plan.dampings.size()));
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
  // The gradient, then two products per sweep: after the scales and after the codes.
  if (o.refine > 0 && o.method == Method::kGptq) per_weight += 2 * k * (1 + 2 * o.refine);
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
  return o.alt_steps * (coupled.flops(role) * tokens + factors);
}

namespace {

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
    for (const Role role : info->relaxed) flops += relax_flops(plan, *coupled, role);
  }
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

}  // namespace

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

// The least limit of the control group of this process and of all groups around it.
uint64_t control_group_limit(const std::string& root) {
  uint64_t least = ~uint64_t{0};
  for (const std::string& path :
       control_group_files(root, "memory", "memory.max", "memory.limit_in_bytes")) {
    std::ifstream file(path);
    uint64_t limit = 0;
    if (file >> limit && limit > 0) least = std::min(least, limit);  // "max" does not parse
  }
  return least;
}

}  // namespace

uint64_t available_memory(const std::string& root) {
  const uint64_t bytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                         static_cast<uint64_t>(sysconf(_SC_PAGE_SIZE));
  return std::min(bytes, control_group_limit(root));
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

// What the journal takes, at most.
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

std::optional<std::pair<double, double>> estimate_seconds(const Plan& plan,
                                                          const MachineSpeed& speed) {
  if (speed.flops_per_second <= 0 || plan.total_flops <= 0) return std::nullopt;
  // Runs reach 0.4 to 0.8 of the measured GEMM rate.
  double flops = plan.total_flops;
  double reading = 0;
  if (plan.sampling) {
    flops += plan.sampling->flops;
    if (!plan.sampling_keeps_weights) {
      reading = speed.read_seconds * static_cast<double>(plan.sampling->passes);
    }
  }
  const double best = flops / speed.flops_per_second;
  return std::pair(best / 0.8 + reading, best / 0.4 + reading);
}

std::string describe(const Plan& plan, const MachineSpeed& speed) {
  const QuantizeOptions& o = plan.options;
  std::string text;
  const auto line = [&](std::string_view key, const std::string& value) {
    text += fmt::format("{:<14}{}\n", key, value);
  };
  line("model", o.model);
  const format::GridSpec grid = plan.layers[0][0].grid;
  line("grid", grid.text());
  std::map<std::string, int> others;
  for (const auto& block : plan.layers) {
    for (const LayerPlan& layer : block) {
      if (!(layer.grid == grid)) ++others[layer.grid.text()];
    }
  }
  for (const auto& [name, count] : others) line("", fmt::format("{} in {} layers", name, count));
  for (const std::string& note : plan.notes) line("", note);
  line("method", fmt::format("{}, qep {}, lpcd {}, preset {}",
                             EnumNames<Method>::values[static_cast<size_t>(o.method)],
                             o.qep ? "on" : "off", fmt::join(o.lpcd, ","),
                             EnumNames<Preset>::values[static_cast<size_t>(o.preset)]));
  if (plan.needs_calibration) {
    line("calibration", fmt::format("{}: {} x {} = {} tokens", o.calib, plan.sequences,
                                    plan.seq_len, plan.tokens()));
    if (plan.sampling) {
      line("",
           fmt::format("written by the model, {} sequences at a time: {} passes over its weights",
                       plan.sampling->batch, plan.sampling->passes));
      if (!plan.sampling_keeps_weights) {
        line("", "which do not fit in memory and are read for each; --calib FILE needs none");
      }
    }
    line("arithmetic", fmt::format("{:.3g} TFLOP", plan.total_flops / 1e12));
    for (const auto& [name, flops] : plan.flops)
      line("", fmt::format("{:<20}{:5.1f} %", name, 100 * flops / plan.total_flops));
  } else {
    line("calibration", "none needed");
  }
  line("memory", fmt::format("{} at most (limit {})", format_bytes(plan.peak_memory),
                             format_bytes(plan.memory_limit)));
  for (const auto& [name, bytes] : plan.memory)
    line("", fmt::format("{:<28}{:>12}", name, format_bytes(bytes)));
  if (plan.sampling) {
    line("", fmt::format("{:<28}{:>12}", "before, to write the text",
                         format_bytes(plan.sampling_memory)));
  }
  if (plan.activations_on_disk) line("", "activations are kept on disk");
  if (plan.quantized_stream && !plan.keep_ffn_activations) {
    line("", "gate and up projections are computed twice to save memory");
  }
  line("disk", fmt::format("{} at most while it runs", format_bytes(plan.disk_bytes)));
  if (const auto seconds = estimate_seconds(plan, speed)) {
    line("time", fmt::format("{} to {} at {:.0f} GFLOP/s", format_duration(seconds->first),
                             format_duration(seconds->second), speed.flops_per_second / 1e9));
  }
  return text;
}

Json to_json(const Plan& plan, const MachineSpeed& speed) {
  Json json = {{"blocks", plan.blocks},
               {"quantized_bytes", plan.quantized_bytes},
               {"notes", plan.notes},
               {"memory_bytes", plan.peak_memory},
               {"memory_limit_bytes", plan.memory_limit},
               {"memory", Json::object()},
               {"activations_on_disk", plan.activations_on_disk},
               {"disk_bytes", plan.disk_bytes},
               {"flops", plan.total_flops},
               {"stages", Json::object()}};
  for (const auto& [name, bytes] : plan.memory) json["memory"][name] = bytes;
  for (const auto& [name, flops] : plan.flops) json["stages"][name] = flops;
  if (plan.needs_calibration) {
    json["calibration"] = {{"source", plan.options.calib},
                           {"sequences", plan.sequences},
                           {"seq_len", plan.seq_len},
                           {"held_out_sequences", plan.held_out_sequences}};
  }
  if (plan.sampling) {
    json["sampling"] = {{"memory_bytes", plan.sampling_memory},
                        {"flops", plan.sampling->flops},
                        {"passes", plan.sampling->passes},
                        {"keeps_weights", plan.sampling_keeps_weights}};
  }
  if (const auto seconds = estimate_seconds(plan, speed)) {
    json["flops_per_second"] = speed.flops_per_second;
    json["seconds"] = {seconds->first, seconds->second};
  }
  return json;
}

}  // namespace lpcd::pipeline
