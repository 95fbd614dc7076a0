#pragma once

#include <cstdint>

#include "lpcd/base/context.h"
#include "lpcd/tensor/mat.h"

namespace lpcd::calib {

/// Sum of x_t x_t^T over tokens, scaled to H = (2/T) sum x_t x_t^T when finished.
///
/// Shapes    add(): x [t, K], calls in token order, each starting on a slab border.
/// Numerics  f32, summed slab by slab: the same bits for any number of threads and any chunking.
/// Memory    4 K^2 bytes.
class GramAccumulator {
 public:
  explicit GramAccumulator(int64_t inputs) : sum_(inputs, inputs) {}
  void add(const RunContext& ctx, ConstView x, int64_t slab_rows);
  /// Symmetric [K, K]; the accumulator is used up.
  [[nodiscard]] Mat finish(const RunContext& ctx) &&;

 private:
  Mat sum_;
  int64_t tokens_ = 0;
};

/// Sum of a_t b_t^T over tokens, scaled to (2/T) sum a_t b_t^T when finished.
/// Shapes    add(): a [t, N], b [t, K]; finish(): [N, K]. Otherwise as GramAccumulator.
class CrossAccumulator {
 public:
  CrossAccumulator(int64_t rows, int64_t cols) : sum_(rows, cols) {}
  void add(const RunContext& ctx, ConstView a, ConstView b, int64_t slab_rows);
  [[nodiscard]] Mat finish(const RunContext& ctx) &&;

 private:
  Mat sum_;
  int64_t tokens_ = 0;
};

}  // namespace lpcd::calib
