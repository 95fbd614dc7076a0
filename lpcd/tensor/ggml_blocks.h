#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "lpcd/tensor/dtype.h"

namespace lpcd {

/// Decodes whole blocks of a ggml type to f32. docs/formats.md gives the bytes of each type.
///
/// Shapes    `blocks` holds n * block_bytes, `out` n * block_elems.
/// Numerics  f32 without fused multiply-add, in the order of the reference implementation: the
///           result has the bits that the `gguf` Python package computes (NaN scales give NaN;
///           which of its payloads depends on the CPU).
void decode_ggml_blocks(DType type, std::span<const std::byte> blocks, std::span<float> out);

/// What a block holds besides its codes, as the file stores it.
struct GgmlBlockFields {
  uint16_t d = 0;                   ///< f16
  uint16_t m = 0;                   ///< f16: m of Q4_1 and Q5_1, dmin of Q2_K, Q4_K, Q5_K
  std::array<int8_t, 16> scales{};  ///< of the sub-blocks: 4 bits in Q2_K, 6 in Q4_K and Q5_K,
                                    ///< -32..31 in Q3_K, -128..127 in Q6_K
  std::array<uint8_t, 16> mins{};   ///< 4 bits in Q2_K, 6 in Q4_K and Q5_K
};

/// How the weights of a block type follow from its fields: weight = scale * (code - zero) + offset,
/// where scale = d, or d * scales[j] in sub-block j, and offset = m, or -dmin * mins[j], or
/// nothing.
struct GgmlGrid {
  int64_t length = 32;  ///< weights per block
  int64_t sub = 32;     ///< weights per sub-block
  int max_code = 15;    ///< codes are 0 .. max_code
  int zero = 0;
  bool offset = false;  ///< has m or dmin
  int min_scale = 0;    ///< of scales[j]; min_scale = max_scale = 0: no sub-block scales
  int max_scale = 0;

  [[nodiscard]] bool super() const { return max_scale != 0; }
  [[nodiscard]] int64_t subs() const { return length / sub; }
};
[[nodiscard]] const GgmlGrid& ggml_grid(DType type);

/// Packs one block; decode_ggml_blocks gives back exactly what the fields say.
/// Shapes    codes [length], block: block_bytes.
void encode_ggml_block(DType type, const GgmlBlockFields& fields, std::span<const uint8_t> codes,
                       std::span<std::byte> block);

/// The fields and codes of a block: the inverse of encode_ggml_block.
void unpack_ggml_block(DType type, std::span<const std::byte> block, GgmlBlockFields& fields,
                       std::span<uint8_t> codes);

}  // namespace lpcd
