#include "lpcd/arch/block_forward.h"

#include <algorithm>

#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"

namespace lpcd::arch {
namespace {

constexpr int64_t kRowTile = 512;
constexpr int64_t kSlab = 2048;
constexpr int64_t kChunk = 4096;

// Rows [r0, r0 + n) of every tile, in parallel.
template <typename Body>
void for_row_tiles(const RunContext& ctx, int64_t rows, int64_t tile, const Body& body) {
  linalg::parallel_for(ctx, ceil_div(rows, tile), [&](int64_t i) {
    const int64_t r0 = i * tile;
    body(r0, std::min(tile, rows - r0));
  });
}

}  // namespace

SequenceTiling SequenceTiling::for_length(int64_t seq_len) {
  LPCD_CHECK(seq_len > 0);
  SequenceTiling tiling;
  tiling.seq_len = seq_len;
  if (seq_len <= kRowTile) {
    tiling.row_tile = kRowTile / seq_len * seq_len;
  } else {
    // The divisor of L next below 512, unless L has none of a useful size.
    tiling.row_tile = seq_len;
    for (int64_t parts = ceil_div(seq_len, kRowTile); parts <= 2 * ceil_div(seq_len, kRowTile);
         ++parts) {
      if (seq_len % parts == 0) {
        tiling.row_tile = seq_len / parts;
        break;
      }
    }
  }
  const int64_t unit = std::max(seq_len, tiling.row_tile);
  tiling.slab_rows = std::max<int64_t>(1, kSlab / unit) * unit;
  tiling.chunk_rows = std::max<int64_t>(1, kChunk / tiling.slab_rows) * tiling.slab_rows;
  return tiling;
}

BlockForward::BlockForward(const ModelConfig& config, int64_t seq_len)
    : BlockForward(config, SequenceTiling::for_length(seq_len), seq_len) {}

BlockForward::BlockForward(const ModelConfig& config, const SequenceTiling& tiling,
                           int64_t positions)
    : config_(config),
      tiling_(tiling),
      rope_(nn::make_rope_table(nn::rope_frequencies(config.head_dim, config.rope_theta,
                                                     config.rope_scaling, config.rope_divisors),
                                positions)) {}

BlockForward BlockForward::for_mixed_lengths(const ModelConfig& config, int64_t longest) {
  // Tiles need no whole sequences: all but attention works row by row.
  return {config, SequenceTiling::for_length(1), longest};
}

void BlockForward::norm(const RunContext& ctx, std::span<const float> weight, ConstView x,
                        FloatView out) const {
  for_row_tiles(ctx, x.rows(), tiling_.row_tile, [&](int64_t r0, int64_t rows) {
    nn::rms_norm(x.rows_range(r0, rows), weight, config_.rms_eps, out.rows_range(r0, rows));
  });
}

void BlockForward::attention_norm(const RunContext& ctx, const BlockWeights& w, ConstView x,
                                  FloatView a) const {
  norm(ctx, w.vector(Role::kAttentionNorm), x, a);
}

void BlockForward::ffn_norm(const RunContext& ctx, const BlockWeights& w, ConstView h,
                            FloatView m) const {
  norm(ctx, w.vector(Role::kFfnNorm), h, m);
}

void BlockForward::project(const RunContext& ctx, const BlockWeights& w, Role role, ConstView input,
                           FloatView y) const {
  linalg::gemm_nt(ctx, 1.0F, input, w[role], 0.0F, y, tiling_.row_tile);
  const std::optional<Role> bias = bias_of(role);
  if (!bias || !config_.has(*bias)) return;
  for_row_tiles(ctx, y.rows(), tiling_.row_tile, [&](int64_t r0, int64_t rows) {
    nn::add_bias(w.vector(*bias), y.rows_range(r0, rows));
  });
}

std::vector<SequenceRows> BlockForward::equal_sequences(int64_t rows) const {
  const int64_t length = tiling_.seq_len;
  LPCD_CHECK(rows % length == 0);
  std::vector<SequenceRows> sequences;
  for (int64_t row = 0; row < rows; row += length) sequences.push_back({row, length});
  return sequences;
}

void BlockForward::attention(const RunContext& ctx, const BlockWeights& w, ConstView a,
                             FloatView z) const {
  attention_of(ctx, w, equal_sequences(a.rows()), a, z);
}

void BlockForward::attention_of(const RunContext& ctx, const BlockWeights& w,
                                std::span<const SequenceRows> sequences, ConstView a,
                                FloatView z) const {
  const int64_t d = config_.head_dim;
  LPCD_CHECK(z.rows() == a.rows());
  Mat q = Mat::uninitialized(a.rows(), config_.heads * d);
  Mat k = Mat::uninitialized(a.rows(), config_.kv_heads * d);
  Mat v = Mat::uninitialized(a.rows(), config_.kv_heads * d);
  project(ctx, w, Role::kQ, a, q);
  project(ctx, w, Role::kK, a, k);
  project(ctx, w, Role::kV, a, v);
  place(ctx, w, Role::kQ, sequences, q);
  place(ctx, w, Role::kK, sequences, k);
  attend(ctx, sequences, q, k, v, z);
}

void BlockForward::place(const RunContext& ctx, const BlockWeights& w, Role role,
                         FloatView x) const {
  place(ctx, w, role, equal_sequences(x.rows()), x);
}

void BlockForward::place(const RunContext& ctx, const BlockWeights& w, Role role,
                         std::span<const SequenceRows> sequences, FloatView x) const {
  LPCD_CHECK(role == Role::kQ || role == Role::kK);
  const int64_t d = config_.head_dim;
  const Role norm_role = role == Role::kQ ? Role::kQNorm : Role::kKNorm;
  linalg::parallel_for(ctx, static_cast<int64_t>(sequences.size()), [&](int64_t task) {
    const SequenceRows& s = sequences[static_cast<size_t>(task)];
    const FloatView rows = x.rows_range(s.row, s.rows);
    if (config_.qk_norm) {
      for (int64_t c = 0; c < x.cols(); c += d) {
        const FloatView head = rows.cols_range(c, d);
        nn::rms_norm(head, w.vector(norm_role), config_.rms_eps, head);
      }
    }
    nn::apply_rope(rope_, s.prefix_rows, d, rows);
  });
}

void BlockForward::attend(const RunContext& ctx, ConstView q, ConstView k, ConstView v,
                          FloatView z) const {
  attend(ctx, equal_sequences(q.rows()), q, k, v, z);
}

void BlockForward::attend(const RunContext& ctx, std::span<const SequenceRows> sequences,
                          ConstView q, ConstView k, ConstView v, FloatView z) const {
  const int64_t d = config_.head_dim;
  const int64_t group = config_.heads / config_.kv_heads;
  const auto count = static_cast<int64_t>(sequences.size());
  // A head a task; where keys have to be joined, the heads that share them.
  const bool joins =
      std::ranges::any_of(sequences, [](const auto& s) { return s.prefix_rows > 0; });
  const int64_t heads_per_task = joins ? group : 1;
  const int64_t tasks = config_.heads / heads_per_task;
  linalg::parallel_for(ctx, count * tasks, [&](int64_t task) {
    const SequenceRows& s = sequences[static_cast<size_t>(task / tasks)];
    const int64_t first_head = task % tasks * heads_per_task;
    const int64_t kv = first_head / group;
    Mat joined_keys;
    Mat joined_values;
    const auto seen = [&](ConstView x, Mat& joined) -> ConstView {
      const ConstView head = x.cols_range(kv * d, d);
      if (s.prefix_rows == 0) return head.rows_range(s.row, s.rows);
      joined = Mat::uninitialized(s.prefix_rows + s.rows, d);
      copy(head.rows_range(s.prefix_row, s.prefix_rows),
           joined.view().rows_range(0, s.prefix_rows));
      copy(head.rows_range(s.row, s.rows), joined.view().rows_range(s.prefix_rows, s.rows));
      return joined;
    };
    const ConstView keys = seen(k, joined_keys);
    const ConstView values = seen(v, joined_values);
    nn::AttentionScratch scratch;
    for (int64_t head = first_head; head < first_head + heads_per_task; ++head) {
      nn::causal_attention(q.rows_range(s.row, s.rows).cols_range(head * d, d), keys, values,
                           z.rows_range(s.row, s.rows).cols_range(head * d, d), scratch);
    }
  });
}

void BlockForward::for_key_heads(const RunContext& ctx, int64_t rows,
                                 const std::function<void(const KeyHead&)>& body) const {
  const int64_t length = tiling_.seq_len;
  const int64_t group = config_.heads / config_.kv_heads;
  LPCD_CHECK(rows % length == 0);
  linalg::parallel_for(ctx, rows / length * config_.kv_heads, [&](int64_t task) {
    const int64_t kv = task % config_.kv_heads;
    body({.first_row = task / config_.kv_heads * length,
          .rows = length,
          .kv = kv,
          .first_query = kv * group,
          .last_query = (kv + 1) * group});
  });
}

void BlockForward::add_projection(const RunContext& ctx, ConstView input, ConstView weight,
                                  FloatView x) const {
  linalg::gemm_nt(ctx, 1.0F, input, weight, 1.0F, x, tiling_.row_tile);
}

void BlockForward::ffn_activation(const RunContext& ctx, const BlockWeights& w, ConstView m,
                                  FloatView u) const {
  Mat gate = Mat::uninitialized(m.rows(), config_.ffn);
  linalg::gemm_nt(ctx, 1.0F, m, w[Role::kGate], 0.0F, gate, tiling_.row_tile);
  linalg::gemm_nt(ctx, 1.0F, m, w[Role::kUp], 0.0F, u, tiling_.row_tile);
  for_row_tiles(ctx, m.rows(), tiling_.row_tile, [&](int64_t r0, int64_t rows) {
    const FloatView out = u.rows_range(r0, rows);
    nn::silu_mul(ConstView(gate).rows_range(r0, rows), out, out);
  });
}

void BlockForward::run(const RunContext& ctx, const BlockWeights& w, FloatView x) const {
  const int64_t rows = std::min(tiling_.chunk_rows, x.rows());
  Mat normed = Mat::uninitialized(rows, config_.hidden);
  Mat z = Mat::uninitialized(rows, config_.heads * config_.head_dim);
  Mat u = Mat::uninitialized(rows, config_.ffn);
  for (int64_t r0 = 0; r0 < x.rows(); r0 += tiling_.chunk_rows) {
    ctx.throw_if_cancelled();
    const int64_t n = std::min(tiling_.chunk_rows, x.rows() - r0);
    run_chunk(ctx, w, equal_sequences(n), normed.view().rows_range(0, n), z.view().rows_range(0, n),
              u.view().rows_range(0, n), x.rows_range(r0, n));
  }
}

void BlockForward::run_mixed(const RunContext& ctx, const BlockWeights& w,
                             std::span<const SequenceRows> sequences, FloatView x) const {
  Mat normed = Mat::uninitialized(x.rows(), config_.hidden);
  Mat z = Mat::uninitialized(x.rows(), config_.heads * config_.head_dim);
  Mat u = Mat::uninitialized(x.rows(), config_.ffn);
  run_chunk(ctx, w, sequences, normed, z, u, x);
}

void BlockForward::run_chunk(const RunContext& ctx, const BlockWeights& w,
                             std::span<const SequenceRows> sequences, FloatView normed, FloatView z,
                             FloatView u, FloatView x) const {
  attention_norm(ctx, w, x, normed);
  attention_of(ctx, w, sequences, normed, z);
  add_projection(ctx, z, w[Role::kO], x);
  ffn_norm(ctx, w, x, normed);
  ffn_activation(ctx, w, normed, u);
  add_projection(ctx, u, w[Role::kDown], x);
}

double BlockForward::projection_flops(Role role) const {
  const auto shape = config_.shape(role);
  return 2.0 * static_cast<double>(shape[0]) * static_cast<double>(shape[1]);
}

double BlockForward::attention_flops() const {
  // q k^T and p v over half of all pairs of positions.
  const double pairs = 0.5 * static_cast<double>(tiling_.seq_len + 1);
  return projection_flops(Role::kQ) + projection_flops(Role::kK) + projection_flops(Role::kV) +
         4.0 * pairs * static_cast<double>(config_.heads * config_.head_dim);
}

double BlockForward::ffn_activation_flops() const {
  return projection_flops(Role::kGate) + projection_flops(Role::kUp);
}

}  // namespace lpcd::arch
