#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lpcd/tensor/mat.h"

namespace lpcd::nn {

// The operators of a decoder block as pure functions on the calling thread. The vector width is
// chosen at run time; FMA and width change the last bits between CPU generations, nothing else
// does.

/// out = x / sqrt(mean(x^2) + eps) * weight, row by row.
/// Shapes    x, out [t, D] (may be the same memory); weight [D].
void rms_norm(ConstView x, std::span<const float> weight, float eps, FloatView out);

/// out = silu(gate) * up, silu(a) = a / (1 + exp(-a)).
/// Shapes    all [t, F]; out may be gate or up.
void silu_mul(ConstView gate, ConstView up, FloatView out);

/// out = silu(gate).
/// Shapes    both [t, F]; out may be gate.
void silu(ConstView gate, FloatView out);

/// x += y.
/// Shapes    both [t, D].
void add(ConstView y, FloatView x);

/// Adds the bias to every row of x.
/// Shapes    bias [D], x [t, D].
void add_bias(std::span<const float> bias, FloatView x);

/// out = x - y.
/// Shapes    all [t, D].
void subtract(ConstView x, ConstView y, FloatView out);

/// Sum of squared differences, in f64.
[[nodiscard]] double squared_distance(ConstView x, ConstView y);
/// Sum of squares: f32 within runs of 1024 elements, f64 between them.
[[nodiscard]] double squared_norm(ConstView x);
/// Sum of products, in f64.
[[nodiscard]] double inner_product(ConstView x, ConstView y);
/// Sum over rows of | x / |x| - y / |y| |^2: 0 to 4 each. Rows of zeros add nothing.
[[nodiscard]] double squared_angles(ConstView x, ConstView y);

/// Rotary position embedding: angles of every position and pair of channels.
///
/// Channel i is paired with channel i + d/2 (the layout of Hugging Face checkpoints). Angles are
/// computed as the reference does: f32 frequencies, f32 product with the position.
struct RopeTable {
  Mat cos;  ///< [positions, d/2]
  Mat sin;  ///< [positions, d/2]

