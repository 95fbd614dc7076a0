#pragma once

#include <vector>

#include "lpcd/base/context.h"
#include "lpcd/tensor/mat.h"

namespace lpcd::linalg {

/// A = L L^T in place; false if A is not positive definite (A is then garbage).
///
/// Shapes    a [K, K]; only the lower triangle is read and written.
/// Numerics  f32, blocks of 256, fixed order: the same bits for any number of threads.
[[nodiscard]] bool cholesky_lower(const RunContext& ctx, FloatView a);

/// L <- L^-1 for a lower triangular L, in place; the upper triangle is not touched.
void invert_lower(const RunContext& ctx, FloatView l);

/// Damping of a second moment, D = lambda diag((h_kk / mean)^power) with
/// lambda = fraction * mean(diag H), raised when that is not enough.
///
/// Power 0 is the ridge of GPTQ, lambda I. Power 1 shrinks correlations and leaves what inputs
/// weigh against each other alone; between, large lambdas still tell the inputs apart.
struct Damping {
  double fraction = 0.01;
  double power = 0;
  /// Inputs whose second moment is exactly 0 get 1 on the diagonal, which also enters the mean that
  /// `fraction` is relative to: the convention of GPTQ. Otherwise they get the mean of the others.
  bool dead_count_as_one = false;
  /// Attempts before giving up. Attempt i > 0 adds 10^i times the first lambda (of 0: times 1e-6 of
  /// the mean).
  int max_attempts = 5;
};

/// The triangular factor of a damped inverse: U^T U = (H + D)^-1.
///
/// The rows of U are what GPTQ needs to pass the error of a column on; R U^T U solves for R.
struct InverseFactor {
  Mat upper;                   ///< [K, K], zeros below the diagonal
  std::vector<float> added;    ///< what was added to each element of the diagonal [K]
  double lambda = 0;           ///< total; what was added, for power 0
  std::vector<double> raised;  ///< lambda of each failed attempt, in order; empty as a rule
};

/// Factor of (H + D)^-1.
///
/// Shapes    h [K, K] symmetric, full storage. Inputs that are always zero have h_kk = 0; they are
///           replaced by 1 before lambda is computed, as GPTQ does.
/// Memory    two K x K matrices besides h.
/// Errors    kNotPositiveDefinite after max_attempts, kNonFinite if the diagonal of h is not
/// finite.
[[nodiscard]] InverseFactor factor_damped_inverse(const RunContext& ctx, ConstView h,
                                                  const Damping& damping);

/// R <- R (H + D)^-1, in place.
/// Shapes    r [N, K].
void solve_right(const RunContext& ctx, const InverseFactor& factor, FloatView r);

}  // namespace lpcd::linalg
