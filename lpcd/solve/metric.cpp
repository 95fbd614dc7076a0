#include <algorithm>
#include <numeric>

#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/solve/projector.h"

namespace lpcd::solve {
namespace {

constexpr int64_t kRows = 64;

}  // namespace

Metric make_metric(const RunContext& ctx, Mat h, const linalg::Damping& damping,
                   ColumnOrder order) {
  Metric metric;
  metric.h = std::move(h);
  const int64_t n = metric.inputs();
  if (order == ColumnOrder::kNatural) {
    metric.factor = linalg::factor_damped_inverse(ctx, metric.h, damping);
    metric.added = metric.factor.added;
    return metric;
  }
  metric.order.resize(static_cast<size_t>(n));
  std::iota(metric.order.begin(), metric.order.end(), 0);
  std::stable_sort(metric.order.begin(), metric.order.end(),
                   [&](int32_t a, int32_t b) { return metric.h(a, a) > metric.h(b, b); });
  Mat ordered = Mat::uninitialized(n, n);
  for (int64_t r = 0; r < n; ++r) {
    const float* row = metric.h.row(metric.order[static_cast<size_t>(r)]);
    for (int64_t c = 0; c < n; ++c) ordered(r, c) = row[metric.order[static_cast<size_t>(c)]];
  }
  metric.factor = linalg::factor_damped_inverse(ctx, ordered, damping);
  metric.added.resize(metric.factor.added.size());
  for (size_t i = 0; i < metric.added.size(); ++i) {
    metric.added[static_cast<size_t>(metric.order[i])] = metric.factor.added[i];
  }
  return metric;
}

void solve_in_metric(const RunContext& ctx, const Metric& metric, FloatView r) {
  if (metric.order.empty()) {
    linalg::solve_right(ctx, metric.factor, r);
    return;
  }
  Mat ordered = Mat::uninitialized(r.rows(), r.cols());
  for (int64_t n = 0; n < r.rows(); ++n) {
    for (int64_t c = 0; c < r.cols(); ++c)
      ordered(n, c) = r(n, metric.order[static_cast<size_t>(c)]);
  }
  linalg::solve_right(ctx, metric.factor, ordered);
  for (int64_t n = 0; n < r.rows(); ++n) {
    for (int64_t c = 0; c < r.cols(); ++c)
      r(n, metric.order[static_cast<size_t>(c)]) = ordered(n, c);
  }
}

double output_error(const RunContext& ctx, ConstView a, ConstView b, ConstView h) {
  LPCD_CHECK(a.rows() == b.rows() && a.cols() == b.cols() && h.rows() == a.cols());
  const int64_t tasks = ceil_div(a.rows(), kRows);
  std::vector<double> sums(static_cast<size_t>(tasks));
  linalg::parallel_for(ctx, tasks, [&](int64_t task) {
    const int64_t r0 = task * kRows;
    const int64_t rows = std::min(kRows, a.rows() - r0);
    Mat error = Mat::uninitialized(rows, a.cols());
    Mat product = Mat::uninitialized(rows, a.cols());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < a.cols(); ++k) error(r, k) = a(r0 + r, k) - b(r0 + r, k);
    }
    linalg::gemm_nn(1.0F, error, h, 0.0F, product);
    double sum = 0;
    for (int64_t i = 0; i < error.size(); ++i) {
      sum += static_cast<double>(error.data()[i]) * static_cast<double>(product.data()[i]);
    }
    sums[static_cast<size_t>(task)] = sum;
  });
  return 0.5 * std::accumulate(sums.begin(), sums.end(), 0.0);
}

Mat decode(const RunContext& ctx, const format::QuantizedMatrix& q) {
  Mat out = Mat::uninitialized(q.rows, q.cols);
  linalg::for_rows(ctx, q.rows,
                   [&](int64_t r0, int64_t n) { q.decode_rows(r0, out.view().rows_range(r0, n)); });
  return out;
}

}  // namespace lpcd::solve
