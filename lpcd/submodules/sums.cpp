#include "lpcd/submodules/sums.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "lpcd/linalg/parallel.h"
#include "lpcd/nn/ops.h"

namespace lpcd::submodules {
namespace {

double summed(const RunContext& ctx, int64_t rows,
              const std::function<double(int64_t, int64_t)>& part) {
  std::vector<double> sums(static_cast<size_t>(ceil_div(rows, linalg::kRowsPerTask)));
  for_rows(ctx, rows, [&](int64_t r0, int64_t n) {
    sums[static_cast<size_t>(r0 / linalg::kRowsPerTask)] = part(r0, n);
  });
  double total = 0;
  for (const double s : sums) total += s;
  return total;
}

}  // namespace

double squared_norm(const RunContext& ctx, ConstView x) {
  return summed(ctx, x.rows(),
                [&](int64_t r0, int64_t n) { return nn::squared_norm(x.rows_range(r0, n)); });
}

double weighted_squared_norm(const RunContext& ctx, std::span<const float> weights, ConstView x) {
  if (weights.empty()) return squared_norm(ctx, x);
  return summed(ctx, x.rows(), [&](int64_t r0, int64_t n) {
    double sum = 0;
    for (int64_t t = r0; t < r0 + n; ++t) {
      sum += static_cast<double>(weights[static_cast<size_t>(t)]) *
             nn::squared_norm(x.rows_range(t, 1));
    }
    return sum;
  });
}

SquaredSum squared_sum_of_scaled(const RunContext& ctx, std::span<const float> weights,
                                 ConstView x) {
  const double weighted = squared_norm(ctx, x);
  if (weights.empty()) return {.weighted = weighted, .face_value = weighted};
  std::vector<float> inverse(weights.begin(), weights.end());
  for (float& w : inverse) w = 1 / w;
  return {.weighted = weighted, .face_value = weighted_squared_norm(ctx, inverse, x)};
}

double squared_distance(const RunContext& ctx, ConstView x, ConstView y) {
  return summed(ctx, x.rows(), [&](int64_t r0, int64_t n) {
    return nn::squared_distance(x.rows_range(r0, n), y.rows_range(r0, n));
  });
}

double inner_product(const RunContext& ctx, ConstView x, ConstView y) {
  return summed(ctx, x.rows(), [&](int64_t r0, int64_t n) {
    return nn::inner_product(x.rows_range(r0, n), y.rows_range(r0, n));
  });
}

void scale(const RunContext& ctx, double factor, FloatView x) {
  const auto f = static_cast<float>(factor);
  for_rows(ctx, x.rows(), [&](int64_t r0, int64_t n) {
    for (int64_t r = r0; r < r0 + n; ++r) {
      float* row = x.row(r);
      for (int64_t c = 0; c < x.cols(); ++c) row[c] *= f;
    }
  });
}

void add_scaled(const RunContext& ctx, double factor, ConstView x, FloatView y) {
  const auto f = static_cast<float>(factor);
  for_rows(ctx, x.rows(), [&](int64_t r0, int64_t n) {
    for (int64_t r = r0; r < r0 + n; ++r) {
      const float* from = x.row(r);
      float* to = y.row(r);
      for (int64_t c = 0; c < x.cols(); ++c) to[c] += f * from[c];
    }
  });
}

Mat copied(const RunContext& ctx, ConstView x) {
  Mat out = Mat::uninitialized(x.rows(), x.cols());
  for_rows(ctx, x.rows(),
           [&](int64_t r0, int64_t n) { copy(x.rows_range(r0, n), out.view().rows_range(r0, n)); });
  return out;
}

void subtract(const RunContext& ctx, ConstView x, ConstView y, FloatView out) {
  for_rows(ctx, x.rows(), [&](int64_t r0, int64_t n) {
    nn::subtract(x.rows_range(r0, n), y.rows_range(r0, n), out.rows_range(r0, n));
  });
}

void multiply(const RunContext& ctx, ConstView y, FloatView x) {
  for_rows(ctx, x.rows(),
           [&](int64_t r0, int64_t n) { nn::multiply(y.rows_range(r0, n), x.rows_range(r0, n)); });
}

void scale_rows(const RunContext& ctx, std::span<const float> weights, FloatView x) {
  if (weights.empty()) return;
  for_rows(ctx, x.rows(), [&](int64_t r0, int64_t n) {
    for (int64_t t = r0; t < r0 + n; ++t) {
      const float factor = std::sqrt(weights[static_cast<size_t>(t)]);
      for (int64_t c = 0; c < x.cols(); ++c) x(t, c) *= factor;
    }
  });
}

std::vector<float> token_weights(const RunContext& ctx, ConstView y_f, ConstView x_q,
                                 double face_value, std::span<const float> y_q_energies) {
  std::vector<float> weights(static_cast<size_t>(y_f.rows()));
  const auto width = static_cast<double>(y_f.cols());
  for_rows(ctx, y_f.rows(), [&](int64_t r0, int64_t n) {
    for (int64_t t = r0; t < r0 + n; ++t) {
      double energy =
          std::max(nn::squared_norm(y_f.rows_range(t, 1)), nn::squared_norm(x_q.rows_range(t, 1)));
      if (!y_q_energies.empty()) {
        energy = std::max(energy, static_cast<double>(y_q_energies[static_cast<size_t>(t)]));
      }
      weights[static_cast<size_t>(t)] =
          static_cast<float>(width / std::max(energy, 1e-20) + face_value);
    }
  });
  return weights;
}

std::vector<float> row_energies(const RunContext& ctx, ConstView x) {
  std::vector<float> energies(static_cast<size_t>(x.rows()));
  for_rows(ctx, x.rows(), [&](int64_t r0, int64_t n) {
    for (int64_t t = r0; t < r0 + n; ++t) {
      energies[static_cast<size_t>(t)] = static_cast<float>(nn::squared_norm(x.rows_range(t, 1)));
    }
  });
  return energies;
}

double squared_angles(const RunContext& ctx, ConstView x, ConstView y) {
  return summed(ctx, x.rows(), [&](int64_t r0, int64_t n) {
    return nn::squared_angles(x.rows_range(r0, n), y.rows_range(r0, n));
  });
}

std::vector<float> column_energies(const RunContext& ctx, ConstView w) {
  std::vector<float> sums(static_cast<size_t>(w.cols()));
  constexpr int64_t kColumns = 256;  // per task
  linalg::parallel_for(ctx, ceil_div(w.cols(), kColumns), [&](int64_t task) {
    const int64_t end = std::min(w.cols(), (task + 1) * kColumns);
    for (int64_t r = 0; r < w.rows(); ++r) {
      const float* row = w.row(r);
      for (int64_t c = task * kColumns; c < end; ++c) {
        sums[static_cast<size_t>(c)] += row[c] * row[c];
      }
    }
  });
  return sums;
}

}  // namespace lpcd::submodules
