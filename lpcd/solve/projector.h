#pragma once

#include <cstdint>
#include <vector>

#include "lpcd/base/context.h"
#include "lpcd/format/grid.h"
#include "lpcd/linalg/factor.h"
#include "lpcd/tensor/mat.h"

namespace lpcd::solve {

/// What a projector needs to know about a layer's inputs: the metric in which it projects.
struct Metric {
  Mat h;                         ///< second moment H [K, K]
  std::vector<int32_t> order;    ///< columns in the order GPTQ visits them; empty: as they are
  linalg::InverseFactor factor;  ///< of H + D, with rows and columns in `order`
  std::vector<float> added;      ///< D [K], the damping, columns as they are

  [[nodiscard]] int64_t inputs() const { return h.rows(); }
  [[nodiscard]] float damping(int64_t k) const { return added[static_cast<size_t>(k)]; }
  /// True if input k was zero on all calibration tokens.
  [[nodiscard]] bool dead(int64_t k) const { return h(k, k) == 0.0F; }
};

enum class ColumnOrder {
  kNatural,
  kActivation,  ///< by decreasing diag H ("act-order"); groups stay those of the natural order
};

/// Damps and factors H.
/// Errors    as linalg::factor_damped_inverse.
[[nodiscard]] Metric make_metric(const RunContext& ctx, Mat h, const linalg::Damping& damping,
                                 ColumnOrder order);

/// R <- R (H + D)^-1 in place, whatever the column order of the metric.
/// Shapes    r [N, K].
void solve_in_metric(const RunContext& ctx, const Metric& metric, FloatView r);

/// Rows of one task: enough to fill vectors, few enough that so many times K floats stay in L2.
constexpr int64_t kRowsPerTask = 64;

struct ProjectOptions {
  format::GridSpec grid;
  format::FitOptions fit;
  /// Columns whose error is passed on inside a block before the rest of the row is updated by one
  /// matrix product. Affects speed and rounding only.
  int64_t block_columns = 128;
  /// Choose each group's scale by trying candidates on the weights as they are when the projection
  /// reaches the group, in the metric of the inputs: GPTQ takes the loss that the candidate leaves
  /// behind, error feedback inside the group included, RTN the error weighted by diag H.
  bool scale_search = false;
  /// Sweeps of refine() after GPTQ.
  int refine_sweeps = 0;
  /// Take group scales from weights that miss the error updates of the current block, as the
  /// reference package does. Off: blocks end at group borders and scales see every update.
  bool stale_group_scales = false;
  /// Fewer where rows come a few at a time. May affect rounding.
  int64_t rows_per_task = kRowsPerTask;
};

/// Round to nearest: every weight to its nearest code.
///
/// Shapes    weight [N, K]. Threads: the same bits for any number.
[[nodiscard]] format::QuantizedMatrix project_rtn(const RunContext& ctx, ConstView weight,
                                                  const ProjectOptions& options);

/// GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after the other, and the error
/// of each is passed on to the columns still to come so that the loss tr(E H E^T) grows least.
///
/// Shapes    weight [N, K], metric of K inputs. Weights of dead inputs become 0.
/// Numerics  f32. With a diagonal H the result is that of project_rtn.
/// Threads   64 rows per task; the same bits for any number of threads.
/// Memory    64 * K floats per thread besides the result.
/// Errors    kNonFinite if the weights are not finite.
[[nodiscard]] format::QuantizedMatrix project_gptq(const RunContext& ctx, ConstView weight,
                                                   const Metric& metric,
                                                   const ProjectOptions& options);

/// Round to nearest with a scale search under diag H (if options.scale_search).
[[nodiscard]] format::QuantizedMatrix project_rtn(const RunContext& ctx, ConstView weight,
                                                  const Metric& metric,
                                                  const ProjectOptions& options);

/// Lowers tr(E (H + D) E^T), E = Q - W, from where a projection ended: per group the scale
/// that is best for its codes (rounded to f16, taken if better), then each code to the value that
/// is best while the others stay. Never raises it, but for rounding in f32.
///
/// Shapes    weight [N, K] is the real-valued target, `result` its projection.
/// Numerics  f32; 64 rows per task: the same bits for any number of threads.
/// Memory    3 * 64 * K floats per thread.
void refine(const RunContext& ctx, ConstView weight, const Metric& metric, int sweeps,
            format::QuantizedMatrix& result, int64_t rows_per_task = kRowsPerTask);

/// tr(E H E^T) / 2 for E = a - b: the mean squared output error per token, summed over outputs.
/// Shapes    a, b [N, K].
[[nodiscard]] double output_error(const RunContext& ctx, ConstView a, ConstView b, ConstView h);

/// q.decode() on all threads.
[[nodiscard]] Mat decode(const RunContext& ctx, const format::QuantizedMatrix& q);

}  // namespace lpcd::solve
