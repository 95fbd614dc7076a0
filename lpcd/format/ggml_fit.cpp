#include "lpcd/format/ggml_fit.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lpcd/format/ggml_fit.cpp"
#include <hwy/foreach_target.h>  // compiles the part below once per vector instruction set
#include <hwy/highway.h>
// after highway.h
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "lpcd/base/raise.h"
#include "lpcd/base/simd-inl.h"
#include "lpcd/tensor/half.h"

// Everything runs over rows in vector lanes: w is [columns, rows], column k at w + k * stride.

HWY_BEFORE_NAMESPACE();
namespace lpcd::format {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using simd::HWY_NAMESPACE::Df;
using simd::HWY_NAMESPACE::for_vectors;
using simd::HWY_NAMESPACE::Vf;

HWY_INLINE Vf clamp_round(Vf x, Vf low, Vf high) {
  return hn::Min(hn::Max(hn::Round(x), low), high);
}

// For a symmetric sub-block: trial scales that put the largest weight on a code near `reach`, for
// each the least-squares scale of the codes it leads to; keeps the one with the least error, which
// is the one with the largest (sum w x q)^2 / sum w q^2. `gain` holds the best so far.
void SymmetricTrials(const float* w, int64_t stride, const float* weights, int64_t count,
                     int64_t rows, float low, float high, float reach, float first, float last,
                     float step, float* gain, float* scale) {
  const Df d;
  const Vf zero = hn::Zero(d);
  const Vf bottom = hn::Set(d, low);
  const Vf top = hn::Set(d, high);
  for_vectors(rows, [&](auto load, auto store) HWY_ATTR {
    Vf extreme = zero;
    for (int64_t k = 0; k < count; ++k) {
      const Vf x = load(w + k * stride);
      extreme = hn::IfThenElse(hn::Gt(hn::Abs(x), hn::Abs(extreme)), x, extreme);
    }
    const auto empty = hn::Eq(extreme, zero);
    const Vf safe = hn::IfThenElse(empty, hn::Set(d, 1.0F), extreme);
    Vf best = load(gain);
    Vf best_scale = load(scale);
    const auto steps = static_cast<int>(std::ceil((last - first) / step));
    for (int i = 0; i < steps; ++i) {
      const float t = first + static_cast<float>(i) * step;
      const Vf inverse = hn::Div(hn::Set(d, reach < 0 ? reach - t : reach + t), safe);
      Vf xq = zero;
      Vf qq = zero;
      for (int64_t k = 0; k < count; ++k) {
        const Vf x = load(w + k * stride);
        const Vf q = clamp_round(hn::Mul(x, inverse), bottom, top);
        const Vf wq = hn::Mul(hn::Set(d, weights[k]), q);
        xq = hn::MulAdd(wq, x, xq);
        qq = hn::MulAdd(wq, q, qq);
      }
      const auto some = hn::Gt(qq, zero);
      const Vf denominator = hn::IfThenElse(some, qq, hn::Set(d, 1.0F));
      const Vf s = hn::Div(xq, denominator);
      const Vf g = hn::Mul(xq, s);
      const auto better = hn::And(some, hn::Gt(g, best));
      best = hn::IfThenElse(better, g, best);
      best_scale = hn::IfThenElse(better, s, best_scale);
    }
    store(best, gain);
    store(hn::IfThenElse(empty, zero, best_scale), scale);
  });
}

// For a sub-block with an offset: trial scales from the range, for each the least-squares scale and
// offset of the codes it leads to. With `negative`, offsets are at most 0.
void OffsetTrials(const float* w, int64_t stride, const float* weights, int64_t count, int64_t rows,
                  float max_code, bool negative, float first, float last, float step, float* scale,
                  float* offset) {
  const Df d;
  const Vf zero = hn::Zero(d);
  const Vf one = hn::Set(d, 1.0F);
  const Vf top = hn::Set(d, max_code);
  for_vectors(rows, [&](auto load, auto store) HWY_ATTR {
    Vf low = load(w);
    Vf high = low;
    Vf sum_w = zero;
    Vf sum_x = zero;
    Vf sum_xx = zero;
    for (int64_t k = 0; k < count; ++k) {
      const Vf x = load(w + k * stride);
      const Vf weight = hn::Set(d, weights[k]);
      low = hn::Min(low, x);
      high = hn::Max(high, x);
      sum_w = hn::Add(sum_w, weight);
      const Vf wx = hn::Mul(weight, x);
      sum_x = hn::Add(sum_x, wx);
      sum_xx = hn::MulAdd(wx, x, sum_xx);
    }
    if (negative) {
      low = hn::Min(low, zero);
      high = hn::Max(high, zero);
    }
    const Vf range = hn::Sub(high, low);
    const auto flat = hn::Le(range, zero);
    const Vf safe = hn::IfThenElse(flat, one, range);
    Vf best = hn::Set(d, std::numeric_limits<float>::infinity());
    Vf best_scale = hn::IfThenElse(flat, zero, hn::Div(range, top));
    Vf best_offset = low;
    // One trial: codes from (start, inverse), then least squares.
    const auto trial = [&](Vf start, Vf inverse) HWY_ATTR {
      Vf q1 = zero;
      Vf qq = zero;
      Vf xq = zero;
      for (int64_t k = 0; k < count; ++k) {
        const Vf x = load(w + k * stride);
        const Vf q = clamp_round(hn::Mul(hn::Sub(x, start), inverse), zero, top);
        const Vf wq = hn::Mul(hn::Set(d, weights[k]), q);
        q1 = hn::Add(q1, wq);
        qq = hn::MulAdd(wq, q, qq);
        xq = hn::MulAdd(wq, x, xq);
      }
      const Vf det = hn::Sub(hn::Mul(sum_w, qq), hn::Mul(q1, q1));
      const auto regular = hn::Gt(det, zero);
      const Vf det_safe = hn::IfThenElse(regular, det, one);
      Vf s = hn::Div(hn::Sub(hn::Mul(sum_w, xq), hn::Mul(sum_x, q1)), det_safe);
      Vf m = hn::Div(hn::Sub(hn::Mul(qq, sum_x), hn::Mul(q1, xq)), det_safe);
      if (negative) {
        const auto above = hn::Gt(m, zero);
        const Vf qq_safe = hn::IfThenElse(hn::Gt(qq, zero), qq, one);
        s = hn::IfThenElse(above, hn::Div(xq, qq_safe), s);
        m = hn::Min(m, zero);
      }
      // sum w (s q + m - x)^2
      const Vf two = hn::Set(d, 2.0F);
      Vf error = hn::MulAdd(hn::Mul(s, s), qq, sum_xx);
      error = hn::MulAdd(hn::Mul(m, m), sum_w, error);
      error = hn::MulAdd(hn::Mul(two, hn::Mul(s, m)), q1, error);
      error = hn::NegMulAdd(hn::Mul(two, s), xq, error);
      error = hn::NegMulAdd(hn::Mul(two, m), sum_x, error);
      const auto better = hn::And(hn::And(regular, hn::Gt(s, zero)), hn::Lt(error, best));
      best = hn::IfThenElse(better, error, best);
      best_scale = hn::IfThenElse(better, s, best_scale);
      best_offset = hn::IfThenElse(better, m, best_offset);
    };
    const auto steps = static_cast<int>(std::ceil((last - first) / step));
    for (int i = 0; i < steps; ++i) {
      const float t = first + static_cast<float>(i) * step;
      trial(low, hn::Div(hn::Set(d, max_code + t), safe));
    }
    for (int round = 0; round < 2; ++round) {  // codes for the best scale and offset so far
      const auto some = hn::Gt(best_scale, zero);
      trial(best_offset,
            hn::IfThenElse(some, hn::Div(one, hn::IfThenElse(some, best_scale, one)), zero));
    }
    store(hn::IfThenElse(flat, zero, best_scale), scale);
    store(hn::IfThenElse(flat, low, best_offset), offset);
  });
}

// error = sum w (x - decoded)^2 over the columns, for the nearest codes.
void SubError(const float* w, int64_t stride, const float* weights, int64_t count, int64_t rows,
              const float* scale, const float* offset, const float* inverse, float zero_code,
              float max_code, float* error) {
  const Df d;
  const Vf zero = hn::Set(d, zero_code);
  const Vf top = hn::Set(d, max_code);
  for_vectors(rows, [&](auto load, auto store) HWY_ATTR {
    const Vf s = load(scale);
    const Vf m = load(offset);
    const Vf inv = load(inverse);
    Vf sum = hn::Zero(d);
    for (int64_t k = 0; k < count; ++k) {
      const Vf x = hn::Sub(load(w + k * stride), m);
      const Vf code = clamp_round(hn::MulAdd(x, inv, zero), hn::Zero(d), top);
      const Vf delta = hn::NegMulAdd(s, hn::Sub(code, zero), x);
      sum = hn::MulAdd(hn::Mul(hn::Set(d, weights[k]), delta), delta, sum);
    }
    store(sum, error);
  });
}

// Sums over the columns with the nearest codes q (counted from the zero): w q, w q^2, w x q.
void CodeSums(const float* w, int64_t stride, const float* weights, int64_t count, int64_t rows,
              const float* offset, const float* inverse, float zero_code, float max_code, float* q1,
              float* qq, float* xq) {
  const Df d;
  const Vf zero = hn::Set(d, zero_code);
  const Vf top = hn::Set(d, max_code);
  for_vectors(rows, [&](auto load, auto store) HWY_ATTR {
    const Vf m = load(offset);
    const Vf inv = load(inverse);
    Vf sum_q = hn::Zero(d);
    Vf sum_qq = hn::Zero(d);
    Vf sum_xq = hn::Zero(d);
    for (int64_t k = 0; k < count; ++k) {
      const Vf x = load(w + k * stride);
      const Vf code = clamp_round(hn::MulAdd(hn::Sub(x, m), inv, zero), hn::Zero(d), top);
      const Vf q = hn::Sub(code, zero);
      const Vf wq = hn::Mul(hn::Set(d, weights[k]), q);
      sum_q = hn::Add(sum_q, wq);
      sum_qq = hn::MulAdd(wq, q, sum_qq);
      sum_xq = hn::MulAdd(wq, x, sum_xq);
    }
    store(sum_q, q1);
    store(sum_qq, qq);
    store(sum_xq, xq);
  });
}

void WeightedSum(const float* w, int64_t stride, const float* weights, int64_t count, int64_t rows,
                 float* sum) {
  for_vectors(rows, [&](auto load, auto store) HWY_ATTR {
    Vf total = hn::Zero(Df());
    for (int64_t k = 0; k < count; ++k) {
      total = hn::MulAdd(hn::Set(Df(), weights[k]), load(w + k * stride), total);
    }
    store(total, sum);
  });
}

void QuantizeBlockColumn(const float* w, const float* scale, const float* offset,
                         const float* inverse, float zero_code, float max_code, bool has_offset,
                         int64_t rows, float* codes, float* decoded) {
  const Df d;
  const Vf zero = hn::Set(d, zero_code);
  const Vf top = hn::Set(d, max_code);
  for_vectors(rows, [&](auto load, auto store) HWY_ATTR {
    const Vf m = load(offset);
    const Vf code =
        clamp_round(hn::MulAdd(hn::Sub(load(w), m), load(inverse), zero), hn::Zero(d), top);
    store(code, codes);
    // As the dequantizer: a product, then a sum, without fused multiply-add.
    const Vf product = hn::Mul(load(scale), hn::Sub(code, zero));
    store(has_offset ? hn::Add(product, m) : product, decoded);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace lpcd::format
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lpcd::format {

HWY_EXPORT(SymmetricTrials);
HWY_EXPORT(OffsetTrials);
HWY_EXPORT(SubError);
HWY_EXPORT(CodeSums);
HWY_EXPORT(WeightedSum);
HWY_EXPORT(QuantizeBlockColumn);

namespace {

uint16_t to_f16(float value) {
  const uint16_t half = f32_to_f16(value);
  if ((half & 0x7C00U) == 0x7C00U) {
    raise(ErrorCode::kNonFinite,
          "a block scale of {} does not fit f16; the weights are out of range", value);
  }
  return half;
}

float inverse_of(float scale) { return scale == 0.0F ? 0.0F : 1.0F / scale; }

// Fits one block of all rows.
class BlockFit {
 public:
  BlockFit(ConstView w, std::span<const float> weights, const BlockFitOptions& options,
           BlockParameters& result)
      : w_(w), weights_(weights), options_(options), grid_(result.grid()), result_(result) {}

  void run() {
    search_sub_blocks();
    if (!grid_.super()) {
      for (int64_t r = 0; r < rows(); ++r) {
        GgmlBlockFields& f = result_.fields[static_cast<size_t>(r)];
        f.d = to_f16(scale_(0, r));
        if (grid_.offset) f.m = to_f16(offset_(0, r));
      }
      result_.expand();
      return;
    }
    for (int64_t r = 0; r < rows(); ++r) choose_integers(r);
    result_.expand();
    error_ = block_error(result_);
    for (int round = 0; round < options_.rounds; ++round) {
      move_integers();
      refit_d();
    }
  }

 private:
  [[nodiscard]] int64_t rows() const { return w_.cols(); }
  [[nodiscard]] const float* columns(int64_t j) const { return w_.row(j * grid_.sub); }
  [[nodiscard]] const float* weights(int64_t j) const { return weights_.data() + j * grid_.sub; }

  // Real scales (and offsets) of every sub-block, and how much an error in each would cost.
  void search_sub_blocks() {
    scale_ = Mat(grid_.subs(), rows());
    offset_ = Mat(grid_.subs(), rows());
    const auto low = static_cast<float>(-grid_.zero);
    const auto high = static_cast<float>(grid_.max_code - grid_.zero);
    // Few codes: the best range is often well below that of the largest weight.
    const float last = grid_.max_code < 16 ? 1.65F : 0.95F;
    for (int64_t j = 0; j < grid_.subs(); ++j) {
      if (grid_.offset) {
        HWY_DYNAMIC_DISPATCH(OffsetTrials)
        (columns(j), w_.stride(), weights(j), grid_.sub, rows(), static_cast<float>(grid_.max_code),
         grid_.super(), -0.9F, last, 0.075F, scale_.row(j), offset_.row(j));
        continue;
      }
      std::vector<float> gain(static_cast<size_t>(rows()), 0.0F);
      HWY_DYNAMIC_DISPATCH(SymmetricTrials)
      (columns(j), w_.stride(), weights(j), grid_.sub, rows(), low, high, low, -0.9F, last, 0.1F,
       gain.data(), scale_.row(j));
      if (grid_.max_code < 32) {  // the short side of the grid for the largest weight
        HWY_DYNAMIC_DISPATCH(SymmetricTrials)
        (columns(j), w_.stride(), weights(j), grid_.sub, rows(), low, high, high, -0.5F, last, 0.1F,
         gain.data(), scale_.row(j));
      }
    }
    if (!grid_.super()) return;
    // The curvature of the error: sum w q^2 for a scale, sum w for an offset.
    curvature_ = Mat(grid_.subs(), rows());
    std::vector<float> inverse(static_cast<size_t>(rows()));
    std::vector<float> ignored(static_cast<size_t>(rows()));
    for (int64_t j = 0; j < grid_.subs(); ++j) {
      for (int64_t r = 0; r < rows(); ++r) {
        inverse[static_cast<size_t>(r)] = inverse_of(scale_(j, r));
      }
      HWY_DYNAMIC_DISPATCH(CodeSums)
      (columns(j), w_.stride(), weights(j), grid_.sub, rows(), offset_.row(j), inverse.data(),
       static_cast<float>(grid_.zero), static_cast<float>(grid_.max_code), ignored.data(),
       curvature_.row(j), ignored.data());
      double sum = 0;
      for (int64_t k = 0; k < grid_.sub; ++k) sum += static_cast<double>(weights(j)[k]);
      weight_sum_[static_cast<size_t>(j)] = static_cast<float>(sum);
    }
  }

  // d and integers v_j with d v_j near value_j, weighted; returns d as stored.
  template <typename Value, typename Weight, typename Store>
  uint16_t integers(const Value& value, const Weight& weight, int low, int high,
                    const Store& store) const {
    float extreme = 0;
    for (int64_t j = 0; j < grid_.subs(); ++j) {
      if (std::abs(value(j)) > std::abs(extreme)) extreme = value(j);
    }
    if (extreme == 0.0F) {
      for (int64_t j = 0; j < grid_.subs(); ++j) store(j, 0);
      return 0;
    }
    // The longer side of a signed range takes the extreme.
    const auto reach = static_cast<float>(low < 0 ? low : high);
    uint16_t best_d = 0;
    float best = std::numeric_limits<float>::infinity();
    for (int t = -9; t <= 5; ++t) {
      const uint16_t half = to_f16(extreme / (reach * (1.0F + 0.01F * static_cast<float>(t))));
      const float d = f16_to_f32(half);
      const float inverse = inverse_of(d);
      float error = 0;
      for (int64_t j = 0; j < grid_.subs(); ++j) {
        const float v = std::clamp(std::nearbyint(value(j) * inverse), static_cast<float>(low),
                                   static_cast<float>(high));
        const float delta = value(j) - d * v;
        error += weight(j) * delta * delta;
      }
      if (error < best) {
        best = error;
        best_d = half;
      }
    }
    const float inverse = inverse_of(f16_to_f32(best_d));
    for (int64_t j = 0; j < grid_.subs(); ++j) {
      store(j, std::clamp(static_cast<int>(std::nearbyint(value(j) * inverse)), low, high));
    }
    return best_d;
  }

  void choose_integers(int64_t r) {
    GgmlBlockFields& f = result_.fields[static_cast<size_t>(r)];
    f.d = integers(
        [&](int64_t j) { return scale_(j, r); }, [&](int64_t j) { return curvature_(j, r); },
        grid_.min_scale, grid_.max_scale,
        [&](int64_t j, int v) { f.scales[static_cast<size_t>(j)] = static_cast<int8_t>(v); });
    if (!grid_.offset) return;
    f.m = integers(
        [&](int64_t j) { return -offset_(j, r); },
        [&](int64_t j) { return weight_sum_[static_cast<size_t>(j)]; }, 0, grid_.max_scale,
        [&](int64_t j, int v) { f.mins[static_cast<size_t>(j)] = static_cast<uint8_t>(v); });
  }

  void sub_error(const BlockParameters& p, int64_t j, float* error) const {
    HWY_DYNAMIC_DISPATCH(SubError)
    (columns(j), w_.stride(), weights(j), grid_.sub, rows(), p.scale.row(j), p.offset.row(j),
     p.inverse.row(j), static_cast<float>(grid_.zero), static_cast<float>(grid_.max_code), error);
  }

  [[nodiscard]] Mat block_error(const BlockParameters& p) const {
    Mat error(grid_.subs(), rows());
    for (int64_t j = 0; j < grid_.subs(); ++j) sub_error(p, j, error.row(j));
    return error;
  }

  // Every sub-block's integers may move by one where that lowers the error.
  void move_integers() {
    constexpr std::array<std::array<int, 2>, 6> kMoves = {
        {{1, 0}, {-1, 0}, {1, 1}, {-1, -1}, {0, 1}, {0, -1}}};
    const size_t moves = grid_.offset ? kMoves.size() : 2;
    BlockParameters trial;
    trial.type = result_.type;
    trial.fields = result_.fields;
    std::vector<float> error(static_cast<size_t>(rows()));
    for (size_t move = 0; move < moves; ++move) {
      trial.fields = result_.fields;
      for (GgmlBlockFields& f : trial.fields) {
        for (int64_t j = 0; j < grid_.subs(); ++j) {
          const auto i = static_cast<size_t>(j);
          f.scales[i] = static_cast<int8_t>(
              std::clamp(f.scales[i] + kMoves[move][0], grid_.min_scale, grid_.max_scale));
          if (grid_.offset) {
            f.mins[i] =
                static_cast<uint8_t>(std::clamp(f.mins[i] + kMoves[move][1], 0, grid_.max_scale));
          }
        }
      }
      trial.expand();
      for (int64_t j = 0; j < grid_.subs(); ++j) {
        sub_error(trial, j, error.data());
        const auto i = static_cast<size_t>(j);
        for (int64_t r = 0; r < rows(); ++r) {
          if (!(error[static_cast<size_t>(r)] < error_(j, r))) continue;
          error_(j, r) = error[static_cast<size_t>(r)];
          GgmlBlockFields& f = result_.fields[static_cast<size_t>(r)];
          f.scales[i] = trial.fields[static_cast<size_t>(r)].scales[i];
          f.mins[i] = trial.fields[static_cast<size_t>(r)].mins[i];
        }
      }
      result_.expand();
    }
  }

  // Least squares for d (and dmin) given codes and integers; kept where the error falls.
  void refit_d() {
    const auto n = static_cast<size_t>(rows());
    std::vector<double> a11(n);
    std::vector<double> a12(n);
    std::vector<double> a22(n);
    std::vector<double> b1(n);
    std::vector<double> b2(n);
    std::vector<float> q1(n);
    std::vector<float> qq(n);
    std::vector<float> xq(n);
    std::vector<float> x1(n);
    for (int64_t j = 0; j < grid_.subs(); ++j) {
      HWY_DYNAMIC_DISPATCH(CodeSums)
      (columns(j), w_.stride(), weights(j), grid_.sub, rows(), result_.offset.row(j),
       result_.inverse.row(j), static_cast<float>(grid_.zero), static_cast<float>(grid_.max_code),
       q1.data(), qq.data(), xq.data());
      if (grid_.offset) {
        HWY_DYNAMIC_DISPATCH(WeightedSum)
        (columns(j), w_.stride(), weights(j), grid_.sub, rows(), x1.data());
      }
      for (size_t r = 0; r < n; ++r) {
        const double s = result_.fields[r].scales[static_cast<size_t>(j)];
        const double m = -static_cast<double>(result_.fields[r].mins[static_cast<size_t>(j)]);
        a11[r] += s * s * static_cast<double>(qq[r]);
        b1[r] += s * static_cast<double>(xq[r]);
        if (!grid_.offset) continue;
        a12[r] += s * m * static_cast<double>(q1[r]);
        a22[r] += m * m * static_cast<double>(weight_sum_[static_cast<size_t>(j)]);
        b2[r] += m * static_cast<double>(x1[r]);
      }
    }
    BlockParameters trial;
    trial.type = result_.type;
    trial.fields = result_.fields;
    for (size_t r = 0; r < n; ++r) {
      GgmlBlockFields& f = trial.fields[r];
      const double det = a11[r] * a22[r] - a12[r] * a12[r];
      if (grid_.offset && det > 1e-12 * a11[r] * a22[r]) {
        const double d = (a22[r] * b1[r] - a12[r] * b2[r]) / det;
        const double m = (a11[r] * b2[r] - a12[r] * b1[r]) / det;
        if (d > 0 && m >= 0) {
          f.d = to_f16(static_cast<float>(d));
          f.m = to_f16(static_cast<float>(m));
        }
      } else if (a11[r] > 0) {
        const double m = static_cast<double>(f16_to_f32(f.m));
        f.d = to_f16(static_cast<float>((b1[r] - m * a12[r]) / a11[r]));
      }
    }
    trial.expand();
    const Mat error = block_error(trial);
    for (int64_t r = 0; r < rows(); ++r) {
      double before = 0;
      double after = 0;
      for (int64_t j = 0; j < grid_.subs(); ++j) {
        before += static_cast<double>(error_(j, r));
        after += static_cast<double>(error(j, r));
      }
      if (!(after < before)) continue;
      result_.fields[static_cast<size_t>(r)] = trial.fields[static_cast<size_t>(r)];
      for (int64_t j = 0; j < grid_.subs(); ++j) error_(j, r) = error(j, r);
    }
    result_.expand();
  }

  ConstView w_;
  std::span<const float> weights_;
  const BlockFitOptions& options_;
  const GgmlGrid& grid_;
  BlockParameters& result_;
  Mat scale_;      // [subs, R], real
  Mat offset_;     // [subs, R], real
  Mat curvature_;  // [subs, R]
  Mat error_;      // [subs, R], of result_
  std::array<float, 16> weight_sum_{};
};

}  // namespace

void BlockParameters::expand() {
  const GgmlGrid& g = grid();
  if (scale.rows() != g.subs() || scale.cols() != rows()) {
    scale = Mat(g.subs(), rows());
    offset = Mat(g.subs(), rows());
    inverse = Mat(g.subs(), rows());
  }
  for (int64_t r = 0; r < rows(); ++r) {
    const GgmlBlockFields& f = fields[static_cast<size_t>(r)];
    const float d = f16_to_f32(f.d);
    const float m = f16_to_f32(f.m);
    for (int64_t j = 0; j < g.subs(); ++j) {
      const auto i = static_cast<size_t>(j);
      const float s = g.super() ? d * static_cast<float>(f.scales[i]) : d;
      scale(j, r) = s;
      inverse(j, r) = inverse_of(s);
      if (g.offset) offset(j, r) = g.super() ? -(m * static_cast<float>(f.mins[i])) : m;
    }
  }
}

void fit_blocks(ConstView w, std::span<const float> weights, DType type,
                const BlockFitOptions& options, BlockParameters& parameters) {
  parameters.type = type;
  LPCD_CHECK(w.rows() == ggml_grid(type).length);
  LPCD_CHECK(weights.empty() || std::cmp_equal(weights.size(), w.rows()));
  parameters.fields.assign(static_cast<size_t>(w.cols()), {});
  // Weights of a sensible size, none of them 0: a dead input must not make the sums singular.
  std::vector<float> scaled(static_cast<size_t>(w.rows()), 1.0F);
  if (!weights.empty()) {
    double sum = 0;
    for (const float weight : weights) sum += static_cast<double>(weight);
    const double mean = sum / static_cast<double>(weights.size());
    for (size_t i = 0; mean > 0 && i < scaled.size(); ++i) {
      scaled[i] = std::max(static_cast<float>(static_cast<double>(weights[i]) / mean), 1e-6F);
    }
  }
  BlockFit(w, scaled, options, parameters).run();
}

void quantize_block_column(std::span<const float> w, const BlockParameters& parameters, int64_t k,
                           std::span<float> codes, std::span<float> decoded) {
  const GgmlGrid& grid = parameters.grid();
  const int64_t j = k / grid.sub;
  HWY_DYNAMIC_DISPATCH(QuantizeBlockColumn)
  (w.data(), parameters.scale.row(j), parameters.offset.row(j), parameters.inverse.row(j),
   static_cast<float>(grid.zero), static_cast<float>(grid.max_code), grid.offset,
   static_cast<int64_t>(w.size()), codes.data(), decoded.data());
}

void encode_blocks(const BlockParameters& parameters, ConstView codes, std::byte* out,
                   size_t stride) {
  const auto length = static_cast<size_t>(parameters.grid().length);
  const auto bytes = static_cast<size_t>(dtype_info(parameters.type).block_bytes);
  std::vector<uint8_t> row(length);
  for (int64_t r = 0; r < parameters.rows(); ++r) {
    for (size_t k = 0; k < length; ++k) {
      row[k] = static_cast<uint8_t>(codes(static_cast<int64_t>(k), r));
    }
    encode_ggml_block(parameters.type, parameters.fields[static_cast<size_t>(r)], row,
                      {out + static_cast<size_t>(r) * stride, bytes});
  }
}

void quantize_rows(ConstView w, std::span<const float> weights, DType type,
                   const BlockFitOptions& options, std::span<std::byte> out) {
  constexpr int64_t kRows = 64;  // as the projectors: enough to fill vectors
  const int64_t length = ggml_grid(type).length;
  const auto bytes = static_cast<size_t>(dtype_info(type).block_bytes);
  const size_t stride = static_cast<size_t>(w.cols() / length) * bytes;
  LPCD_CHECK(w.cols() % length == 0 && out.size() == static_cast<size_t>(w.rows()) * stride);
  BlockParameters parameters;
  std::vector<float> decoded(kRows);
  for (int64_t r0 = 0; r0 < w.rows(); r0 += kRows) {
    const int64_t n = std::min(kRows, w.rows() - r0);
    Mat columns(length, n);
    Mat codes(length, n);
    for (int64_t b = 0; b < w.cols() / length; ++b) {
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t k = 0; k < length; ++k) columns(k, r) = w(r0 + r, b * length + k);
      }
      const auto part = weights.empty() ? weights
                                        : weights.subspan(static_cast<size_t>(b * length),
                                                          static_cast<size_t>(length));
      fit_blocks(columns, part, type, options, parameters);
      for (int64_t k = 0; k < length; ++k) {
        const auto width = static_cast<size_t>(n);
        quantize_block_column({columns.row(k), width}, parameters, k, {codes.row(k), width},
                              {decoded.data(), width});
      }
      encode_blocks(parameters, codes,
                    out.data() + static_cast<size_t>(r0) * stride + static_cast<size_t>(b) * bytes,
                    stride);
    }
  }
}

}  // namespace lpcd::format
#endif  // HWY_ONCE
