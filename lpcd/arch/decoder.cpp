#include "lpcd/arch/decoder.h"

#include <algorithm>
#include <cstring>

#include "lpcd/base/raise.h"
#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"

namespace lpcd::arch {
namespace {

// y = x W^T for few rows: the weights dominate, so tasks are runs of W's rows.
void project(const RunContext& ctx, ConstView x, ConstView w, FloatView y) {
  constexpr int64_t kOutputsPerTask = 256;
  linalg::parallel_for(ctx, ceil_div(w.rows(), kOutputsPerTask), [&](int64_t task) {
    const int64_t begin = task * kOutputsPerTask;
    const int64_t count = std::min(kOutputsPerTask, w.rows() - begin);
    linalg::gemm_nt(1.0F, x, w.rows_range(begin, count), 0.0F, y.cols_range(begin, count));
  });
}

}  // namespace

Decoder::Decoder(const Model& model, int64_t sequences, int64_t max_len, uint64_t weight_budget,
                 const RunContext* ctx)
    : model_(model),
      max_len_(max_len),
      embedding_(model.read(Role::kEmbedding, 0, ctx)),
      final_norm_(model.read(Role::kFinalNorm)) {
  const ModelConfig& c = model.config();
  rope_ = nn::make_rope_table(
      nn::rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling, c.rope_divisors), max_len);
  if (!c.tied_head) head_ = model.read(Role::kHead, 0, ctx);
  const auto block_bytes = static_cast<uint64_t>(c.linear_parameters()) * sizeof(float);
  if (block_bytes * static_cast<uint64_t>(c.blocks) <= weight_budget) {
    for (int64_t b = 0; b < c.blocks; ++b) {
      if (ctx != nullptr) ctx->throw_if_cancelled();
      blocks_.push_back(model.read_block(b, ctx));
    }
  }
  restart(sequences);
}

void Decoder::restart(int64_t sequences) {
  position_ = 0;
  if (sequences == sequences_) return;
  sequences_ = sequences;
  const ModelConfig& c = model_.config();
  const int64_t kv = c.kv_heads * c.head_dim;
  keys_.clear();
  values_.clear();
  for (int64_t b = 0; b < c.blocks; ++b) {
    keys_.push_back(Mat::uninitialized(sequences * max_len_, kv));
    values_.push_back(Mat::uninitialized(sequences * max_len_, kv));
  }
  x_ = Mat::uninitialized(sequences, c.hidden);
  normed_ = Mat::uninitialized(sequences, c.hidden);
  q_ = Mat::uninitialized(sequences, c.heads * c.head_dim);
  k_ = Mat::uninitialized(sequences, kv);
  v_ = Mat::uninitialized(sequences, kv);
  z_ = Mat::uninitialized(sequences, c.heads * c.head_dim);
  gate_ = Mat::uninitialized(sequences, c.ffn);
  up_ = Mat::uninitialized(sequences, c.ffn);
  logits_ = Mat::uninitialized(sequences, c.vocab_size);
}

FloatView Decoder::step(const RunContext& ctx, std::span<const int32_t> ids) {
  const ModelConfig& c = model_.config();
  LPCD_CHECK(std::cmp_equal(ids.size(), sequences_) && position_ < max_len_);
  for (int64_t s = 0; s < sequences_; ++s) {
    const int32_t id = ids[static_cast<size_t>(s)];
    LPCD_CHECK(id >= 0 && id < c.vocab_size);
    std::memcpy(x_.row(s), embedding_.row(id), static_cast<size_t>(c.hidden) * sizeof(float));
  }
  for (int64_t b = 0; b < c.blocks; ++b) {
    if (weights_resident()) {
      run_block(ctx, blocks_[static_cast<size_t>(b)], b);
    } else {
      run_block(ctx, model_.read_block(b, &ctx), b);
    }
  }
  nn::rms_norm(x_, {final_norm_.data(), static_cast<size_t>(c.hidden)}, c.rms_eps, x_);
  project(ctx, x_, c.tied_head ? embedding_ : head_, logits_);
  ++position_;
  return logits_;
}

void Decoder::run_block(const RunContext& ctx, const BlockWeights& w, int64_t block) {
  const ModelConfig& c = model_.config();
  const int64_t d = c.head_dim;
  Mat& keys = keys_[static_cast<size_t>(block)];
  Mat& values = values_[static_cast<size_t>(block)];

  nn::rms_norm(x_, w.vector(Role::kAttentionNorm), c.rms_eps, normed_);
  const auto project_biased = [&](Role role, const FloatView& out) {
    project(ctx, normed_, w[role], out);
    const std::optional<Role> bias = bias_of(role);
    if (bias && c.has(*bias)) nn::add_bias(w.vector(*bias), out);
  };
  project_biased(Role::kQ, q_);
  project_biased(Role::kK, k_);
  project_biased(Role::kV, v_);
  const auto rotate = [&](const FloatView& row, Role norm) {
    if (c.qk_norm) {
      for (int64_t h = 0; h < row.cols(); h += d) {
        nn::rms_norm(row.cols_range(h, d), w.vector(norm), c.rms_eps, row.cols_range(h, d));
      }
    }
    nn::apply_rope(rope_, position_, d, row);
  };
  const int64_t group = c.heads / c.kv_heads;
  linalg::parallel_for(ctx, sequences_, [&](int64_t s) {
    rotate(q_.view().rows_range(s, 1), Role::kQNorm);
    rotate(k_.view().rows_range(s, 1), Role::kKNorm);
    const auto row_bytes = static_cast<size_t>(k_.cols()) * sizeof(float);
    std::memcpy(keys.row(s * max_len_ + position_), k_.row(s), row_bytes);
    std::memcpy(values.row(s * max_len_ + position_), v_.row(s), row_bytes);
    nn::AttentionScratch scratch;
    for (int64_t head = 0; head < c.heads; ++head) {
      const int64_t kv = head / group * d;
      nn::causal_attention(q_.view().rows_range(s, 1).cols_range(head * d, d),
                           keys.view().rows_range(s * max_len_, position_ + 1).cols_range(kv, d),
                           values.view().rows_range(s * max_len_, position_ + 1).cols_range(kv, d),
                           z_.view().rows_range(s, 1).cols_range(head * d, d), scratch);
    }
  });
  project(ctx, z_, w[Role::kO], normed_);
  nn::add(normed_, x_);
  nn::rms_norm(x_, w.vector(Role::kFfnNorm), c.rms_eps, normed_);
  project(ctx, normed_, w[Role::kGate], gate_);
  project(ctx, normed_, w[Role::kUp], up_);
  nn::silu_mul(gate_, up_, up_);
  project(ctx, up_, w[Role::kDown], normed_);
  nn::add(normed_, x_);
}

}  // namespace lpcd::arch
