#pragma once

#include "lpcd/tensor/mat.h"

namespace lpcd::linalg {

// Products of f32 matrices on the tile unit of x86 CPUs (AMX, since Sapphire Rapids), which
// multiplies bf16. Every factor is split in two, x = h + l + e with |e| <= 2^-17 |x|, and
// h h + h l + l h is summed in f32: what oneMKL calls FLOAT_TO_BF16X3.

/// True if the CPU has the tile unit and the kernel grants it.
[[nodiscard]] bool has_split_gemm();

/// How a factor lies in memory.
enum class Factor {
  kRows,     ///< a row per output: A [M, K], B [N, K]
  kColumns,  ///< a column per output: A [K, M], B [K, N]
};

/// C = alpha A B + beta C on the calling thread; c [M, N].
///
/// Numerics  an error of about 2^-16 |a| |b| per product, most of it random. An element of C does
///           not depend on the other rows and columns that the call computes.
/// Memory    0.6 MiB per thread, kept.
/// Errors    call it only if has_split_gemm().
void split_gemm(float alpha, ConstView a, Factor a_lies, ConstView b, Factor b_lies, float beta,
                FloatView c);

}  // namespace lpcd::linalg
