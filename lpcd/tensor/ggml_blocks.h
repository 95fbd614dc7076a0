#pragma once

#include <cstddef>
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

}  // namespace lpcd
