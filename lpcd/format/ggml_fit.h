#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "lpcd/tensor/dtype.h"
#include "lpcd/tensor/ggml_blocks.h"
#include "lpcd/tensor/mat.h"

// The block types of ggml as grids: what a projector needs to put columns on them one by one.

namespace lpcd::format {

/// Scales and offsets of one block each of R rows, already rounded as the format stores them.
///
/// Input k of the block is in sub-block j = k / grid().sub; a row's weight is
/// scale * (code - zero) + offset, computed in f32 as decode_ggml_blocks does.
struct BlockParameters {
  DType type = DType::kQ4_0;
  std::vector<GgmlBlockFields> fields;  ///< [R]
  Mat scale;                            ///< [subs, R]
  Mat offset;                           ///< [subs, R]; not used if the type has none
  Mat inverse;                          ///< [subs, R], 1 / scale, or 0 where scale is 0

  [[nodiscard]] const GgmlGrid& grid() const { return ggml_grid(type); }
  [[nodiscard]] int64_t rows() const { return static_cast<int64_t>(fields.size()); }
  /// Fills scale, offset and inverse from the fields.
  void expand();
};

struct BlockFitOptions {
  /// Rounds in which sub-block scales and d are chosen anew for the codes that they lead to.
  int rounds = 3;
};

/// Chooses d, m and the scales of the sub-blocks so that the weighted squared error of the nearest
/// codes is small: for each sub-block a search over trial scales with a least-squares fit for each;
/// then d (and dmin) for the sub-block scales as integers; then rounds of exact improvement, where
/// each integer may move by one and d is fitted anew by least squares, and only what lowers the
/// error is kept.
///
/// Shapes    w [length, R]: transposed, row r of the matrix is column r here. weights [length], how
///           much an error in each input counts (the diagonal of H); empty: all the same.
/// Numerics  f32. Does not depend on how rows are cut into calls.
/// Errors    kNonFinite if d overflows f16.
void fit_blocks(ConstView w, std::span<const float> weights, DType type,
                const BlockFitOptions& options, BlockParameters& parameters);

/// Nearest codes of input k of the block, and what they decode to.
/// Shapes    all [R].
void quantize_block_column(std::span<const float> w, const BlockParameters& parameters, int64_t k,
                           std::span<float> codes, std::span<float> decoded);

/// The blocks of the rows, `stride` bytes apart from `out` on.
/// Shapes    codes [length, R].
void encode_blocks(const BlockParameters& parameters, ConstView codes, std::byte* out,
                   size_t stride);

/// Rows to the nearest codes under fit_blocks, for matrices that no error feedback is done for.
/// Shapes    w [R, K] with K a multiple of the block length; `out` R * K / length blocks.
void quantize_rows(ConstView w, std::span<const float> weights, DType type,
                   const BlockFitOptions& options, std::span<std::byte> out);

}  // namespace lpcd::format
