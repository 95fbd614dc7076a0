#include "lpcd/linalg/blas.h"

#include <cblas.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <string_view>

#include "lpcd/linalg/cpu.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/linalg/split_gemm.h"

namespace lpcd::linalg {
namespace {

// Column tile: wide enough for a BLAS to be at its full rate, narrow enough for the projections of
// a large model to be tasks for many processors.
constexpr int64_t kColTile = 1024;
// Tile of a moment matrix: 256 x 256 floats stay in a 256 KiB share of L2 while slabs stream by.
constexpr int64_t kMomentTile = 256;

int to_int(int64_t n) { return narrow<int>(n, "matrix extent"); }

template <typename Fn>
Fn find_symbol(const char* name) {
  return reinterpret_cast<Fn>(dlsym(RTLD_DEFAULT, name));  // NOLINT: the dlsym idiom
}

// Whether a product of `inputs` terms per element goes to the tile unit; it must not depend on the
// number of rows, which callers are free to cut. Below this, packing costs more than it saves.
bool splits(const RunContext& ctx, int64_t outputs, int64_t inputs) {
  return ctx.split_products && outputs >= 32 && inputs >= 64 && has_split_gemm();
}

// One tile of a product, on the tile unit or by the BLAS.
void multiply(bool split, float alpha, ConstView a, Factor a_lies, ConstView b, Factor b_lies,
              float beta, FloatView c) {
  if (split) {
    split_gemm(alpha, a, a_lies, b, b_lies, beta, c);
  } else if (a_lies == Factor::kColumns) {
    LPCD_CHECK(b_lies == Factor::kColumns);
    gemm_tn(alpha, a, b, beta, c);
  } else if (b_lies == Factor::kRows) {
    gemm_nt(alpha, a, b, beta, c);
  } else {
    gemm_nn(alpha, a, b, beta, c);
  }
}

template <typename Product>
void over_tiles(const RunContext& ctx, FloatView c, int64_t row_tile, const Product& product) {
  const int64_t row_tiles = ceil_div(c.rows(), row_tile);
  const int64_t col_tiles = ceil_div(c.cols(), kColTile);
  parallel_for(ctx, row_tiles * col_tiles, [&](int64_t task) {
    const int64_t r0 = (task / col_tiles) * row_tile;
    const int64_t c0 = (task % col_tiles) * kColTile;
    product(r0, std::min(row_tile, c.rows() - r0), c0, std::min(kColTile, c.cols() - c0));
  });
}

}  // namespace

void gemm_nt(float alpha, ConstView a, ConstView b, float beta, FloatView c) {
  LPCD_CHECK(a.cols() == b.cols() && a.rows() == c.rows() && b.rows() == c.cols());
  if (c.empty()) return;
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, to_int(c.rows()), to_int(c.cols()),
              to_int(a.cols()), alpha, a.data(), to_int(a.stride()), b.data(), to_int(b.stride()),
              beta, c.data(), to_int(c.stride()));
}

void gemm_nn(float alpha, ConstView a, ConstView b, float beta, FloatView c) {
  LPCD_CHECK(a.cols() == b.rows() && a.rows() == c.rows() && b.cols() == c.cols());
  if (c.empty()) return;
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, to_int(c.rows()), to_int(c.cols()),
              to_int(a.cols()), alpha, a.data(), to_int(a.stride()), b.data(), to_int(b.stride()),
              beta, c.data(), to_int(c.stride()));
}

void gemm_tn(float alpha, ConstView a, ConstView b, float beta, FloatView c) {
  LPCD_CHECK(a.rows() == b.rows() && a.cols() == c.rows() && b.cols() == c.cols());
  if (c.empty()) return;
  cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, to_int(c.rows()), to_int(c.cols()),
              to_int(a.rows()), alpha, a.data(), to_int(a.stride()), b.data(), to_int(b.stride()),
              beta, c.data(), to_int(c.stride()));
}

