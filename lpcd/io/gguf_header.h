#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lpcd/io/gguf.h"
#include "lpcd/tensor/named_tensor.h"

namespace lpcd::io {

// Limits of a GGUF header. Every count is also bounded by the bytes that are left in the file.
inline constexpr uint64_t kMaxGgufKeys = 1 << 16;            // real files have under 100
inline constexpr uint64_t kMaxGgufTensors = 1'000'000;       // as for safetensors
inline constexpr uint64_t kMaxGgufKeyBytes = (1 << 16) - 1;  // the format's own limit
inline constexpr uint64_t kMaxGgufStringBytes = 64 << 20;    // chat templates stay below 1 MB
inline constexpr uint64_t kMaxGgufArray = 1 << 24;           // 60 times the largest vocabulary
inline constexpr uint64_t kMaxGgufName = 256;                // the format says 64; files go beyond
inline constexpr uint32_t kMaxGgufDims = 4;                  // the format's own limit

/// Types of metadata values, by their number in the file.
enum class GgufValueType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

/// A tensor of a GGUF file; `begin` counts from the start of the file.
struct GgufTensor {
  TensorInfo info;
  uint64_t begin = 0;
};

struct GgufHeader {
  GgufFile::Metadata metadata;
  /// Where each value stands in the file, its type included: begin and length.
  std::map<std::string, std::pair<uint64_t, uint64_t>, std::less<>> values;
  std::vector<GgufTensor> tensors;
};

/// Reads and validates all of a GGUF file but the values of its tensors.
///
/// A file is, little endian: "GGUF"; u32 version; u64 tensor count; u64 key count; per key: string,
/// u32 value type, value; per tensor: string, u32 n_dims, u64 dimensions innermost first, u32 type,
/// u64 offset into the data section, which begins at the next multiple of `general.alignment`. A
/// string is u64 length and bytes; an array is u32 element type, u64 count, elements.
/// Errors    as of GgufFile.
[[nodiscard]] GgufHeader parse_gguf(std::span<const std::byte> file, std::string_view where);

/// Number of a type in the file. kInternal if GGUF does not have it.
[[nodiscard]] uint32_t gguf_type_id(DType dtype);

}  // namespace lpcd::io
