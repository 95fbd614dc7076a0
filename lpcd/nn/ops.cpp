#include "lpcd/nn/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lpcd/nn/ops.cpp"
#include <hwy/foreach_target.h>  // compiles the part below once per vector instruction set
#include <hwy/highway.h>
// after highway.h
#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "lpcd/base/simd-inl.h"
#include "lpcd/linalg/blas.h"

HWY_BEFORE_NAMESPACE();
namespace lpcd::nn {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using simd::HWY_NAMESPACE::Df;
using simd::HWY_NAMESPACE::for_vectors;
using simd::HWY_NAMESPACE::load_n;
using simd::HWY_NAMESPACE::Vf;

// Sum of term(i) over [0, count) where term gives a whole vector and zero_tail(i, n) the last n
// elements with zeros behind them. One accumulator per call: callers that sum long rows cut them.
template <class Whole, class Tail>
HWY_INLINE float sum_vectors(int64_t count, const Whole& whole, const Tail& tail) {
  const Df d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vf total = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) total = hn::Add(total, whole(i));
  if (i < count) {
    const auto n = static_cast<size_t>(count - i);
    total = hn::Add(total, hn::IfThenElseZero(hn::FirstN(d, n), tail(i, n)));
  }
  return hn::GetLane(hn::SumOfLanes(d, total));
}

float sum_of_squares(const float* HWY_RESTRICT x, int64_t count) {
  const Df d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vf a = hn::Zero(d);
  Vf b = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    const Vf x0 = hn::LoadU(d, x + i);
    const Vf x1 = hn::LoadU(d, x + i + lanes);
    a = hn::MulAdd(x0, x0, a);
    b = hn::MulAdd(x1, x1, b);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(a, b)));
  for (; i < count; ++i) sum += x[i] * x[i];
  return sum;
}

// f32 within short runs, f64 between them.
double SquaredNormRow(const float* x, int64_t count) {
  constexpr int64_t kRun = 1024;
  double sum = 0;
  for (int64_t i = 0; i < count; i += kRun) {
    sum += static_cast<double>(sum_of_squares(x + i, HWY_MIN(kRun, count - i)));
  }
  return sum;
}

void RmsNormRow(const float* x, const float* weight, float eps, int64_t count, float* out) {
  const float mean = sum_of_squares(x, count) / static_cast<float>(count);
  const Vf scale = hn::Set(Df(), 1.0F / std::sqrt(mean + eps));
  for_vectors(count, [&](auto load, auto store)
                         HWY_ATTR { store(hn::Mul(hn::Mul(load(x), scale), load(weight)), out); });
}

void SiluMulRow(const float* gate, const float* up, int64_t count, float* out) {
  const Df d;
  for_vectors(count, [&](auto load, auto store) HWY_ATTR {
    const Vf g = load(gate);
    // Highway's Exp is defined up to 104; beyond 88 silu is 0 to f32 precision anyway.
    const Vf exponent = hn::Min(hn::Neg(g), hn::Set(d, 88.0F));
    const Vf denominator = hn::Add(hn::Set(d, 1.0F), hn::Exp(d, exponent));
    store(hn::Mul(hn::Div(g, denominator), load(up)), out);
  });
}

void SiluRow(const float* gate, int64_t count, float* out) {
  const Df d;
  for_vectors(count, [&](auto load, auto store) HWY_ATTR {
    const Vf g = load(gate);
    const Vf exponent = hn::Min(hn::Neg(g), hn::Set(d, 88.0F));
    store(hn::Div(g, hn::Add(hn::Set(d, 1.0F), hn::Exp(d, exponent))), out);
  });
}

void SiluSlopeMulRow(const float* gate, const float* up, int64_t count, float* out) {
  const Df d;
  const Vf one = hn::Set(d, 1.0F);
  for_vectors(count, [&](auto load, auto store) HWY_ATTR {
    const Vf g = load(gate);
    const Vf exponent = hn::Min(hn::Neg(g), hn::Set(d, 88.0F));
    const Vf s = hn::Div(one, hn::Add(one, hn::Exp(d, exponent)));
    const Vf slope = hn::MulAdd(hn::Mul(g, s), hn::Sub(one, s), s);
    store(hn::Mul(slope, load(up)), out);
  });
}

void MultiplyRow(const float* y, int64_t count, float* x) {
  for_vectors(count, [&](auto load, auto store) HWY_ATTR { store(hn::Mul(load(x), load(y)), x); });
}

