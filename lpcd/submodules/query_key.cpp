#include <algorithm>
#include <array>
#include <cmath>

#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/nn/ops.h"
#include "lpcd/submodules/coupled.h"
#include "lpcd/submodules/sums.h"

// Query-Key: S holds the causal attention logits l_ts = q_t . k_s / sqrt(d) of every head, with q
// and k normed (where the model does so) and rotated, as the softmax sees them: with the original
// model's attention weights p they are
//
//   sqrt(p_ts) (l_ts - sum over s' of p_ts' l_ts')
//
// so that |S_f - S|^2 is twice the divergence of the attention weights, to second order. (LPCD's
// paper compares plain logits, and so does the reference package, future keys included. But a
// softmax sees no shift that all keys share, and next to nothing of keys that get no attention.) S
// is linear in Wq for fixed k and the other way round; a norm of the heads is replaced by its
// derivative. Logits exist for 64 queries of one head at a time.

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
    const double sum = logits(ctx, wanted, wanted.q, wanted.k, now.q, now.k, {}, {}, {}, {});
    return {.weighted = sum, .face_value = sum};
  }

  SquaredSum energy(const RunContext& ctx, const SequenceChunk& chunk) const override {
    const Pair wanted = pair_of(ctx, chunk.x_f, original_);
    const double sum = logits(ctx, wanted, wanted.q, wanted.k, {}, {}, {}, {}, {}, {});
    return {.weighted = sum, .face_value = sum};
  }

  double descent(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w,
                 Role role, FloatView descent, Factors* factors) const override {
    const Pair wanted = pair_of(ctx, chunk.x_f, original_);
    Pair now = pair_of(ctx, chunk.x_q, w);
    Mat dx(now.a.rows(), width(role));
    const double error =
        role == Role::kQ ? logits(ctx, wanted, wanted.q, wanted.k, now.q, now.k, now.k, dx, {}, {})
                         : logits(ctx, wanted, wanted.q, wanted.k, now.q, now.k, {}, {}, now.q, dx);
    adjoint(ctx, w, role, now, dx, descent);
    if (factors != nullptr) add_factors(ctx, role, wanted, now, *factors);
    return error;
  }

  double curvature(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w,
                   Role role, ConstView d, FloatView product) const override {
    const Pair wanted = weighted() ? pair_of(ctx, chunk.x_f, original_) : Pair();
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
    const double energy = role == Role::kQ
                              ? logits(ctx, wanted, change, now.k, {}, {}, now.k, dx, {}, {})
                              : logits(ctx, wanted, now.q, change, {}, {}, {}, {}, now.q, dx);
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
    return 2 * forward_.projection_flops(role) +
           2 * (forward_.projection_flops(Role::kQ) + forward_.projection_flops(Role::kK)) +
           8 * pairs * static_cast<double>(config_.heads * config_.head_dim);
  }

  double factor_flops(Role /*role*/) const override {
    // The wanted logits, a second moment of keys or queries for some positions, one of the inputs.
    const double pairs = 0.5 * static_cast<double>(forward_.tiling().seq_len + 1);
    const auto hidden = static_cast<double>(config_.hidden);
    return 2 * pairs * static_cast<double>(config_.heads * config_.head_dim) + hidden * hidden;
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

  // Logits count as the softmax sees them: those of the original model tell how.
  [[nodiscard]] bool weighted() const { return mask_ == nn::Mask::kCausal; }

  // nn::attention_logits over all heads and sequences; sums in their order.
  double logits(const RunContext& ctx, const Pair& weights, ConstView q1, ConstView k1,
                ConstView q0, ConstView k0, ConstView keys, FloatView dq, ConstView queries,
                FloatView dk) const {
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
                                    of(weighted() ? ConstView(weights.q) : ConstView(), h),
                                    of(weighted() ? ConstView(weights.k) : ConstView(), head.kv),
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

  // What the channels of a head are multiplied with, as the softmax sees it and turned back to the
  // token's own position: with p the original's attention weights
  //   q_t   sum over s of p_ts (k_s - mean k) (k_s - mean k)^T
  //   k_s   sum over t of p_ts (1 - p_ts) q_t q_t^T
  // Sums over tokens, of the matrices (for one token in `stride`): output, head by head; of a a^T
  // times their traces: input. Of a norm of the heads only the length it divides by is seen, not
  // that it takes no change along the head. now.a is used up.
  void add_factors(const RunContext& ctx, Role role, const Pair& wanted, Pair& now,
                   Factors& sums) const {
    const int64_t d = config_.head_dim;
    const int64_t length = forward_.tiling().seq_len;
    const int64_t kv_heads = config_.kv_heads;
    const int64_t group = config_.heads / kv_heads;
    const int64_t tasks = now.a.rows() / length * kv_heads;
    const int64_t width_per_task = (role == Role::kQ ? group : 1) * d;
    std::vector<Mat> outputs(static_cast<size_t>(tasks));
    Mat energies(tasks, length);
    linalg::parallel_for(ctx, tasks, [&](int64_t task) {
      Mat output(width_per_task, d);
      const int64_t first = task / kv_heads * length;
      const int64_t kv = task % kv_heads;
      const auto head_of = [&](const Mat& x, int64_t h) {
        if (x.empty()) return ConstView();
        return ConstView(x).rows_range(first, length).cols_range(h * d, d);
      };
      for (int64_t g = 0; g < group; ++g) {
        const int64_t h = kv * group + g;
        const std::span<float> energy{energies.row(task), static_cast<size_t>(length)};
        if (role == Role::kQ) {
          add_seen_keys(head_of(wanted.q, h), head_of(wanted.k, kv), head_of(now.k, kv),
                        squared_norm_factors(head_of(now.raw_q, h)), energy,
                        output.view().rows_range(g * d, d));
        } else {
          add_seeing_queries(head_of(wanted.q, h), head_of(wanted.k, kv), head_of(now.q, h),
                             squared_norm_factors(head_of(now.raw_k, kv)), energy, output);
        }
      }
      outputs[static_cast<size_t>(task)] = std::move(output);
    });
    std::vector<float> weights(static_cast<size_t>(now.a.rows()));
    for (int64_t task = 0; task < tasks; ++task) {
      const Mat& output = outputs[static_cast<size_t>(task)];
      float* to = sums.output.row(task % kv_heads * width_per_task);
      for (int64_t i = 0; i < output.size(); ++i) to[i] += output.data()[i];
      for (int64_t t = 0; t < length; ++t) {
        weights[static_cast<size_t>(task / kv_heads * length + t)] += energies(task, t);
      }
    }
    scale_rows(ctx, weights, now.a);
    linalg::add_gram(ctx, now.a, forward_.tiling().slab_rows, sums.input);
  }

  [[nodiscard]] int64_t stride() const {
    return std::max<int64_t>(1, forward_.tiling().seq_len / 64);
  }
  // How many positions one of those in the sum stands for. The first, on which much of attention
  // rests, stands for itself.
  [[nodiscard]] float share_of(int64_t position) const {
    if (position == 0) return 1.0F;
    const int64_t others = forward_.tiling().seq_len - 1;
    return static_cast<float>(others) / static_cast<float>(others / stride());
  }

  // Of every position of a head: 1 / the mean square that its norm divides by. Without a norm: 1.
  [[nodiscard]] std::vector<float> squared_norm_factors(ConstView raw) const {
    std::vector<float> factors(static_cast<size_t>(forward_.tiling().seq_len), 1.0F);
    for (int64_t t = 0; t < raw.rows(); ++t) {
      float sum = 0;
      for (int64_t i = 0; i < raw.cols(); ++i) sum += raw(t, i) * raw(t, i);
      factors[static_cast<size_t>(t)] =
          1.0F / (sum / static_cast<float>(raw.cols()) + config_.rms_eps);
    }
    return factors;
  }

  // sum += R^T N R with R the rotation of `position`.
  void add_turned_back(int64_t position, Mat& n, FloatView sum) const {
    const int64_t d = config_.head_dim;
    const int64_t half = d / 2;
    const float* cos = forward_.rope().cos.row(position);
    const float* sin = forward_.rope().sin.row(position);
    for (int64_t r = 0; r < d; ++r) {
      float* a = n.row(r);
      float* b = a + half;
      for (int64_t i = 0; i < half; ++i) {
        const float x = a[i] * cos[i] + b[i] * sin[i];
        b[i] = b[i] * cos[i] - a[i] * sin[i];
        a[i] = x;
      }
    }
    for (int64_t i = 0; i < half; ++i) {
      const float* a = n.row(i);
      const float* b = n.row(i + half);
      for (int64_t j = 0; j < d; ++j) {
        sum(i, j) += a[j] * cos[i] + b[j] * sin[i];
        sum(i + half, j) += b[j] * cos[i] - a[j] * sin[i];
      }
    }
  }

  void add_seen_keys(ConstView q_f, ConstView k_f, ConstView k, std::span<const float> factors,
                     std::span<float> energy, FloatView output) const {
    const int64_t d = config_.head_dim;
    const int64_t length = q_f.rows();
    std::vector<float> squares(static_cast<size_t>(length));
    for (int64_t s = 0; s < length; ++s) {
      for (int64_t i = 0; i < d; ++i) squares[static_cast<size_t>(s)] += k(s, i) * k(s, i);
    }
    Mat buffer;
    Mat mean = Mat::uninitialized(nn::kQueryTile, d);
    Mat centred = Mat::uninitialized(length, d);
    Mat gram = Mat::uninitialized(d, d);
    for (int64_t t0 = 0; t0 < length; t0 += nn::kQueryTile) {
      const int64_t rows = std::min(nn::kQueryTile, length - t0);
      const FloatView p = nn::causal_attention_weights(q_f, k_f, t0, rows, buffer);
      const FloatView means = mean.view().rows_range(0, rows);
      linalg::gemm_nn(1.0F, p, k.rows_range(0, p.cols()), 0.0F, means);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t t = t0 + r;
        float sum = 0;
        for (int64_t s = 0; s <= t; ++s) sum += p(r, s) * squares[static_cast<size_t>(s)];
        for (int64_t i = 0; i < d; ++i) sum -= means(r, i) * means(r, i);
        const float factor = factors[static_cast<size_t>(t)];
        energy[static_cast<size_t>(t)] += factor * std::max(sum, 0.0F);
        if (t % stride() != 0) continue;
        const float scale = factor * share_of(t);
        for (int64_t s = 0; s <= t; ++s) {
          const float root = std::sqrt(p(r, s) * scale);
          for (int64_t i = 0; i < d; ++i) centred(s, i) = root * (k(s, i) - means(r, i));
        }
        const FloatView seen = centred.view().rows_range(0, t + 1);
        linalg::gemm_tn(1.0F, seen, seen, 0.0F, gram);
        add_turned_back(t, gram, output);
      }
    }
  }

  void add_seeing_queries(ConstView q_f, ConstView k_f, ConstView q, std::span<const float> factors,
                          std::span<float> energy, FloatView output) const {
    const int64_t d = config_.head_dim;
    const int64_t length = q_f.rows();
    std::vector<float> squares(static_cast<size_t>(length));
    for (int64_t t = 0; t < length; ++t) {
      for (int64_t i = 0; i < d; ++i) squares[static_cast<size_t>(t)] += q(t, i) * q(t, i);
    }
    Mat buffer;
    Mat scaled = Mat::uninitialized(nn::kQueryTile, d);
    std::vector<Mat> grams(static_cast<size_t>(ceil_div(length, stride())));
    for (Mat& gram : grams) gram = Mat(d, d);
    for (int64_t t0 = 0; t0 < length; t0 += nn::kQueryTile) {
      const int64_t rows = std::min(nn::kQueryTile, length - t0);
      const FloatView p = nn::causal_attention_weights(q_f, k_f, t0, rows, buffer);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t s = 0; s <= t0 + r; ++s) {
          // Its root is taken below.
          p(r, s) *= std::max(0.0F, 1.0F - p(r, s)) * factors[static_cast<size_t>(s)];
          energy[static_cast<size_t>(s)] += p(r, s) * squares[static_cast<size_t>(t0 + r)];
        }
      }
      for (int64_t s = 0; s < p.cols(); s += stride()) {
        const float share = share_of(s);
        for (int64_t r = 0; r < rows; ++r) {
          const float root = std::sqrt(p(r, s) * share);
          for (int64_t i = 0; i < d; ++i) scaled(r, i) = root * q(t0 + r, i);
        }
        const FloatView seeing = scaled.view().rows_range(0, rows);
        linalg::gemm_tn(1.0F, seeing, seeing, 1.0F, grams[static_cast<size_t>(s / stride())]);
      }
    }
    for (size_t i = 0; i < grams.size(); ++i) {
      add_turned_back(static_cast<int64_t>(i) * stride(), grams[i], output);
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
