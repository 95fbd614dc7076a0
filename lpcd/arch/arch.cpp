#include "lpcd/arch/arch.h"

#include "lpcd/base/raise.h"
#include "lpcd/io/gguf.h"

namespace lpcd::arch {
namespace {

// Beyond any model known; keeps every product of two extents far from overflow.
constexpr int64_t kMaxExtent = int64_t{1} << 24;
constexpr int64_t kMaxBlocks = 10000;
constexpr int64_t kMaxPositions = int64_t{1} << 30;

std::string name_of(const Architecture& architecture, Role role, int64_t block,
                    std::string_view RoleNames::* kind) {
  for (const RoleNames& names : architecture.names()) {
    if (names.role == role) return fmt::format(fmt::runtime(names.*kind), block);
  }
  return "";
}

nn::RopeScaling parse_scaling(const JsonFields& rope, double factor_default) {
  nn::RopeScaling scaling;
  const std::string type = rope.string_or("rope_type", rope.string_or("type", "default"));
  if (type == "default") return scaling;
  scaling.factor = rope.number_or("factor", factor_default);
  if (type == "linear") {
    scaling.kind = nn::RopeScaling::Kind::kLinear;
  } else if (type == "llama3") {
    scaling.kind = nn::RopeScaling::Kind::kLlama3;
    scaling.low_freq_factor = rope.number_at("low_freq_factor");
    scaling.high_freq_factor = rope.number_at("high_freq_factor");
    scaling.original_context = rope.number_at("original_max_position_embeddings");
    if (scaling.high_freq_factor <= scaling.low_freq_factor) {
      raise(ErrorCode::kBadFile, "{}: high_freq_factor must exceed low_freq_factor", rope.where());
    }
  } else {
    raise(ErrorCode::kUnsupportedModel,
          "{}: rope type \"{}\" is not supported; supported are: default, linear, llama3",
          rope.where(), type);
  }
  if (!(scaling.factor > 0)) raise(ErrorCode::kBadFile, "{}: factor must be > 0", rope.where());
  return scaling;
}

// transformers 5 writes rope_parameters; before it was rope_theta with an optional rope_scaling.
void parse_rope(const JsonFields& config, ModelConfig& model) {
  if (const Json* parameters = config.find("rope_parameters")) {
    const JsonFields rope(*parameters, config.where() + ": rope_parameters");
    model.rope_theta = rope.number_or("rope_theta", config.number_or("rope_theta", 10000.0));
    model.rope_scaling = parse_scaling(rope, 1.0);
    if (rope.number_or("partial_rotary_factor", 1.0) != 1.0) {
      raise(ErrorCode::kUnsupportedModel, "{}: partial_rotary_factor other than 1 is not supported",
            rope.where());
    }
    return;
  }
  model.rope_theta = config.number_or("rope_theta", 10000.0);
  if (const Json* scaling = config.find("rope_scaling")) {
    const JsonFields rope(*scaling, config.where() + ": rope_scaling");
    model.rope_theta = rope.number_or("rope_theta", model.rope_theta);
    model.rope_scaling = parse_scaling(rope, 1.0);
  }
}

}  // namespace

std::string_view role_name(Role role) {
  constexpr std::array<std::string_view, kRoleCount> kNames = {
      "embed_tokens", "norm",
      "lm_head",      "input_layernorm",
      "q_proj",       "k_proj",
      "v_proj",       "o_proj",
      "q_proj.bias",  "k_proj.bias",
      "v_proj.bias",  "q_norm",
      "k_norm",       "post_attention_layernorm",
      "gate_proj",    "up_proj",
      "down_proj"};
  return kNames.at(static_cast<size_t>(role));
}

std::vector<int64_t> ModelConfig::shape(Role role) const {
  switch (role) {
    case Role::kEmbedding:
    case Role::kHead:
      return {vocab_size, hidden};
    case Role::kFinalNorm:
    case Role::kAttentionNorm:
    case Role::kFfnNorm:
      return {hidden};
    case Role::kQ:
      return {heads * head_dim, hidden};
    case Role::kK:
    case Role::kV:
      return {kv_heads * head_dim, hidden};
    case Role::kO:
      return {hidden, heads * head_dim};
    case Role::kQBias:
      return {heads * head_dim};
    case Role::kKBias:
    case Role::kVBias:
      return {kv_heads * head_dim};
    case Role::kQNorm:
    case Role::kKNorm:
      return {head_dim};
    case Role::kGate:
    case Role::kUp:
      return {ffn, hidden};
    case Role::kDown:
      return {hidden, ffn};
  }
  return {};
}

bool ModelConfig::has(Role role) const {
  if (role == Role::kHead) return !tied_head;
  if (role == Role::kQNorm || role == Role::kKNorm) return qk_norm;
  if (role == Role::kQBias || role == Role::kKBias || role == Role::kVBias) return qkv_bias;
  return true;
}

int64_t ModelConfig::linear_parameters() const {
  int64_t sum = 0;
  for (const Role role : kLinearRoles) sum += shape(role)[0] * shape(role)[1];
  return sum;
}

void ModelConfig::validate(std::string_view where) const {
  const auto in_range = [&](int64_t value, int64_t max, std::string_view what) {
    if (value < 1 || value > max) {
      raise(ErrorCode::kBadModel, "{}: {} = {} is out of range (1 to {})", where, what, value, max);
    }
  };
  in_range(vocab_size, kMaxExtent, "vocabulary size");
  in_range(hidden, kMaxExtent, "hidden size");
  in_range(ffn, kMaxExtent, "feed-forward size");
  in_range(blocks, kMaxBlocks, "number of blocks");
  in_range(heads, kMaxExtent, "number of attention heads");
  in_range(kv_heads, heads, "number of key/value heads");
  in_range(head_dim, 1 << 14, "head dimension");
  in_range(heads * head_dim, kMaxExtent, "heads times head dimension");
  in_range(max_positions, kMaxPositions, "number of positions");
  if (heads % kv_heads != 0) {
    raise(ErrorCode::kBadModel, "{}: {} attention heads are not a multiple of {} key/value heads",
          where, heads, kv_heads);
  }
  if (head_dim % 2 != 0) {
    raise(ErrorCode::kBadModel, "{}: head dimension {} is odd; rotary embedding needs pairs", where,
          head_dim);
  }
  if (!(rms_eps >= 0 && rms_eps < 1)) {
    raise(ErrorCode::kBadModel, "{}: rms_norm_eps = {} is out of range", where, rms_eps);
  }
  if (!(rope_theta > 0)) {
    raise(ErrorCode::kBadModel, "{}: rope_theta = {} must be > 0", where, rope_theta);
  }
}

std::string hf_name(const Architecture& architecture, Role role, int64_t block) {
  return name_of(architecture, role, block, &RoleNames::hf);
}

std::string gguf_name(const Architecture& architecture, Role role, int64_t block) {
  return name_of(architecture, role, block, &RoleNames::gguf);
}

ModelConfig llama_like_from_hf(const JsonFields& config, std::string_view architecture) {
  ModelConfig model;
  model.architecture = architecture;
  model.vocab_size = config.int_at("vocab_size", 1, kMaxExtent);
  model.hidden = config.int_at("hidden_size", 1, kMaxExtent);
  model.ffn = config.int_at("intermediate_size", 1, kMaxExtent);
  model.blocks = config.int_at("num_hidden_layers", 1, kMaxBlocks);
  model.heads = config.int_at("num_attention_heads", 1, kMaxExtent);
  model.kv_heads = config.int_or("num_key_value_heads", model.heads, 1, kMaxExtent);
  if (!config.has("head_dim") && model.hidden % model.heads != 0) {
    raise(ErrorCode::kBadModel,
          "{}: hidden_size {} is not a multiple of {} attention heads, and "
          "there is no head_dim",
          config.where(), model.hidden, model.heads);
  }
  model.head_dim = config.int_or("head_dim", model.hidden / model.heads, 1, kMaxExtent);
  model.max_positions = config.int_or("max_position_embeddings", 2048, 1, kMaxPositions);
  model.rms_eps = static_cast<float>(config.number_or("rms_norm_eps", 1e-6));
  model.tied_head = config.bool_or("tie_word_embeddings", false);
  parse_rope(config, model);

  const std::string activation = config.string_or("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    raise(ErrorCode::kUnsupportedModel,
          "{}: hidden_act \"{}\" is not supported; supported is: silu", config.where(), activation);
  }
  for (const std::string_view bias : {"attention_bias", "mlp_bias"}) {
    if (config.bool_or(bias, false)) {
      raise(ErrorCode::kUnsupportedModel, "{}: {} = true is not supported yet", config.where(),
            bias);
    }
  }
  if (config.bool_or("use_sliding_window", false)) {
    raise(ErrorCode::kUnsupportedModel, "{}: use_sliding_window = true is not supported",
          config.where());
  }
  return model;
}

