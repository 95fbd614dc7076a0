#include "lpcd/arch/arch.h"

// Qwen3 (dense): as Llama, with an RMS norm of every query and key head before the rotation, and a
// head dimension that is independent of the hidden size.

namespace lpcd::arch {
namespace {

constexpr std::array<RoleNames, 14> kQwen3Names = {{
    {Role::kEmbedding, "model.embed_tokens.weight", "token_embd.weight"},
    {Role::kFinalNorm, "model.norm.weight", "output_norm.weight"},
    {Role::kHead, "lm_head.weight", "output.weight"},
    {Role::kAttentionNorm, "model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"},
    {Role::kQ, "model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"},
    {Role::kK, "model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"},
    {Role::kV, "model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"},
    {Role::kO, "model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"},
    {Role::kQNorm, "model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight"},
    {Role::kKNorm, "model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight"},
    {Role::kFfnNorm, "model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"},
    {Role::kGate, "model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"},
    {Role::kUp, "model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"},
    {Role::kDown, "model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"},
}};

class Qwen3 final : public Architecture {
 public:
  std::string_view name() const override { return "qwen3"; }
  std::string_view hf_class() const override { return "Qwen3ForCausalLM"; }
  ModelConfig from_hf(const JsonFields& config) const override {
    ModelConfig model = llama_like_from_hf(config, name());
    model.qk_norm = true;
    if (!config.has("head_dim")) model.head_dim = 128;  // the reference's default
    return model;
  }
  ModelConfig from_gguf(const io::GgufFile& file) const override {
    ModelConfig model = llama_like_from_gguf(file, name());
    model.qk_norm = true;
    return model;
  }
  std::span<const RoleNames> names() const override { return kQwen3Names; }
  bool gguf_permutes_qk() const override { return false; }
  bool gguf_has_rope_table() const override { return false; }
};

}  // namespace

const Architecture& qwen3_architecture() {
  static const Qwen3 kQwen3;
  return kQwen3;
}

}  // namespace lpcd::arch
