#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lpcd/base/json.h"
#include "lpcd/nn/ops.h"

namespace lpcd::io {
class GgufFile;
class TensorSource;
}  // namespace lpcd::io

namespace lpcd::arch {

/// What a tensor does in a decoder-only model.
enum class Role : uint8_t {
  // once per model
  kEmbedding,
  kFinalNorm,
  kHead,
  // once per block
  kAttentionNorm,
  kQ,
  kK,
  kV,
  kO,
  kQBias,
  kKBias,
  kVBias,
  kQNorm,
  kKNorm,
  kFfnNorm,
  kGate,
  kUp,
  kDown,
};
constexpr int kRoleCount = 17;

/// The linear layers of a block in the order they are computed; what can be quantized.
constexpr std::array<Role, 7> kLinearRoles = {Role::kQ,    Role::kK,  Role::kV,   Role::kO,
                                              Role::kGate, Role::kUp, Role::kDown};

[[nodiscard]] constexpr bool is_block_role(Role role) { return role >= Role::kAttentionNorm; }
[[nodiscard]] constexpr bool is_linear_role(Role role) {
  return std::ranges::find(kLinearRoles, role) != kLinearRoles.end();
}
/// The bias that belongs to a linear layer, if any model has one there.
[[nodiscard]] constexpr std::optional<Role> bias_of(Role linear) {
  switch (linear) {
    case Role::kQ:
      return Role::kQBias;
    case Role::kK:
      return Role::kKBias;
    case Role::kV:
      return Role::kVBias;
    default:
      return std::nullopt;
  }
}
/// "q_proj", "q_proj.bias", "down_proj", "input_layernorm", ...
[[nodiscard]] std::string_view role_name(Role role);

/// Hyper-parameters of a model, whatever file they came from.
struct ModelConfig {
  std::string architecture;  ///< name of the Architecture, e.g. "llama"
  int64_t vocab_size = 0;    ///< V
  int64_t hidden = 0;        ///< D
  int64_t ffn = 0;           ///< F
  int64_t blocks = 0;
  int64_t heads = 0;     ///< Hq
  int64_t kv_heads = 0;  ///< Hkv, divides Hq
  int64_t head_dim = 0;  ///< d
  int64_t max_positions = 0;
  float rms_eps = 1e-6F;
  double rope_theta = 10000.0;
  nn::RopeScaling rope_scaling;
  std::vector<float> rope_divisors;  ///< [d/2] of a GGUF file, or empty
  bool tied_head = false;            ///< the output projection is the embedding matrix
  bool qk_norm = false;              ///< RMS norm of each query and key head before RoPE
  bool qkv_bias = false;             ///< q_proj, k_proj and v_proj add a bias

  /// Shape [N, K] of a matrix, [N] of its bias, [D] or [d] of a norm.
  [[nodiscard]] std::vector<int64_t> shape(Role role) const;
  /// True if a model of this configuration has a tensor of that role.
  [[nodiscard]] bool has(Role role) const;
  /// Weights of one block's linear layers.
  [[nodiscard]] int64_t linear_parameters() const;
  /// kBadModel if the numbers contradict each other or are out of any sensible range.
  void validate(std::string_view where) const;
};

/// Names of one role in the two kinds of checkpoint; "{}" stands for the block number.
struct RoleNames {
  Role role;
  std::string_view hf;
  std::string_view gguf;
};

/// One model family: everything that is particular to it. To add one, write foo_arch.cpp and add
/// a row to registry.cpp.
class Architecture {
 public:
  virtual ~Architecture() = default;

  /// `model_type` of config.json and `general.architecture` of GGUF.
  [[nodiscard]] virtual std::string_view name() const = 0;
  /// First entry of `architectures` in config.json: "LlamaForCausalLM".
  [[nodiscard]] virtual std::string_view hf_class() const = 0;
  /// From config.json. Errors: kBadFile for a missing or impossible field, kUnsupportedModel for a
  /// variant (activation, rope type, biases) that the block forward pass does not know.
  [[nodiscard]] virtual ModelConfig from_hf(const JsonFields& config) const = 0;
  [[nodiscard]] virtual ModelConfig from_gguf(const io::GgufFile& file) const = 0;
  [[nodiscard]] virtual std::span<const RoleNames> names() const = 0;
  /// True if the rows of q_proj and k_proj are permuted in GGUF files of this family (rotary pairs
  /// interleaved instead of half a head apart).
  [[nodiscard]] virtual bool gguf_permutes_qk() const = 0;
  /// True if llama.cpp reads rope_freqs.weight, which llama3 scaling needs, for this family. It
  /// loads no file with a tensor that it does not read.
  [[nodiscard]] virtual bool gguf_has_rope_table() const = 0;
};

/// All supported families.
[[nodiscard]] std::span<const Architecture* const> architectures();
/// kUnsupportedModel, naming what is supported, if there is none of that name.
[[nodiscard]] const Architecture& find_architecture(std::string_view name);

/// Name of a role's tensor in a Hugging Face checkpoint; block is ignored for model-wide roles.
[[nodiscard]] std::string hf_name(const Architecture& architecture, Role role, int64_t block);
[[nodiscard]] std::string gguf_name(const Architecture& architecture, Role role, int64_t block);

// Shared by the families: fields that all Llama-like configurations spell alike.

/// Sizes, norm epsilon, rope (both spellings: rope_theta + rope_scaling, and rope_parameters).
/// Errors    as Architecture::from_hf, among them use_sliding_window = true.
[[nodiscard]] ModelConfig llama_like_from_hf(const JsonFields& config,
                                             std::string_view architecture);
[[nodiscard]] ModelConfig llama_like_from_gguf(const io::GgufFile& file,
                                               std::string_view architecture);

// The registered families.
const Architecture& llama_architecture();
const Architecture& qwen2_architecture();
const Architecture& qwen3_architecture();

}  // namespace lpcd::arch
