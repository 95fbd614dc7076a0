#pragma once

#include <functional>
#include <span>

#include "lpcd/arch/model.h"
#include "lpcd/base/context.h"
#include "lpcd/calib/activations.h"

namespace lpcd::eval {

/// Final hidden states of B sequences of L tokens, after the last norm: what the head reads.
///
/// One block of weights is in memory at a time, and all sequences pass through it.
/// Shapes    ids [B, L]; result [B * L, D].
/// Memory    the result, one block in f32, the temporaries of one chunk.
[[nodiscard]] calib::ActivationStore hidden_states(
    const RunContext& ctx, const arch::Model& model, std::span<const int32_t> ids, int64_t seq_len,
    const std::function<void(int64_t blocks_done)>& advanced);

/// Rows whose logits exist at a time.
constexpr int64_t kRowsPerPass = 256;

/// logits = hidden head^T, on ctx.threads threads.
/// Shapes    hidden [t, D], head [V, D], logits [t, V].
void project_logits(const RunContext& ctx, ConstView hidden, ConstView head, FloatView logits);

/// The output projection: the head, or the embedding where it is tied.
[[nodiscard]] Mat read_head(const arch::Model& model);

}  // namespace lpcd::eval
