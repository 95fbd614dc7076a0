#include <algorithm>
#include <limits>

#include "lpcd/format/ggml_fit.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/solve/projector.h"
#include "lpcd/solve/row_block.h"

namespace lpcd::solve {
namespace {

format::QuantizedMatrix round_blocks(const RunContext& ctx, ConstView weight, const Metric* metric,
                                     const ProjectOptions& options) {
  format::QuantizedMatrix result(options.grid, weight.rows(), weight.cols());
  const DType type = options.grid.block.value();
  std::vector<float> weights;  // the diagonal that GPTQ would see
  for (int64_t k = 0; metric != nullptr && k < weight.cols(); ++k) {
    weights.push_back(metric->h(k, k) + metric->damping(k));
  }
  linalg::parallel_for(ctx, ceil_div(weight.rows(), options.rows_per_task), [&](int64_t task) {
    const int64_t first = task * options.rows_per_task;
    const int64_t count = std::min(options.rows_per_task, weight.rows() - first);
    const size_t stride = result.block_row_bytes();
    format::quantize_rows(weight.rows_range(first, count), weights, type, {},
                          {result.blocks.data() + static_cast<size_t>(first) * stride,
                           static_cast<size_t>(count) * stride});
  });
  return result;
}

format::QuantizedMatrix round_rows(const RunContext& ctx, ConstView weight, const Metric* metric,
                                   const ProjectOptions& options) {
  if (options.grid.block) return round_blocks(ctx, weight, metric, options);
  format::QuantizedMatrix result(options.grid, weight.rows(), weight.cols());
  const int64_t length = options.grid.group_length(weight.cols());
  linalg::parallel_for(ctx, ceil_div(weight.rows(), options.rows_per_task), [&](int64_t task) {
    RowBlock rows(weight, task * options.rows_per_task, options.rows_per_task);
    format::GroupParameters parameters;
    std::vector<float> decoded(static_cast<size_t>(rows.count()));
    for (int64_t g = 0; g < result.groups(); ++g) {
      const int64_t end = std::min(weight.cols(), (g + 1) * length);
      format::fit_group(rows.columns(g * length, end), options.grid, options.fit, parameters);
      if (metric != nullptr && options.scale_search) {
        search_weighted(rows.columns(g * length, end), metric->h, g * length, options, parameters);
      }
      rows.store_group(g, parameters, result);
      for (int64_t k = g * length; k < end; ++k) {
        format::quantize_column(rows.column(k), parameters, options.grid.max_code(), rows.codes(k),
                                decoded);
      }
    }
    rows.store_codes(result);
  });
  return result;
}

}  // namespace

void search_weighted(ConstView columns, ConstView h, int64_t first, const ProjectOptions& options,
                     format::GroupParameters& parameters) {
  const format::GroupCandidates candidates(columns, options.grid, options.fit);
  const auto rows = static_cast<size_t>(columns.cols());
  format::GroupParameters trial;
  std::vector<double> best(rows, std::numeric_limits<double>::infinity());
  std::vector<double> loss(rows);
  std::vector<float> codes(rows);
  std::vector<float> decoded(rows);
  for (int i = 0; i < candidates.count(); ++i) {
    candidates.get(i, trial);
    loss.assign(rows, 0.0);
    for (int64_t k = 0; k < columns.rows(); ++k) {
      format::quantize_column({columns.row(k), rows}, trial, options.grid.max_code(), codes,
                              decoded);
      const double weight = h(first + k, first + k);
      for (size_t r = 0; r < rows; ++r) {
        const double error =
            static_cast<double>(columns.row(k)[r]) - static_cast<double>(decoded[r]);
        loss[r] += weight * error * error;
      }
    }
    for (size_t r = 0; r < rows; ++r) {
      if (loss[r] < best[r]) {
        best[r] = loss[r];
        parameters.scale[r] = trial.scale[r];
        parameters.zero[r] = trial.zero[r];
      }
    }
  }
}

format::QuantizedMatrix project_rtn(const RunContext& ctx, ConstView weight,
                                    const ProjectOptions& options) {
  return round_rows(ctx, weight, nullptr, options);
}

format::QuantizedMatrix project_rtn(const RunContext& ctx, ConstView weight, const Metric& metric,
                                    const ProjectOptions& options) {
  return round_rows(ctx, weight, &metric, options);
}

}  // namespace lpcd::solve