void AddRow(const float* y, int64_t count, float* x) {
  for_vectors(count, [&](auto load, auto store) HWY_ATTR { store(hn::Add(load(x), load(y)), x); });
}

void SubtractRow(const float* x, const float* y, int64_t count, float* out) {
  for_vectors(count,
              [&](auto load, auto store) HWY_ATTR { store(hn::Sub(load(x), load(y)), out); });
}

void ScaleRow(float factor, int64_t count, float* x) {
  const Vf f = hn::Set(Df(), factor);
  for_vectors(count, [&](auto load, auto store) HWY_ATTR { store(hn::Mul(load(x), f), x); });
}

// (a, b) <- (a cos - b sin, b cos + a sin) for the two halves of one head.
void RopeHead(const float* cos, const float* sin, int64_t half, float* head) {
  float* a = head;
  float* b = head + half;
  for_vectors(half, [&](auto load, auto store) HWY_ATTR {
    const Vf va = load(a);
    const Vf vb = load(b);
    const Vf c = load(cos);
    const Vf s = load(sin);
    store(hn::NegMulAdd(vb, s, hn::Mul(va, c)), a);
    store(hn::MulAdd(va, s, hn::Mul(vb, c)), b);
  });
}

float MaxOf(const float* x, int64_t count) {
  const Df d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vf best = hn::Set(d, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) best = hn::Max(best, hn::LoadU(d, x + i));
  float result = hn::GetLane(hn::MaxOfLanes(d, best));
  for (; i < count; ++i) result = std::max(result, x[i]);
  return result;
}

// x <- exp((x - max) * scale) in place; returns the sum.
float ExpRow(float max, float scale, int64_t count, float* x) {
  const Df d;
  const Vf vmax = hn::Set(d, max);
  const Vf vscale = hn::Set(d, scale);
  for_vectors(count, [&](auto load, auto store) HWY_ATTR {
    store(hn::Exp(d, hn::Mul(hn::Sub(load(x), vmax), vscale)), x);
  });
  return sum_vectors(
      count, [&](int64_t i) HWY_ATTR { return hn::LoadU(d, x + i); },
      [&](int64_t i, size_t n) HWY_ATTR { return load_n(x + i, n); });
}

constexpr int64_t kRun = 2048;  // f32 lanes within a run, f64 over the runs

double SumExp(const float* x, float max, int64_t count) {
  const Df d;
  const Vf vmax = hn::Set(d, max);
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const float* run = x + begin;
    sum += static_cast<double>(sum_vectors(
        std::min(kRun, count - begin),
        [&](int64_t i) HWY_ATTR { return hn::Exp(d, hn::Sub(hn::LoadU(d, run + i), vmax)); },
        [&](int64_t i, size_t n)
            HWY_ATTR { return hn::Exp(d, hn::Sub(load_n(run + i, n), vmax)); }));
  }
  return sum;
}

