#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lpcd/arch/model.h"
#include "lpcd/base/context.h"
#include "lpcd/nn/ops.h"

namespace lpcd::arch {

/// Token-by-token generation for B sequences side by side, with a key-value cache.
///
/// Memory    all weights in f32 if they fit into `weight_budget` bytes, else one block at a time,
///           read again for every step (slow, but any model runs); the cache:
///           8 * B * max_len * blocks * Hkv * d bytes.
/// Threads   ctx.threads; the same bits for any number.
class Decoder {
 public:
  /// With a context weights are read on its threads, and not further once it is cancelled.
  Decoder(const Model& model, int64_t sequences, int64_t max_len, uint64_t weight_budget,
          const RunContext* ctx = nullptr);

  /// Begins anew, with so many sequences; weights that are in memory stay there.
  void restart(int64_t sequences);

  /// Feeds one token per sequence at the current position.
  /// Shapes    ids [B]; result [B, V], valid until the next call.
  [[nodiscard]] FloatView step(const RunContext& ctx, std::span<const int32_t> ids);

  [[nodiscard]] int64_t position() const { return position_; }
  [[nodiscard]] bool weights_resident() const { return !blocks_.empty(); }

 private:
  void run_block(const RunContext& ctx, const BlockWeights& w, int64_t block);

  const Model& model_;
  int64_t sequences_ = 0;
  int64_t max_len_;
  int64_t position_ = 0;
  nn::RopeTable rope_;
  Mat embedding_;
  Mat head_;  // empty when tied
  Mat final_norm_;
  std::vector<BlockWeights> blocks_;  // empty when streamed
  std::vector<Mat> keys_;             // per block [B * max_len, Hkv * d]
  std::vector<Mat> values_;
  Mat x_, normed_, q_, k_, v_, z_, gate_, up_, logits_;
};

}  // namespace lpcd::arch
