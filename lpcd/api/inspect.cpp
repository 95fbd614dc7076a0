#include <map>

#include "lpcd/api/boundary.h"
#include "lpcd/api/machine.h"
#include "lpcd/base/raise.h"
#include "lpcd/bundle/open_model.h"
#include "lpcd/io/file.h"
#include "lpcd/io/gguf.h"
#include "lpcd/lpcd.h"
#include "lpcd/pipeline/journal.h"

namespace lpcd {
namespace {

struct TypeSum {
  int64_t tensors = 0;
  int64_t elements = 0;
  uint64_t bytes = 0;
};

Json describe_tensors(const io::TensorSource& source) {
  Json list = Json::array();
  std::map<std::string, TypeSum> by_type;
  for (const TensorInfo& info : source.tensors()) {
    const auto [type, bytes] = source.stored_form(info.name);
    list.push_back({{"name", info.name}, {"type", type}, {"shape", info.shape}, {"bytes", bytes}});
    TypeSum& sum = by_type[type];
    ++sum.tensors;
    sum.elements += info.elements();
    sum.bytes += bytes;
  }
  Json json = {{"list", list}};
  for (const auto& [type, sum] : by_type) {
    json["types"][type] = {
        {"tensors", sum.tensors}, {"elements", sum.elements}, {"bytes", sum.bytes}};
  }
  return json;
}

Json describe_model(const arch::Model& model) {
  const arch::ModelConfig& c = model.config();
  Json json = {{"kind", model.gguf() != nullptr ? "gguf" : "huggingface"},
               {"path", model.path()},
               {"architecture", c.architecture},
               {"parameters", model.parameters()},
               {"stored_bytes", model.stored_bytes()},
               {"vocab_size", c.vocab_size},
               {"hidden_size", c.hidden},
               {"ffn_size", c.ffn},
               {"blocks", c.blocks},
               {"heads", c.heads},
               {"kv_heads", c.kv_heads},
               {"head_dim", c.head_dim},
               {"max_positions", c.max_positions},
               {"rope_theta", c.rope_theta},
               {"tied_head", c.tied_head},
               {"qk_norm", c.qk_norm},
               {"qkv_bias", c.qkv_bias},
               {"identity", model.identity()},
               {"tensors", describe_tensors(model.source())}};
  if (model.hf_config().contains("quantization_config")) {
    json["quantization"] = model.hf_config()["quantization_config"];
  }
  return json;
}

Json describe_run(const pipeline::Journal& journal, const std::string& path) {
  Json run = journal.read_run();
  const int64_t done = journal.committed_blocks();
  const bool finished = run.value("finished", false) && done >= run.value("blocks", int64_t{0});
  Json json = {{"kind", finished ? "finished run" : "unfinished run"},
               {"path", path},
               {"model", run.value("model", "")},
               {"lpcd_version", run.value("lpcd_version", "")},
               {"options", run["fingerprint"]["options"]},
               {"blocks", run.value("blocks", int64_t{0})},
               {"blocks_done", done}};
  for (const char* key : {"formats", "shard_size", "calib"}) {
    if (run.contains(key)) json[key] = run[key];
  }
  Json errors = Json::array();
  for (int64_t b = 0; b < done; ++b) {
    const Json record = journal.read_record(b);
    errors.push_back(record.contains("output_error") ? record["output_error"] : Json());
  }
  json["output_errors"] = errors;
  return json;
}

std::string model_text(const Json& m) {
  std::string text;
  const auto line = [&](std::string_view key, const std::string& value) {
    text += fmt::format("{:<14}{}\n", key, value);
  };
  line("model", fmt::format("{} ({})", m["path"].get<std::string>(), m["kind"].get<std::string>()));
  line("architecture",
       fmt::format("{}: {} blocks, hidden {}, feed-forward {}, {} heads of {} ({} key/value)",
                   m["architecture"].get<std::string>(), m["blocks"].get<int64_t>(),
                   m["hidden_size"].get<int64_t>(), m["ffn_size"].get<int64_t>(),
                   m["heads"].get<int64_t>(), m["head_dim"].get<int64_t>(),
                   m["kv_heads"].get<int64_t>()));
  line("vocabulary", fmt::format("{}{}", m["vocab_size"].get<int64_t>(),
                                 m["tied_head"].get<bool>() ? ", head tied to the embedding" : ""));
  line("parameters", fmt::format("{:.2f} million in {}",
                                 static_cast<double>(m["parameters"].get<int64_t>()) / 1e6,
                                 format_bytes(m["stored_bytes"].get<uint64_t>())));
  if (m.contains("quantization")) {
    const Json& q = m["quantization"];
    const std::string method = q.value("quant_method", "?");
    line("quantization", method != "gptq"
                             ? method
                             : fmt::format("{}, {} bits, group {}, {}", method, q.value("bits", 0),
                                           q.value("group_size", 0),
                                           q.value("sym", true) ? "symmetric" : "asymmetric"));
  }
  for (const auto& [type, sum] : m["tensors"]["types"].items()) {
    line("", fmt::format("{:<6}{:>6} tensors {:>14} elements {:>12}", type,
                         sum["tensors"].get<int64_t>(), sum["elements"].get<int64_t>(),
                         format_bytes(sum["bytes"].get<uint64_t>())));
  }
  text += "\n";
  for (const Json& t : m["tensors"]["list"]) {
    text += fmt::format("{:<60} {:<6} {:<18} {:>12}\n", t["name"].get<std::string>(),
                        t["type"].get<std::string>(), dump_json(t["shape"]),
                        format_bytes(t["bytes"].get<uint64_t>()));
  }
  return text;
}

std::string run_text(const Json& r) {
  std::string text = fmt::format("{:<14}{} of {}\n", "run", r["kind"].get<std::string>(),
                                 r["model"].get<std::string>());
  text += fmt::format("{:<14}{} of {}\n", "blocks done", r["blocks_done"].get<int64_t>(),
                      r["blocks"].get<int64_t>());
  if (r["kind"] == "unfinished run" && r["blocks_done"] == r["blocks"]) {
    text += fmt::format("{:<14}lpcd export {} --out DIR --format FORMAT\n", "write with",
                        shell_word(r["path"].get<std::string>()));
  }
  if (r["kind"] == "unfinished run") {
    text += fmt::format("{:<14}lpcd quantize {} --out {} --resume, with the options of the run\n",
                        "go on with", shell_word(r["model"].get<std::string>()),
                        shell_word(r["path"].get<std::string>()));
  }
  text += "\noptions\n";
  for (const auto& [key, flag] :
       {std::pair{"formats", "format"}, {"shard_size", "shard-size"}, {"calib", "calib"}}) {
    if (r.contains(key)) text += fmt::format("  {:<20}{}\n", flag, dump_json(r[key]));
  }
  for (const auto& [key, value] : r["options"].items())
    text += fmt::format("  {:<20}{}\n", key, dump_json(value));
  text += "\noutput error of each block, relative, on the calibration text\n";
  for (size_t b = 0; b < r["output_errors"].size(); ++b) {
    const Json& e = r["output_errors"][b];
    text += fmt::format("  {:>4}  {}\n", b,
                        e.is_number() ? fmt::format("{:.6f}", e.get<double>()) : "not measured");
  }
  return text + "\n";
}

InspectResult inspect_unguarded(const std::string& path) {
  InspectResult result;
  const pipeline::Journal journal(path);
  Json json = Json::object();
  bool finished = true;
  if (journal.exists()) {
    json["run"] = describe_run(journal, path);
    finished = json["run"]["kind"] == "finished run";
    result.summary += run_text(json["run"]);
  }
  const auto models =
      finished && journal.exists() ? bundle::models_below(path) : std::vector<std::string>();
  for (const std::string& each : models) {  // a run with several formats
    json["models"].push_back(describe_model(bundle::open_model(each)));
    result.summary += model_text(json["models"].back());
  }
  if (finished && models.empty()) {
    json["model"] = describe_model(bundle::open_model(path));
    result.summary += model_text(json["model"]);
  }
  result.json = dump_json(json, 1);
  return result;
}

}  // namespace

InspectResult inspect(const std::string& path) {
  return api::with_typed_errors([&] { return inspect_unguarded(path); });
}

}  // namespace lpcd