// sum p (log p - log q) with log p = a - a_log_sum, log q = b - b_log_sum.
double KlRow(const float* a, float a_log_sum, const float* b, float b_log_sum, int64_t count) {
  const Df d;
  const Vf va = hn::Set(d, a_log_sum);
  const Vf vb = hn::Set(d, b_log_sum);
  const auto term = [&](Vf x, Vf y) HWY_ATTR {
    const Vf log_p = hn::Sub(x, va);
    return hn::Mul(hn::Exp(d, log_p), hn::Sub(log_p, hn::Sub(y, vb)));
  };
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const float* p = a + begin;
    const float* q = b + begin;
    sum += static_cast<double>(sum_vectors(
        std::min(kRun, count - begin),
        [&](int64_t i) HWY_ATTR { return term(hn::LoadU(d, p + i), hn::LoadU(d, q + i)); },
        [&](int64_t i, size_t n) HWY_ATTR { return term(load_n(p + i, n), load_n(q + i, n)); }));
  }
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace lpcd::nn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lpcd::nn {

HWY_EXPORT(RmsNormRow);
HWY_EXPORT(SquaredNormRow);
HWY_EXPORT(SiluMulRow);
HWY_EXPORT(SiluRow);
HWY_EXPORT(SiluSlopeMulRow);
HWY_EXPORT(MultiplyRow);
HWY_EXPORT(AddRow);
HWY_EXPORT(SubtractRow);
HWY_EXPORT(ScaleRow);
HWY_EXPORT(RopeHead);
HWY_EXPORT(MaxOf);
HWY_EXPORT(ExpRow);
HWY_EXPORT(SumExp);
HWY_EXPORT(KlRow);

namespace {

// 1 / n^3 D and 1 / n of a row x, n = sqrt(mean(x^2) + eps).
struct NormScales {
  float inverse;
  float cubed;
};
NormScales norm_scales(const float* x, int64_t count, float eps) {
  double sum = 0;
  for (int64_t c = 0; c < count; ++c) sum += static_cast<double>(x[c]) * static_cast<double>(x[c]);
  const double n = std::sqrt(sum / static_cast<double>(count) + static_cast<double>(eps));
  return {static_cast<float>(1.0 / n),
          static_cast<float>(1.0 / (n * n * n * static_cast<double>(count)))};
}

}  // namespace

void rms_norm(ConstView x, std::span<const float> weight, float eps, FloatView out) {
  LPCD_CHECK(x.rows() == out.rows() && x.cols() == out.cols() &&
             std::cmp_equal(weight.size(), x.cols()));
  for (int64_t r = 0; r < x.rows(); ++r) {
    HWY_DYNAMIC_DISPATCH(RmsNormRow)(x.row(r), weight.data(), eps, x.cols(), out.row(r));
  }
}

void silu_mul(ConstView gate, ConstView up, FloatView out) {
  LPCD_CHECK(gate.rows() == up.rows() && gate.cols() == up.cols() && out.rows() == up.rows() &&
             out.cols() == up.cols());
  for (int64_t r = 0; r < gate.rows(); ++r) {
    HWY_DYNAMIC_DISPATCH(SiluMulRow)(gate.row(r), up.row(r), gate.cols(), out.row(r));
  }
}

void add(ConstView y, FloatView x) {
  LPCD_CHECK(x.rows() == y.rows() && x.cols() == y.cols());
  for (int64_t r = 0; r < x.rows(); ++r) {
    HWY_DYNAMIC_DISPATCH(AddRow)(y.row(r), x.cols(), x.row(r));
  }
}

void add_bias(std::span<const float> bias, FloatView x) {
  LPCD_CHECK(std::cmp_equal(bias.size(), x.cols()));
  for (int64_t r = 0; r < x.rows(); ++r) {
    HWY_DYNAMIC_DISPATCH(AddRow)(bias.data(), x.cols(), x.row(r));
  }
}

void subtract(ConstView x, ConstView y, FloatView out) {
  LPCD_CHECK(x.rows() == y.rows() && x.cols() == y.cols() && out.rows() == x.rows() &&
             out.cols() == x.cols());
  for (int64_t r = 0; r < x.rows(); ++r) {
    HWY_DYNAMIC_DISPATCH(SubtractRow)(x.row(r), y.row(r), x.cols(), out.row(r));
  }
}

void silu(ConstView gate, FloatView out) {
  LPCD_CHECK(gate.rows() == out.rows() && gate.cols() == out.cols());
  for (int64_t r = 0; r < gate.rows(); ++r) {
    HWY_DYNAMIC_DISPATCH(SiluRow)(gate.row(r), gate.cols(), out.row(r));
  }
}

void silu_slope_mul(ConstView gate, ConstView up, FloatView slope) {
  LPCD_CHECK(gate.rows() == up.rows() && gate.cols() == up.cols() && slope.rows() == up.rows() &&
             slope.cols() == up.cols());
  for (int64_t r = 0; r < gate.rows(); ++r) {
    HWY_DYNAMIC_DISPATCH(SiluSlopeMulRow)(gate.row(r), up.row(r), gate.cols(), slope.row(r));
  }
}

void multiply(ConstView y, FloatView x) {
  LPCD_CHECK(x.rows() == y.rows() && x.cols() == y.cols());
  for (int64_t r = 0; r < x.rows(); ++r) {
    HWY_DYNAMIC_DISPATCH(MultiplyRow)(y.row(r), x.cols(), x.row(r));
  }
}

void rms_norm_derivative(ConstView x, std::span<const float> weight, float eps, FloatView dx) {
  LPCD_CHECK(x.rows() == dx.rows() && x.cols() == dx.cols());
  for (int64_t r = 0; r < x.rows(); ++r) {
    const NormScales s = norm_scales(x.row(r), x.cols(), eps);
    float dot = 0;
    for (int64_t c = 0; c < x.cols(); ++c) dot += x(r, c) * dx(r, c);
    for (int64_t c = 0; c < x.cols(); ++c) {
      dx(r, c) = weight[static_cast<size_t>(c)] * (dx(r, c) * s.inverse - x(r, c) * dot * s.cubed);
    }
  }
}

void rms_norm_derivative_transpose(ConstView x, std::span<const float> weight, float eps,
                                   FloatView dy) {
  LPCD_CHECK(x.rows() == dy.rows() && x.cols() == dy.cols());
  for (int64_t r = 0; r < x.rows(); ++r) {
    const NormScales s = norm_scales(x.row(r), x.cols(), eps);
    float dot = 0;
    for (int64_t c = 0; c < x.cols(); ++c) {
      dy(r, c) *= weight[static_cast<size_t>(c)];
      dot += x(r, c) * dy(r, c);
    }
    for (int64_t c = 0; c < x.cols(); ++c) {
      dy(r, c) = dy(r, c) * s.inverse - x(r, c) * dot * s.cubed;
    }
  }
}

namespace {

// Sum of term(x, y) over pairs of elements, in f64.
template <typename Term>
double sum_of_pairs(ConstView x, ConstView y, const Term& term) {
  LPCD_CHECK(x.rows() == y.rows() && x.cols() == y.cols());
  double sum = 0;
  for (int64_t r = 0; r < x.rows(); ++r) {
    const float* a = x.row(r);
    const float* b = y.row(r);
    for (int64_t c = 0; c < x.cols(); ++c) {
      sum += term(static_cast<double>(a[c]), static_cast<double>(b[c]));
    }
  }
  return sum;
}

}  // namespace

double inner_product(ConstView x, ConstView y) {
  return sum_of_pairs(x, y, [](double a, double b) { return a * b; });
}

double squared_angles(ConstView x, ConstView y) {
  double sum = 0;
  for (int64_t r = 0; r < x.rows(); ++r) {
    const ConstView a = x.rows_range(r, 1);
    const ConstView b = y.rows_range(r, 1);
    const double norms = std::sqrt(squared_norm(a) * squared_norm(b));
    if (norms > 0) sum += 2 - 2 * inner_product(a, b) / norms;
  }
  return sum;
}

double squared_distance(ConstView x, ConstView y) {
  return sum_of_pairs(x, y, [](double a, double b) { return (a - b) * (a - b); });
}

double squared_norm(ConstView x) {
  double sum = 0;
  for (int64_t r = 0; r < x.rows(); ++r) {
    sum += HWY_DYNAMIC_DISPATCH(SquaredNormRow)(x.row(r), x.cols());
  }
  return sum;
}

std::vector<float> rope_frequencies(int64_t head_dim, double theta, const RopeScaling& scaling,
                                    std::span<const float> divisors) {
  std::vector<float> frequencies(static_cast<size_t>(head_dim / 2));
  LPCD_CHECK(divisors.empty() || divisors.size() == frequencies.size());
  for (size_t i = 0; i < frequencies.size(); ++i) {
    // f32 exponent and power, as the reference computes them.
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    float frequency = 1.0F / std::pow(static_cast<float>(theta), exponent);
    if (scaling.kind == RopeScaling::Kind::kLinear) {
      frequency /= static_cast<float>(scaling.factor);
    } else if (scaling.kind == RopeScaling::Kind::kLlama3) {
      const double wavelength = 2 * M_PI / static_cast<double>(frequency);
      const double low = scaling.original_context / scaling.low_freq_factor;
      const double high = scaling.original_context / scaling.high_freq_factor;
      if (wavelength > low) {
        frequency /= static_cast<float>(scaling.factor);
      } else if (wavelength >= high) {
        const double smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) /
                              (scaling.high_freq_factor - scaling.low_freq_factor);
        frequency =
            static_cast<float>((1 - smooth) * static_cast<double>(frequency) / scaling.factor +
                               smooth * static_cast<double>(frequency));
      }
    }
    if (!divisors.empty()) frequency /= divisors[i];
    frequencies[i] = frequency;
  }
  return frequencies;
}

