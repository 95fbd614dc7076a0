#include "lpcd/pipeline/plan_layers.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>

#include "lpcd/base/raise.h"
#include "lpcd/pipeline/ggml_types.h"
#include "lpcd/pipeline/plan_options.h"

namespace lpcd::pipeline {
namespace {

using arch::Role;
using submodules::Submodule;

bool is_ffn(Role role) { return role == Role::kGate || role == Role::kUp || role == Role::kDown; }

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

}  // namespace

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
      const bool owned = std::ranges::any_of(
          chosen.coupled, [&](const auto* c) { return c->owns_closing && c->closing == role; });
      if (owned) layer.submodule = &submodules::residual_submodule();
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

}  // namespace lpcd::pipeline
