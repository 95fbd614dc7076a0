#include "lpcd/tensor/named_tensor.h"

#include <fmt/ranges.h>

#include "lpcd/base/raise.h"

namespace lpcd {

int64_t TensorInfo::elements() const {
  int64_t n = 1;
  for (const int64_t extent : shape) {
    if (extent < 0)
      raise(ErrorCode::kBadFile, "{}: negative extent in shape {}", name, shape_text());
    n = checked_mul(n, extent, name);
  }
  return n;
}

int64_t TensorInfo::bytes() const {
  const DTypeInfo& type = dtype_info(dtype);
  const int64_t n = elements();
  const int64_t row = shape.empty() ? 1 : shape.back();
  if (row % type.block_elems != 0) {
    raise(ErrorCode::kBadFile, "{}: rows of {} elements do not fill whole {} blocks of {}", name,
          row, type.name, type.block_elems);
  }
  return checked_mul(n / type.block_elems, type.block_bytes, name);
}

std::string TensorInfo::shape_text() const { return fmt::format("[{}]", fmt::join(shape, ", ")); }

}  // namespace lpcd