  [[nodiscard]] int64_t positions() const { return cos.rows(); }
};

/// How angles are scaled for contexts longer than the model was trained on.
struct RopeScaling {
  enum class Kind { kDefault, kLinear, kLlama3 };
  Kind kind = Kind::kDefault;
  double factor = 1.0;
  // kLlama3: wavelengths above original_context / low_freq_factor are divided by `factor`, those
  // below original_context / high_freq_factor are kept, in between it is interpolated.
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  double original_context = 8192;
};

/// Frequencies of the d/2 channel pairs. `divisors`, if not empty, divides each (GGUF's
/// rope_freqs).
[[nodiscard]] std::vector<float> rope_frequencies(int64_t head_dim, double theta,
                                                  const RopeScaling& scaling,
                                                  std::span<const float> divisors);

[[nodiscard]] RopeTable make_rope_table(std::span<const float> frequencies, int64_t positions);

/// Rotates every head of consecutive positions first_position, first_position + 1, ...
/// Shapes    x [L, heads * d].
void apply_rope(const RopeTable& table, int64_t first_position, int64_t head_dim, FloatView x);

/// The inverse rotation, which is also the transpose: undoes apply_rope.
void apply_rope_transpose(const RopeTable& table, int64_t first_position, int64_t head_dim,
                          FloatView x);

/// slope = d silu(gate) / d gate * up, with silu'(a) = s + a s (1 - s), s = 1 / (1 + exp(-a)).
/// Shapes    all [t, F]; slope may be gate or up.
void silu_slope_mul(ConstView gate, ConstView up, FloatView slope);

/// x *= y.
/// Shapes    both [t, F].
void multiply(ConstView y, FloatView x);

/// The derivative of rms_norm at x applied to dx: with n = sqrt(mean(x^2) + eps),
/// dy = weight * (dx / n - x (x . dx) / (D n^3)).
/// Shapes    x, dx [t, D]; dx is replaced by dy.
void rms_norm_derivative(ConstView x, std::span<const float> weight, float eps, FloatView dx);
/// The transpose of that derivative: dy is replaced by dx.
void rms_norm_derivative_transpose(ConstView x, std::span<const float> weight, float eps,
                                   FloatView dy);

/// Scratch of causal_attention, reused from call to call.
struct AttentionScratch {
  Mat scores;
  Mat weights;
};

/// Queries whose scores are computed at a time.
constexpr int64_t kQueryTile = 64;

/// Softmax weights of the queries q0 .. q0 + rows - 1 over the keys that they see, zeros behind.
///
/// Shapes    q [Lq, d], k [Lk, d] with Lk >= Lq; the result [rows, Lk - Lq + q0 + rows] lies in
///           `buffer`.
FloatView causal_attention_weights(ConstView q, ConstView k, int64_t q0, int64_t rows, Mat& buffer);

/// Causal softmax attention of one head of one sequence: out = softmax(q k^T / sqrt(d)) v.
///
/// Shapes    q, out [Lq, d]; k, v [Lk, d] with Lk >= Lq: query i sees keys 0 .. Lk - Lq + i.
/// Memory    scores of 64 queries at a time: 64 * Lk floats in `scratch`, never [L, L].
void causal_attention(ConstView q, ConstView k, ConstView v, FloatView out,
                      AttentionScratch& scratch);

/// The transpose of causal_attention in its values: dv += softmax(q k^T / sqrt(d))^T dout.
///
/// Shapes    as causal_attention; dout [Lq, d], dv [Lk, d].
/// Memory    as causal_attention.
void causal_attention_transpose(ConstView q, ConstView k, ConstView dout, FloatView dv,
                                AttentionScratch& scratch);

enum class Mask {
  kCausal,  ///< query i sees keys 0 .. i
  kNone,
};

/// Attention logits of one head of one sequence and what follows from a change in them:
/// E = (q1 k1^T - q0 k0^T) / sqrt(d) over the pairs that the mask lets through.
///
/// Shapes    q1, k1 [L, d]; q0, k0 the same, or empty for 0. With keys given, dq += E keys /
///           sqrt(d); with queries given, dk += E^T queries / sqrt(d).
/// Numerics  E is exactly 0 where both pairs are the same.
/// Memory    64 * L floats in `scratch`, twice that with weights.
/// Returns |E|^2.
///
/// With `qp`, `kp` given, logits count as the softmax sees them: with p = softmax(qp kp^T /
/// sqrt(d)) row e of E adds e^T G e, G = diag(p) - p p^T, twice the divergence of the attention
/// weights to second order; E stands for its rows times G in dq and dk.
double attention_logits(Mask mask, ConstView q1, ConstView k1, ConstView q0, ConstView k0,
                        ConstView keys, FloatView dq, ConstView queries, FloatView dk, ConstView qp,
                        ConstView kp, AttentionScratch& scratch);

/// x <- exp((x - max x) * scale); returns the sum of the result. The weights of a softmax.
double exp_weights(std::span<float> x, float scale);

/// Log of the softmax denominator of each row, log sum exp(x - max) + max, and the row's argmax.
struct RowSoftmax {
  float log_sum;
  int32_t argmax;
};
/// Shapes    logits [t, V]; result [t].
[[nodiscard]] std::vector<RowSoftmax> row_log_sum_exp(ConstView logits);

/// sum_v p_v (log p_v - log q_v) with p = softmax(reference row), q = softmax(other row), in nats.
/// Shapes    both [V]; the log sums are those of row_log_sum_exp.
[[nodiscard]] double kl_divergence(std::span<const float> reference, float reference_log_sum,
                                   std::span<const float> other, float other_log_sum);

}  // namespace lpcd::nn
