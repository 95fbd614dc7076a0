#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lpcd/tensor/named_tensor.h"

namespace lpcd::io {

// Limits of a safetensors file; what real files have is far below.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the reference reader's
inline constexpr size_t kMaxSafetensorsTensors = 1'000'000;          // 10x the largest MoE models
inline constexpr size_t kMaxSafetensorsName = 1024;
inline constexpr size_t kMaxSafetensorsRank = 64;  // the limit of PyTorch and numpy

/// A tensor of a safetensors file; `begin` counts from the start of the file.
struct SafetensorsEntry {
  TensorInfo info;
  uint64_t begin = 0;
};

/// Validates a whole safetensors file but for its values.
///
/// A file is: u64 little endian N; N bytes of JSON, an object of `name: {"dtype", "shape",
/// "data_offsets": [begin, end]}` and optionally `__metadata__: {string: string}`, padded with
/// spaces; the data, to which the offsets are relative and which they cover without hole or
/// overlap.
/// Errors    kBadFile for anything else, naming `where` and the field; kUnsupportedModel for dtypes
///           that the format has but lpcd does not read (FP8 and the like).
[[nodiscard]] std::vector<SafetensorsEntry> parse_safetensors(std::span<const std::byte> file,
                                                              std::string_view where);

}  // namespace lpcd::io
