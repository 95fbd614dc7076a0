#include <algorithm>
#include <cmath>

#include "lpcd/base/checked.h"
#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/nn/ops.h"
#include "lpcd/submodules/coupled.h"
#include "lpcd/submodules/sums.h"

// Value-Output: S = x + sum_h P_h a Wv_g(h)^T Wo_h^T with a the normed stream, P_h the attention
// weights of the quantized q and k, g(h) the key/value head of query head h. S is linear in Wv:
//   A D = sum_h P_h (a D_g^T) Wo_h^T.

namespace lpcd::submodules {
namespace {

using arch::BlockWeights;
using arch::Role;

class ValueOutput final : public Coupled {
 public:
  explicit ValueOutput(const arch::BlockForward& forward)
      : forward_(forward), config_(forward.config()) {}

  SquaredSum objective(const RunContext& ctx, const SequenceChunk& chunk,
                       const BlockWeights& w) const override {
    return squared_sum_of_scaled(ctx, chunk.weights,
                                 residual(ctx, chunk, w, prepare(ctx, chunk, w)));
  }

  SquaredSum energy(const RunContext& ctx, const SequenceChunk& chunk) const override {
    return {.weighted = weighted_squared_norm(ctx, chunk.weights, chunk.y_f),
            .face_value = squared_norm(ctx, chunk.y_f)};
  }

  double descent(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w,
                 Role /*role*/, FloatView descent, Factors* factors) const override {
    const Prepared p = prepare(ctx, chunk, w);
    Mat r = residual(ctx, chunk, w, p);
    const double error = squared_norm(ctx, r);
    scale_rows(ctx, chunk.weights, r);
    adjoint(ctx, w, p, r, descent);
    if (factors != nullptr) add_factors(ctx, chunk, w, p, *factors);
    return error;
  }

  double curvature(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w,
                   Role /*role*/, ConstView d, FloatView product) const override {
    const Prepared p = prepare(ctx, chunk, w);
    Mat v = Mat::uninitialized(p.a.rows(), config_.kv_heads * config_.head_dim);
    linalg::gemm_nt(ctx, 1.0F, p.a, d, 0.0F, v, tile());
    Mat z = Mat::uninitialized(p.a.rows(), config_.heads * config_.head_dim);
    forward_.attend(ctx, p.q, p.k, v, z);
    Mat out = Mat::uninitialized(p.a.rows(), config_.hidden);
    linalg::gemm_nt(ctx, 1.0F, z, w[Role::kO], 0.0F, out, tile());
    scale_rows(ctx, chunk.weights, out);
    const double energy = squared_norm(ctx, out);
    scale_rows(ctx, chunk.weights, out);
    adjoint(ctx, w, p, out, product);
    return energy;
  }

  Factors start_factors(Role /*role*/) const override {
    return {.input = Mat(config_.hidden, config_.hidden),
            .output = Mat(config_.kv_heads * config_.head_dim, config_.head_dim)};
  }

  void finish_factors(const RunContext& ctx, const BlockWeights& w, Role /*role*/, int64_t tokens,
                      Factors& sums) const override {
    const std::vector<float> head_energy = head_energies(ctx, w);
    double total = 0;
    for (const float e : head_energy) total += static_cast<double>(e);
    const double scale = 2.0 / std::max(total * static_cast<double>(tokens), 1e-30);
    linalg::mirror_lower(ctx, static_cast<float>(scale), sums.input);
    // Outputs of one key/value head: sum over its query heads of Wo_h^T Wo_h.
    const int64_t d = config_.head_dim;
    const int64_t group = config_.heads / config_.kv_heads;
    const ConstView o = w[Role::kO];
    for (int64_t head = 0; head < config_.heads; ++head) {
      const int64_t at = head / group * d;
      const ConstView part = o.cols_range(head * d, d);
      linalg::gemm_tn(1.0F, part, part, 1.0F, sums.output.view().rows_range(at, d));
    }
  }

  bool linear(Role /*role*/) const override { return true; }

  double outputs_per_sequence() const override {
    return static_cast<double>(forward_.tiling().seq_len * config_.hidden);
  }

  double flops(Role /*role*/) const override {
    return 2 * forward_.attention_flops() + 2 * forward_.projection_flops(Role::kO);
  }

  double factor_flops(Role /*role*/) const override {
    // Every head mixes all inputs, and has a second moment of its own.
    const auto hidden = static_cast<double>(config_.hidden);
    const auto heads = static_cast<double>(config_.heads);
    return heads * hidden * (hidden + static_cast<double>(forward_.tiling().seq_len + 1));
  }

 private:
  struct Prepared {
    Mat a;     // [t, D]
    Mat q, k;  // placed
  };

  [[nodiscard]] int64_t tile() const { return forward_.tiling().row_tile; }

  // |Wo_h|^2 of every query head.
  std::vector<float> head_energies(const RunContext& ctx, const BlockWeights& w) const {
    const std::vector<float> columns = column_energies(ctx, w[Role::kO]);
    std::vector<float> heads(static_cast<size_t>(config_.heads));
    for (size_t c = 0; c < columns.size(); ++c) {
      heads[c / static_cast<size_t>(config_.head_dim)] += columns[c];
    }
    return heads;
  }