ModelConfig llama_like_from_gguf(const io::GgufFile& file, std::string_view architecture) {
  const auto key = [&](std::string_view name) { return fmt::format("{}.{}", architecture, name); };
  ModelConfig model;
  model.architecture = architecture;
  model.hidden = file.int_at(key("embedding_length"));
  model.blocks = file.int_at(key("block_count"));
  model.ffn = file.int_at(key("feed_forward_length"));
  model.heads = file.int_at(key("attention.head_count"));
  model.kv_heads = file.int_or(key("attention.head_count_kv"), model.heads);
  model.max_positions = file.int_at(key("context_length"));
  model.rms_eps = static_cast<float>(file.number_at(key("attention.layer_norm_rms_epsilon")));
  model.rope_theta = file.number_or(key("rope.freq_base"), 10000.0);
  if (model.heads < 1) {
    raise(ErrorCode::kBadModel, "{}: attention.head_count = {} must be >= 1", file.path(),
          model.heads);
  }
  model.head_dim = file.int_or(key("attention.key_length"), model.hidden / model.heads);
  const int64_t rotated = file.int_or(key("rope.dimension_count"), model.head_dim);
  if (rotated != model.head_dim ||
      file.int_or(key("attention.value_length"), model.head_dim) != model.head_dim) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: rotary dimension, key length and value length differ; only equal ones are supported",
          file.path());
  }
  // Files of 2023 have a factor without a type, and the oldest one by another name.
  const std::string scaling = file.string_or(key("rope.scaling.type"), "linear");
  if (scaling == "linear") {
    const double factor =
        file.number_or(key("rope.scaling.factor"), file.number_or(key("rope.scale_linear"), 1.0));
    if (!(factor >= 0)) {
      raise(ErrorCode::kBadModel, "{}: rope.scaling.factor must be >= 0", file.path());
    }
    if (factor != 0 && factor != 1) {
      model.rope_scaling.kind = nn::RopeScaling::Kind::kLinear;
      model.rope_scaling.factor = factor;
    }
  } else if (scaling != "none") {
    raise(ErrorCode::kUnsupportedModel,
          "{}: rope scaling \"{}\" is not supported; supported are: none, linear, llama3",
          file.path(), scaling);
  }
  if (file.find("rope_freqs.weight") != nullptr) {  // how GGUF stores llama3 scaling
    const int64_t half = model.head_dim / 2;
    if (file.at("rope_freqs.weight").elements() != half) {
      raise(ErrorCode::kShapeMismatch, "{}: rope_freqs.weight has {} elements, expected {}",
            file.path(), file.at("rope_freqs.weight").elements(), half);
    }
    model.rope_divisors.resize(static_cast<size_t>(half));
    file.read_f32("rope_freqs.weight", model.rope_divisors);
  }
  const TensorInfo& embedding = file.at("token_embd.weight");
  model.vocab_size = embedding.shape.empty() ? 0 : embedding.shape[0];
  model.tied_head = file.find("output.weight") == nullptr;
  return model;
}

}  // namespace lpcd::arch
