#pragma once

#include <functional>
#include <vector>

#include "lpcd/arch/model.h"
#include "lpcd/base/context.h"
#include "lpcd/nn/ops.h"

namespace lpcd::arch {

/// How B sequences of L tokens are cut for computing. All cuts depend on L only, so results depend
/// neither on threads nor on how many sequences are processed at a time.
struct SequenceTiling {
  int64_t seq_len = 0;    ///< L
  int64_t row_tile = 0;   ///< rows of one task; about 512, divides slab_rows
  int64_t slab_rows = 0;  ///< rows that one BLAS call adds to a moment; about 2048, whole sequences
  int64_t chunk_rows = 0;  ///< rows whose temporaries exist at a time; about 4096, whole slabs

  static SequenceTiling for_length(int64_t seq_len);
};

/// Rows of one sequence among the rows of a batch, or of a continuation of one: its row i stands at
/// position prefix_rows + i and sees the prefix, then the rows up to itself. Several continuations
/// may share a prefix, which is itself a sequence of the batch.
struct SequenceRows {
  int64_t row = 0;
  int64_t rows = 0;
  int64_t prefix_row = 0;
  int64_t prefix_rows = 0;
};

/// The forward pass of one block in stages, on [t, D] rows that are whole sequences.
///
/// Each stage is a function of its inputs and of the weights it names, so that the pipeline can
/// quantize between stages and never runs one twice. Threads: ctx.threads; the same bits for any.
class BlockForward {
 public:
  BlockForward(const ModelConfig& config, int64_t seq_len);
  /// For sequences of different lengths, up to `longest`: see run_mixed. The last bits of a
  /// sequence may depend on which others share the batch, nothing else does.
  static BlockForward for_mixed_lengths(const ModelConfig& config, int64_t longest);

  [[nodiscard]] const SequenceTiling& tiling() const { return tiling_; }

  /// a = attention norm of x.   x, a [t, D].
  void attention_norm(const RunContext& ctx, const BlockWeights& w, ConstView x, FloatView a) const;
  /// z = causal attention of q, k, v, which are projections of a.   a [t, D], z [t, Hq d].
  /// Memory    t * (Hq + 2 Hkv) d floats, and 64 * L per thread.
  void attention(const RunContext& ctx, const BlockWeights& w, ConstView a, FloatView z) const;

  // The parts of attention(), for those who change one of them.

  /// y = input W^T + b, with the bias that the model has there, if any.   input [t, K], y [t, N].
  void project(const RunContext& ctx, const BlockWeights& w, Role role, ConstView input,
               FloatView y) const;
  /// q or k as attention compares them: each head normed where the model does so, then rotated.
  void place(const RunContext& ctx, const BlockWeights& w, Role role, FloatView x) const;
  /// z = causal attention.   q, z [t, Hq d]; k, v [t, Hkv d].
  void attend(const RunContext& ctx, ConstView q, ConstView k, ConstView v, FloatView z) const;
  /// One key/value head of one sequence, and the query heads that share it.
  struct KeyHead {
    int64_t first_row;  ///< of the sequence
    int64_t rows;       ///< L
    int64_t kv;
    int64_t first_query;
    int64_t last_query;  ///< behind the last

    /// Head `index` of the sequence in x [t, heads d].
    template <typename T>
    [[nodiscard]] MatView<T> of(MatView<T> x, int64_t index, int64_t d) const {
      return x.rows_range(first_row, rows).cols_range(index * d, d);
    }
  };
  /// Calls body for every key/value head of every sequence in [t, ...] rows, in parallel.
  void for_key_heads(const RunContext& ctx, int64_t rows,
                     const std::function<void(const KeyHead&)>& body) const;
  [[nodiscard]] const nn::RopeTable& rope() const { return rope_; }
  [[nodiscard]] const ModelConfig& config() const { return config_; }

  /// x += z Wo^T (or u Wdown^T).   x [t, D].
  void add_projection(const RunContext& ctx, ConstView input, ConstView weight, FloatView x) const;
  /// m = feed-forward norm of h.   h, m [t, D].
  void ffn_norm(const RunContext& ctx, const BlockWeights& w, ConstView h, FloatView m) const;
  /// u = silu(m Wgate^T) * (m Wup^T).   m [t, D], u [t, F].
  void ffn_activation(const RunContext& ctx, const BlockWeights& w, ConstView m, FloatView u) const;

  /// All stages: x becomes the block's output.   x [t, D].
  /// Memory    temporaries of chunk_rows rows.
  void run(const RunContext& ctx, const BlockWeights& w, FloatView x) const;
  /// The same for sequences of different lengths, which together are the rows of x.   x [t, D].
  /// Memory    temporaries of t rows.
  void run_mixed(const RunContext& ctx, const BlockWeights& w,
                 std::span<const SequenceRows> sequences, FloatView x) const;

  /// FLOPs of the stages per token (multiplications and additions, causal attention counted once).
  [[nodiscard]] double attention_flops() const;
  [[nodiscard]] double projection_flops(Role role) const;
  [[nodiscard]] double ffn_activation_flops() const;

 private:
  BlockForward(const ModelConfig& config, const SequenceTiling& tiling, int64_t positions);
  [[nodiscard]] std::vector<SequenceRows> equal_sequences(int64_t rows) const;
  void attention_of(const RunContext& ctx, const BlockWeights& w,
                    std::span<const SequenceRows> sequences, ConstView a, FloatView z) const;
  void place(const RunContext& ctx, const BlockWeights& w, Role role,
             std::span<const SequenceRows> sequences, FloatView x) const;
  void attend(const RunContext& ctx, std::span<const SequenceRows> sequences, ConstView q,
              ConstView k, ConstView v, FloatView z) const;
  void run_chunk(const RunContext& ctx, const BlockWeights& w,
                 std::span<const SequenceRows> sequences, FloatView normed, FloatView z,
                 FloatView u, FloatView x) const;
  void norm(const RunContext& ctx, std::span<const float> weight, ConstView x, FloatView out) const;

  const ModelConfig& config_;
  SequenceTiling tiling_;
  nn::RopeTable rope_;
};

}  // namespace lpcd::arch
