#pragma once

#include <span>

#include "lpcd/arch/block_forward.h"
#include "lpcd/arch/model.h"
#include "lpcd/base/context.h"
#include "lpcd/calib/activations.h"

namespace lpcd::eval {

/// Hidden states of B sequences of L tokens on their way through a model.
///
/// One block of weights is in memory at a time, and all sequences pass through it.
/// Shapes    ids [B, L]; hidden states [B * L, D].
/// Memory    the hidden states, one block in f32, the temporaries of one chunk.
class ForwardPass {
 public:
  /// `model` must outlive it.
  ForwardPass(const arch::Model& model, std::span<const int32_t> ids, int64_t seq_len);

  [[nodiscard]] bool done() const { return blocks_done_ == model_->config().blocks; }
  /// The next block.
  void advance(const RunContext& ctx);
  /// Behind the blocks so far.
  [[nodiscard]] ConstView hidden() const { return store_.read(0, store_.rows(), buffer_); }
  /// Behind the blocks that are left and the last norm: what the head reads.
  [[nodiscard]] calib::ActivationStore finish(const RunContext& ctx) &&;

 private:
  const arch::Model* model_;
  arch::BlockForward forward_;
  calib::ActivationStore store_;
  mutable Mat buffer_;
  int64_t blocks_done_ = 0;
};

/// Rows whose logits exist at a time.
constexpr int64_t kRowsPerPass = 256;

/// logits = hidden head^T, on ctx.threads threads.
/// Shapes    hidden [t, D], head [V, D], logits [t, V].
void project_logits(const RunContext& ctx, ConstView hidden, ConstView head, FloatView logits);

/// The output projection: the head, or the embedding where it is tied.
[[nodiscard]] Mat read_head(const arch::Model& model);

}  // namespace lpcd::eval
