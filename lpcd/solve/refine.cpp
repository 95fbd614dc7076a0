#include "lpcd/solve/projector.h"
#include "lpcd/solve/row_block.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lpcd/solve/refine.cpp"
#include <hwy/foreach_target.h>  // compiles the part below once per vector instruction set
#include <hwy/highway.h>
// after highway.h
#include <algorithm>
#include <cmath>

#include "lpcd/base/raise.h"
#include "lpcd/base/simd-inl.h"
#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/solve/refine_blocks.h"
#include "lpcd/tensor/half.h"

HWY_BEFORE_NAMESPACE();
namespace lpcd::solve {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using simd::HWY_NAMESPACE::Df;
using simd::HWY_NAMESPACE::for_vectors;
using simd::HWY_NAMESPACE::Vf;

// Moves the codes of one column to the best value on the grid while the other columns stay:
// q - gradient / curvature, rounded. delta = change of the decoded weights. False if none changed.
bool MoveColumn(const float* gradient, float curvature, const float* scale, const float* zero,
                float max_code, int64_t rows, float* codes, float* delta) {
  const Df d;
  const Vf top = hn::Set(d, max_code);
  const Vf inverse = hn::Set(d, 1.0F / curvature);
  Vf any = hn::Zero(d);
  for_vectors(rows, [&](auto load, auto store) HWY_ATTR {
    const Vf s = load(scale);
    const Vf z = load(zero);
    const Vf code = load(codes);
    const Vf shift = hn::Div(hn::Mul(load(gradient), inverse), s);
    const Vf wanted = hn::Add(hn::Round(hn::Sub(hn::Sub(code, z), shift)), z);
    const Vf next = hn::Min(hn::Max(wanted, hn::Zero(d)), top);
    const Vf change = hn::Mul(s, hn::Sub(next, code));
    any = hn::Max(any, hn::Abs(change));
    store(next, codes);
    store(change, delta);
  });
  return hn::GetLane(hn::MaxOfLanes(d, any)) > 0.0F;
}

// y += a x.
void AddScaled(float a, const float* x, int64_t rows, float* y) {
  const Vf factor = hn::Set(Df(), a);
  for_vectors(rows, [&](auto load, auto store)
                        HWY_ATTR { store(hn::MulAdd(factor, load(x), load(y)), y); });
}

// The columns [begin, end) one after the other, each with the gradient that those before it have
// left. change [end - begin, rows] = change of the decoded weights. False if none changed.
bool MoveColumns(const Metric& metric, int64_t begin, int64_t end, const float* scale,
                 const float* zero, float max_code, FloatView codes, FloatView gradient,
                 FloatView change) {
  const int64_t rows = codes.cols();
  bool any = false;
  for (int64_t k = begin; k < end; ++k) {
    float* column_change = change.row(k - begin);
    const float curvature = metric.h(k, k) + metric.damping(k);
    if (metric.dead(k) || !MoveColumn(gradient.row(k), curvature, scale, zero, max_code, rows,
                                      codes.row(k), column_change)) {
      std::fill_n(column_change, rows, 0.0F);
      continue;
    }
    any = true;
    const float* h = metric.h.row(k);
    for (int64_t j = begin; j < end; ++j) {
      AddScaled(j == k ? curvature : h[j], column_change, rows, gradient.row(j));
    }
  }
  return any;
}

}  // namespace HWY_NAMESPACE
}  // namespace lpcd::solve
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lpcd::solve {

HWY_EXPORT(MoveColumns);
HWY_EXPORT(AddScaled);

namespace {

// Columns whose changes are passed on inside a block before the rest is updated by one product.
constexpr int64_t kBlockColumns = 128;

// Coordinate descent on the rows of one task, everything transposed: [columns, rows].
class RefineRows {
 public:
  RefineRows(ConstView weight, const Metric& metric, format::QuantizedMatrix& result, int64_t row,
             int64_t rows)
      : metric_(metric),
        result_(result),
        first_row_(row),
        rows_(std::min(rows, weight.rows() - row)),
        inputs_(weight.cols()),
        codes_(Mat::uninitialized(inputs_, rows_)),
        gradient_(Mat::uninitialized(inputs_, rows_)),
        change_(Mat::uninitialized(std::min(kBlockColumns, inputs_), rows_)),
        scale_(static_cast<size_t>(rows_)),
        zero_(static_cast<size_t>(rows_)) {
    Mat error = Mat::uninitialized(inputs_, rows_);
    const int64_t length = result.spec.group_length(inputs_);
    for (int64_t r = 0; r < rows_; ++r) {
      const float* target = weight.row(row + r);
      const uint8_t* codes = result.codes.data() + (row + r) * inputs_;
      for (int64_t k = 0; k < inputs_; ++k) {
        const int64_t group = k / length;
        const auto code = static_cast<float>(codes[k]);
        codes_(k, r) = code;
        // A dead input was projected as if its weight were 0.
        error(k, r) =
            result.scales(group, row + r) * (code - static_cast<float>(zero_of(group, r))) -
            (metric.dead(k) ? 0.0F : target[k]);
      }
    }
    linalg::gemm_nn(1.0F, metric.h, error, 0.0F, gradient_);
    for (int64_t k = 0; k < inputs_; ++k) {
      HWY_DYNAMIC_DISPATCH(AddScaled)(metric.damping(k), error.row(k), rows_, gradient_.row(k));
    }
  }

  void run(int sweeps) {
    bool any = true;
    for (int sweep = 0; sweep < sweeps && any; ++sweep) {
      any = false;
      for (int64_t group = 0; group < result_.groups(); ++group) any = visit(group) || any;
    }
    for (int64_t r = 0; r < rows_; ++r) {
      uint8_t* codes = result_.codes.data() + (first_row_ + r) * inputs_;
      for (int64_t k = 0; k < inputs_; ++k) codes[k] = static_cast<uint8_t>(codes_(k, r));
    }
  }

 private:
  [[nodiscard]] uint8_t zero_of(int64_t group, int64_t r) const {
    return result_.zeros[static_cast<size_t>(group * result_.rows + first_row_ + r)];
  }

  // A new scale for the group, then its codes. False if nothing changed.
  bool visit(int64_t group) {
    const int64_t length = result_.spec.group_length(inputs_);
    const int64_t begin = group * length;
    const int64_t end = std::min(inputs_, begin + length);
    for (int64_t r = 0; r < rows_; ++r) {
      scale_[static_cast<size_t>(r)] = result_.scales(group, first_row_ + r);
      zero_[static_cast<size_t>(r)] = static_cast<float>(zero_of(group, r));
    }
    Mat scaled = Mat::uninitialized(end - begin, rows_);
    bool any = refit_scales(group, begin, end, scaled);
    // A short group is passed on once, with both changes.
    const bool together = end - begin <= kBlockColumns;
    if (any && !together) pass_on(scaled, begin, end);
    for (int64_t b = begin; b < end; b += kBlockColumns) {
      const int64_t last = std::min(end, b + kBlockColumns);
      const FloatView change = change_.view().rows_range(0, last - b);
      const bool moved =
          HWY_DYNAMIC_DISPATCH(MoveColumns)(metric_, b, last, scale_.data(), zero_.data(),
                                            result_.spec.max_code(), codes_, gradient_, change);
      if (any && together) {
        for (int64_t k = 0; k < change.rows(); ++k) {
          HWY_DYNAMIC_DISPATCH(AddScaled)(1.0F, scaled.row(k), rows_, change.row(k));
        }
      }
      if (moved || (any && together)) pass_on(change, b, last);
      any = any || moved;
    }
    return any;
  }

  // Adds H[:, begin + j] times change[j] to the gradient of the columns outside [begin, end).
  void pass_on(ConstView change, int64_t begin, int64_t end) {
    const ConstView h = metric_.h;
    const FloatView g = gradient_;
    if (begin > 0) {
      linalg::gemm_nn(1.0F, h.rows_range(0, begin).cols_range(begin, end - begin), change, 1.0F,
                      g.rows_range(0, begin));
    }
    if (end < inputs_) {
      linalg::gemm_nn(1.0F, h.rows_range(end, inputs_ - end).cols_range(begin, end - begin), change,
                      1.0F, g.rows_range(end, inputs_ - end));
    }
  }

  // The scale that is best for the codes c of a group: with q = s c the loss is a parabola in s of
  // slope c^T g and curvature c^T (H + D) c. The gradient inside the group follows; `centred`
  // [count, rows] is left as the change of the weights. False if none changed.
  bool refit_scales(int64_t group, int64_t begin, int64_t end, FloatView centred) {
    const int64_t count = end - begin;
    Mat product = Mat::uninitialized(count, rows_);
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t r = 0; r < rows_; ++r) {
        centred(k, r) = codes_(begin + k, r) - zero_[static_cast<size_t>(r)];
      }
    }
    const ConstView h = metric_.h;
    linalg::gemm_nn(1.0F, h.rows_range(begin, count).cols_range(begin, count), centred, 0.0F,
                    product);
    bool any = false;
    for (int64_t r = 0; r < rows_; ++r) {
      double slope = 0;
      double curvature = 0;
      for (int64_t k = 0; k < count; ++k) {
        const double c = centred(k, r);
        slope += c * static_cast<double>(gradient_(begin + k, r));
        curvature +=
            c * (static_cast<double>(product(k, r)) + double{metric_.damping(begin + k)} * c);
      }
      float& scale = scale_[static_cast<size_t>(r)];
      float step = 0;
      if (curvature > 0) {
        const float wanted = round_to_f16(static_cast<float>(scale - slope / curvature));
        const double taken = static_cast<double>(wanted) - static_cast<double>(scale);
        // Only downhill, and never to a scale that f16 cannot hold.
        if (wanted != 0.0F && std::isfinite(wanted) &&
            taken * slope + 0.5 * taken * taken * curvature < 0) {
          step = static_cast<float>(taken);
          scale = wanted;
          any = true;
        }
      }
      result_.scales(group, first_row_ + r) = scale;
      for (int64_t k = 0; k < count; ++k) {
        centred(k, r) *= step;  // from here on the change of the weights
        product(k, r) = product(k, r) * step + metric_.damping(begin + k) * centred(k, r);
      }
    }
    if (!any) return false;
    for (int64_t k = 0; k < count; ++k) {
      HWY_DYNAMIC_DISPATCH(AddScaled)(1.0F, product.row(k), rows_, gradient_.row(begin + k));
    }
    return true;
  }

  const Metric& metric_;
  format::QuantizedMatrix& result_;
  int64_t first_row_;
  int64_t rows_;
  int64_t inputs_;
  Mat codes_;     // [K, rows]
  Mat gradient_;  // (H + D) E  [K, rows]
  Mat change_;    // of the weights of a block of columns
  std::vector<float> scale_;
  std::vector<float> zero_;
};

}  // namespace

void refine(const RunContext& ctx, ConstView weight, const Metric& metric, int sweeps,
            format::QuantizedMatrix& result, int64_t rows_per_task) {
  if (result.spec.block) {
    return refine_blocks(ctx, weight, metric, sweeps, result, rows_per_task);
  }
  LPCD_CHECK(weight.cols() == metric.inputs() && weight.rows() == result.rows);
  linalg::parallel_for(ctx, ceil_div(weight.rows(), rows_per_task), [&](int64_t task) {
    RefineRows(weight, metric, result, task * rows_per_task, rows_per_task).run(sweeps);
  });
}

}  // namespace lpcd::solve
#endif  // HWY_ONCE
