#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace lpcd {

/// Element and block types of stored tensors. Plain types have one element per block; the kQ*
/// types are the block formats of ggml (docs/formats.md gives their bytes).
enum class DType : uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kI64,
  kI32,
  kI16,
  kI8,
  kU64,
  kU32,
  kU16,
  kU8,
  kBool,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kQ2_0,
};

/// Storage layout of a type: `block_bytes` bytes hold `block_elems` consecutive elements.
struct DTypeInfo {
  std::string_view name;  ///< "F16", "Q4_K"
  int64_t block_elems;
  int64_t block_bytes;
};

[[nodiscard]] const DTypeInfo& dtype_info(DType type);

/// True for the ggml block formats.
[[nodiscard]] bool is_block_quantized(DType type);

/// Type of a safetensors dtype string ("F16", "BF16", "I32", ...), or nothing if unknown.
[[nodiscard]] std::optional<DType> dtype_from_name(std::string_view name);

/// Type of a ggml block format by its name in any case ("Q4_K", "q4_k"), or nothing if unknown.
[[nodiscard]] std::optional<DType> ggml_type_from_name(std::string_view name);

}  // namespace lpcd
