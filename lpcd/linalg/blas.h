#pragma once

#include <string>

#include "lpcd/base/context.h"
#include "lpcd/tensor/mat.h"

namespace lpcd::linalg {

// Products over tokens and weights (the gemms with a context, add_gram, add_cross) run on the tile
// unit of CPUs that have one, in split bf16 (split_gemm.h); all else is the BLAS in f32.
//
// Every product below is cut into tiles of a fixed size, one single-threaded BLAS call each, so
// that the bits of the result depend on the BLAS library and the CPU but not on the number of
// threads. (A threaded BLAS cuts by thread count.)

/// C = alpha A B^T + beta C, on the calling thread.
/// Shapes    A [M, K], B [N, K], C [M, N].
void gemm_nt(float alpha, ConstView a, ConstView b, float beta, FloatView c);

/// C = alpha A B + beta C, on the calling thread.
/// Shapes    A [M, K], B [K, N], C [M, N].
void gemm_nn(float alpha, ConstView a, ConstView b, float beta, FloatView c);

/// C = alpha A^T B + beta C, on the calling thread.
/// Shapes    A [K, M], B [K, N], C [M, N].
void gemm_tn(float alpha, ConstView a, ConstView b, float beta, FloatView c);

/// Rows of C that one task computes. 512 rows amortise packing the weights once per tile (1 / 512
/// of the work) and still give a chunk of 4096 tokens eight tasks.
constexpr int64_t kDefaultRowTile = 512;

/// gemm_nt over fixed tiles on ctx.threads threads. Rows are cut every `row_tile` from the first:
/// callers that compute a matrix in pieces pass a tile that the pieces are multiples of, and get
/// the bits of the whole.
void gemm_nt(const RunContext& ctx, float alpha, ConstView a, ConstView b, float beta, FloatView c,
             int64_t row_tile = kDefaultRowTile);

/// gemm_nn over fixed tiles on ctx.threads threads.
void gemm_nn(const RunContext& ctx, float alpha, ConstView a, ConstView b, float beta, FloatView c,
             int64_t row_tile = kDefaultRowTile);

/// Adds X^T X to the lower triangle of H, slab after slab.
///
/// Shapes    x [t, K]; h [K, K], tiles above the diagonal are left alone (see mirror_lower).
/// Numerics  Each `slab_rows` rows of x are summed by one BLAS call and added to h in row order;
///           as long as every call starts on a slab border the result does not depend on how the
///           rows are distributed over calls.
void add_gram(const RunContext& ctx, ConstView x, int64_t slab_rows, FloatView h);

/// Adds A^T B to C, slab after slab, as add_gram.
/// Shapes    a [t, M], b [t, N], c [M, N].
void add_cross(const RunContext& ctx, ConstView a, ConstView b, int64_t slab_rows, FloatView c);

/// Multiplies the lower triangle by `scale` and copies it to the upper one.
void mirror_lower(const RunContext& ctx, float scale, FloatView h);

/// What does the arithmetic: "OpenBLAS 0.3.21 SkylakeX".
struct BlasInfo {
  std::string library;
  std::string core;
};
[[nodiscard]] BlasInfo blas_info();

/// All that decides the last bits of a product: "OpenBLAS 0.3.21 SkylakeX,
/// vectors AVX-512, AMX bf16x3".
[[nodiscard]] std::string arithmetic(const RunContext& ctx);

/// Name of the OpenBLAS kernel set that this CPU deserves although OpenBLAS chose an older one,
/// or "" when the choice is fine or the library is another one.
///
/// OpenBLAS 0.3.21 (Debian 12) takes CPUs that it does not know for SSE3 machines, which costs a
/// factor of five. It reads OPENBLAS_CORETYPE when it is loaded, so the remedy (set it and start
/// again) belongs to the program, not to the library.
[[nodiscard]] std::string better_openblas_core();

/// Switches the linked BLAS to one thread per call where it has such a switch (OpenBLAS, MKL,
/// BLIS). Called once by every public entry point; cheap.
void use_single_threaded_blas();

/// Measured rate of gemm_nt with ctx.threads threads, in FLOP/s: the median of five products of
/// 1024 rows per thread with a 1024 x 512 weight, the size of a chunk in a small model.
[[nodiscard]] double measure_gemm_rate(const RunContext& ctx);

}  // namespace lpcd::linalg
