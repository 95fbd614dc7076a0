#include "lpcd/format/grid.h"

#include <fmt/format.h>

#include <algorithm>

#include "lpcd/base/raise.h"
#include "lpcd/tensor/ggml_blocks.h"
#include "lpcd/tensor/half.h"

namespace lpcd::format {

GridSpec GridSpec::of_block(DType type) {
  const GgmlGrid& grid = ggml_grid(type);
  GridSpec spec;
  spec.bits = 0;
  for (int codes = grid.max_code; codes > 0; codes /= 2) ++spec.bits;
  spec.group_size = grid.length;
  spec.symmetric = !grid.offset;
  spec.block = type;
  return spec;
}

double GridSpec::bits_per_weight(int64_t inputs) const {
  if (block) {
    const DTypeInfo& info = dtype_info(*block);
    return 8.0 * static_cast<double>(info.block_bytes) / static_cast<double>(info.block_elems);
  }
  const double per_group = 16.0 + bits;
  return bits + per_group * static_cast<double>(groups(inputs)) / static_cast<double>(inputs);
}

std::string GridSpec::text() const {
  if (block) return fmt::format("{} blocks", dtype_info(*block).name);
  const std::string group =
      group_size == -1 ? "one group per row" : fmt::format("groups of {}", group_size);
  return fmt::format("{} bits, {}, {}", bits, group, symmetric ? "symmetric" : "asymmetric");
}

QuantizedMatrix::QuantizedMatrix(const GridSpec& grid, int64_t n, int64_t k)
    : spec(grid), rows(n), cols(k) {
  if (grid.block) {
    LPCD_CHECK(k % dtype_info(*grid.block).block_elems == 0);
    blocks.resize(static_cast<size_t>(n) * block_row_bytes());
    return;
  }
  codes.resize(static_cast<size_t>(n * k));
  scales = Mat(grid.groups(k), n);
  zeros.resize(static_cast<size_t>(grid.groups(k) * n));
}

size_t QuantizedMatrix::block_row_bytes() const {
  const DTypeInfo& info = dtype_info(spec.block.value());
  return static_cast<size_t>(cols / info.block_elems * info.block_bytes);
}

QuantizedMatrix QuantizedMatrix::clone() const {
  QuantizedMatrix copy;
  copy.spec = spec;
  copy.rows = rows;
  copy.cols = cols;
  copy.blocks = blocks;
  copy.codes = codes;
  copy.scales = scales.clone();
  copy.zeros = zeros;
  copy.f16_decode = f16_decode;
  return copy;
}

void QuantizedMatrix::copy_row(const QuantizedMatrix& from, int64_t row, int64_t to) {
  LPCD_CHECK(from.cols == cols && row < from.rows && to < rows);
  if (spec.block) {
    const auto bytes = static_cast<int64_t>(block_row_bytes());
    std::copy_n(from.blocks.begin() + row * bytes, bytes, blocks.begin() + to * bytes);
    return;
  }
  std::copy_n(from.codes.begin() + row * cols, cols, codes.begin() + to * cols);
  for (int64_t g = 0; g < groups(); ++g) {
    scales(g, to) = from.scales(g, row);
    zeros[static_cast<size_t>(g * rows + to)] =
        from.zeros[static_cast<size_t>(g * from.rows + row)];
  }
}

Mat QuantizedMatrix::decode() const {
  Mat out = Mat::uninitialized(rows, cols);
  decode_rows(0, out);
  return out;
}

void QuantizedMatrix::decode_rows(int64_t first, FloatView out) const {
  LPCD_CHECK(first + out.rows() <= rows && out.cols() == cols && out.stride() == cols);
  if (spec.block) {
    const size_t row_bytes = block_row_bytes();
    decode_ggml_blocks(*spec.block,
                       std::span(blocks).subspan(static_cast<size_t>(first) * row_bytes,
                                                 static_cast<size_t>(out.rows()) * row_bytes),
                       {out.data(), static_cast<size_t>(out.rows() * cols)});
    return;
  }
  const int64_t length = spec.group_length(cols);
  for (int64_t n = first; n < first + out.rows(); ++n) {
    const uint8_t* code = codes.data() + n * cols;
    float* row = out.row(n - first);
    for (int64_t g = 0; g < groups(); ++g) {
      const float scale = scales(g, n);
      const auto zero = static_cast<float>(zeros[static_cast<size_t>(g * rows + n)]);
      const int64_t end = std::min(cols, (g + 1) * length);
      for (int64_t k = g * length; k < end; ++k)
        row[k] = scale * (static_cast<float>(code[k]) - zero);
    }
    if (f16_decode) {
      for (int64_t k = 0; k < cols; ++k) row[k] = round_to_f16(row[k]);
    }
  }
}

}  // namespace lpcd::format
