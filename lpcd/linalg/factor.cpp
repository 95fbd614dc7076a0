#include "lpcd/linalg/factor.h"

#include <cblas.h>
#include <lapacke.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lpcd/base/raise.h"
#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"

namespace lpcd::linalg {
namespace {

constexpr int64_t kBlock = 256;  // diagonal block of a factorisation
constexpr int64_t kRows = 64;    // rows of a right-hand side that one task solves

FloatView block_of(FloatView a, int64_t i, int64_t j) {
  const int64_t rows = std::min(kBlock, a.rows() - i * kBlock);
  const int64_t cols = std::min(kBlock, a.cols() - j * kBlock);
  return a.rows_range(i * kBlock, rows).cols_range(j * kBlock, cols);
}

int to_int(int64_t n) { return narrow<int>(n, "matrix extent"); }

// B <- B op(T)^-1 or op(T)^-1 B for a triangular T.
void trsm(CBLAS_SIDE side, CBLAS_TRANSPOSE trans, ConstView t, FloatView b) {
  if (b.empty()) return;
  cblas_strsm(CblasRowMajor, side, CblasLower, trans, CblasNonUnit, to_int(b.rows()),
              to_int(b.cols()), 1.0F, t.data(), to_int(t.stride()), b.data(), to_int(b.stride()));
}

void trmm_right_upper(CBLAS_TRANSPOSE trans, ConstView t, FloatView b) {
  if (b.empty()) return;
  cblas_strmm(CblasRowMajor, CblasRight, CblasUpper, trans, CblasNonUnit, to_int(b.rows()),
              to_int(b.cols()), 1.0F, t.data(), to_int(t.stride()), b.data(), to_int(b.stride()));
}

}  // namespace

bool cholesky_lower(const RunContext& ctx, FloatView a) {
  LPCD_CHECK(a.rows() == a.cols());
  const int64_t blocks = ceil_div(a.rows(), kBlock);
  for (int64_t k = 0; k < blocks; ++k) {
    const FloatView diagonal = block_of(a, k, k);
    // Row-major lower is column-major upper on the same memory.
    const int info = LAPACKE_spotrf_work(LAPACK_COL_MAJOR, 'U', to_int(diagonal.rows()),
                                         diagonal.data(), to_int(diagonal.stride()));
    if (info != 0) return false;
    parallel_for(ctx, blocks - k - 1, [&](int64_t i) {
      trsm(CblasRight, CblasTrans, diagonal, block_of(a, k + 1 + i, k));
    });
    const int64_t rest = blocks - k - 1;
    parallel_for(ctx, rest * (rest + 1) / 2, [&](int64_t task) {
      int64_t i = 0;
      while ((i + 1) * (i + 2) / 2 <= task) ++i;
      const int64_t j = task - i * (i + 1) / 2;
      gemm_nt(-1.0F, block_of(a, k + 1 + i, k), block_of(a, k + 1 + j, k), 1.0F,
              block_of(a, k + 1 + i, k + 1 + j));
    });
  }
  return true;
}

void invert_lower(const RunContext& ctx, FloatView l) {
  LPCD_CHECK(l.rows() == l.cols());
  const int64_t blocks = ceil_div(l.rows(), kBlock);
  // Column block j of the inverse solves L X = E_j and needs only blocks of L at or right of j,
  // so results are collected beside L: the tasks read L while others finish.
  std::vector<Mat> columns(static_cast<size_t>(blocks));
  parallel_for(ctx, blocks, [&](int64_t j) {
    const int64_t begin = j * kBlock;
    const int64_t width = std::min(kBlock, l.cols() - begin);
    Mat x(l.rows() - begin, width);
    for (int64_t c = 0; c < width; ++c) x(c, c) = 1.0F;
    const FloatView xv = x;
    for (int64_t i = j; i < blocks; ++i) {
      const int64_t r0 = i * kBlock - begin;
      const FloatView xi = xv.rows_range(r0, std::min(kBlock, l.rows() - i * kBlock));
      if (i > j) {
        const FloatView left = l.rows_range(i * kBlock, xi.rows()).cols_range(begin, r0);
        gemm_nn(-1.0F, left, xv.rows_range(0, r0), 1.0F, xi);
      }
      trsm(CblasLeft, CblasNoTrans, block_of(l, i, i), xi);
    }
    columns[static_cast<size_t>(j)] = std::move(x);
  });
  parallel_for(ctx, blocks, [&](int64_t j) {
    const Mat& x = columns[static_cast<size_t>(j)];
    for (int64_t r = 0; r < x.rows(); ++r) {
      const int64_t count = std::min(x.cols(), r + 1);
      std::copy_n(x.row(r), count, l.row(j * kBlock + r) + j * kBlock);
    }
  });
}

InverseFactor factor_damped_inverse(const RunContext& ctx, ConstView h, const Damping& damping) {
  LPCD_CHECK(h.rows() == h.cols());
  const int64_t n = h.rows();
  std::vector<float> diagonal(static_cast<size_t>(n));
  for (int64_t k = 0; k < n; ++k) {
    const float value = h(k, k);
    if (!std::isfinite(value)) {
      raise(ErrorCode::kNonFinite,
            "second moment of input {} is not finite; activations overflowed, check the weights",
            k);
    }
    diagonal[static_cast<size_t>(k)] = value == 0.0F && damping.dead_count_as_one ? 1.0F : value;
  }
  const auto alive = n - std::ranges::count(diagonal, 0.0F);
  const double sum = std::accumulate(diagonal.begin(), diagonal.end(), 0.0);
  const double mean = alive > 0 ? sum / static_cast<double>(alive) : 1.0;
  std::ranges::replace(diagonal, 0.0F, static_cast<float>(mean));
  const double first = damping.fraction * mean;

  InverseFactor factor;
  factor.lambda = first;
  std::vector<double> shape(static_cast<size_t>(n), 1.0);
  if (damping.power != 0) {
    for (size_t k = 0; k < shape.size(); ++k) {
      shape[k] = std::max(std::pow(static_cast<double>(diagonal[k]) / mean, damping.power), 1e-4);
    }
  }
  // With P the reversal of the order, P (H + lambda I) P = L L^T gives U = P L^-1 P.
  Mat reversed = Mat::uninitialized(n, n);
  for (int attempt = 0;; ++attempt) {
    for_rows(ctx, n, [&](int64_t r0, int64_t rows) {
      for (int64_t r = r0; r < r0 + rows; ++r) {
        for (int64_t c = 0; c < n; ++c) reversed(r, c) = h(n - 1 - r, n - 1 - c);
        const int64_t k = n - 1 - r;
        reversed(r, r) = static_cast<float>(static_cast<double>(diagonal[static_cast<size_t>(k)]) +
                                            factor.lambda * shape[static_cast<size_t>(k)]);
      }
    });
    if (cholesky_lower(ctx, reversed)) break;
    factor.raised.push_back(factor.lambda);
    if (attempt + 1 >= damping.max_attempts) {
      raise(
          ErrorCode::kNotPositiveDefinite,
          "the second moment of the inputs is not positive definite even with {:.3g} added to its "
          "diagonal (mean {:.3g}); use more calibration text or a larger --percdamp",
          factor.lambda, mean);
    }
    factor.lambda += (first > 0 ? first : 1e-6 * mean) * std::pow(10.0, attempt + 1);
  }
  invert_lower(ctx, reversed);
  for (const double share : shape) {
    factor.added.push_back(static_cast<float>(factor.lambda * share));
  }

  factor.upper = Mat::uninitialized(n, n);
  for_rows(ctx, n, [&](int64_t r0, int64_t rows) {
    for (int64_t r = r0; r < r0 + rows; ++r) {
      std::fill_n(factor.upper.row(r), r, 0.0F);
      for (int64_t c = r; c < n; ++c) factor.upper(r, c) = reversed(n - 1 - r, n - 1 - c);
    }
  });
  return factor;
}

void solve_right(const RunContext& ctx, const InverseFactor& factor, FloatView r) {
  const ConstView u = factor.upper;
  LPCD_CHECK(r.cols() == u.rows());
  parallel_for(ctx, ceil_div(r.rows(), kRows), [&](int64_t task) {
    const FloatView rows = r.rows_range(task * kRows, std::min(kRows, r.rows() - task * kRows));
    trmm_right_upper(CblasTrans, u, rows);
    trmm_right_upper(CblasNoTrans, u, rows);
  });
}

}  // namespace lpcd::linalg
