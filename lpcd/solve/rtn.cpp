#include <algorithm>

#include "lpcd/linalg/parallel.h"
#include "lpcd/solve/projector.h"
#include "lpcd/solve/row_block.h"

namespace lpcd::solve {

format::QuantizedMatrix project_rtn(const RunContext& ctx, ConstView weight,
                                    const ProjectOptions& options) {
  format::QuantizedMatrix result(options.grid, weight.rows(), weight.cols());
  const int64_t length = options.grid.group_length(weight.cols());
  linalg::parallel_for(ctx, ceil_div(weight.rows(), kRowsPerTask), [&](int64_t task) {
    RowBlock rows(weight, task * kRowsPerTask);
    format::GroupParameters parameters;
    std::vector<float> decoded(static_cast<size_t>(rows.count()));
    for (int64_t g = 0; g < result.groups(); ++g) {
      const int64_t end = std::min(weight.cols(), (g + 1) * length);
      format::fit_group(rows.columns(g * length, end), options.grid, options.fit, parameters);
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

}  // namespace lpcd::solve
