#include "lpcd/eval/hidden_states.h"

#include <algorithm>
#include <cstring>

#include "lpcd/linalg/blas.h"

namespace lpcd::eval {

ForwardPass::ForwardPass(const arch::Model& model, std::span<const int32_t> ids, int64_t seq_len)
    : model_(&model),
      forward_(model.config(), seq_len),
      store_(static_cast<int64_t>(ids.size()), model.config().hidden, "") {
  const FloatView x = store_.target(0, store_.rows(), buffer_);
  const Mat table = model.read(arch::Role::kEmbedding);
  for (int64_t t = 0; t < x.rows(); ++t) {
    std::memcpy(x.row(t), table.row(ids[static_cast<size_t>(t)]),
                static_cast<size_t>(x.cols()) * sizeof(float));
  }
}

void ForwardPass::advance(const RunContext& ctx) {
  ctx.throw_if_cancelled();
  const FloatView x = store_.read(0, store_.rows(), buffer_);
  forward_.run(ctx, model_->read_block(blocks_done_, &ctx), x);
  ++blocks_done_;
}

calib::ActivationStore ForwardPass::finish(const RunContext& ctx) && {
  while (!done()) advance(ctx);
  const arch::ModelConfig& config = model_->config();
  const FloatView x = store_.read(0, store_.rows(), buffer_);
  const Mat norm = model_->read(arch::Role::kFinalNorm);
  nn::rms_norm(x, {norm.data(), static_cast<size_t>(config.hidden)}, config.rms_eps, x);
  return std::move(store_);
}

void project_logits(const RunContext& ctx, ConstView hidden, ConstView head, FloatView logits) {
  constexpr int64_t kRows = 128;  // a tile of 128 x 2048 logits per task
  linalg::gemm_nt(ctx, 1.0F, hidden, head, 0.0F, logits, kRows);
}

Mat read_head(const arch::Model& model) {
  return model.read(model.config().tied_head ? arch::Role::kEmbedding : arch::Role::kHead);
}

}  // namespace lpcd::eval
