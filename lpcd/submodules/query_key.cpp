#include <array>
#include <cmath>

#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/nn/ops.h"
#include "lpcd/submodules/coupled.h"
#include "lpcd/submodules/sums.h"

// Query-Key: S holds the causal attention logits q_i . k_j / sqrt(d) of every head, with q and k
// normed (where the model does so) and rotated. S is linear in Wq for fixed k and the other way
// round; a norm of the heads is replaced by its derivative. Logits exist for 64 queries of one head
// at a time.

namespace lpcd::submodules {
namespace {

using arch::BlockWeights;
using arch::Role;

class QueryKey final : public Coupled {
 public:
  QueryKey(const arch::BlockForward& forward, const BlockWeights& original, nn::Mask mask)
      : forward_(forward), config_(forward.config()), original_(original), mask_(mask) {}

  SquaredSum objective(const RunContext& ctx, const SequenceChunk& chunk,
                       const BlockWeights& w) const override {
    const Pair wanted = pair_of(ctx, chunk.x_f, original_);
    const Pair now = pair_of(ctx, chunk.x_q, w);
    const double sum = logits(ctx, wanted.q, wanted.k, now.q, now.k, {}, {}, {}, {});
    return {.weighted = sum, .face_value = sum};
  }

  SquaredSum energy(const RunContext& ctx, const SequenceChunk& chunk,
                    const BlockWeights& /*w*/) const override {
    const Pair wanted = pair_of(ctx, chunk.x_f, original_);
    const double sum = logits(ctx, wanted.q, wanted.k, {}, {}, {}, {}, {}, {});
    return {.weighted = sum, .face_value = sum};
  }

  double descent(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w,
                 Role role, FloatView descent, Factors* factors) const override {
    const Pair wanted = pair_of(ctx, chunk.x_f, original_);
    Pair now = pair_of(ctx, chunk.x_q, w);
    Mat dx(now.a.rows(), width(role));
    const double error = role == Role::kQ
                             ? logits(ctx, wanted.q, wanted.k, now.q, now.k, now.k, dx, {}, {})
                             : logits(ctx, wanted.q, wanted.k, now.q, now.k, {}, {}, now.q, dx);
    adjoint(ctx, w, role, now, dx, descent);
    if (factors != nullptr) add_factors(ctx, role, now, *factors);
    return error;
  }

  double curvature(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w,
                   Role role, ConstView d, FloatView product) const override {
    const Pair now = pair_of(ctx, chunk.x_q, w);
    Mat change = Mat::uninitialized(now.a.rows(), width(role));
    linalg::gemm_nt(ctx, 1.0F, now.a, d, 0.0F, change, forward_.tiling().row_tile);
    over_sequences(ctx, change, [&](FloatView rows, int64_t r0) {
      if (config_.qk_norm) {
        for_heads(rows, [&](FloatView head, int64_t c) {
          nn::rms_norm_derivative(
              raw(now, role).rows_range(r0, rows.rows()).cols_range(c, config_.head_dim),
              norm_weight(w, role), config_.rms_eps, head);
        });
      }
      nn::apply_rope(forward_.rope(), 0, config_.head_dim, rows);
    });
    Mat dx(now.a.rows(), width(role));
    const double energy = role == Role::kQ ? logits(ctx, change, now.k, {}, {}, now.k, dx, {}, {})
                                           : logits(ctx, now.q, change, {}, {}, {}, {}, now.q, dx);
    adjoint(ctx, w, role, now, dx, product);
    return energy;
  }

  Factors start_factors(Role role) const override {
    return {.input = Mat(config_.hidden, config_.hidden), .output = Mat(1, width(role))};
  }