RopeTable make_rope_table(std::span<const float> frequencies, int64_t positions) {
  const auto half = static_cast<int64_t>(frequencies.size());
  RopeTable table{Mat::uninitialized(positions, half), Mat::uninitialized(positions, half)};
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(p) * frequencies[static_cast<size_t>(i)];
      table.cos(p, i) = std::cos(angle);
      table.sin(p, i) = std::sin(angle);
    }
  }
  return table;
}

void apply_rope(const RopeTable& table, int64_t first_position, int64_t head_dim, FloatView x) {
  const int64_t half = head_dim / 2;
  LPCD_CHECK(table.cos.cols() == half && x.cols() % head_dim == 0 &&
             first_position + x.rows() <= table.positions());
  for (int64_t r = 0; r < x.rows(); ++r) {
    const float* cos = table.cos.row(first_position + r);
    const float* sin = table.sin.row(first_position + r);
    for (int64_t c = 0; c < x.cols(); c += head_dim) {
      HWY_DYNAMIC_DISPATCH(RopeHead)(cos, sin, half, x.row(r) + c);
    }
  }
}

void apply_rope_transpose(const RopeTable& table, int64_t first_position, int64_t head_dim,
                          FloatView x) {
  const int64_t half = head_dim / 2;
  LPCD_CHECK(table.cos.cols() == half && x.cols() % head_dim == 0 &&
             first_position + x.rows() <= table.positions());
  std::vector<float> negated(static_cast<size_t>(half));
  for (int64_t r = 0; r < x.rows(); ++r) {
    const float* cos = table.cos.row(first_position + r);
    const float* sin = table.sin.row(first_position + r);
    for (int64_t i = 0; i < half; ++i) negated[static_cast<size_t>(i)] = -sin[i];
    for (int64_t c = 0; c < x.cols(); c += head_dim) {
      HWY_DYNAMIC_DISPATCH(RopeHead)(cos, negated.data(), half, x.row(r) + c);
    }
  }
}

