#include "lpcd/report/record.h"

#include "lpcd/base/json.h"

namespace lpcd::report {
namespace {

Json to_json(const std::vector<Candidate>& candidates) {
  Json list = Json::array();
  for (const Candidate& c : candidates) {
    list.push_back({{"target", c.target},
                    {"metric", c.metric},
                    {"percdamp", c.percdamp},
                    {"strength", c.strength},
                    {"held_out", c.held_out},
                    {"chosen", c.chosen}});
    if (c.held_out_face_value >= 0) list.back()["held_out_face_value"] = c.held_out_face_value;
  }
  return list;
}

Json to_json(const RelaxationRecord& r) {
  Json json = {{"submodule", r.submodule},
               {"cycle", r.cycle},
               {"strength", r.strength},
               {"objective_before", r.objective_before},
               {"objective_relaxed", r.objective_relaxed},
               {"baseline", r.baseline},
               {"projected", r.projected},
               {"residual", r.residual},
               {"candidates", to_json(r.candidates)}};
  if (r.baseline_face_value >= 0) json["baseline_face_value"] = r.baseline_face_value;
  if (r.rolled_back) json["rolled_back"] = true;
  return json;
}

Json to_json(const JointRecord& r) {
  Json json = {{"submodule", r.submodule},
               {"cycle", r.cycle},
               {"baseline", r.baseline},
               {"projected", r.projected},
               {"rolled_back", r.rolled_back}};
  if (r.baseline_face_value >= 0) {
    json["baseline_face_value"] = r.baseline_face_value;
    json["projected_face_value"] = r.projected_face_value;
  }
  return json;
}

Json to_json(const LayerRecord& layer) {
  Json json = {{"name", layer.name},         {"submodule", layer.submodule},
               {"grid", layer.grid},         {"damping", layer.damping},
               {"strength", layer.strength}, {"weight_error", layer.weight_error},
               {"seconds", layer.seconds}};
  if (!layer.damping_raised.empty()) json["damping_raised"] = layer.damping_raised;
  if (!layer.candidates.empty()) json["candidates"] = to_json(layer.candidates);
  for (const RelaxationRecord& r : layer.relaxations) json["relaxations"].push_back(to_json(r));
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
  if (record.held_out_error >= 0) json["held_out_error"] = record.held_out_error;
  if (record.token_error >= 0) json["token_error"] = record.token_error;
  if (record.held_out_token_error >= 0) {
    json["held_out_token_error"] = record.held_out_token_error;
  }
  for (const JointRecord& joint : record.joint) json["joint"].push_back(to_json(joint));
  for (const LayerRecord& layer : record.layers) json["layers"].push_back(to_json(layer));
  for (const auto& [name, cost] : record.stages) {
    json["stages"][name] = {{"seconds", cost.seconds}, {"flops", cost.flops}};
  }
  return dump_json(json, 1);
}

}  // namespace lpcd::report
