#include "lpcd/nn/ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/matrices.h"

namespace lpcd::nn {
namespace {

using testing::random_mat;

TEST(RmsNorm, MatchesTheFormulaOnAnOddWidth) {
  const Mat x = random_mat(3, 37, 1);
  const Mat w = random_mat(1, 37, 2);
  Mat out(3, 37);
  rms_norm(x, {w.data(), 37}, 1e-5F, out);
  for (int64_t r = 0; r < 3; ++r) {
    double mean = 0;
    for (int64_t c = 0; c < 37; ++c) mean += double{x(r, c)} * x(r, c) / 37;
    for (int64_t c = 0; c < 37; ++c) {
      EXPECT_NEAR(out(r, c), x(r, c) / std::sqrt(mean + 1e-5) * w(0, c), 1e-5);
    }
  }
}

TEST(AddBias, AddsToEveryRow) {
  const Mat x = random_mat(3, 37, 5);
  const Mat bias = random_mat(1, 37, 6);
  Mat out = x.clone();
  add_bias({bias.data(), 37}, out);
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t c = 0; c < 37; ++c) EXPECT_EQ(out(r, c), x(r, c) + bias(0, c));
  }
}

TEST(SiluMul, MatchesTheFormulaFarFromZeroToo) {
  Mat gate = random_mat(2, 19, 3);
  gate(0, 0) = -200.0F;
  gate(0, 1) = 200.0F;
  gate(1, 18) = -88.0F;
  const Mat up = random_mat(2, 19, 4);
  Mat out(2, 19);
  silu_mul(gate, up, out);
  for (int64_t i = 0; i < out.size(); ++i) {
    const double g = gate.data()[i];
    const double expected = g / (1 + std::exp(-g)) * up.data()[i];
    EXPECT_NEAR(out.data()[i], expected, 2e-6 * (1 + std::abs(expected)));
  }
}

TEST(Rope, RotatesPairsAndTheInverseRotationUndoesIt) {
  const auto frequencies = rope_frequencies(8, 10000.0, {}, {});
  EXPECT_FLOAT_EQ(frequencies[0], 1.0F);
  EXPECT_FLOAT_EQ(frequencies[2], 0.01F);
  RopeTable table = make_rope_table(frequencies, 16);
  const Mat x = random_mat(5, 16, 5);  // two heads
  Mat y = x.clone();
  apply_rope(table, 3, 8, y);
  const double angle = 3.0 * 1.0;
  EXPECT_NEAR(y(0, 0), x(0, 0) * std::cos(angle) - x(0, 4) * std::sin(angle), 1e-6);
  EXPECT_NEAR(y(0, 12), x(0, 12) * std::cos(angle) + x(0, 8) * std::sin(angle), 1e-6);
  for (int64_t i = 0; i < table.sin.size(); ++i) table.sin.data()[i] *= -1;
  apply_rope(table, 3, 8, y);
  for (int64_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y.data()[i], x.data()[i], 1e-6);
}

TEST(Rope, ScalingFollowsTheLlama3Bands) {
  RopeScaling scaling{.kind = RopeScaling::Kind::kLlama3,
                      .factor = 8,
                      .low_freq_factor = 1,
                      .high_freq_factor = 4,
                      .original_context = 8192};
  const auto plain = rope_frequencies(128, 500000.0, {}, {});
  const auto scaled = rope_frequencies(128, 500000.0, scaling, {});
  EXPECT_EQ(scaled[0], plain[0]);              // short wavelength: kept
  EXPECT_FLOAT_EQ(scaled[63], plain[63] / 8);  // long wavelength: divided
  EXPECT_LT(scaled[32], plain[32]);            // between
  EXPECT_GT(scaled[32], plain[32] / 8);
  const std::vector<float> divisors(64, 2.0F);
  EXPECT_FLOAT_EQ(rope_frequencies(128, 500000.0, {}, divisors)[5], plain[5] / 2);
}

