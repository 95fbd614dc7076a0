#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lpcd/base/checked.h"
#include "lpcd/tensor/dtype.h"

namespace lpcd {

/// Name, type and shape of a stored tensor. Shape is outermost first, [N, K] for a weight.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;

  /// Product of the shape; kBadFile on overflow or a negative extent.
  [[nodiscard]] int64_t elements() const;
  /// Bytes of the stored data; kBadFile if the elements do not fill whole blocks.
  [[nodiscard]] int64_t bytes() const;
  /// "[576, 1536]"
  [[nodiscard]] std::string shape_text() const;
};

/// A tensor with its bytes: the unit that writers take.
struct NamedTensor {
  TensorInfo info;
  std::vector<std::byte> data;
};

}  // namespace lpcd
