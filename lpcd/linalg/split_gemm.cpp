#include "lpcd/linalg/split_gemm.h"

#include "lpcd/base/error.h"

#if defined(__x86_64__) && defined(__linux__)

#include <cpuid.h>
#include <hwy/aligned_allocator.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "lpcd/linalg/cpu.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's AVX-512 headers pass registers that they leave undefined on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// The instruction sets of the functions below, which run only after has_split_gemm().
#define LPCD_TILES \
  __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

namespace lpcd::linalg {
namespace {

// A tile holds 16 outputs times 32 inputs, as bf16: 16 rows of 64 bytes. Of a left factor a row is
// an output; of a right factor it is a pair of inputs and every output has 4 bytes in it.
constexpr int64_t kTile = 16;
constexpr int64_t kTileInputs = 32;
constexpr int64_t kTileBytes = 1024;
// Two tiles of outputs, each as h and l: h of the first, h of the second, l of both.
constexpr int64_t kPanel = 2 * kTile;
constexpr int64_t kPanelBytes = 4 * kTileBytes;

// Inputs that are packed at a time, and rows of C: 0.5 MiB of A stays in L2 while panels of B come
// and go.
constexpr int64_t kInputs = 256;
constexpr int64_t kRows = 512;
constexpr int64_t kSteps = kInputs / kTileInputs;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  std::array<uint8_t, 14> reserved{};
  std::array<uint16_t, 16> row_bytes{64, 64, 64, 64, 64, 64, 64, 64};
  std::array<uint8_t, 16> rows{16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

bool cpu_has_tiles() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kAmx = (1U << 22) | (1U << 24);  // bf16, tile
  if ((d & kAmx) != kAmx) return false;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0) return false;
  return (a & (1U << 5)) != 0;  // AVX-512 bf16
}

// The kernel hands out the tile registers to processes that ask.
bool kernel_grants_tiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

struct Split {
  __m512i h;
  __m512i l;
};

// 32 values, in order.
LPCD_TILES inline Split split_row(const float* x, int64_t count) {
  const auto mask = static_cast<uint32_t>((uint64_t{1} << count) - 1);
  const __m512 x0 = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), x);
  const __m512 x1 = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), x + kTile);
  const auto h = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(x1, x0));
  const __m512 h0 =
      _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(h)), 16));
  const __m512 h1 = _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(h, 1)), 16));
  return {h, reinterpret_cast<__m512i>(
                 _mm512_cvtne2ps_pbh(_mm512_sub_ps(x1, h1), _mm512_sub_ps(x0, h0)))};
}

LPCD_TILES inline __m512i widened(__m256bh x) {
  return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(x));
}

// Rows k and k + 1 of a factor that lies in columns: 16 pairs.
LPCD_TILES inline Split split_pairs(__m512 x0, __m512 x1) {
  const __m512i h0 = widened(_mm512_cvtneps_pbh(x0));
  const __m512i h1 = _mm512_slli_epi32(widened(_mm512_cvtneps_pbh(x1)), 16);
  const __m512 r0 = _mm512_sub_ps(x0, _mm512_castsi512_ps(_mm512_slli_epi32(h0, 16)));
  const __m512 r1 = _mm512_sub_ps(x1, _mm512_castsi512_ps(h1));
  const __m512i l0 = widened(_mm512_cvtneps_pbh(r0));
  const __m512i l1 = _mm512_slli_epi32(widened(_mm512_cvtneps_pbh(r1)), 16);
  return {_mm512_or_si512(h0, h1), _mm512_or_si512(l0, l1)};
}

