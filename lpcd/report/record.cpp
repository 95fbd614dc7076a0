#include "lpcd/report/record.h"

#include "lpcd/base/json.h"

namespace lpcd::report {
namespace {

Json to_json(const LayerRecord& layer) {
  Json json = {{"name", layer.name},         {"submodule", layer.submodule},
               {"grid", layer.grid},         {"damping", layer.damping},
               {"strength", layer.strength}, {"weight_error", layer.weight_error},
               {"seconds", layer.seconds}};
  if (!layer.damping_raised.empty()) json["damping_raised"] = layer.damping_raised;
  const auto put_measured = [&](const char* key, double value) {
    if (value >= 0) json[key] = value;
  };
  put_measured("objective_before", layer.objective_before);
  put_measured("objective_relaxed", layer.objective_relaxed);
  put_measured("objective_projected", layer.objective_projected);
  return json;
}

}  // namespace

std::string to_json_text(const BlockRecord& record) {
  Json json = {{"block", record.block}, {"seconds", record.seconds}};
  if (record.output_error >= 0) json["output_error"] = record.output_error;
  for (const LayerRecord& layer : record.layers) json["layers"].push_back(to_json(layer));
  for (const auto& [name, cost] : record.stages) {
    json["stages"][name] = {{"seconds", cost.seconds}, {"flops", cost.flops}};
  }
  return dump_json(json, 1);
}

}  // namespace lpcd::report
