#include "lpcd/eval/hidden_states.h"

#include <algorithm>
#include <cstring>

#include "lpcd/arch/block_forward.h"
#include "lpcd/linalg/blas.h"

namespace lpcd::eval {

calib::ActivationStore hidden_states(const RunContext& ctx, const arch::Model& model,
                                     std::span<const int32_t> ids, int64_t seq_len,
                                     const std::function<void(int64_t)>& advanced) {
  const arch::ModelConfig& config = model.config();
  const auto tokens = static_cast<int64_t>(ids.size());
  calib::ActivationStore store(tokens, config.hidden, "");
  Mat buffer;
  const FloatView x = store.target(0, tokens, buffer);
  {
    const Mat table = model.read(arch::Role::kEmbedding);
    for (int64_t t = 0; t < tokens; ++t) {
      std::memcpy(x.row(t), table.row(ids[static_cast<size_t>(t)]),
                  static_cast<size_t>(config.hidden) * sizeof(float));
    }
  }
  const arch::BlockForward forward(config, seq_len);
  for (int64_t b = 0; b < config.blocks; ++b) {
    ctx.throw_if_cancelled();
    forward.run(ctx, model.read_block(b), x);
    advanced(b + 1);
  }
  const Mat norm = model.read(arch::Role::kFinalNorm);
  nn::rms_norm(x, {norm.data(), static_cast<size_t>(config.hidden)}, config.rms_eps, x);
  return store;
}

void project_logits(const RunContext& ctx, ConstView hidden, ConstView head, FloatView logits) {
  constexpr int64_t kRows = 128;  // a tile of 128 x 2048 logits per task
  linalg::gemm_nt(ctx, 1.0F, hidden, head, 0.0F, logits, kRows);
}

Mat read_head(const arch::Model& model) {
  return model.read(model.config().tied_head ? arch::Role::kEmbedding : arch::Role::kHead);
}

}  // namespace lpcd::eval