void gemm_nt(const RunContext& ctx, float alpha, ConstView a, ConstView b, float beta, FloatView c,
             int64_t row_tile) {
  const bool split = splits(ctx, c.cols(), a.cols());
  over_tiles(ctx, c, row_tile, [&](int64_t r0, int64_t rows, int64_t c0, int64_t cols) {
    multiply(split, alpha, a.rows_range(r0, rows), Factor::kRows, b.rows_range(c0, cols),
             Factor::kRows, beta, c.rows_range(r0, rows).cols_range(c0, cols));
  });
}

void gemm_nn(const RunContext& ctx, float alpha, ConstView a, ConstView b, float beta, FloatView c,
             int64_t row_tile) {
  const bool split = splits(ctx, c.cols(), a.cols());
  over_tiles(ctx, c, row_tile, [&](int64_t r0, int64_t rows, int64_t c0, int64_t cols) {
    multiply(split, alpha, a.rows_range(r0, rows), Factor::kRows, b.cols_range(c0, cols),
             Factor::kColumns, beta, c.rows_range(r0, rows).cols_range(c0, cols));
  });
}

void add_gram(const RunContext& ctx, ConstView x, int64_t slab_rows, FloatView h) {
  LPCD_CHECK(h.rows() == x.cols() && h.cols() == x.cols() && slab_rows > 0);
  const int64_t tiles = ceil_div(h.rows(), kMomentTile);
  const bool split = splits(ctx, h.cols(), slab_rows);
  parallel_for(ctx, tiles * (tiles + 1) / 2, [&](int64_t task) {
    int64_t i = 0;  // row of tiles that holds task: i (i + 1) / 2 <= task
    while ((i + 1) * (i + 2) / 2 <= task) ++i;
    const int64_t r0 = i * kMomentTile;
    const int64_t c0 = (task - i * (i + 1) / 2) * kMomentTile;
    const int64_t rows = std::min(kMomentTile, h.rows() - r0);
    const int64_t cols = std::min(kMomentTile, h.rows() - c0);
    const FloatView tile = h.rows_range(r0, rows).cols_range(c0, cols);
    for (int64_t t = 0; t < x.rows(); t += slab_rows) {
      const ConstView slab = x.rows_range(t, std::min(slab_rows, x.rows() - t));
      if (r0 == c0 && !split) {
        cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, to_int(rows), to_int(slab.rows()), 1.0F,
                    slab.data() + r0, to_int(slab.stride()), 1.0F, tile.data(),
                    to_int(tile.stride()));
      } else {
        multiply(split, 1.0F, slab.cols_range(r0, rows), Factor::kColumns,
                 slab.cols_range(c0, cols), Factor::kColumns, 1.0F, tile);
      }
    }
  });
}

void add_cross(const RunContext& ctx, ConstView a, ConstView b, int64_t slab_rows, FloatView c) {
  LPCD_CHECK(c.rows() == a.cols() && c.cols() == b.cols() && a.rows() == b.rows() && slab_rows > 0);
  const int64_t row_tiles = ceil_div(c.rows(), kMomentTile);
  const int64_t col_tiles = ceil_div(c.cols(), kMomentTile);
  const bool split = splits(ctx, c.cols(), slab_rows);
  parallel_for(ctx, row_tiles * col_tiles, [&](int64_t task) {
    const int64_t r0 = (task / col_tiles) * kMomentTile;
    const int64_t c0 = (task % col_tiles) * kMomentTile;
    const int64_t rows = std::min(kMomentTile, c.rows() - r0);
    const int64_t cols = std::min(kMomentTile, c.cols() - c0);
    for (int64_t t = 0; t < a.rows(); t += slab_rows) {
      const int64_t count = std::min(slab_rows, a.rows() - t);
      multiply(split, 1.0F, a.rows_range(t, count).cols_range(r0, rows), Factor::kColumns,
               b.rows_range(t, count).cols_range(c0, cols), Factor::kColumns, 1.0F,
               c.rows_range(r0, rows).cols_range(c0, cols));
    }
  });
}

