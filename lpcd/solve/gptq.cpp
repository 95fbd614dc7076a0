#include "lpcd/solve/projector.h"
#include "lpcd/solve/row_block.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lpcd/solve/gptq.cpp"
#include <hwy/foreach_target.h>  // compiles the part below once per vector instruction set
#include <hwy/highway.h>
// after highway.h
#include <algorithm>
#include <cmath>
#include <limits>

#include "lpcd/base/raise.h"
#include "lpcd/base/simd-inl.h"
#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"

HWY_BEFORE_NAMESPACE();
namespace lpcd::solve {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using simd::HWY_NAMESPACE::Df;
using simd::HWY_NAMESPACE::for_vectors;
using simd::HWY_NAMESPACE::Vf;

// error = (w - decoded) / pivot
void ColumnError(const float* w, const float* decoded, float pivot, int64_t rows, float* error) {
  const Vf p = hn::Set(Df(), pivot);
  for_vectors(rows, [&](auto load, auto store)
                        HWY_ATTR { store(hn::Div(hn::Sub(load(w), load(decoded)), p), error); });
}

// w_j -= error * factor[j] for the columns j = 0 .. count - 1, which are `stride` floats apart.
void PassOn(const float* error, const float* factor, int64_t count, int64_t rows, int64_t stride,
            float* w) {
  const Df d;
  for (int64_t j = 0; j < count; ++j) {
    const Vf f = hn::Set(d, factor[j]);
    float* column = w + j * stride;
    for_vectors(rows, [&](auto load, auto store)
                          HWY_ATTR { store(hn::NegMulAdd(load(error), f, load(column)), column); });
  }
}

// PassOn of kTogether errors, one row of factors each, in the same order; columns are loaded and
// stored once.
void PassOnTogether(ConstView errors, ConstView factors, FloatView w) {
  const Df d;
  for_vectors(w.cols(), [&](auto load, auto store) HWY_ATTR {
    const Vf e0 = load(errors.row(0));
    const Vf e1 = load(errors.row(1));
    const Vf e2 = load(errors.row(2));
    const Vf e3 = load(errors.row(3));
    for (int64_t j = 0; j < w.rows(); ++j) {
      float* column = w.row(j);
      Vf v = hn::NegMulAdd(e0, hn::Set(d, factors(0, j)), load(column));
      v = hn::NegMulAdd(e1, hn::Set(d, factors(1, j)), v);
      v = hn::NegMulAdd(e2, hn::Set(d, factors(2, j)), v);
      v = hn::NegMulAdd(e3, hn::Set(d, factors(3, j)), v);
      store(v, column);
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace lpcd::solve
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lpcd::solve {

HWY_EXPORT(ColumnError);
HWY_EXPORT(PassOn);
HWY_EXPORT(PassOnTogether);

namespace {

constexpr int64_t kLongestSearchedGroup = 256;
constexpr int64_t kTogether = 4;  // columns whose errors are passed on together

// GPTQ on one block of rows. Positions are columns in the order of the metric.
class GptqRows {
 public:
  GptqRows(RowBlock& rows, const Metric& metric, const ProjectOptions& options,
           format::QuantizedMatrix& result)
      : rows_(rows),
        metric_(metric),
        options_(options),
        result_(result),
        inputs_(result.cols),
        group_length_(options.grid.group_length(inputs_)),
        errors_(Mat::uninitialized(options.block_columns, rows.count())),
        decoded_(static_cast<size_t>(rows.count())) {}

  void run() {
    for (int64_t k = 0; k < inputs_; ++k) {
      if (metric_.dead(k)) std::ranges::fill(rows_.column(k), 0.0F);
    }
    if (metric_.order.empty()) {
      for (int64_t begin = 0; begin < inputs_;) {
        const int64_t end = block_end(begin);
        if (options_.stale_group_scales) {
          stale_ = copy_of(rows_.columns(begin, std::min(inputs_, end + group_length_)));
        }
        block_begin_ = begin;
        run_block(rows_.columns(0, inputs_), begin, end);
        begin = end;
      }
    } else {
      run_ordered();
    }
    if (options_.grid.block) {
      rows_.store_blocks(blocks_, result_);
    } else {
      rows_.store_codes(result_);
    }
  }

 private:
  static Mat copy_of(ConstView view) {
    Mat m = Mat::uninitialized(view.rows(), view.cols());
    copy(view, m);
    return m;
  }

  // Blocks end at group borders, so that a group is fitted on weights that have every update.
  [[nodiscard]] int64_t block_end(int64_t begin) const {
    const int64_t limit = std::min(inputs_, begin + options_.block_columns);
    if (options_.stale_group_scales || limit == inputs_) return limit;
    const int64_t border = limit / group_length_ * group_length_;
    return border > begin ? border : limit;
  }

  // `columns` are those of the group; their places in the order of the metric are `first` and on,
  // or scattered (-1).
  void fit(int64_t group, ConstView columns, int64_t first) {
    if (options_.grid.block) {
      fit_block(group, columns, first);
      return;
    }
    parameters_.resize(static_cast<size_t>(result_.groups()));
    format::GroupParameters& parameters = parameters_[static_cast<size_t>(group)];
    format::fit_group(columns, options_.grid, options_.fit, parameters);
    if (options_.scale_search && first >= 0) search(columns, first, parameters);
    rows_.store_group(group, parameters, result_);
  }

  // The candidate that leaves the smallest loss sum ((w_k - q_k) / u_kk)^2 on each row, when the
  // errors are passed on inside the group.
  void search(ConstView columns, int64_t first, format::GroupParameters& parameters) {
    const format::GroupCandidates candidates(columns, options_.grid, options_.fit);
    const auto rows = static_cast<size_t>(columns.cols());
    format::GroupParameters trial;
    std::vector<double> best(rows, std::numeric_limits<double>::infinity());
    std::vector<double> loss(rows);
    for (int i = 0; i < candidates.count(); ++i) {
      candidates.get(i, trial);
      copy(columns, sized_like(columns));
      loss.assign(rows, 0.0);
      round_group(trial, first, loss);
      for (size_t r = 0; r < rows; ++r) {
        if (loss[r] < best[r]) {
          best[r] = loss[r];
          parameters.scale[r] = trial.scale[r];
          parameters.zero[r] = trial.zero[r];
        }
      }
    }
  }

  // A block of a ggml type. What an error costs is 1 / u_kk^2 when later columns make up for it,
  // and h_kk when none does; with the search, each row takes the fit that leaves the smaller loss
  // when the errors are passed on inside the block.
  void fit_block(int64_t group, ConstView columns, int64_t first) {
    blocks_.resize(static_cast<size_t>(result_.groups()));
    format::BlockParameters& parameters = blocks_[static_cast<size_t>(group)];
    const DType type = options_.grid.block.value();
    std::vector<float> diagonal(static_cast<size_t>(group_length_));
    std::vector<float> pivots(static_cast<size_t>(group_length_));
    for (int64_t k = 0; k < group_length_; ++k) {
      const int64_t column = group * group_length_ + k;
      diagonal[static_cast<size_t>(k)] = metric_.h(column, column) + metric_.damping(column);
      if (first < 0) continue;
      const float u = metric_.factor.upper(first + k, first + k);
      pivots[static_cast<size_t>(k)] = 1.0F / (u * u);
    }
    if (first < 0) {
      format::fit_blocks(columns, diagonal, type, {}, parameters);
      return;
    }
    format::fit_blocks(columns, pivots, type, {}, parameters);
    if (!options_.scale_search) return;
    std::vector<double> best(static_cast<size_t>(columns.cols()), 0.0);
    block_loss(parameters, columns, first, best);
    format::BlockParameters trial;
    format::fit_blocks(columns, diagonal, type, {}, trial);
    std::vector<double> loss(best.size(), 0.0);
    block_loss(trial, columns, first, loss);
    for (size_t r = 0; r < best.size(); ++r) {
      if (loss[r] < best[r]) parameters.fields[r] = trial.fields[r];
    }
    parameters.expand();
  }

  void block_loss(const format::BlockParameters& parameters, ConstView columns, int64_t first,
                  std::vector<double>& loss) {
    copy(columns, sized_like(columns));
    add_loss(first, loss, [&](int64_t k) {
      format::quantize_block_column({trial_.row(k), loss.size()}, parameters, k, trial_codes_,
                                    decoded_);
    });
  }

  FloatView sized_like(ConstView columns) {
    if (trial_.rows() != columns.rows() || trial_.cols() != columns.cols()) {
      trial_ = Mat::uninitialized(columns.rows(), columns.cols());
      trial_codes_.resize(static_cast<size_t>(columns.cols()));
      trial_errors_ = Mat::uninitialized(kTogether, columns.cols());
    }
    return trial_;
  }

  // Rounds the columns in trial_ one after the other and adds up the loss.
  void round_group(const format::GroupParameters& parameters, int64_t first,
                   std::vector<double>& loss) {
    add_loss(first, loss, [&](int64_t k) {
      format::quantize_column({trial_.row(k), loss.size()}, parameters, options_.grid.max_code(),
                              trial_codes_, decoded_);
    });
  }

  // `round(k)` puts column k of trial_ on the grid, into decoded_.
  template <typename Round>
  void add_loss(int64_t first, std::vector<double>& loss, const Round& round) {
    const ConstView upper = metric_.factor.upper;
    const int64_t length = trial_.rows();
    const auto rows = loss.size();
    // Passing errors on inside a very long group would cost more than GPTQ itself.
    const bool passes_on = length <= kLongestSearchedGroup;
    for (int64_t k = 0; k < length; ++k) {
      round(k);
      float* error = trial_errors_.row(k % kTogether);
      HWY_DYNAMIC_DISPATCH(ColumnError)(trial_.row(k), decoded_.data(), upper(first + k, first + k),
                                        trial_.cols(), error);
      for (size_t r = 0; r < rows; ++r) {
        loss[r] += static_cast<double>(error[r]) * static_cast<double>(error[r]);
      }
      if (!passes_on || k + 1 == length) continue;
      const int64_t begin = k / kTogether * kTogether;
      const int64_t end = std::min(length, begin + kTogether);
      if (k + 1 < end) {
        HWY_DYNAMIC_DISPATCH(PassOn)(error, &upper(first + k, first + k + 1), end - k - 1,
                                     trial_.cols(), trial_.cols(), trial_.row(k + 1));
      } else {
        const int64_t rest = length - end;
        HWY_DYNAMIC_DISPATCH(PassOnTogether)(
            trial_errors_, upper.rows_range(first + begin, kTogether).cols_range(first + end, rest),
            trial_.view().rows_range(end, rest));
      }
    }
  }

  void fit_at(int64_t position) {
    const int64_t end = std::min(inputs_, position + group_length_);
    if (options_.stale_group_scales && !options_.grid.block) {
      fit(position / group_length_,
          stale_.view().rows_range(position - block_begin_, end - position), position);
    } else {
      fit(position / group_length_, rows_.columns(position, end), position);
    }
  }

  // `work` holds the columns in the order of the metric.
  void run_block(FloatView work, int64_t begin, int64_t end) {
    const ConstView upper = metric_.factor.upper;
    const int64_t count = rows_.count();
    const auto width = static_cast<size_t>(count);
    for (int64_t i = begin; i < end; ++i) {
      if (metric_.order.empty() && i % group_length_ == 0) fit_at(i);
      const int64_t column = metric_.order.empty() ? i : metric_.order[static_cast<size_t>(i)];
      const auto group = static_cast<size_t>(column / group_length_);
      if (options_.grid.block) {
        format::quantize_block_column({work.row(i), width}, blocks_[group], column % group_length_,
                                      rows_.codes(column), decoded_);
      } else {
        format::quantize_column({work.row(i), width}, parameters_[group], options_.grid.max_code(),
                                rows_.codes(column), decoded_);
      }
      float* error = errors_.row(i - begin);
      HWY_DYNAMIC_DISPATCH(ColumnError)(work.row(i), decoded_.data(), upper(i, i), count, error);
      if (i + 1 < end) {
        HWY_DYNAMIC_DISPATCH(PassOn)(error, &upper(i, i + 1), end - i - 1, count, work.stride(),
                                     work.row(i + 1));
      }
    }
    if (end < inputs_) {
      const int64_t rest = inputs_ - end;
      linalg::gemm_tn(-1.0F, upper.rows_range(begin, end - begin).cols_range(end, rest),
                      errors_.view().rows_range(0, end - begin), 1.0F, work.rows_range(end, rest));
    }
  }

  // Act-order with static groups: scales are fixed first, on the weights as they are.
  void run_ordered() {
    for (int64_t k = 0; k < inputs_; k += group_length_) {
      const ConstView columns = rows_.columns(k, std::min(inputs_, k + group_length_));
      fit(k / group_length_, columns, -1);
      if (options_.scale_search && !options_.grid.block) {
        format::GroupParameters& parameters = parameters_[static_cast<size_t>(k / group_length_)];
        search_weighted(columns, metric_.h, k, options_, parameters);
        rows_.store_group(k / group_length_, parameters, result_);
      }
    }
    Mat work = Mat::uninitialized(inputs_, rows_.count());
    for (int64_t i = 0; i < inputs_; ++i) {
      std::ranges::copy(rows_.column(metric_.order[static_cast<size_t>(i)]), work.row(i));
    }
    for (int64_t begin = 0; begin < inputs_; begin += options_.block_columns) {
      run_block(work, begin, std::min(inputs_, begin + options_.block_columns));
    }
  }

  RowBlock& rows_;
  const Metric& metric_;
  const ProjectOptions& options_;
  format::QuantizedMatrix& result_;
  int64_t inputs_;
  int64_t group_length_;
  int64_t block_begin_ = 0;
  Mat errors_;  // [block_columns, rows]
  Mat stale_;   // columns from block_begin_ on, as they were when the block began
  std::vector<float> decoded_;
  std::vector<format::GroupParameters> parameters_;  // per group
  std::vector<format::BlockParameters> blocks_;      // per block of a ggml type
  // of the scale search
  Mat trial_;
  std::vector<float> trial_codes_;
  Mat trial_errors_;  // of the last kTogether columns
};

}  // namespace

format::QuantizedMatrix project_gptq(const RunContext& ctx, ConstView weight, const Metric& metric,
                                     const ProjectOptions& options) {
  LPCD_CHECK(weight.cols() == metric.inputs() && options.block_columns > 0);
  format::QuantizedMatrix result(options.grid, weight.rows(), weight.cols());
  linalg::parallel_for(ctx, ceil_div(weight.rows(), options.rows_per_task), [&](int64_t task) {
    RowBlock rows(weight, task * options.rows_per_task, options.rows_per_task);
    GptqRows(rows, metric, options, result).run();
  });
  if (options.refine_sweeps > 0) {
    refine(ctx, weight, metric, options.refine_sweeps, result, options.rows_per_task);
  }
  return result;
}

}  // namespace lpcd::solve
#endif  // HWY_ONCE
