#include "lpcd/arch/arch.h"

// Llama 1, 2, 3, TinyLlama, SmolLM and everything else that says model_type "llama": RMS norm,
// rotary attention with grouped queries, SwiGLU.

namespace lpcd::arch {
namespace {

constexpr std::array<RoleNames, 12> kLlamaNames = {{
    {Role::kEmbedding, "model.embed_tokens.weight", "token_embd.weight"},
    {Role::kFinalNorm, "model.norm.weight", "output_norm.weight"},
    {Role::kHead, "lm_head.weight", "output.weight"},
    {Role::kAttentionNorm, "model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"},
    {Role::kQ, "model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"},
    {Role::kK, "model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"},
    {Role::kV, "model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"},
    {Role::kO, "model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"},
    {Role::kFfnNorm, "model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"},
    {Role::kGate, "model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"},
    {Role::kUp, "model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"},
    {Role::kDown, "model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"},
}};

class Llama final : public Architecture {
 public:
  std::string_view name() const override { return "llama"; }
  std::string_view hf_class() const override { return "LlamaForCausalLM"; }
  ModelConfig from_hf(const JsonFields& config) const override {
    return llama_like_from_hf(config, name());
  }
  ModelConfig from_gguf(const io::GgufFile& file) const override {
    return llama_like_from_gguf(file, name());
  }
  std::span<const RoleNames> names() const override { return kLlamaNames; }
  bool gguf_permutes_qk() const override { return true; }
  bool gguf_has_rope_table() const override { return true; }
};

}  // namespace

const Architecture& llama_architecture() {
  static const Llama kLlama;
  return kLlama;
}

}  // namespace lpcd::arch
