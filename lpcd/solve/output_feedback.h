#pragma once

#include <functional>
#include <vector>

#include "lpcd/solve/projector.h"

namespace lpcd::solve {

/// How the errors of a layer's outputs add up further on: the loss is tr(A E H E^T), where the
/// metric of the inputs alone has A diagonal. A is block-diagonal, one block per attention head.
struct OutputMetric {
  struct Head {
    std::vector<int32_t> order;    ///< channels in the order in which they are projected
    linalg::InverseFactor factor;  ///< of A + D, with rows and columns in `order`
  };
  std::vector<Head> heads;  ///< of one size each
};

/// Damps and factors A. Channels that matter most come first.
///
/// Shapes    blocks [N, d]: the blocks [d, d] one below the other.
/// Errors    as linalg::factor_damped_inverse.
[[nodiscard]] OutputMetric make_output_metric(const RunContext& ctx, ConstView blocks,
                                              const linalg::Damping& damping);

/// GPTQ from output to output: a few channels of every head are projected at a time, and their
/// error is passed on to the channels still to come so that tr(A E H E^T) grows least. With the
/// feedback from input to input inside `project` this is GPTQ in the Kronecker product A (x) H.
/// (Kronecker factors with feedback on both sides: YAQA, arXiv 2505.22988.)
///
/// Shapes    weight [N, K]; `project` is given some rows of it.
/// Numerics  f32; the same bits for any number of threads if `project` keeps to that.
/// Memory    N K floats and the result.
[[nodiscard]] format::QuantizedMatrix project_with_output_feedback(
    const RunContext& ctx, ConstView weight, const OutputMetric& metric,
    const std::function<format::QuantizedMatrix(ConstView)>& project);

}  // namespace lpcd::solve