FloatView causal_attention_weights(ConstView q, ConstView k, int64_t q0, int64_t rows,
                                   Mat& buffer) {
  const int64_t offset = k.rows() - q.rows();
  const int64_t seen = offset + q0 + rows;  // keys that the last query of the tile sees
  if (buffer.rows() < std::min(kQueryTile, q.rows()) || buffer.cols() < k.rows()) {
    buffer = Mat::uninitialized(std::min(kQueryTile, q.rows()), k.rows());
  }
  const float scale = 1.0F / std::sqrt(static_cast<float>(q.cols()));
  const FloatView scores = buffer.view().rows_range(0, rows).cols_range(0, seen);
  linalg::gemm_nt(1.0F, q.rows_range(q0, rows), k.rows_range(0, seen), 0.0F, scores);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t visible = offset + q0 + r + 1;
    float* row = scores.row(r);
    const float max = HWY_DYNAMIC_DISPATCH(MaxOf)(row, visible);
    const float sum = HWY_DYNAMIC_DISPATCH(ExpRow)(max, scale, visible, row);
    HWY_DYNAMIC_DISPATCH(ScaleRow)(1.0F / sum, visible, row);
    std::fill(row + visible, row + seen, 0.0F);
  }
  return scores;
}

void causal_attention(ConstView q, ConstView k, ConstView v, FloatView out,
                      AttentionScratch& scratch) {
  const int64_t queries = q.rows();
  LPCD_CHECK(k.rows() >= queries && v.rows() == k.rows() && k.cols() == q.cols() &&
             out.rows() == queries && out.cols() == v.cols());
  for (int64_t q0 = 0; q0 < queries; q0 += kQueryTile) {
    const int64_t rows = std::min(kQueryTile, queries - q0);
    const FloatView weights = causal_attention_weights(q, k, q0, rows, scratch.scores);
    linalg::gemm_nn(1.0F, weights, v.rows_range(0, weights.cols()), 0.0F, out.rows_range(q0, rows));
  }
}

void causal_attention_transpose(ConstView q, ConstView k, ConstView dout, FloatView dv,
                                AttentionScratch& scratch) {
  LPCD_CHECK(k.rows() >= q.rows() && k.cols() == q.cols() && dout.rows() == q.rows() &&
             dv.rows() == k.rows() && dv.cols() == dout.cols());
  for (int64_t q0 = 0; q0 < q.rows(); q0 += kQueryTile) {
    const int64_t rows = std::min(kQueryTile, q.rows() - q0);
    const FloatView weights = causal_attention_weights(q, k, q0, rows, scratch.scores);
    linalg::gemm_tn(1.0F, weights, dout.rows_range(q0, rows), 1.0F,
                    dv.rows_range(0, weights.cols()));
  }
}

