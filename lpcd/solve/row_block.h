#pragma once

#include <span>

#include "lpcd/format/ggml_fit.h"
#include "lpcd/format/grid.h"
#include "lpcd/tensor/mat.h"

namespace lpcd::solve {

/// Some rows of a weight matrix, transposed: a column of the matrix is contiguous, so that the
/// column by column algorithms work on whole vectors of rows.
class RowBlock {
 public:
  RowBlock(ConstView weight, int64_t first_row, int64_t rows);

  [[nodiscard]] int64_t count() const { return work_.cols(); }
  [[nodiscard]] std::span<float> column(int64_t k) {
    return {work_.row(k), static_cast<size_t>(count())};
  }
  /// Columns [begin, end) as [end - begin, rows].
  [[nodiscard]] FloatView columns(int64_t begin, int64_t end) {
    return work_.view().rows_range(begin, end - begin);
  }
  /// Where the codes of column k go until store_codes.
  [[nodiscard]] std::span<float> codes(int64_t k) {
    return {codes_.row(k), static_cast<size_t>(count())};
  }

  void store_group(int64_t group, const format::GroupParameters& parameters,
                   format::QuantizedMatrix& result) const;
  void store_codes(format::QuantizedMatrix& result) const;
  /// The codes as blocks of a ggml type; parameters [K / length].
  void store_blocks(std::span<const format::BlockParameters> parameters,
                    format::QuantizedMatrix& result) const;

 private:
  int64_t first_row_;
  Mat work_;   // [K, rows]
  Mat codes_;  // [K, rows]
};

struct Metric;
struct ProjectOptions;

/// The candidate with the smallest sum h_kk (w_k - q_k)^2 on each row, for the group of columns
/// first, first + 1, ...
/// Shapes    columns [g, R], h [K, K].
void search_weighted(ConstView columns, ConstView h, int64_t first, const ProjectOptions& options,
                     format::GroupParameters& parameters);

}  // namespace lpcd::solve
