#pragma once

#include <span>
#include <vector>

#include "lpcd/base/context.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/tensor/mat.h"

namespace lpcd::submodules {

// Element-wise work and sums over rows on all threads. Sums of the tasks of for_rows() are added in
// the order of the rows: the same bits for any number of threads.

/// A sum of squares over tokens.
struct SquaredSum {
  double weighted = 0;    ///< tokens count by their weights
  double face_value = 0;  ///< tokens count once

  SquaredSum& operator+=(const SquaredSum& other) {
    weighted += other.weighted;
    face_value += other.face_value;
    return *this;
  }
};

using linalg::for_rows;
[[nodiscard]] double squared_norm(const RunContext& ctx, ConstView x);
/// Rows t count weights[t] times; no weights: once.
[[nodiscard]] double weighted_squared_norm(const RunContext& ctx, std::span<const float> weights,
                                           ConstView x);
/// Of rows that scale_rows() has multiplied with the roots of these weights.
[[nodiscard]] SquaredSum squared_sum_of_scaled(const RunContext& ctx,
                                               std::span<const float> weights, ConstView x);
[[nodiscard]] double squared_distance(const RunContext& ctx, ConstView x, ConstView y);
[[nodiscard]] double inner_product(const RunContext& ctx, ConstView x, ConstView y);
/// x *= factor; y += factor x.
void scale(const RunContext& ctx, double factor, FloatView x);
void add_scaled(const RunContext& ctx, double factor, ConstView x, FloatView y);
[[nodiscard]] Mat copied(const RunContext& ctx, ConstView x);
/// out = x - y.
void subtract(const RunContext& ctx, ConstView x, ConstView y, FloatView out);
/// x *= y.
void multiply(const RunContext& ctx, ConstView y, FloatView x);
/// Rows t of x times sqrt(weights[t]); no weights: nothing.
void scale_rows(const RunContext& ctx, std::span<const float> weights, FloatView x);
/// D / max(|y_f,t|^2, |x_q,t|^2, |y_q,t|^2) for every token t: an error on the residual stream
/// counts relative to the stream, as the norm in front of the next layer will see it. Without it a
/// few tokens with massive activations outweigh all others; with the original's norm alone, a token
/// that is massive only in the quantized model would; with the norm of x_q beside it, one that
/// turns massive in this half block.
///
/// What is left of those few then is next to nothing, though attention in later layers rests on
/// them: `face_value` is added, the same for all tokens.
///
/// Shapes    y_f, x_q [t, D]; y_q_energies: |y_q,t|^2 [t], or empty (not known).
[[nodiscard]] std::vector<float> token_weights(const RunContext& ctx, ConstView y_f, ConstView x_q,
                                               double face_value = 0,
                                               std::span<const float> y_q_energies = {});
/// Sum over tokens of | x / |x| - y / |y| |^2: 0 to 4 each.
[[nodiscard]] double squared_angles(const RunContext& ctx, ConstView x, ConstView y);
/// Sum of squares of each row.
[[nodiscard]] std::vector<float> row_energies(const RunContext& ctx, ConstView x);
/// Sum of squares of each column.
[[nodiscard]] std::vector<float> column_energies(const RunContext& ctx, ConstView w);

}  // namespace lpcd::submodules