  Prepared prepare(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w) const {
    const int64_t rows = chunk.x_q.rows();
    Prepared p{.a = Mat::uninitialized(rows, config_.hidden),
               .q = Mat::uninitialized(rows, config_.heads * config_.head_dim),
               .k = Mat::uninitialized(rows, config_.kv_heads * config_.head_dim)};
    forward_.attention_norm(ctx, w, chunk.x_q, p.a);
    forward_.project(ctx, w, Role::kQ, p.a, p.q);
    forward_.project(ctx, w, Role::kK, p.a, p.k);
    forward_.place(ctx, w, Role::kQ, p.q);
    forward_.place(ctx, w, Role::kK, p.k);
    return p;
  }

  // Inputs of v as the heads see them: sum_h |Wo_h|^2 (P_h a)^T (P_h a).
  void add_factors(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w,
                   const Prepared& p, Factors& sums) const {
    const int64_t d = config_.head_dim;
    const int64_t length = forward_.tiling().seq_len;
    const std::vector<float> head_energy = head_energies(ctx, w);
    const int64_t group = config_.heads / config_.kv_heads;
    // Slab by slab, so that the order of the sums does not depend on the size of the chunk.
    const int64_t slab = std::min(forward_.tiling().slab_rows, p.a.rows());
    Mat mixed = Mat::uninitialized(slab, config_.hidden);
    for (int64_t first = 0; first < p.a.rows(); first += slab) {
      const int64_t rows = std::min(slab, p.a.rows() - first);
      for (int64_t head = 0; head < config_.heads; ++head) {
        const float scale = std::sqrt(head_energy[static_cast<size_t>(head)]);
        // Whole tiles of queries: the same bits as sequence by sequence, for as many threads as
        // there are tiles.
        const int64_t tiles = ceil_div(length, nn::kQueryTile);
        linalg::parallel_for(ctx, rows / length * tiles, [&](int64_t task) {
          const int64_t sequence = task / tiles;
          const int64_t q0 = task % tiles * nn::kQueryTile;
          const int64_t count = std::min(nn::kQueryTile, length - q0);
          const int64_t r0 = first + sequence * length;
          nn::AttentionScratch scratch;
          const FloatView out = mixed.view().rows_range(sequence * length + q0, count);
          nn::causal_attention(
              p.q.view().rows_range(r0 + q0, count).cols_range(head * d, d),
              p.k.view().rows_range(r0, q0 + count).cols_range(head / group * d, d),
              p.a.view().rows_range(r0, q0 + count), out, scratch);
          for (int64_t r = 0; r < count; ++r) {
            for (int64_t c = 0; c < out.cols(); ++c) out(r, c) *= scale;
          }
        });
        if (!chunk.weights.empty()) {
          scale_rows(ctx, chunk.weights.subspan(static_cast<size_t>(first)),
                     mixed.view().rows_range(0, rows));
        }
        linalg::add_gram(ctx, mixed.view().rows_range(0, rows), slab, sums.input);
      }
    }
  }

  // y_f - (x_q + z Wo^T), weighted
  Mat residual(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w,
               const Prepared& p) const {
    Mat v = Mat::uninitialized(p.a.rows(), config_.kv_heads * config_.head_dim);
    Mat z = Mat::uninitialized(p.a.rows(), config_.heads * config_.head_dim);
    forward_.project(ctx, w, Role::kV, p.a, v);
    forward_.attend(ctx, p.q, p.k, v, z);
    Mat r = Mat::uninitialized(p.a.rows(), config_.hidden);
    subtract(ctx, chunk.y_f, chunk.x_q, r);
    linalg::gemm_nt(ctx, -1.0F, z, w[Role::kO], 1.0F, r, tile());
    scale_rows(ctx, chunk.weights, r);
    return r;
  }

  // sum += (sum_h P_h^T r Wo_h)^T a
  void adjoint(const RunContext& ctx, const BlockWeights& w, const Prepared& p, ConstView r,
               FloatView sum) const {
    const int64_t d = config_.head_dim;
    Mat dz = Mat::uninitialized(r.rows(), config_.heads * d);
    linalg::gemm_nn(ctx, 1.0F, r, w[Role::kO], 0.0F, dz, tile());
    Mat dv(r.rows(), config_.kv_heads * d);
    forward_.for_key_heads(ctx, r.rows(), [&](const arch::BlockForward::KeyHead& head) {
      nn::AttentionScratch scratch;
      const FloatView out = head.of(dv.view(), head.kv, d);
      for (int64_t h = head.first_query; h < head.last_query; ++h) {
        nn::causal_attention_transpose(head.of(ConstView(p.q), h, d),
                                       head.of(ConstView(p.k), head.kv, d),
                                       head.of(ConstView(dz), h, d), out, scratch);
      }
    });
    linalg::add_cross(ctx, dv, p.a, forward_.tiling().slab_rows, sum);
  }

  const arch::BlockForward& forward_;
  const arch::ModelConfig& config_;
};

}  // namespace

std::unique_ptr<Coupled> make_value_output(const arch::BlockForward& forward,
                                           const arch::BlockWeights& /*original*/) {
  return std::make_unique<ValueOutput>(forward);
}

}  // namespace lpcd::submodules
