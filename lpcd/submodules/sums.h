#pragma once

#include <functional>
#include <span>
#include <vector>

#include "lpcd/base/context.h"
#include "lpcd/tensor/mat.h"

namespace lpcd::submodules {

// Element-wise work and sums over rows on all threads. Rows are cut every 256, sums are added in
// the order of the rows: the same bits for any number of threads.

/// body(first row, rows) in parallel.
void for_rows(const RunContext& ctx, int64_t rows,
              const std::function<void(int64_t, int64_t)>& body);
[[nodiscard]] double squared_norm(const RunContext& ctx, ConstView x);
[[nodiscard]] double squared_distance(const RunContext& ctx, ConstView x, ConstView y);
/// out = x - y.
void subtract(const RunContext& ctx, ConstView x, ConstView y, FloatView out);
/// x *= y.
void multiply(const RunContext& ctx, ConstView y, FloatView x);
/// Rows t of x times sqrt(weights[t]).
void scale_rows(std::span<const float> weights, FloatView x);
/// Sum of squares of each column.
[[nodiscard]] std::vector<float> column_energies(ConstView w);
/// Sum of products, in f64.
[[nodiscard]] double inner_product(ConstView a, ConstView b);

}  // namespace lpcd::submodules
