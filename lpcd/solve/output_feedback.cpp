#include "lpcd/solve/output_feedback.h"

#include <algorithm>
#include <numeric>

#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"

namespace lpcd::solve {
namespace {

// Steps over the channels of a head. Among the channels of one step no error is passed on; shorter
// steps waste vector lanes.
constexpr int64_t kSteps = 16;

// `errors` [count, K] of the channels from `begin` on: `rest`, the channels behind them, lose
// U_br^T U_bb^-T errors, which is used up.
void pass_on(ConstView upper, int64_t begin, FloatView errors, FloatView rest) {
  const int64_t count = errors.rows();
  for (int64_t r = 0; r < count; ++r) {  // U_bb^T y = errors, from the top
    float* row = errors.row(r);
    for (int64_t above = 0; above < r; ++above) {
      const float factor = upper(begin + above, begin + r);
      const float* solved = errors.row(above);
      for (int64_t k = 0; k < errors.cols(); ++k) row[k] -= factor * solved[k];
    }
    const float pivot = upper(begin + r, begin + r);
    for (int64_t k = 0; k < errors.cols(); ++k) row[k] /= pivot;
  }
  linalg::gemm_tn(-1.0F, upper.rows_range(begin, count).cols_range(begin + count, rest.rows()),
                  errors, 1.0F, rest);
}

}  // namespace

OutputMetric make_output_metric(const RunContext& ctx, ConstView blocks,
                                const linalg::Damping& damping) {
  const int64_t d = blocks.cols();
  LPCD_CHECK(blocks.rows() % d == 0);
  OutputMetric metric;
  for (int64_t first = 0; first < blocks.rows(); first += d) {
    const ConstView a = blocks.rows_range(first, d);
    OutputMetric::Head head;
    head.order.resize(static_cast<size_t>(d));
    std::iota(head.order.begin(), head.order.end(), 0);
    std::ranges::stable_sort(head.order, [&](int32_t x, int32_t y) { return a(x, x) > a(y, y); });
    Mat ordered = Mat::uninitialized(d, d);
    for (int64_t r = 0; r < d; ++r) {
      const float* row = a.row(head.order[static_cast<size_t>(r)]);
      for (int64_t c = 0; c < d; ++c) ordered(r, c) = row[head.order[static_cast<size_t>(c)]];
    }
    head.factor = linalg::factor_damped_inverse(ctx, ordered, damping);
    metric.heads.push_back(std::move(head));
  }
  return metric;
}

format::QuantizedMatrix project_with_output_feedback(
    const RunContext& ctx, ConstView weight, const OutputMetric& metric,
    const std::function<format::QuantizedMatrix(ConstView)>& project) {
  const auto heads = static_cast<int64_t>(metric.heads.size());
  const int64_t d = weight.rows() / heads;
  const int64_t inputs = weight.cols();
  LPCD_CHECK(d * heads == weight.rows() && d == metric.heads.front().factor.upper.rows());
  // Heads take turns, each in its own order: row c * heads + h is channel order[c] of head h.
  const auto row_of = [&](int64_t index) {
    const int64_t head = index % heads;
    return head * d +
           metric.heads[static_cast<size_t>(head)].order[static_cast<size_t>(index / heads)];
  };
  Mat work = Mat::uninitialized(weight.rows(), inputs);
  for (int64_t r = 0; r < work.rows(); ++r) std::copy_n(weight.row(row_of(r)), inputs, work.row(r));
  const auto head_rows = [&](int64_t head, int64_t channel, int64_t count) {
    return FloatView(work.row(channel * heads + head), count, inputs, heads * inputs);
  };

  format::QuantizedMatrix result;
  const int64_t step = ceil_div(d, kSteps);
  for (int64_t begin = 0; begin < d; begin += step) {
    const int64_t count = std::min(step, d - begin);
    const FloatView rows = work.view().rows_range(begin * heads, count * heads);
    const format::QuantizedMatrix q = project(rows);
    if (begin == 0) {
      result = format::QuantizedMatrix(q.spec, weight.rows(), inputs);
      result.f16_decode = q.f16_decode;
    }
    for (int64_t r = 0; r < rows.rows(); ++r) result.copy_row(q, r, row_of(begin * heads + r));
    if (begin + count == d) break;
    const Mat decoded = q.decode();
    linalg::parallel_for(ctx, heads, [&](int64_t head) {
      const FloatView errors = head_rows(head, begin, count);
      for (int64_t r = 0; r < count; ++r) {
        const float* from = decoded.row(r * heads + head);
        float* to = errors.row(r);
        for (int64_t k = 0; k < inputs; ++k) to[k] -= from[k];
      }
      pass_on(metric.heads[static_cast<size_t>(head)].factor.upper, begin, errors,
              head_rows(head, begin + count, d - begin - count));
    });
  }
  return result;
}

}  // namespace lpcd::solve