void mirror_lower(const RunContext& ctx, float scale, FloatView h) {
  LPCD_CHECK(h.rows() == h.cols());
  parallel_for(ctx, ceil_div(h.rows(), kMomentTile), [&](int64_t task) {
    const int64_t begin = task * kMomentTile;
    const int64_t end = std::min(begin + kMomentTile, h.rows());
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c <= r; ++c) h(r, c) *= scale;
    }
  });
  parallel_for(ctx, ceil_div(h.rows(), kMomentTile), [&](int64_t task) {
    const int64_t begin = task * kMomentTile;
    const int64_t end = std::min(begin + kMomentTile, h.rows());
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = r + 1; c < h.cols(); ++c) h(r, c) = h(c, r);
    }
  });
}

BlasInfo blas_info() {
  if (auto* config = find_symbol<const char* (*)()>("openblas_get_config")) {
    BlasInfo info;
    const std::string_view text = config();
    info.library = std::string(text.substr(0, text.find(' ', text.find(' ') + 1)));
    if (auto* core = find_symbol<const char* (*)()>("openblas_get_corename")) info.core = core();
    return info;
  }
  if (find_symbol<void (*)(int)>("MKL_Set_Num_Threads") != nullptr) return {"MKL", ""};
  if (find_symbol<void (*)(int)>("bli_thread_set_num_threads") != nullptr) return {"BLIS", ""};
  return {"CBLAS", ""};
}

std::string arithmetic(const RunContext& ctx) {
  const BlasInfo blas = blas_info();
  return blas.library + " " + blas.core + ", vectors " + simd_name() +
         (ctx.split_products && has_split_gemm() ? ", AMX bf16x3" : "");
}

std::string better_openblas_core() {
  // The kernel sets of OpenBLAS that use no AVX2: what an unknown x86 CPU falls back to.
  constexpr std::array<std::string_view, 12> kWithoutAvx2 = {
      "Katmai", "Coppermine", "Northwood",  "Prescott", "Banias",      "Atom",
      "Core2",  "Penryn",     "Dunnington", "Nehalem",  "Sandybridge", "Generic"};
  const std::string core = blas_info().core;
  if (std::find(kWithoutAvx2.begin(), kWithoutAvx2.end(), core) == kWithoutAvx2.end()) return "";
  if (cpu_has_avx512()) return "SkylakeX";
  if (cpu_has_avx2()) return "Haswell";
  return "";
}

void use_single_threaded_blas() {
  for (const char* name : {"openblas_set_num_threads", "MKL_Set_Num_Threads"}) {
    if (auto* set_threads = find_symbol<void (*)(int)>(name)) set_threads(1);
  }
  if (auto* set_threads = find_symbol<void (*)(int64_t)>("bli_thread_set_num_threads")) {
    set_threads(1);
  }
}

double measure_gemm_rate(const RunContext& ctx) {
  constexpr int64_t kRowsPerThread = 2 * kDefaultRowTile;
  constexpr int64_t kOutputs = 1024;
  constexpr int64_t kInputs = 512;
  constexpr int kRuns = 5;
  const int64_t rows = kRowsPerThread * std::max(ctx.threads, 1);
  Mat a(rows, kInputs);
  Mat b(kOutputs, kInputs);
  Mat c(rows, kOutputs);
  std::fill_n(a.data(), a.size(), 0.5F);
  std::fill_n(b.data(), b.size(), 0.25F);
  gemm_nt(ctx, 1.0F, a, b, 0.0F, c);  // wakes the threads, touches the memory
  std::array<double, kRuns> seconds{};
  for (double& s : seconds) {
    const auto start = std::chrono::steady_clock::now();
    gemm_nt(ctx, 1.0F, a, b, 0.0F, c);
    s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  std::sort(seconds.begin(), seconds.end());
  return 2.0 * static_cast<double>(rows * kOutputs * kInputs) / seconds[kRuns / 2];
}

}  // namespace lpcd::linalg