  void finish_factors(const RunContext& ctx, const BlockWeights& /*w*/, Role /*role*/,
                      int64_t tokens, Factors& sums) const override {
    // The token weights sum up to half of d times the sum of the outputs' energies; only their
    // proportions matter for a metric.
    double total = 0;
    for (int64_t i = 0; i < sums.output.size(); ++i) total += sums.output.data()[i];
    total *= static_cast<double>(config_.head_dim) / 2;
    linalg::mirror_lower(ctx, static_cast<float>(2.0 / std::max(total, 1e-30)), sums.input);
    for (int64_t i = 0; i < sums.output.size(); ++i) {
      sums.output.data()[i] /= static_cast<float>(tokens);
    }
  }

  bool linear(Role /*role*/) const override { return !config_.qk_norm; }

  double outputs_per_sequence() const override {
    const auto length = static_cast<double>(forward_.tiling().seq_len);
    return static_cast<double>(config_.heads) * length * length;
  }

  double flops(Role role) const override {
    const double pairs = 0.5 * static_cast<double>(forward_.tiling().seq_len + 1);
    return 2 * forward_.projection_flops(role) + forward_.projection_flops(Role::kQ) +
           forward_.projection_flops(Role::kK) +
           4 * pairs * static_cast<double>(config_.heads * config_.head_dim);
  }

 private:
  struct Pair {
    Mat a;             // [t, D]
    Mat raw_q, raw_k;  // as projected; only where a norm follows
    Mat q, k;          // placed
  };

  [[nodiscard]] int64_t width(Role role) const {
    return (role == Role::kQ ? config_.heads : config_.kv_heads) * config_.head_dim;
  }
  static ConstView raw(const Pair& p, Role role) { return role == Role::kQ ? p.raw_q : p.raw_k; }
  static std::span<const float> norm_weight(const BlockWeights& w, Role role) {
    return w.vector(role == Role::kQ ? Role::kQNorm : Role::kKNorm);
  }

  Pair pair_of(const RunContext& ctx, ConstView x, const BlockWeights& w) const {
    Pair p;
    p.a = Mat::uninitialized(x.rows(), config_.hidden);
    forward_.attention_norm(ctx, w, x, p.a);
    for (const Role role : {Role::kQ, Role::kK}) {
      Mat& placed = role == Role::kQ ? p.q : p.k;
      placed = Mat::uninitialized(x.rows(), width(role));
      forward_.project(ctx, w, role, p.a, placed);
      if (config_.qk_norm) (role == Role::kQ ? p.raw_q : p.raw_k) = placed.clone();
      forward_.place(ctx, w, role, placed);
    }
    return p;
  }

  // nn::attention_logits over all heads and sequences; sums in their order.
  double logits(const RunContext& ctx, ConstView q1, ConstView k1, ConstView q0, ConstView k0,
                ConstView keys, FloatView dq, ConstView queries, FloatView dk) const {
    const int64_t d = config_.head_dim;
    const int64_t length = forward_.tiling().seq_len;
    std::vector<double> sums(static_cast<size_t>(q1.rows() / length * config_.kv_heads));
    forward_.for_key_heads(ctx, q1.rows(), [&](const arch::BlockForward::KeyHead& head) {
      nn::AttentionScratch scratch;
      const auto of = [&](auto x, int64_t index) { return x.empty() ? x : head.of(x, index, d); };
      double sum = 0;
      for (int64_t h = head.first_query; h < head.last_query; ++h) {
        sum += nn::attention_logits(mask_, of(q1, h), of(k1, head.kv), of(q0, h), of(k0, head.kv),
                                    of(keys, head.kv), of(dq, h), of(queries, h), of(dk, head.kv),
                                    scratch);
      }
      sums[static_cast<size_t>(head.first_row / length * config_.kv_heads + head.kv)] = sum;
    });
    double total = 0;
    for (const double s : sums) total += s;
    return total;
  }

  template <typename Body>
  void over_sequences(const RunContext& ctx, Mat& x, const Body& body) const {
    const int64_t length = forward_.tiling().seq_len;
    linalg::parallel_for(ctx, x.rows() / length, [&](int64_t sequence) {
      body(x.view().rows_range(sequence * length, length), sequence * length);
    });
  }

