#pragma once

#include "lpcd/solve/projector.h"

namespace lpcd::solve {

/// refine() for grids of ggml blocks. Besides codes it moves what the format stores: d and m as
/// f16, scales and minima of sub-blocks as integers.
void refine_blocks(const RunContext& ctx, ConstView weight, const Metric& metric, int sweeps,
                   format::QuantizedMatrix& result, int64_t rows_per_task);

}  // namespace lpcd::solve
