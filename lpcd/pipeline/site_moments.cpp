#include "lpcd/pipeline/site_moments.h"

#include "lpcd/submodules/sums.h"

namespace lpcd::pipeline {

using submodules::CrossMoments;
using submodules::Part;

SiteMoments::SiteMoments(int64_t outputs, int64_t inputs, CrossMoments cross)
    : outputs_(outputs), inputs_(inputs), cross_(cross) {}

double SiteMoments::add_inputs(const RunContext& ctx, Part part, ConstView x_f, ConstView x_q,
                               int64_t slab) {
  Sums& s = sums(part);
  if (!s.h) {
    s.h.emplace(inputs_);
    if (cross_.input) s.input.emplace(inputs_, inputs_);
    if (wants_missing_output()) s.output.emplace(outputs_, inputs_);
  }
  s.tokens += x_q.rows();
  const auto tokens = static_cast<double>(x_q.rows());
  const auto k = static_cast<double>(x_q.cols());
  const ConstView raw = x_q;
  x_q = weighted(ctx, x_q, weighted_);
  s.h->add(ctx, x_q, slab);
  if (!s.input) return tokens * k * (k + 1);
  LPCD_CHECK(x_f.rows() == x_q.rows());
  if (difference_.rows() < x_q.rows()) {
    difference_ = Mat::uninitialized(x_q.rows(), x_q.cols());
  }
  const FloatView difference = difference_.view().rows_range(0, x_q.rows());
  submodules::subtract(ctx, x_f, raw, difference);
  submodules::scale_rows(ctx, weights_, difference);
  s.input->add(ctx, difference, x_q, slab);
  return tokens * k * (3 * k + 1);
}

double SiteMoments::add_missing(const RunContext& ctx, Part part, ConstView missing, ConstView y_f,
                                ConstView x_q, int64_t slab) {
  Sums& s = sums(part);
  if (!weights_.empty()) x_q = weighted_.view().rows_range(0, x_q.rows());
  missing = weighted(ctx, missing, missing_);
  s.output->add(ctx, missing, x_q, slab);
  s.missing_energy += submodules::squared_norm(ctx, missing);
  s.output_energy += submodules::weighted_squared_norm(ctx, weights_, y_f);
  return 2 * static_cast<double>(x_q.rows()) * static_cast<double>(missing.cols() * x_q.cols());
}

ConstView SiteMoments::weighted(const RunContext& ctx, ConstView x, Mat& buffer) const {
  if (weights_.empty()) return x;
  if (buffer.rows() < x.rows()) buffer = Mat::uninitialized(x.rows(), x.cols());
  const FloatView out = buffer.view().rows_range(0, x.rows());
  submodules::for_rows(ctx, x.rows(), [&](int64_t r0, int64_t n) {
    copy(x.rows_range(r0, n), out.rows_range(r0, n));
  });
  submodules::scale_rows(ctx, weights_, out);
  return out;
}

SiteMoments::Finished SiteMoments::finish(const RunContext& ctx, Part part) {
  Sums& s = sums(part);
  Finished finished;
  if (s.tokens == 0) return finished;
  finished.h = std::move(*s.h).finish(ctx);
  if (s.input) finished.cross_input = std::move(*s.input).finish(ctx);
  if (s.output) {
    finished.cross_output = std::move(*s.output).finish(ctx);
    finished.missing_energy = s.missing_energy / static_cast<double>(s.tokens);
    finished.output_energy = s.output_energy / static_cast<double>(s.tokens);
  }
  s = {};
  return finished;
}

}  // namespace lpcd::pipeline
