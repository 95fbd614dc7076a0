#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lpcd/tensor/dtype.h"
#include "lpcd/tensor/mat.h"

namespace lpcd::format {

/// The values that weights may take. Either an integer grid: codes 0 .. 2^bits - 1, a weight is
/// scale * (code - zero), one scale and one zero per group of consecutive inputs of a row. Or, if
/// `block` is set, what blocks of that ggml type can hold; the other fields then describe it.
struct GridSpec {
  int bits = 3;                ///< 2 to 8
  int64_t group_size = 128;    ///< inputs per group; -1: the whole row
  bool symmetric = true;       ///< zero = 2^(bits-1) in every group
  std::optional<DType> block;  ///< ggml block type

  /// The grid of a ggml block type.
  [[nodiscard]] static GridSpec of_block(DType type);

  [[nodiscard]] float max_code() const { return static_cast<float>((1 << bits) - 1); }
  /// Zero of a symmetric grid.
  [[nodiscard]] float middle() const { return static_cast<float>(1 << (bits - 1)); }
  /// Group length on a row of K inputs; the last group may be shorter.
  [[nodiscard]] int64_t group_length(int64_t inputs) const {
    return group_size == -1 || group_size > inputs ? inputs : group_size;
  }
  [[nodiscard]] int64_t groups(int64_t inputs) const {
    return ceil_div(inputs, group_length(inputs));
  }
  /// Stored bits per weight on rows of K inputs: codes, 16-bit scales, `bits`-wide zeros; or those
  /// of the block type.
  [[nodiscard]] double bits_per_weight(int64_t inputs) const;
  /// "3 bits, groups of 64, symmetric"; "Q4_K blocks"
  [[nodiscard]] std::string text() const;

  bool operator==(const GridSpec&) const = default;
};

/// How the scale of a group is chosen.
struct FitOptions {
  enum class Search {
    kNone,  ///< from the extreme weights
    kMse,   ///< shrink the range in steps and keep the smallest sum |error|^norm (GPTQ's `mse`)
  };
  Search search = Search::kNone;
  int candidates = 100;     ///< range is shrunk by i / candidates, i = 0, 1, ...
  double max_shrink = 0.8;  ///< ... below this
  double norm = 2.4;
  /// Round scales to f16 before any code is chosen, because f16 is what is stored. The reference
  /// package rounds afterwards.
  bool f16_scales = true;
  /// Smallest scale; 0 lets f16 decide.
  float min_scale = 0.0F;
  /// Reproduce a flaw of the reference package: in a symmetric grid the range of a group without
  /// negative weights starts at 0, so that its upper half is clipped.
  bool one_sided_symmetric = false;
  /// Keep asymmetric zeros at 1 or above: the GPTQ v1 layout stores zero - 1, and readers disagree
  /// about -1. The range is widened downwards by one step where needed.
  bool zero_from_one = true;
};

/// Scale and zero of R rows for one group.
struct GroupParameters {
  std::vector<float> scale;  ///< [R], not 0; a symmetric grid may have negative ones
  std::vector<float> zero;   ///< [R], whole numbers
};

/// Scales and zeros that a search tries for R rows at once, as they are stored (f16 scales).
///
/// Symmetric grids: the range is shrunk in steps, down to what pays at the width, with either sign
/// of the scale: codes reach one step further on the negative side, and a negative scale turns that
/// side to the longer tail. Asymmetric grids: both ends are shrunk independently.
class GroupCandidates {
 public:
  /// Shapes    w [g, R], as fit_group.
  GroupCandidates(ConstView w, const GridSpec& spec, const FitOptions& options);

  [[nodiscard]] int count() const;
  /// Errors    kNonFinite if a scale overflows f16.
  void get(int candidate, GroupParameters& parameters) const;

 private:
  GridSpec spec_;
  FitOptions options_;
  std::vector<float> low_;   // [R]
  std::vector<float> high_;  // [R]
};

/// Chooses scale and zero for R rows at once.
///
/// Shapes    w [g, R]: transposed, row r of the matrix is column r here.
/// Numerics  f32. Groups of zeros get scale 2 / max_code.
/// Errors    kNonFinite if a scale overflows f16.
void fit_group(ConstView w, const GridSpec& spec, const FitOptions& options,
               GroupParameters& parameters);

/// Nearest codes of one column of R rows, and what they decode to.
///
/// Shapes    all [R].
/// Numerics  code = clamp(round(w / scale) + zero), halves to even; decoded = scale * (code -
/// zero).
void quantize_column(std::span<const float> w, const GroupParameters& parameters, float max_code,
                     std::span<float> codes, std::span<float> decoded);

/// A weight matrix on a grid.
struct QuantizedMatrix {
  GridSpec spec;
  int64_t rows = 0;
  int64_t cols = 0;
  /// Of a grid of ggml blocks: the blocks of all rows, as they stand in the file. The members below
  /// are then empty.
  std::vector<std::byte> blocks;
  std::vector<uint8_t> codes;  ///< [N, K] row-major, one byte each
  Mat scales;                  ///< [groups, N]; every value is representable in f16
  std::vector<uint8_t> zeros;  ///< [groups, N]
  /// Decoded weights are rounded to f16, as the reference package does with what it propagates.
  bool f16_decode = false;

  QuantizedMatrix() = default;
  QuantizedMatrix(const GridSpec& grid, int64_t n, int64_t k);

  [[nodiscard]] QuantizedMatrix clone() const;
  /// Row `to` becomes row `row` of a matrix of the same grid and width.
  void copy_row(const QuantizedMatrix& from, int64_t row, int64_t to);
  [[nodiscard]] int64_t groups() const { return spec.groups(cols); }
  /// Shapes    result [N, K]. Numerics: scale * (code - zero) in f32; decode_ggml_blocks.
  [[nodiscard]] Mat decode() const;
  /// Rows first, first + 1, ... of it.   out [n, K], without gaps between rows
  void decode_rows(int64_t first, FloatView out) const;
  /// Bytes of one row of blocks.
  [[nodiscard]] size_t block_row_bytes() const;
};

}  // namespace lpcd::format