  template <typename Body>
  void for_heads(FloatView rows, const Body& body) const {
    for (int64_t c = 0; c < rows.cols(); c += config_.head_dim) {
      body(rows.cols_range(c, config_.head_dim), c);
    }
  }

  // A change of q_i is seen by the keys 0 .. i, one of k_j by the queries j .. L - 1. Rotation
  // mixes the two channels of a pair, and over many distances evenly. now.a is used up.
  void add_factors(const RunContext& ctx, Role role, Pair& now, Factors& sums) const {
    const int64_t d = config_.head_dim;
    const int64_t half = d / 2;
    const int64_t length = forward_.tiling().seq_len;
    const int64_t group = config_.heads / config_.kv_heads;
    const Mat& other = role == Role::kQ ? now.k : now.q;
    std::vector<float> weights(static_cast<size_t>(now.a.rows()));
    const int64_t sequences = now.a.rows() / length;
    // Energies of the pairs of channels, summed over what a token sees.
    std::vector<Mat> per_sequence(static_cast<size_t>(sequences));
    linalg::parallel_for(ctx, sequences, [&](int64_t sequence) {
      Mat output(1, width(role));
      std::vector<double> seen(static_cast<size_t>(config_.heads * half));
      for (int64_t step = 0; step < length; ++step) {
        const int64_t position = role == Role::kQ ? step : length - 1 - step;
        const float* x = other.row(sequence * length + position);
        double sum = 0;
        for (int64_t h = 0; h < config_.heads; ++h) {
          const float* head = x + (role == Role::kQ ? h / group : h) * d;
          const int64_t to = (role == Role::kQ ? h : h / group) * d;
          for (int64_t i = 0; i < half; ++i) {
            double& energy = seen[static_cast<size_t>(h * half + i)];
            energy +=
                0.5 * (static_cast<double>(head[i]) * static_cast<double>(head[i]) +
                       static_cast<double>(head[i + half]) * static_cast<double>(head[i + half]));
            sum += energy;
            output(0, to + i) += static_cast<float>(energy / static_cast<double>(d));
            output(0, to + i + half) += static_cast<float>(energy / static_cast<double>(d));
          }
        }
        weights[static_cast<size_t>(sequence * length + position)] = static_cast<float>(sum);
      }
      per_sequence[static_cast<size_t>(sequence)] = std::move(output);
    });
    for (const Mat& output : per_sequence) {
      for (int64_t i = 0; i < output.size(); ++i) sums.output.data()[i] += output.data()[i];
    }
    scale_rows(ctx, weights, now.a);
    linalg::add_gram(ctx, now.a, forward_.tiling().slab_rows, sums.input);
  }

  // sum += (derivative of placing)^T dx, times a.
  void adjoint(const RunContext& ctx, const BlockWeights& w, Role role, const Pair& now, Mat& dx,
               FloatView sum) const {
    over_sequences(ctx, dx, [&](FloatView rows, int64_t r0) {
      nn::apply_rope_transpose(forward_.rope(), 0, config_.head_dim, rows);
      if (config_.qk_norm) {
        for_heads(rows, [&](FloatView head, int64_t c) {
          nn::rms_norm_derivative_transpose(
              raw(now, role).rows_range(r0, rows.rows()).cols_range(c, config_.head_dim),
              norm_weight(w, role), config_.rms_eps, head);
        });
      }
    });
    linalg::add_cross(ctx, dx, now.a, forward_.tiling().slab_rows, sum);
  }

  const arch::BlockForward& forward_;
  const arch::ModelConfig& config_;
  const BlockWeights& original_;
  nn::Mask mask_;
};

}  // namespace

std::unique_ptr<Coupled> make_query_key(const arch::BlockForward& forward,
                                        const arch::BlockWeights& original) {
  return std::make_unique<QueryKey>(forward, original, nn::Mask::kCausal);
}

std::unique_ptr<Coupled> make_reference_query_key(const arch::BlockForward& forward,
                                                  const arch::BlockWeights& original) {
  return std::make_unique<QueryKey>(forward, original, nn::Mask::kNone);
}

}  // namespace lpcd::submodules
