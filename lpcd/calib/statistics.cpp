#include "lpcd/calib/statistics.h"

#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"

namespace lpcd::calib {

void GramAccumulator::add(const RunContext& ctx, ConstView x, int64_t slab_rows) {
  linalg::add_gram(ctx, x, slab_rows, sum_);
  tokens_ += x.rows();
}

Mat GramAccumulator::finish(const RunContext& ctx) && {
  LPCD_CHECK(tokens_ > 0);
  linalg::mirror_lower(ctx, 2.0F / static_cast<float>(tokens_), sum_);
  return std::move(sum_);
}

void CrossAccumulator::add(const RunContext& ctx, ConstView a, ConstView b, int64_t slab_rows) {
  linalg::add_cross(ctx, a, b, slab_rows, sum_);
  tokens_ += a.rows();
}

Mat CrossAccumulator::finish(const RunContext& ctx) && {
  LPCD_CHECK(tokens_ > 0);
  const float scale = 2.0F / static_cast<float>(tokens_);
  linalg::for_rows(ctx, sum_.rows(), [&](int64_t r0, int64_t n) {
    for (int64_t i = r0 * sum_.cols(); i < (r0 + n) * sum_.cols(); ++i) sum_.data()[i] *= scale;
  });
  return std::move(sum_);
}

}  // namespace lpcd::calib