// 16 x 16 words of 4 bytes, transposed to `out`.
LPCD_TILES void store_transposed(const __m512i* in, std::byte* out) {
  __m512i t[kTile];
  __m512i u[kTile];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(in[i], in[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(in[i], in[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // u[4 q + j] holds columns j, j + 4, j + 8, j + 12 of rows 4 q to 4 q + 3.
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(u[j], u[4 + j], 0x88);  // columns j, j + 8
    const __m512i b = _mm512_shuffle_i32x4(u[j], u[4 + j], 0xdd);  // columns j + 4, j + 12
    const __m512i c = _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0xdd);
    _mm512_store_si512(out + 64 * j, _mm512_shuffle_i32x4(a, c, 0x88));
    _mm512_store_si512(out + 64 * (j + 8), _mm512_shuffle_i32x4(a, c, 0xdd));
    _mm512_store_si512(out + 64 * (j + 4), _mm512_shuffle_i32x4(b, d, 0x88));
    _mm512_store_si512(out + 64 * (j + 12), _mm512_shuffle_i32x4(b, d, 0xdd));
  }
}

// One tile, h to `out` and l two tiles on: outputs [o, o + outputs), inputs [k, k + inputs).
LPCD_TILES void pack_tile(ConstView x, Factor lies, bool left, int64_t o, int64_t outputs,
                          int64_t k, int64_t inputs, std::byte* out) {
  __m512i h[kTile];
  __m512i l[kTile];
  if (lies == Factor::kRows) {
    for (int64_t i = 0; i < kTile; ++i) {
      const Split s = i < outputs ? split_row(x.row(o + i) + k, inputs)
                                  : Split{_mm512_setzero_si512(), _mm512_setzero_si512()};
      h[i] = s.h;
      l[i] = s.l;
    }
  } else {
    const auto mask = static_cast<__mmask16>((1U << outputs) - 1);
    for (int64_t i = 0; i < kTile; ++i) {
      const int64_t first = 2 * i;
      const __m512 x0 =
          first < inputs ? _mm512_maskz_loadu_ps(mask, x.row(k + first) + o) : _mm512_setzero_ps();
      const __m512 x1 = first + 1 < inputs ? _mm512_maskz_loadu_ps(mask, x.row(k + first + 1) + o)
                                           : _mm512_setzero_ps();
      const Split s = split_pairs(x0, x1);
      h[i] = s.h;
      l[i] = s.l;
    }
  }
  std::byte* low = out + 2 * kTileBytes;
  if ((lies == Factor::kRows) == left) {
    for (int64_t i = 0; i < kTile; ++i) {
      _mm512_store_si512(out + 64 * i, h[i]);
      _mm512_store_si512(low + 64 * i, l[i]);
    }
  } else {
    store_transposed(h, out);
    store_transposed(l, low);
  }
}

// 32 outputs from o on, inputs [k0, k0 + inputs): a step of 32 inputs after the other.
void pack_panel(ConstView x, Factor lies, bool left, int64_t o, int64_t outputs, int64_t k0,
                int64_t inputs, std::byte* out) {
  for (int64_t k = 0; k < inputs; k += kTileInputs, out += kPanelBytes) {
    const int64_t count = std::min(kTileInputs, inputs - k);
    pack_tile(x, lies, left, o, std::min(kTile, outputs), k0 + k, count, out);
    pack_tile(x, lies, left, o + kTile, std::max<int64_t>(0, outputs - kTile), k0 + k, count,
              out + kTileBytes);
  }
}

// 32 x 32 sums of a panel of A and one of B.
LPCD_TILES void multiply_panels(const std::byte* a, const std::byte* b, int64_t steps, float* out) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t s = 0; s < steps; ++s, a += kPanelBytes, b += kPanelBytes) {
    _tile_loadd(4, a, 64);
    _tile_loadd(5, a + kTileBytes, 64);
    _tile_loadd(6, b + 2 * kTileBytes, 64);
    _tile_loadd(7, b + 3 * kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(4, a + 2 * kTileBytes, 64);
    _tile_loadd(5, a + 3 * kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  constexpr int kStride = kPanel * sizeof(float);
  _tile_stored(0, out, kStride);
  _tile_stored(1, out + kTile, kStride);
  _tile_stored(2, out + kTile * kPanel, kStride);
  _tile_stored(3, out + kTile * kPanel + kTile, kStride);
}

// c = alpha sums + beta c
LPCD_TILES void add_panel(const float* sums, float alpha, float beta, FloatView c) {
  const __m512 va = _mm512_set1_ps(alpha);
  const __m512 vb = _mm512_set1_ps(beta);
  for (int64_t r = 0; r < c.rows(); ++r) {
    for (int64_t j = 0; j < c.cols(); j += kTile) {
      const auto mask = static_cast<__mmask16>((uint64_t{1} << std::min(kTile, c.cols() - j)) - 1);
      __m512 value = _mm512_mul_ps(va, _mm512_load_ps(sums + r * kPanel + j));
      float* to = c.row(r) + j;
      // What beta = 0 replaces may be anything, NaN too.
      if (beta != 0.0F) value = _mm512_fmadd_ps(vb, _mm512_maskz_loadu_ps(mask, to), value);
      _mm512_mask_storeu_ps(to, mask, value);
    }
  }
}

struct Buffers {
  hwy::AlignedFreeUniquePtr<std::byte[]> a =
      hwy::AllocateAligned<std::byte>(kRows / kPanel * kSteps * kPanelBytes);
  hwy::AlignedFreeUniquePtr<std::byte[]> b = hwy::AllocateAligned<std::byte>(kSteps * kPanelBytes);
  hwy::AlignedFreeUniquePtr<float[]> sums = hwy::AllocateAligned<float>(kPanel * kPanel);
};

LPCD_TILES void set_tiles(const TileConfig& config) { _tile_loadconfig(&config); }
LPCD_TILES void release_tiles() { _tile_release(); }

}  // namespace

bool has_split_gemm() {
  static const bool kHas = cpu_has_avx512() && cpu_has_tiles() && kernel_grants_tiles();
  return kHas;
}

void split_gemm(float alpha, ConstView a, Factor a_lies, ConstView b, Factor b_lies, float beta,
                FloatView c) {
  const int64_t inputs = a_lies == Factor::kRows ? a.cols() : a.rows();
  LPCD_CHECK(inputs == (b_lies == Factor::kRows ? b.cols() : b.rows()));
  LPCD_CHECK(c.rows() == (a_lies == Factor::kRows ? a.rows() : a.cols()));
  LPCD_CHECK(c.cols() == (b_lies == Factor::kRows ? b.rows() : b.cols()));
  static thread_local const Buffers kBuffers;
  static const TileConfig kConfig;
  set_tiles(kConfig);
  for (int64_t r0 = 0; r0 < c.rows(); r0 += kRows) {
    const int64_t rows = std::min(kRows, c.rows() - r0);
    for (int64_t k0 = 0; k0 < inputs; k0 += kInputs) {
      const int64_t count = std::min(kInputs, inputs - k0);
      const int64_t steps = ceil_div(count, kTileInputs);
      for (int64_t r = 0; r < rows; r += kPanel) {
        pack_panel(a, a_lies, true, r0 + r, std::min(kPanel, rows - r), k0, count,
                   kBuffers.a.get() + r / kPanel * kSteps * kPanelBytes);
      }
      for (int64_t c0 = 0; c0 < c.cols(); c0 += kPanel) {
        const int64_t cols = std::min(kPanel, c.cols() - c0);
        pack_panel(b, b_lies, false, c0, cols, k0, count, kBuffers.b.get());
        for (int64_t r = 0; r < rows; r += kPanel) {
          multiply_panels(kBuffers.a.get() + r / kPanel * kSteps * kPanelBytes, kBuffers.b.get(),
                          steps, kBuffers.sums.get());
          add_panel(kBuffers.sums.get(), alpha, k0 == 0 ? beta : 1.0F,
                    c.rows_range(r0 + r, std::min(kPanel, rows - r)).cols_range(c0, cols));
        }
      }
    }
  }
  release_tiles();
}

}  // namespace lpcd::linalg

#else

namespace lpcd::linalg {

bool has_split_gemm() { return false; }

void split_gemm(float, ConstView, Factor, ConstView, Factor, float, FloatView) {
  LPCD_CHECK(false);
}

}  // namespace lpcd::linalg

#endif
