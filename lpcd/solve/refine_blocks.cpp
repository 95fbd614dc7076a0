#include "lpcd/solve/refine_blocks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lpcd/solve/refine_blocks.cpp"
#include <hwy/foreach_target.h>  // compiles the part below once per vector instruction set
#include <hwy/highway.h>
// after highway.h
#include <algorithm>
#include <cmath>

#include "lpcd/base/raise.h"
#include "lpcd/base/simd-inl.h"
#include "lpcd/format/ggml_fit.h"
#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/solve/row_block.h"
#include "lpcd/tensor/half.h"

HWY_BEFORE_NAMESPACE();
namespace lpcd::solve {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using simd::HWY_NAMESPACE::Df;
using simd::HWY_NAMESPACE::for_vectors;
using simd::HWY_NAMESPACE::Vf;

// Moves the codes of one column to the best value on the grid while all else stays; delta = change
// of the weights. Rows whose scale is 0 stay. False if none changed.
bool MoveBlockColumn(const float* gradient, float curvature, const float* scale,
                     const float* inverse, float max_code, int64_t rows, float* codes,
                     float* delta) {
  const Df d;
  const Vf top = hn::Set(d, max_code);
  const Vf factor = hn::Set(d, 1.0F / curvature);
  Vf any = hn::Zero(d);
  for_vectors(rows, [&](auto load, auto store) HWY_ATTR {
    const Vf code = load(codes);
    const Vf shift = hn::Mul(hn::Mul(load(gradient), factor), load(inverse));
    const Vf next = hn::Min(hn::Max(hn::Round(hn::Sub(code, shift)), hn::Zero(d)), top);
    const Vf change = hn::Mul(load(scale), hn::Sub(next, code));
    any = hn::Max(any, hn::Abs(change));
    store(next, codes);
    store(change, delta);
  });
  return hn::GetLane(hn::MaxOfLanes(d, any)) > 0.0F;
}

// y += a x.
void AddScaledRow(float a, const float* x, int64_t rows, float* y) {
  const Vf factor = hn::Set(Df(), a);
  for_vectors(rows, [&](auto load, auto store)
                        HWY_ATTR { store(hn::MulAdd(factor, load(x), load(y)), y); });
}

}  // namespace HWY_NAMESPACE
}  // namespace lpcd::solve
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lpcd::solve {

HWY_EXPORT(MoveBlockColumn);
HWY_EXPORT(AddScaledRow);

namespace {

// Columns whose changes are passed on one by one before the rest of the block sees them.
constexpr int64_t kChunk = 64;

// Coordinate descent on 64 rows, everything transposed: [columns, rows].
class RefineBlockRows {
 public:
  RefineBlockRows(ConstView weight, const Metric& metric, format::QuantizedMatrix& result,
                  int64_t row, int64_t rows)
      : metric_(metric),
        result_(result),
        type_(result.spec.block.value()),
        grid_(ggml_grid(type_)),
        first_row_(row),
        rows_(std::min(rows, weight.rows() - row)),
        inputs_(weight.cols()),
        codes_(Mat::uninitialized(inputs_, rows_)),
        gradient_(Mat::uninitialized(inputs_, rows_)),
        change_(grid_.length, rows_),
        blocks_(static_cast<size_t>(inputs_ / grid_.length)) {
    Mat error = Mat::uninitialized(inputs_, rows_);
    read_blocks();
    std::vector<float> decoded(static_cast<size_t>(inputs_));
    for (int64_t r = 0; r < rows_; ++r) {
      decode_ggml_blocks(type_, row_bytes(r), decoded);
      const float* target = weight.row(row + r);
      for (int64_t k = 0; k < inputs_; ++k) {
        // A dead input was projected as if its weight were 0.
        error(k, r) = decoded[static_cast<size_t>(k)] - (metric.dead(k) ? 0.0F : target[k]);
      }
    }
    linalg::gemm_nn(1.0F, metric.h, error, 0.0F, gradient_);
    for (int64_t k = 0; k < inputs_; ++k) {
      HWY_DYNAMIC_DISPATCH(AddScaledRow)(metric.damping(k), error.row(k), rows_, gradient_.row(k));
    }
  }

  void run(int sweeps) {
    bool any = true;
    for (int sweep = 0; sweep < sweeps && any; ++sweep) {
      any = false;
      for (size_t b = 0; b < blocks_.size(); ++b) {
        begin_ = static_cast<int64_t>(b) * grid_.length;
        block_ = &blocks_[b];
        std::fill_n(change_.data(), change_.size(), 0.0F);
        refit_d();
        if (grid_.offset) refit_m();
        if (grid_.super()) move_scales();
        for (int64_t k = 0; k < grid_.length; k += kChunk) {
          move_codes(k, std::min(grid_.length, k + kChunk));
        }
        const bool changed = std::any_of(change_.data(), change_.data() + change_.size(),
                                         [](float c) { return c != 0; });
        if (changed) pass_on();
        any = any || changed;
      }
    }
    for (size_t b = 0; b < blocks_.size(); ++b) {
      const auto first = static_cast<int64_t>(b) * grid_.length;
      format::encode_blocks(blocks_[b], codes_.view().rows_range(first, grid_.length),
                            bytes_of_row(0) + b * block_bytes(), result_.block_row_bytes());
    }
  }

 private:
  [[nodiscard]] size_t block_bytes() const {
    return static_cast<size_t>(dtype_info(type_).block_bytes);
  }
  [[nodiscard]] std::byte* bytes_of_row(int64_t r) {
    return result_.blocks.data() + static_cast<size_t>(first_row_ + r) * result_.block_row_bytes();
  }
  [[nodiscard]] std::span<const std::byte> row_bytes(int64_t r) {
    return {bytes_of_row(r), result_.block_row_bytes()};
  }

  void read_blocks() {
    std::vector<uint8_t> codes(static_cast<size_t>(grid_.length));
    for (size_t b = 0; b < blocks_.size(); ++b) {
      blocks_[b].type = type_;
      blocks_[b].fields.resize(static_cast<size_t>(rows_));
      for (int64_t r = 0; r < rows_; ++r) {
        unpack_ggml_block(type_, row_bytes(r).subspan(b * block_bytes(), block_bytes()),
                          blocks_[b].fields[static_cast<size_t>(r)], codes);
        for (int64_t k = 0; k < grid_.length; ++k) {
          codes_(static_cast<int64_t>(b) * grid_.length + k, r) = codes[static_cast<size_t>(k)];
        }
      }
      blocks_[b].expand();
    }
  }

  // Moves the weights of columns [first, first + n) of the block along `direction` [n, R]. `step`
  // chooses how far for a row with slope and curvature of the loss, and returns it.
  template <typename Step>
  void move(int64_t first, FloatView direction, const Step& step) {
    const int64_t n = direction.rows();
    const ConstView h = metric_.h;
    Mat product = Mat::uninitialized(n, rows_);
    linalg::gemm_nn(1.0F, h.rows_range(begin_ + first, n).cols_range(begin_ + first, n), direction,
                    0.0F, product);
    bool any = false;
    std::vector<float> steps(static_cast<size_t>(rows_));
    for (int64_t r = 0; r < rows_; ++r) {
      double slope = 0;
      double curvature = 0;
      for (int64_t k = 0; k < n; ++k) {
        const double v = direction(k, r);
        slope += v * static_cast<double>(gradient_(begin_ + first + k, r));
        curvature += v * (static_cast<double>(product(k, r)) +
                          double{metric_.damping(begin_ + first + k)} * v);
      }
      const double taken = curvature > 0 ? step(r, slope, curvature) : 0.0;
      steps[static_cast<size_t>(r)] = static_cast<float>(taken);
      any = any || taken != 0;
    }
    if (!any) return;
    for (int64_t k = 0; k < n; ++k) {
      for (int64_t r = 0; r < rows_; ++r) direction(k, r) *= steps[static_cast<size_t>(r)];
    }
    apply(first, direction);
  }

  // The gradient inside the block, and the change that is passed on in the end.
  void apply(int64_t first, ConstView delta) {
    const int64_t n = delta.rows();
    const ConstView h = metric_.h;
    const FloatView g = gradient_;
    linalg::gemm_nn(1.0F, h.rows_range(begin_, grid_.length).cols_range(begin_ + first, n), delta,
                    1.0F, g.rows_range(begin_, grid_.length));
    for (int64_t k = 0; k < n; ++k) {
      HWY_DYNAMIC_DISPATCH(AddScaledRow)(metric_.damping(begin_ + first + k), delta.row(k), rows_,
                                         g.row(begin_ + first + k));
      HWY_DYNAMIC_DISPATCH(AddScaledRow)(1.0F, delta.row(k), rows_, change_.row(first + k));
    }
  }

  [[nodiscard]] static bool downhill(double step, double slope, double curvature) {
    return step * slope + 0.5 * step * step * curvature < 0;
  }

  // The f16 value that is best; 0 as a step if the present one is.
  [[nodiscard]] static double f16_step(uint16_t& half, double slope, double curvature,
                                       bool positive) {
    const auto now = static_cast<double>(f16_to_f32(half));
    double wanted = now - slope / curvature;
    if (positive) wanted = std::max(wanted, 0.0);
    const uint16_t next = f32_to_f16(static_cast<float>(wanted));
    const double step = static_cast<double>(f16_to_f32(next)) - now;
    if ((next & 0x7C00U) == 0x7C00U || !downhill(step, slope, curvature)) return 0;
    half = next;
    return step;
  }

  void refit_d() {
    Mat direction = Mat::uninitialized(grid_.length, rows_);
    for (int64_t k = 0; k < grid_.length; ++k) {
      const auto j = static_cast<size_t>(k / grid_.sub);
      for (int64_t r = 0; r < rows_; ++r) {
        const float centred = codes_(begin_ + k, r) - static_cast<float>(grid_.zero);
        const GgmlBlockFields& f = block_->fields[static_cast<size_t>(r)];
        direction(k, r) = grid_.super() ? centred * static_cast<float>(f.scales[j]) : centred;
      }
    }
    move(0, direction, [&](int64_t r, double slope, double curvature) {
      return f16_step(block_->fields[static_cast<size_t>(r)].d, slope, curvature, false);
    });
    block_->expand();
  }

  void refit_m() {
    Mat direction = Mat::uninitialized(grid_.length, rows_);
    for (int64_t k = 0; k < grid_.length; ++k) {
      const auto j = static_cast<size_t>(k / grid_.sub);
      for (int64_t r = 0; r < rows_; ++r) {
        const GgmlBlockFields& f = block_->fields[static_cast<size_t>(r)];
        direction(k, r) = grid_.super() ? -static_cast<float>(f.mins[j]) : 1.0F;
      }
    }
    move(0, direction, [&](int64_t r, double slope, double curvature) {
      return f16_step(block_->fields[static_cast<size_t>(r)].m, slope, curvature, grid_.super());
    });
    block_->expand();
  }

  // Whole steps of the integers of each sub-block, after d and m as they stand.
  void move_scales() {
    const auto whole = [](int now, double slope, double curvature, int low, int high) {
      const double wanted = std::clamp(std::nearbyint(now - slope / curvature),
                                       static_cast<double>(low), static_cast<double>(high));
      const double step = wanted - now;
      return downhill(step, slope, curvature) ? static_cast<int>(step) : 0;
    };
    Mat direction = Mat::uninitialized(grid_.sub, rows_);
    for (int64_t j = 0; j < grid_.subs(); ++j) {
      const auto i = static_cast<size_t>(j);
      for (int64_t k = 0; k < grid_.sub; ++k) {
        for (int64_t r = 0; r < rows_; ++r) {
          const float d = f16_to_f32(block_->fields[static_cast<size_t>(r)].d);
          direction(k, r) =
              d * (codes_(begin_ + j * grid_.sub + k, r) - static_cast<float>(grid_.zero));
        }
      }
      move(j * grid_.sub, direction, [&](int64_t r, double slope, double curvature) {
        int8_t& scale = block_->fields[static_cast<size_t>(r)].scales[i];
        const int step = whole(scale, slope, curvature, grid_.min_scale, grid_.max_scale);
        scale = static_cast<int8_t>(scale + step);
        return static_cast<double>(step);
      });
      if (!grid_.offset) continue;
      for (int64_t k = 0; k < grid_.sub; ++k) {
        for (int64_t r = 0; r < rows_; ++r) {
          direction(k, r) = -f16_to_f32(block_->fields[static_cast<size_t>(r)].m);
        }
      }
      move(j * grid_.sub, direction, [&](int64_t r, double slope, double curvature) {
        uint8_t& min = block_->fields[static_cast<size_t>(r)].mins[i];
        const int step = whole(min, slope, curvature, 0, grid_.max_scale);
        min = static_cast<uint8_t>(min + step);
        return static_cast<double>(step);
      });
    }
    block_->expand();
  }

  void move_codes(int64_t first, int64_t end) {
    Mat delta(end - first, rows_);
    bool any = false;
    for (int64_t k = first; k < end; ++k) {
      const int64_t column = begin_ + k;
      if (metric_.dead(column)) continue;
      const int64_t j = k / grid_.sub;
      const float curvature = metric_.h(column, column) + metric_.damping(column);
      float* change = delta.row(k - first);
      if (!HWY_DYNAMIC_DISPATCH(MoveBlockColumn)(
              gradient_.row(column), curvature, block_->scale.row(j), block_->inverse.row(j),
              static_cast<float>(grid_.max_code), rows_, codes_.row(column), change)) {
        continue;
      }
      any = true;
      for (int64_t i = first; i < end; ++i) {  // what the later columns of the chunk see
        HWY_DYNAMIC_DISPATCH(AddScaledRow)(i == k ? curvature : metric_.h(begin_ + i, column),
                                           change, rows_, gradient_.row(begin_ + i));
      }
    }
    if (!any) return;
    const ConstView h = metric_.h;
    const FloatView g = gradient_;
    const int64_t n = end - first;
    if (first > 0) {
      linalg::gemm_nn(1.0F, h.rows_range(begin_, first).cols_range(begin_ + first, n), delta, 1.0F,
                      g.rows_range(begin_, first));
    }
    if (end < grid_.length) {
      linalg::gemm_nn(1.0F,
                      h.rows_range(begin_ + end, grid_.length - end).cols_range(begin_ + first, n),
                      delta, 1.0F, g.rows_range(begin_ + end, grid_.length - end));
    }
    for (int64_t k = 0; k < n; ++k) {
      HWY_DYNAMIC_DISPATCH(AddScaledRow)(1.0F, delta.row(k), rows_, change_.row(first + k));
    }
  }

  // The changes of the block to the gradient of all other columns.
  void pass_on() {
    const ConstView h = metric_.h;
    const FloatView g = gradient_;
    const int64_t end = begin_ + grid_.length;
    if (begin_ > 0) {
      linalg::gemm_nn(1.0F, h.rows_range(0, begin_).cols_range(begin_, grid_.length), change_, 1.0F,
                      g.rows_range(0, begin_));
    }
    if (end < inputs_) {
      linalg::gemm_nn(1.0F, h.rows_range(end, inputs_ - end).cols_range(begin_, grid_.length),
                      change_, 1.0F, g.rows_range(end, inputs_ - end));
    }
  }

  const Metric& metric_;
  format::QuantizedMatrix& result_;
  DType type_;
  const GgmlGrid& grid_;
  int64_t first_row_;
  int64_t rows_;
  int64_t inputs_;
  Mat codes_;     // [K, rows]
  Mat gradient_;  // (H + D) E  [K, rows]
  Mat change_;    // of the weights of the block in work [length, rows]
  std::vector<format::BlockParameters> blocks_;
  int64_t begin_ = 0;  // first column of the block in work
  format::BlockParameters* block_ = nullptr;
};

}  // namespace

void refine_blocks(const RunContext& ctx, ConstView weight, const Metric& metric, int sweeps,
                   format::QuantizedMatrix& result, int64_t rows_per_task) {
  LPCD_CHECK(weight.cols() == metric.inputs() && weight.rows() == result.rows);
  linalg::parallel_for(ctx, ceil_div(weight.rows(), rows_per_task), [&](int64_t task) {
    RefineBlockRows(weight, metric, result, task * rows_per_task, rows_per_task).run(sweeps);
  });
}

}  // namespace lpcd::solve
#endif  // HWY_ONCE
