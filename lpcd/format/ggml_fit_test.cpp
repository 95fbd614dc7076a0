#include "lpcd/format/ggml_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "lpcd/format/grid.h"
#include "lpcd/tensor/half.h"

namespace lpcd::format {
namespace {

constexpr std::array kTypes = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                               DType::kQ8_0, DType::kQ2_K, DType::kQ3_K, DType::kQ4_K,
                               DType::kQ5_K, DType::kQ6_K, DType::kQ2_0};

Mat random_rows(int64_t rows, int64_t cols, unsigned seed) {
  std::mt19937 rng(seed);
  std::student_t_distribution<float> heavy(5.0F);
  Mat m(rows, cols);
  for (int64_t i = 0; i < m.size(); ++i) m.data()[i] = 0.03F * heavy(rng);
  return m;
}

std::vector<float> random_weights(int64_t count, unsigned seed) {
  std::mt19937 rng(seed);
  std::lognormal_distribution<float> skewed(0.0F, 1.5F);
  std::vector<float> w(static_cast<size_t>(count));
  std::ranges::generate(w, [&] { return skewed(rng); });
  return w;
}

double weighted_error(const Mat& w, const std::vector<float>& weights, DType type,
                      std::span<const std::byte> blocks) {
  std::vector<float> decoded(static_cast<size_t>(w.size()));
  decode_ggml_blocks(type, blocks, decoded);
  double sum = 0;
  for (int64_t i = 0; i < w.size(); ++i) {
    const double delta = static_cast<double>(w.data()[i] - decoded[static_cast<size_t>(i)]);
    sum += static_cast<double>(weights[static_cast<size_t>(i % w.cols())]) * delta * delta;
  }
  return sum;
}

std::vector<std::byte> quantized(const Mat& w, std::span<const float> weights, DType type,
                                 const BlockFitOptions& options = {}) {
  const DTypeInfo& info = dtype_info(type);
  std::vector<std::byte> out(static_cast<size_t>(w.size() / info.block_elems * info.block_bytes));
  quantize_rows(w, weights, type, options, out);
  return out;
}

// What llama.cpp does for a symmetric sub-block: 19 trial scales, least squares for each.
void reference_symmetric(const float* x, const float* w, int n, int nmax, float& scale) {
  float extreme = 0;
  for (int i = 0; i < n; ++i) {
    if (std::abs(x[i]) > std::abs(extreme)) extreme = x[i];
  }
  float best = 0;
  scale = 0;
  for (int t = -9; t <= 9 && extreme != 0; ++t) {
    const float inverse = -(static_cast<float>(nmax) + 0.1F * static_cast<float>(t)) / extreme;
    float xq = 0;
    float qq = 0;
    for (int i = 0; i < n; ++i) {
      const float q = std::clamp(std::nearbyint(x[i] * inverse), static_cast<float>(-nmax),
                                 static_cast<float>(nmax - 1));
      xq += w[i] * x[i] * q;
      qq += w[i] * q * q;
    }
    if (qq > 0 && xq * xq > best * qq) {
      scale = xq / qq;
      best = scale * xq;
    }
  }
}

// ... and for one with an offset: 37 trial scales, joint least squares.
void reference_offset(const float* x, const float* w, int n, int nmax, float& scale, float& min) {
  float low = 0;
  float high = 0;
  double sw = 0;
  double swx = 0;
  for (int i = 0; i < n; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
    sw += w[i];
    swx += static_cast<double>(w[i]) * x[i];
  }
  scale = (high - low) / static_cast<float>(nmax);
  min = low;
  if (scale == 0) return;
  double best = 1e300;
  for (int t = 0; t <= 36; ++t) {
    const float inverse =
        (-0.9F + 0.05F * static_cast<float>(t) + static_cast<float>(nmax)) / (high - low);
    double l1 = 0;
    double l2 = 0;
    double xl = 0;
    std::vector<double> q(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) {
      const double l =
          std::clamp(std::nearbyint((x[i] - low) * inverse), 0.0F, static_cast<float>(nmax));
      q[static_cast<size_t>(i)] = l;
      l1 += w[i] * l;
      l2 += w[i] * l * l;
      xl += w[i] * l * static_cast<double>(x[i]);
    }
    const double det = sw * l2 - l1 * l1;
    if (det <= 0) continue;
    double s = (sw * xl - swx * l1) / det;
    double m = (l2 * swx - l1 * xl) / det;
    if (m > 0) {
      m = 0;
      s = xl / l2;
    }
    double error = 0;
    for (int i = 0; i < n; ++i) {
      const double delta = s * q[static_cast<size_t>(i)] + m - x[i];
      error += w[i] * delta * delta;
    }
    if (error < best) {
      best = error;
      scale = static_cast<float>(s);
      min = static_cast<float>(m);
    }
  }
}

// The K types as llama.cpp makes them: each sub-block fitted, integers from the largest, codes for
// the scales as stored.
std::vector<std::byte> reference_k(const Mat& w, const std::vector<float>& weights, DType type) {
  const GgmlGrid& grid = ggml_grid(type);
  const auto bytes = static_cast<size_t>(dtype_info(type).block_bytes);
  std::vector<std::byte> out(static_cast<size_t>(w.size() / grid.length) * bytes);
  const auto sub = static_cast<int>(grid.sub);
  for (int64_t b = 0; b < w.size() / grid.length; ++b) {
    const float* x = w.data() + b * grid.length;
    const float* wt = weights.data() + b * grid.length % w.cols();
    std::array<float, 16> s{};
    std::array<float, 16> m{};
    float top_s = 0;
    float top_m = 0;
    for (int64_t j = 0; j < grid.subs(); ++j) {
      const auto i = static_cast<size_t>(j);
      if (grid.offset) {
        reference_offset(x + j * sub, wt + j * sub, sub, grid.max_code, s[i], m[i]);
      } else {
        reference_symmetric(x + j * sub, wt + j * sub, sub, grid.zero, s[i]);
      }
      if (std::abs(s[i]) > std::abs(top_s)) top_s = s[i];
      top_m = std::max(top_m, -m[i]);
    }
    GgmlBlockFields f;
    const int reach = grid.offset ? grid.max_scale : grid.min_scale;
    f.d = f32_to_f16(top_s / static_cast<float>(reach));
    f.m = grid.offset ? f32_to_f16(top_m / static_cast<float>(grid.max_scale)) : 0;
    const float d = f16_to_f32(f.d);
    const float dm = f16_to_f32(f.m);
    std::vector<uint8_t> codes(static_cast<size_t>(grid.length));
    for (int64_t j = 0; j < grid.subs(); ++j) {
      const auto i = static_cast<size_t>(j);
      f.scales[i] = static_cast<int8_t>(
          std::clamp(static_cast<int>(std::nearbyint(s[i] / d)), grid.min_scale, grid.max_scale));
      f.mins[i] = dm == 0 ? 0
                          : static_cast<uint8_t>(std::clamp(
                                static_cast<int>(std::nearbyint(-m[i] / dm)), 0, grid.max_scale));
      const float scale = d * static_cast<float>(f.scales[i]);
      const float offset = dm * static_cast<float>(f.mins[i]);
      for (int64_t k = 0; k < sub; ++k) {
        const float q = scale == 0 ? 0 : std::nearbyint((x[j * sub + k] + offset) / scale);
        codes[static_cast<size_t>(j * sub + k)] =
            static_cast<uint8_t>(std::clamp(static_cast<int>(q) + grid.zero, 0, grid.max_code));
      }
    }
    encode_ggml_block(type, f, codes, {out.data() + static_cast<size_t>(b) * bytes, bytes});
  }
  return out;
}

TEST(GgmlFit, ErrorIsAtMostThatOfLlamaCppsSearch) {
  const Mat w = random_rows(40, 512, 1);
  const std::vector<float> weights = random_weights(512, 2);
  for (const DType type : kTypes) {
    const double ours = weighted_error(w, weights, type, quantized(w, weights, type));
    double reference = 0;
    if (ggml_grid(type).super()) {
      reference = weighted_error(w, weights, type, reference_k(w, weights, type));
    } else {  // the range of each block
      for (int64_t i = 0; i < w.size(); i += 32) {
        const float* x = w.data() + i;
        const auto [low, high] = std::minmax_element(x, x + 32);
        const GgmlGrid& grid = ggml_grid(type);
        const float extreme = std::abs(*low) > std::abs(*high) ? *low : *high;
        const float scale =
            round_to_f16(grid.offset            ? (*high - *low) / static_cast<float>(grid.max_code)
                         : type == DType::kQ8_0 ? extreme / 127.0F
                                                : extreme / static_cast<float>(-grid.zero));
        const float offset = grid.offset ? round_to_f16(*low) : 0.0F;
        for (int k = 0; k < 32; ++k) {
          const float q =
              std::clamp(std::nearbyint((x[k] - offset) / scale), static_cast<float>(-grid.zero),
                         static_cast<float>(grid.max_code - grid.zero));
          const double delta = static_cast<double>(x[k] - (scale * q + offset));
          reference +=
              static_cast<double>(weights[static_cast<size_t>(i % 512 + k)]) * delta * delta;
        }
      }
    }
    EXPECT_LE(ours, reference) << dtype_info(type).name;
  }
}

TEST(GgmlFit, RoundsOfImprovementNeverRaiseTheError) {
  const Mat w = random_rows(33, 256, 3);
  const std::vector<float> weights = random_weights(256, 4);
  for (const DType type : kTypes) {
    double before = 1e300;
    for (const int rounds : {0, 1, 3}) {
      const double error = weighted_error(w, weights, type, quantized(w, weights, type, {rounds}));
      EXPECT_LE(error, before * (1 + 1e-6)) << dtype_info(type).name << " " << rounds;
      before = error;
    }
  }
}

// What a projector is told must be what the file decodes to, to the last bit.
TEST(GgmlFit, DecodedColumnsAreTheBitsOfTheDequantizer) {
  for (const DType type : kTypes) {
    const GgmlGrid& grid = ggml_grid(type);
    const Mat w = random_rows(grid.length, 37, 5);
    BlockParameters parameters;
    fit_blocks(w, {}, type, {}, parameters);
    Mat codes(grid.length, 37);
    Mat decoded(grid.length, 37);
    for (int64_t k = 0; k < grid.length; ++k) {
      quantize_block_column({w.row(k), 37}, parameters, k, {codes.row(k), 37},
                            {decoded.row(k), 37});
    }
    const auto bytes = static_cast<size_t>(dtype_info(type).block_bytes);
    std::vector<std::byte> blocks(37 * bytes);
    encode_blocks(parameters, codes, blocks.data(), bytes);
    std::vector<float> expected(static_cast<size_t>(37 * grid.length));
    decode_ggml_blocks(type, blocks, expected);
    for (int64_t r = 0; r < 37; ++r) {
      for (int64_t k = 0; k < grid.length; ++k) {
        uint32_t a = 0;
        uint32_t b = 0;
        std::memcpy(&a, &decoded(k, r), 4);
        std::memcpy(&b, &expected[static_cast<size_t>(r * grid.length + k)], 4);
        ASSERT_EQ(a, b) << dtype_info(type).name;
      }
    }
  }
}

TEST(GgmlFit, RowsDoNotDependOnTheirNeighbours) {
  const Mat w = random_rows(70, 256, 6);
  for (const DType type : {DType::kQ3_K, DType::kQ4_K, DType::kQ5_0}) {
    const auto all = quantized(w, {}, type);
    const size_t row = all.size() / 70;
    Mat one(1, 256);
    for (const int64_t r : {0, 5, 63, 69}) {
      std::copy_n(w.row(r), 256, one.data());
      const auto alone = quantized(one, {}, type);
      EXPECT_TRUE(
          std::equal(alone.begin(), alone.end(), all.begin() + static_cast<int64_t>(row) * r));
    }
  }
}

TEST(GgmlFit, ConstantsZerosAndDeadInputsAreFine) {
  for (const DType type : kTypes) {
    Mat w(3, 256);
    for (int64_t k = 0; k < 256; ++k) {
      w(1, k) = 0.5F;
      w(2, k) = k == 17 ? -1.0F : 0.0F;
    }
    std::vector<float> weights(256, 1.0F);
    for (size_t k = 0; k < 128; ++k) weights[k] = 0.0F;
    const auto blocks = quantized(w, weights, type);
    std::vector<float> out(3 * 256);
    decode_ggml_blocks(type, blocks, out);
    for (size_t k = 0; k < 256; ++k) {
      EXPECT_EQ(out[k], 0.0F);
      EXPECT_NEAR(out[256 + k], 0.5F, 0.07F) << dtype_info(type).name;
      EXPECT_NEAR(out[512 + k], w(2, static_cast<int64_t>(k)), 0.01F) << dtype_info(type).name;
    }
    quantized(w, std::vector<float>(256, 0.0F), type);
  }
}

TEST(GgmlBlocks, UnpackIsTheInverseOfEncode) {
  std::mt19937 rng(9);
  for (const DType type : kTypes) {
    const auto bytes = static_cast<size_t>(dtype_info(type).block_bytes);
    std::vector<uint8_t> codes(static_cast<size_t>(ggml_grid(type).length));
    std::vector<std::byte> block(bytes);
    std::vector<std::byte> again(bytes);
    for (int trial = 0; trial < 50; ++trial) {
      for (std::byte& b : block) b = static_cast<std::byte>(rng());
      GgmlBlockFields fields;
      unpack_ggml_block(type, block, fields, codes);
      encode_ggml_block(type, fields, codes, again);
      ASSERT_EQ(block, again) << dtype_info(type).name;
    }
  }
}

TEST(GridSpec, KnowsTheBlockTypes) {
  const GridSpec grid = GridSpec::of_block(DType::kQ3_K);
  EXPECT_EQ(grid.bits, 3);
  EXPECT_EQ(grid.group_size, 256);
  EXPECT_EQ(grid.text(), "Q3_K blocks");
  EXPECT_DOUBLE_EQ(grid.bits_per_weight(512), 3.4375);
  EXPECT_EQ(GridSpec::of_block(DType::kQ8_0).bits, 8);
  EXPECT_FALSE(GridSpec::of_block(DType::kQ4_K).symmetric);
  EXPECT_FALSE(grid == (GridSpec{.bits = 3, .group_size = 256}));
  const QuantizedMatrix q(grid, 2, 512);
  EXPECT_EQ(q.blocks.size(), 2U * 2U * 110U);
  EXPECT_EQ(q.decode()(1, 511), 0.0F);
}

}  // namespace
}  // namespace lpcd::format
