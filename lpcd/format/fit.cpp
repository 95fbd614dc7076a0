#include "lpcd/format/grid.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lpcd/format/fit.cpp"
#include <hwy/foreach_target.h>  // compiles the part below once per vector instruction set
#include <hwy/highway.h>
// after highway.h
#include <hwy/contrib/math/math-inl.h>

#include <cmath>
#include <limits>

#include "lpcd/base/raise.h"
#include "lpcd/base/simd-inl.h"
#include "lpcd/tensor/half.h"

HWY_BEFORE_NAMESPACE();
namespace lpcd::format {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using simd::HWY_NAMESPACE::Df;
using simd::HWY_NAMESPACE::for_vectors;
using simd::HWY_NAMESPACE::Vf;

HWY_INLINE Vf nearest_code(Vf w, Vf scale, Vf zero, Vf max_code) {
  const Vf code = hn::Add(hn::Round(hn::Div(w, scale)), zero);
  return hn::Min(hn::Max(code, hn::Zero(Df())), max_code);
}

void QuantizeColumn(const float* w, const float* scale, const float* zero, float max_code,
                    int64_t rows, float* codes, float* decoded) {
  const Vf top = hn::Set(Df(), max_code);
  for_vectors(rows, [&](auto load, auto store) HWY_ATTR {
    const Vf s = load(scale);
    const Vf z = load(zero);
    const Vf code = nearest_code(load(w), s, z, top);
    store(code, codes);
    store(hn::Mul(s, hn::Sub(code, z)), decoded);
  });
}

// error[r] += |w - decoded|^norm for one column.
void AddError(const float* w, const float* scale, const float* zero, float max_code, float norm,
              int64_t rows, float* error) {
  const Df d;
  const Vf top = hn::Set(d, max_code);
  const Vf exponent = hn::Set(d, norm);
  const Vf tiny = hn::Set(d, 1e-30F);  // keeps the logarithm finite; its power is 0 in f32
  for_vectors(rows, [&](auto load, auto store) HWY_ATTR {
    const Vf s = load(scale);
    const Vf z = load(zero);
    const Vf value = load(w);
    const Vf code = nearest_code(value, s, z, top);
    const Vf delta = hn::Abs(hn::Sub(hn::Mul(s, hn::Sub(code, z)), value));
    const Vf power = hn::Exp(d, hn::Mul(exponent, hn::Log(d, hn::Max(delta, tiny))));
    store(hn::Add(load(error), power), error);
  });
}

void MinMax(const float* w, int64_t rows, float* low, float* high) {
  for_vectors(rows, [&](auto load, auto store) HWY_ATTR {
    const Vf value = load(w);
    store(hn::Min(load(low), value), low);
    store(hn::Max(load(high), value), high);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace lpcd::format
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lpcd::format {

HWY_EXPORT(QuantizeColumn);
HWY_EXPORT(AddError);
HWY_EXPORT(MinMax);

namespace {

constexpr float kMinF16 = 0x1.0p-24F;  // smallest positive f16

float stored_scale(float scale, const FitOptions& options) {
  scale = std::max(scale, options.min_scale);
  if (!options.f16_scales) return scale;
  const float rounded = std::max(round_to_f16(scale), kMinF16);
  if (!std::isfinite(rounded)) {
    raise(ErrorCode::kNonFinite,
          "a group scale of {} does not fit f16; the weights are out of range", scale);
  }
  return rounded;
}

// Share of the range that the last candidate of a search keeps. The fewer codes, the more is gained
// by clipping the tails; a scale that is right for a normal distribution keeps about this much.
float smallest_share(int bits) {
  switch (bits) {
    case 2:
      return 0.35F;
    case 3:
      return 0.5F;
    case 4:
      return 0.65F;
    default:
      return 0.85F;
  }
}

constexpr int kShrinkSteps = 11;  // symmetric, per sign
constexpr int kEndSteps = 5;      // asymmetric, per end

float share_of_step(int step, int steps, int bits) {
  const float smallest = smallest_share(bits);
  return 1.0F - (1.0F - smallest) * static_cast<float>(step) / static_cast<float>(steps - 1);
}

// Scale and zero of the range [low, high], which contains 0.
void parameters_of_range(float low, float high, const GridSpec& spec, const FitOptions& options,
                         float& scale, float& zero) {
  scale = stored_scale((high - low) / spec.max_code(), options);
  if (spec.symmetric) {
    zero = spec.middle();
    return;
  }
  zero = std::nearbyint(-low / scale);
  if (zero < 1.0F && options.zero_from_one) {
    scale = stored_scale(high / (spec.max_code() - 1.0F), options);
    zero = 1.0F;
  }
  zero = std::min(zero, spec.max_code());
}

void find_range(ConstView w, const GridSpec& spec, const FitOptions& options,
                std::vector<float>& low, std::vector<float>& high) {
  const auto rows = static_cast<size_t>(w.cols());
  low.assign(rows, 0.0F);
  high.assign(rows, 0.0F);
  for (int64_t k = 0; k < w.rows(); ++k) {
    HWY_DYNAMIC_DISPATCH(MinMax)(w.row(k), w.cols(), low.data(), high.data());
  }
  for (size_t r = 0; r < rows; ++r) {
    if (spec.symmetric) {
      high[r] = std::max(high[r], -low[r]);
      if (low[r] < 0.0F || !options.one_sided_symmetric) low[r] = -high[r];
    }
    if (low[r] == 0.0F && high[r] == 0.0F) {
      low[r] = -1.0F;
      high[r] = 1.0F;
    }
  }
}

}  // namespace

GroupCandidates::GroupCandidates(ConstView w, const GridSpec& spec, const FitOptions& options)
    : spec_(spec), options_(options) {
  find_range(w, spec, options, low_, high_);
}

int GroupCandidates::count() const {
  return spec_.symmetric ? 2 * kShrinkSteps : kEndSteps * kEndSteps;
}

void GroupCandidates::get(int candidate, GroupParameters& parameters) const {
  parameters.scale.resize(low_.size());
  parameters.zero.resize(low_.size());
  const int steps = spec_.symmetric ? kShrinkSteps : kEndSteps;
  const float first = share_of_step(candidate % steps, steps, spec_.bits);
  const float second =
      spec_.symmetric ? first : share_of_step(candidate / steps, steps, spec_.bits);
  for (size_t r = 0; r < low_.size(); ++r) {
    parameters_of_range(first * low_[r], second * high_[r], spec_, options_, parameters.scale[r],
                        parameters.zero[r]);
    if (spec_.symmetric && candidate >= kShrinkSteps) parameters.scale[r] = -parameters.scale[r];
  }
}

void quantize_column(std::span<const float> w, const GroupParameters& parameters, float max_code,
                     std::span<float> codes, std::span<float> decoded) {
  HWY_DYNAMIC_DISPATCH(QuantizeColumn)(w.data(), parameters.scale.data(), parameters.zero.data(),
                                       max_code, static_cast<int64_t>(w.size()), codes.data(),
                                       decoded.data());
}

void fit_group(ConstView w, const GridSpec& spec, const FitOptions& options,
               GroupParameters& parameters) {
  const auto rows = static_cast<size_t>(w.cols());
  std::vector<float> low;
  std::vector<float> high;
  find_range(w, spec, options, low, high);
  parameters.scale.resize(rows);
  parameters.zero.resize(rows);
  for (size_t r = 0; r < rows; ++r) {
    parameters_of_range(low[r], high[r], spec, options, parameters.scale[r], parameters.zero[r]);
  }
  if (options.search == FitOptions::Search::kNone) return;

  GroupParameters trial = parameters;
  std::vector<float> best(rows, std::numeric_limits<float>::infinity());
  std::vector<float> error(rows);
  const int steps = static_cast<int>(options.max_shrink * options.candidates);
  for (int i = 0; i < steps; ++i) {
    const float keep = static_cast<float>(1.0 - static_cast<double>(i) / options.candidates);
    for (size_t r = 0; r < rows; ++r) {
      parameters_of_range(keep * low[r], keep * high[r], spec, options, trial.scale[r],
                          trial.zero[r]);
    }
    error.assign(rows, 0.0F);
    for (int64_t k = 0; k < w.rows(); ++k) {
      HWY_DYNAMIC_DISPATCH(AddError)(w.row(k), trial.scale.data(), trial.zero.data(),
                                     spec.max_code(), static_cast<float>(options.norm), w.cols(),
                                     error.data());
    }
    for (size_t r = 0; r < rows; ++r) {
      if (error[r] < best[r]) {
        best[r] = error[r];
        parameters.scale[r] = trial.scale[r];
        parameters.zero[r] = trial.zero[r];
      }
    }
  }
}

}  // namespace lpcd::format
#endif  // HWY_ONCE
