#include "lpcd/solve/row_block.h"

#include <algorithm>

#include "lpcd/base/raise.h"
#include "lpcd/tensor/half.h"

namespace lpcd::solve {

RowBlock::RowBlock(ConstView weight, int64_t first_row, int64_t rows)
    : first_row_(first_row),
      work_(Mat::uninitialized(weight.cols(), std::min(rows, weight.rows() - first_row))),
      codes_(Mat::uninitialized(work_.rows(), work_.cols())) {
  for (int64_t r = 0; r < count(); ++r) {
    const float* row = weight.row(first_row + r);
    float sum = 0.0F;  // NaN or Inf if any weight is
    for (int64_t k = 0; k < work_.rows(); ++k) {
      work_(k, r) = row[k];
      sum += row[k] * 0.0F;
    }
    if (sum != 0.0F) {
      raise(
          ErrorCode::kNonFinite,
          "row {} of the weights to be quantized is not finite; the correction before it diverged, "
          "try a larger --percdamp",
          first_row + r);
    }
  }
}

void RowBlock::store_group(int64_t group, const format::GroupParameters& parameters,
                           format::QuantizedMatrix& result) const {
  for (int64_t r = 0; r < count(); ++r) {
    const auto i = static_cast<size_t>(r);
    result.scales(group, first_row_ + r) = round_to_f16(parameters.scale[i]);
    result.zeros[static_cast<size_t>(group * result.rows + first_row_ + r)] =
        static_cast<uint8_t>(parameters.zero[i]);
  }
}

void RowBlock::store_blocks(std::span<const format::BlockParameters> parameters,
                            format::QuantizedMatrix& result) const {
  const size_t stride = result.block_row_bytes();
  const size_t block_bytes = stride / parameters.size();
  std::byte* out = result.blocks.data() + static_cast<size_t>(first_row_) * stride;
  for (size_t b = 0; b < parameters.size(); ++b) {
    const int64_t length = parameters[b].grid().length;
    format::encode_blocks(parameters[b],
                          codes_.view().rows_range(static_cast<int64_t>(b) * length, length),
                          out + b * block_bytes, stride);
  }
}

void RowBlock::store_codes(format::QuantizedMatrix& result) const {
  for (int64_t r = 0; r < count(); ++r) {
    uint8_t* row = result.codes.data() + (first_row_ + r) * result.cols;
    for (int64_t k = 0; k < result.cols; ++k) row[k] = static_cast<uint8_t>(codes_(k, r));
  }
}

}  // namespace lpcd::solve
