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
    return {.input = Mat(config_.hidden, config_.hidden),
            .output = Mat(width(role), config_.head_dim)};
  }

  void finish_factors(const RunContext& ctx, const BlockWeights& w, Role role, int64_t tokens,
                      Factors& sums) const override {
    // The token weights sum up to the trace of the outputs' blocks; only their proportions matter
    // for a metric.
    const int64_t d = config_.head_dim;
    double total = 0;
    for (int64_t i = 0; i < sums.output.rows(); ++i) {
      total += static_cast<double>(sums.output(i, i % d));
    }
    linalg::mirror_lower(ctx, static_cast<float>(2.0 / std::max(total, 1e-30)), sums.input);
    const std::span<const float> norm =
        config_.qk_norm ? norm_weight(w, role) : std::span<const float>();
    const float scale = 1.0F / (static_cast<float>(tokens) * static_cast<float>(d));
    for (int64_t i = 0; i < sums.output.rows(); ++i) {
      for (int64_t j = 0; j < d; ++j) {
        float& element = sums.output(i, j);
        element *= scale;
        if (!norm.empty())
          element *= norm[static_cast<size_t>(i % d)] * norm[static_cast<size_t>(j)];
      }
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

  // A change of q_i is seen by the keys 0 .. i, one of k_j by the queries j .. L - 1, all of them
  // turned back to the token's own position. Sums over tokens and what they see:
  //   output   of the outer products, head by head
  //   input    of a a^T times the energy of what the token sees
  // Norms of the heads are left out. now.a is used up.
  void add_factors(const RunContext& ctx, Role role, Pair& now, Factors& sums) const {
    const int64_t d = config_.head_dim;
    const int64_t length = forward_.tiling().seq_len;
    const int64_t kv_heads = config_.kv_heads;
    const int64_t group = config_.heads / kv_heads;
    Mat other = role == Role::kQ ? now.k.clone() : now.q.clone();
    over_sequences(ctx, other, [&](FloatView rows, int64_t /*r0*/) {
      nn::apply_rope_transpose(forward_.rope(), 0, d, rows);
    });
    const int64_t tasks = other.rows() / length * kv_heads;
    std::vector<Mat> outputs(static_cast<size_t>(tasks));
    Mat energies(tasks, length);  // what each token sees of a key head or of its queries
    linalg::parallel_for(ctx, tasks, [&](int64_t task) {
      const int64_t first = task / kv_heads * length;
      const int64_t heads = role == Role::kQ ? 1 : group;
      const int64_t column = task % kv_heads * heads * d;
      Mat seen(d, d);
      Mat sum(d, d);
      double energy = 0;
      for (int64_t step = 0; step < length; ++step) {
        const int64_t position = role == Role::kQ ? step : length - 1 - step;
        turn_by_one(role == Role::kK, seen);
        for (int64_t h = 0; h < heads; ++h) {
          const float* x = other.row(first + position) + column + h * d;
          for (int64_t i = 0; i < d; ++i) {
            float* row = seen.row(i);
            for (int64_t j = 0; j < d; ++j) row[j] += x[i] * x[j];
            energy += static_cast<double>(x[i]) * static_cast<double>(x[i]);
          }
        }
        for (int64_t i = 0; i < sum.size(); ++i) sum.data()[i] += seen.data()[i];
        energies(task, position) = static_cast<float>(energy);
      }
      outputs[static_cast<size_t>(task)] = std::move(sum);
    });
    std::vector<float> weights(static_cast<size_t>(now.a.rows()));
    const int64_t shared_by = role == Role::kQ ? group : 1;  // heads that see the same
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t kv = task % kv_heads;
      const Mat& output = outputs[static_cast<size_t>(task)];
      for (int64_t h = kv * shared_by; h < (kv + 1) * shared_by; ++h) {
        float* to = sums.output.row(h * d);
        for (int64_t i = 0; i < output.size(); ++i) to[i] += output.data()[i];
      }
      for (int64_t t = 0; t < length; ++t) {
        weights[static_cast<size_t>(task / kv_heads * length + t)] +=
            static_cast<float>(shared_by) * energies(task, t);
      }
    }
    scale_rows(ctx, weights, now.a);
    linalg::add_gram(ctx, now.a, forward_.tiling().slab_rows, sums.input);
  }

  // N <- R N R^T with R the rotation by one position, forwards or back.
  void turn_by_one(bool forwards, FloatView n) const {
    const int64_t half = n.rows() / 2;
    const float* cos = forward_.rope().cos.row(1);
    const float* sin = forward_.rope().sin.row(1);
    const float sign = forwards ? -1.0F : 1.0F;
    for (int64_t r = 0; r < n.rows(); ++r) {
      float* a = n.row(r);
      float* b = a + half;
      for (int64_t i = 0; i < half; ++i) {
        const float s = sign * sin[i];
        const float x = a[i] * cos[i] + b[i] * s;
        b[i] = b[i] * cos[i] - a[i] * s;
        a[i] = x;
      }
    }
    for (int64_t i = 0; i < half; ++i) {
      float* a = n.row(i);
      float* b = n.row(i + half);
      const float s = sign * sin[i];
      for (int64_t j = 0; j < n.cols(); ++j) {
        const float x = a[j] * cos[i] + b[j] * s;
        b[j] = b[j] * cos[i] - a[j] * s;
        a[j] = x;
      }
    }
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
