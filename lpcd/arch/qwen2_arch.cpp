#include "lpcd/arch/arch.h"

// Qwen2 and Qwen2.5 (dense): as Llama, with biases on q_proj, k_proj and v_proj.

namespace lpcd::arch {
namespace {

constexpr std::array<RoleNames, 15> kQwen2Names = {{
    {Role::kEmbedding, "model.embed_tokens.weight", "token_embd.weight"},
    {Role::kFinalNorm, "model.norm.weight", "output_norm.weight"},
    {Role::kHead, "lm_head.weight", "output.weight"},
    {Role::kAttentionNorm, "model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"},
    {Role::kQ, "model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"},
    {Role::kK, "model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"},
    {Role::kV, "model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"},
    {Role::kQBias, "model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias"},
    {Role::kKBias, "model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias"},
    {Role::kVBias, "model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias"},
    {Role::kO, "model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"},
    {Role::kFfnNorm, "model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"},
    {Role::kGate, "model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"},
    {Role::kUp, "model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"},
    {Role::kDown, "model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"},
}};

class Qwen2 final : public Architecture {
 public:
  std::string_view name() const override { return "qwen2"; }
  std::string_view hf_class() const override { return "Qwen2ForCausalLM"; }
  ModelConfig from_hf(const JsonFields& config) const override {
    ModelConfig model = llama_like_from_hf(config, name());
    model.qkv_bias = true;
    return model;
  }
  ModelConfig from_gguf(const io::GgufFile& file) const override {
    ModelConfig model = llama_like_from_gguf(file, name());
    model.qkv_bias = true;
    return model;
  }
  std::span<const RoleNames> names() const override { return kQwen2Names; }
  bool gguf_permutes_qk() const override { return false; }
  bool gguf_has_rope_table() const override { return false; }
};

}  // namespace

const Architecture& qwen2_architecture() {
  static const Qwen2 kQwen2;
  return kQwen2;
}

}  // namespace lpcd::arch
