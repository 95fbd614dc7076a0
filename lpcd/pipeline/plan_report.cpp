#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>

#include "lpcd/pipeline/plan.h"

namespace lpcd::pipeline {

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
