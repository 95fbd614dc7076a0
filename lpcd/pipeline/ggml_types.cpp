#include "lpcd/pipeline/ggml_types.h"

#include <fmt/ranges.h>
#include <fnmatch.h>

#include <algorithm>

#include "lpcd/base/options.h"
#include "lpcd/base/raise.h"

namespace lpcd::pipeline {
namespace {

using arch::Role;
using Kind = format::TensorPlace::Kind;

std::optional<DType> parse_type(const std::string& text) {
  if (text == "f32") return DType::kF32;
  if (text == "f16") return DType::kF16;
  if (text == "bf16") return DType::kBF16;
  return ggml_type_from_name(text);
}

bool matches(const std::string& pattern, const arch::Model& model, Role role, int64_t block) {
  const std::string gguf = arch::gguf_name(model.architecture(), role, block);
  return fnmatch(pattern.c_str(), model.name(role, block).c_str(), 0) == 0 ||
         fnmatch(pattern.c_str(), gguf.c_str(), 0) == 0;
}

// Llama's 80 blocks without shared keys are the 65B of old; Qwen2's 72B counts as 70B too.
bool is_seventy_b(const arch::ModelConfig& c) {
  if (c.blocks != 80) return false;
  return c.architecture == "qwen2" || (c.architecture == "llama" && c.heads > c.kv_heads);
}

}  // namespace

TensorTypes::TensorTypes(const std::vector<std::string>& texts) {
  for (const std::string& text : texts) {
    const size_t equals = text.rfind('=');
    const auto type =
        equals == std::string::npos ? std::nullopt : parse_type(text.substr(equals + 1));
    if (!type || equals == 0) {
      raise(ErrorCode::kBadOption,
            "--tensor-type: \"{}\" must be PATTERN=TYPE with a type of ggml, for example "
            "'*ffn_down*=q4_k' or 'token_embd.weight=f16'",
            text);
    }
    entries_.push_back({text.substr(0, equals), *type});
  }
}

std::optional<DType> TensorTypes::find(const arch::Model& model, Role role, int64_t block) const {
  std::optional<DType> type;
  for (const Entry& e : entries_) {
    if (matches(e.pattern, model, role, block)) type = e.type;
  }
  return type;
}

void TensorTypes::check_used(const arch::Model& model) const {
  for (const Entry& e : entries_) {
    bool used = false;
    for (const arch::RoleNames& names : model.architecture().names()) {
      if (!model.config().has(names.role) || model.config().shape(names.role).size() != 2) continue;
      const int64_t count = arch::is_block_role(names.role) ? model.config().blocks : 1;
      for (int64_t b = 0; b < count && !used; ++b) used = matches(e.pattern, model, names.role, b);
    }
    if (!used) {
      raise(ErrorCode::kBadOption,
            "--tensor-type: no matrix matches \"{}\"; names look like \"{}\"", e.pattern,
            arch::gguf_name(model.architecture(), Role::kDown, 0));
    }
  }
}

format::TensorPlace place_of(const arch::ModelConfig& config, Role role, int64_t block) {
  format::TensorPlace place{.block = block,
                            .blocks = config.blocks,
                            .queries_per_key = config.heads / config.kv_heads,
                            .seventy_b = is_seventy_b(config),
                            .cols = config.shape(role).back()};
  switch (role) {
    case Role::kQ:
      place.kind = Kind::kQuery;
      break;
    case Role::kK:
      place.kind = Kind::kKey;
      break;
    case Role::kV:
      place.kind = Kind::kValue;
      break;
    case Role::kO:
      place.kind = Kind::kAttentionOutput;
      break;
    case Role::kGate:
      place.kind = Kind::kGate;
      break;
    case Role::kUp:
      place.kind = Kind::kUp;
      break;
    case Role::kDown:
      place.kind = Kind::kDown;
      break;
    case Role::kEmbedding:  // what a tied head reads is the head
      place.kind = config.tied_head ? Kind::kHead : Kind::kEmbedding;
      break;
    default:
      place.kind = Kind::kHead;
      break;
  }
  return place;
}

format::Recipe parse_recipe(const std::string& text) {
  if (const auto recipe = format::Recipe::parse(text)) return *recipe;
  std::vector<std::string_view> known = {"int"};
  for (const std::string_view name : format::Recipe::names()) known.push_back(name);
  raise(ErrorCode::kBadOption, "--grid: unknown grid \"{}\", did you mean \"{}\"? Known are: {}",
        text, nearest(text, known), fmt::join(known, ", "));
}

DType ggml_type_of(const arch::Model& model, const format::Recipe& recipe, const TensorTypes& types,
                   Role role, int64_t block) {
  const int64_t cols = model.config().shape(role).back();
  const std::string name = arch::gguf_name(model.architecture(), role, block);
  const auto chosen = types.find(model, role, block);
  if (chosen && cols % dtype_info(*chosen).block_elems != 0) {
    raise(
        ErrorCode::kBadOption,
        "--tensor-type: {} has rows of {}, which blocks of {} ({} weights) do not divide; {} would "
        "fit",
        name, cols, dtype_info(*chosen).name, dtype_info(*chosen).block_elems,
        dtype_info(format::Recipe::fallback(*chosen, cols)).name);
  }
  const DType type = chosen.value_or(recipe.type(place_of(model.config(), role, block)));
  if (arch::is_linear_role(role) && !is_block_quantized(type)) {
    raise(
        ErrorCode::kBadOption,
        "{}: rows of {} hold no blocks (they are not a multiple of 32), and layers cannot stay {}; "
        "use an integer grid with --format gguf:f16",
        name, cols, dtype_info(type).name);
  }
  return type;
}

}  // namespace lpcd::pipeline