// Direct evaluation in f64, with a key offset as in generation and a tile border inside.
TEST(Attention, MatchesTheDefinitionOverTileBorders) {
  constexpr int64_t kQueries = 70;
  constexpr int64_t kKeys = 75;
  constexpr int64_t kDim = 8;
  const Mat q = random_mat(kQueries, kDim, 6);
  const Mat k = random_mat(kKeys, kDim, 7);
  const Mat v = random_mat(kKeys, kDim, 8);
  Mat out(kQueries, kDim);
  AttentionScratch scratch;
  causal_attention(q, k, v, out, scratch);
  for (const int64_t i : {0, 1, 63, 64, 69}) {
    std::vector<double> p;
    double sum = 0;
    for (int64_t j = 0; j <= kKeys - kQueries + i; ++j) {
      double dot = 0;
      for (int64_t c = 0; c < kDim; ++c) dot += double{q(i, c)} * k(j, c);
      p.push_back(std::exp(dot / std::sqrt(double{kDim})));
      sum += p.back();
    }
    for (int64_t c = 0; c < kDim; ++c) {
      double expected = 0;
      for (size_t j = 0; j < p.size(); ++j) expected += p[j] / sum * v(static_cast<int64_t>(j), c);
      EXPECT_NEAR(out(i, c), expected, 1e-5);
    }
  }
}

// With weights, a small error counts twice the divergence of the attention weights, and what
// shifts all logits of a query alike counts nothing.
TEST(AttentionLogits, WithWeightsCountAsTheSoftmaxSeesThem) {
  constexpr int64_t kLength = 70;
  constexpr int64_t kDim = 8;
  const Mat q = random_mat(kLength, kDim, 11);
  const Mat k = random_mat(kLength, kDim, 12);
  Mat other = k.clone();
  const Mat noise = random_mat(kLength, kDim, 13);
  for (int64_t i = 0; i < other.size(); ++i) other.data()[i] += 0.01F * noise.data()[i];
  AttentionScratch scratch;
  const auto energy = [&](ConstView to) {
    return attention_logits(Mask::kCausal, q, k, q, to, {}, {}, {}, {}, q, k, scratch);
  };
  double divergence = 0;
  for (int64_t t = 0; t < kLength; ++t) {
    Mat buffer;
    const FloatView p = causal_attention_weights(q, k, t, 1, buffer);
    Mat other_buffer;
    const FloatView p_other = causal_attention_weights(q, other, t, 1, other_buffer);
    for (int64_t s = 0; s <= t; ++s) {
      divergence += double{p(0, s)} * std::log(double{p(0, s)} / double{p_other(0, s)});
    }
  }
  EXPECT_NEAR(energy(other), 2 * divergence, 0.02 * divergence);

  const double plain =
      attention_logits(Mask::kCausal, q, k, q, other, {}, {}, {}, {}, {}, {}, scratch);
  other = k.clone();
  for (int64_t s = 0; s < kLength; ++s) {
    for (int64_t c = 0; c < kDim; ++c) other(s, c) += 0.1F * noise(0, c);
  }
  EXPECT_LT(energy(other), 1e-6 * plain);
}

TEST(Softmax, LogSumArgmaxAndDivergence) {
  const Mat a = random_mat(2, 5003, 9);
  const Mat b = random_mat(2, 5003, 10);
  const auto pa = row_log_sum_exp(a);
  const auto pb = row_log_sum_exp(b);
  double sum_a = 0;
  double sum_b = 0;
  for (int64_t c = 0; c < a.cols(); ++c) {
    sum_a += std::exp(double{a(1, c)});
    sum_b += std::exp(double{b(1, c)});
  }
  EXPECT_NEAR(pa[1].log_sum, std::log(sum_a), 1e-5);
  EXPECT_EQ(pa[1].argmax, std::max_element(a.row(1), a.row(1) + a.cols()) - a.row(1));
  double kl = 0;
  for (int64_t c = 0; c < a.cols(); ++c) {
    const double lp = double{a(1, c)} - std::log(sum_a);
    kl += std::exp(lp) * (lp - (double{b(1, c)} - std::log(sum_b)));
  }
  EXPECT_NEAR(kl_divergence({a.row(1), 5003}, pa[1].log_sum, {b.row(1), 5003}, pb[1].log_sum), kl,
              1e-5);
  EXPECT_NEAR(kl_divergence({a.row(1), 5003}, pa[1].log_sum, {a.row(1), 5003}, pa[1].log_sum), 0,
              1e-7);
}

}  // namespace
}  // namespace lpcd::nn