double attention_logits(Mask mask, ConstView q1, ConstView k1, ConstView q0, ConstView k0,
                        ConstView keys, FloatView dq, ConstView queries, FloatView dk, ConstView qp,
                        ConstView kp, AttentionScratch& scratch) {
  const int64_t length = q1.rows();
  LPCD_CHECK(k1.rows() == length && q0.empty() == k0.empty() && keys.empty() == dq.empty() &&
             queries.empty() == dk.empty() && qp.empty() == kp.empty() &&
             (qp.empty() || mask == Mask::kCausal));
  if (scratch.scores.rows() < kQueryTile || scratch.scores.cols() < length) {
    scratch.scores = Mat::uninitialized(kQueryTile, length);
  }
  const float scale = 1.0F / std::sqrt(static_cast<float>(q1.cols()));
  double energy = 0;
  for (int64_t first = 0; first < length; first += kQueryTile) {
    const int64_t rows = std::min(kQueryTile, length - first);
    const int64_t seen = mask == Mask::kCausal ? first + rows : length;
    const FloatView e = scratch.scores.view().rows_range(0, rows).cols_range(0, seen);
    linalg::gemm_nt(1.0F, q1.rows_range(first, rows), k1.rows_range(0, seen), 0.0F, e);
    if (!q0.empty()) {
      linalg::gemm_nt(-1.0F, q0.rows_range(first, rows), k0.rows_range(0, seen), 1.0F, e);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t visible = mask == Mask::kCausal ? first + r + 1 : length;
      HWY_DYNAMIC_DISPATCH(ScaleRow)(scale, visible, e.row(r));
      std::fill(e.row(r) + visible, e.row(r) + seen, 0.0F);
    }
    if (qp.empty()) {
      energy += squared_norm(e);
    } else {
      const FloatView p = causal_attention_weights(qp, kp, first, rows, scratch.weights);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t visible = first + r + 1;
        const float* weight = p.row(r);
        float* row = e.row(r);
        float mean = 0;
        for (int64_t s = 0; s < visible; ++s) mean += weight[s] * row[s];
        double sum = 0;
        for (int64_t s = 0; s < visible; ++s) {
          const float centred = row[s] - mean;
          row[s] = weight[s] * centred;
          sum += static_cast<double>(row[s] * centred);
        }
        energy += sum;
      }
    }
    if (!dq.empty()) {
      linalg::gemm_nn(scale, e, keys.rows_range(0, seen), 1.0F, dq.rows_range(first, rows));
    }
    if (!dk.empty()) {
      linalg::gemm_tn(scale, e, queries.rows_range(first, rows), 1.0F, dk.rows_range(0, seen));
    }
  }
  return energy;
}

double exp_weights(std::span<float> x, float scale) {
  const auto count = static_cast<int64_t>(x.size());
  const float max = HWY_DYNAMIC_DISPATCH(MaxOf)(x.data(), count);
  return static_cast<double>(HWY_DYNAMIC_DISPATCH(ExpRow)(max, scale, count, x.data()));
}

std::vector<RowSoftmax> row_log_sum_exp(ConstView logits) {
  std::vector<RowSoftmax> result(static_cast<size_t>(logits.rows()));
  for (int64_t r = 0; r < logits.rows(); ++r) {
    const float* row = logits.row(r);
    const float max = HWY_DYNAMIC_DISPATCH(MaxOf)(row, logits.cols());
    const double sum = HWY_DYNAMIC_DISPATCH(SumExp)(row, max, logits.cols());
    const float* best = std::find(row, row + logits.cols(), max);
    result[static_cast<size_t>(r)] = {static_cast<float>(static_cast<double>(max) + std::log(sum)),
                                      static_cast<int32_t>(best - row)};
  }
  return result;
}

double kl_divergence(std::span<const float> reference, float reference_log_sum,
                     std::span<const float> other, float other_log_sum) {
  LPCD_CHECK(reference.size() == other.size());
  return HWY_DYNAMIC_DISPATCH(KlRow)(reference.data(), reference_log_sum, other.data(),
                                     other_log_sum, static_cast<int64_t>(reference.size()));
}

}  // namespace lpcd::nn
#endif  // HWY_ONCE
