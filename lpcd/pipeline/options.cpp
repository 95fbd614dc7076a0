#include "lpcd/pipeline/options.h"

#include <type_traits>

#include "lpcd/base/json.h"

namespace lpcd {

void apply_preset(Preset preset, QuantizeOptions& options) {
  options.preset = preset;
  if (preset != Preset::kOnecomp) return;
  options.percdamp = {"0.01"};
  options.percdamp_power = 0;
  options.matmul_precision = MatmulPrecision::kHighest;
  options.scale_search = false;
  options.refine = 0;
  options.own_metric = false;
  options.output_feedback = false;
  options.token_weights = false;
  options.holdout = 0;
  options.solver = Solver::kGd;
  options.mse = false;
  options.mse_candidates = 600;
  options.mse_norm = 2.4;
  options.mse_max_shrink = 0.8;
  options.qep_strength = "0.5";
  options.qep_exclude = {"down_proj"};
  options.lpcd = {"residual"};
  options.lpcd_strength = "0.5";
  options.alt_steps = 1;
  options.block_size = 128;
}

std::string numeric_options_json(const QuantizeOptions& options) {
  Json json = Json::object();
  QuantizeOptions::visit(options, [&](const auto& field, const OptionInfo& info) {
    if (info.effect != Effect::kNumeric) return;
    using Field = std::remove_cvref_t<decltype(field)>;
    if constexpr (std::is_enum_v<Field>) {
      json[std::string(info.name)] = EnumNames<Field>::values[static_cast<size_t>(field)];
    } else {
      json[std::string(info.name)] = field;
    }
  });
  return dump_json(json);
}

}  // namespace lpcd
