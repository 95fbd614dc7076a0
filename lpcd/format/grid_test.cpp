#include "lpcd/format/grid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "lpcd/base/error.h"
#include "lpcd/tensor/half.h"

namespace lpcd::format {
namespace {

// One row of weights as the [g, 1] matrix that fit_group takes.
Mat as_column(std::vector<float> w) {
  Mat m(static_cast<int64_t>(w.size()), 1);
  std::ranges::copy(w, m.data());
  return m;
}

GroupParameters fit(const std::vector<float>& w, const GridSpec& spec,
                    const FitOptions& options = {}) {
  GroupParameters parameters;
  fit_group(as_column(w), spec, options, parameters);
  return parameters;
}

TEST(FitGroup, SymmetricScaleSpansTheLargestWeight) {
  const auto p = fit({0.5F, -1.75F, 1.0F}, {.bits = 3, .group_size = 3});
  EXPECT_EQ(p.zero[0], 4.0F);
  EXPECT_EQ(p.scale[0], round_to_f16(3.5F / 7.0F));
}

TEST(FitGroup, ZerosGetAHarmlessScale) {
  const auto p = fit({0.0F, 0.0F}, {.bits = 3, .group_size = 2});
  EXPECT_EQ(p.scale[0], round_to_f16(2.0F / 7.0F));
}

TEST(FitGroup, OneSidedGroupsKeepTheirRangeUnlessTheFlawIsAskedFor) {
  const GridSpec spec{.bits = 3, .group_size = 2};
  EXPECT_EQ(fit({0.7F, 1.4F}, spec).scale[0], round_to_f16(2.8F / 7.0F));
  EXPECT_EQ(fit({0.7F, 1.4F}, spec, {.one_sided_symmetric = true}).scale[0],
            round_to_f16(1.4F / 7.0F));
}

TEST(FitGroup, AsymmetricZeroIsNeverBelowOneUnlessAllowed) {
  const GridSpec spec{.bits = 2, .group_size = 2, .symmetric = false};
  const auto p = fit({1.0F, 2.0F}, spec);
  EXPECT_EQ(p.zero[0], 1.0F);
  EXPECT_EQ(p.scale[0], 1.0F);  // codes 1, 2, 3 stand for 0, 1, 2
  EXPECT_EQ(fit({1.0F, 2.0F}, spec, {.zero_from_one = false}).zero[0], 0.0F);
  const auto negative = fit({-1.0F, -2.0F}, spec);
  EXPECT_EQ(negative.zero[0], 3.0F);
}

TEST(FitGroup, ScaleThatOverflowsF16IsRefused) {
  EXPECT_THROW(fit({1e9F}, {.bits = 2, .group_size = 1}), Error);
}

TEST(FitGroup, MseSearchNeverFitsWorseThanTheRange) {
  std::mt19937 rng(3);
  std::student_t_distribution<float> heavy(3.0F);
  for (const bool symmetric : {true, false}) {
    const GridSpec spec{.bits = 3, .group_size = 64, .symmetric = symmetric};
    std::vector<float> w(64);
    std::ranges::generate(w, [&] { return heavy(rng); });
    const auto error = [&](const GroupParameters& p) {
      double sum = 0;
      for (const float x : w) {
        float code = 0;
        float decoded = 0;
        quantize_column({&x, 1}, p, spec.max_code(), {&code, 1}, {&decoded, 1});
        sum += std::pow(std::abs(x - decoded), 2.4);
      }
      return sum;
    };
    const FitOptions mse{.search = FitOptions::Search::kMse};
    EXPECT_LT(error(fit(w, spec, mse)), error(fit(w, spec)));
  }
}

TEST(QuantizeColumn, RoundsHalvesToEvenAndClamps) {
  const std::vector<float> w = {0.5F, 1.5F, -0.5F, 100.0F, -100.0F, 0.0F, 2.4F};
  const GroupParameters p{std::vector<float>(7, 1.0F), std::vector<float>(7, 4.0F)};
  std::vector<float> codes(7);
  std::vector<float> decoded(7);
  quantize_column(w, p, 7.0F, codes, decoded);
  EXPECT_EQ(codes, (std::vector<float>{4, 6, 4, 7, 0, 4, 6}));
  EXPECT_EQ(decoded, (std::vector<float>{0, 2, 0, 3, -4, 0, 2}));
}

TEST(QuantizedMatrix, DecodesWithAShortLastGroup) {
  QuantizedMatrix q({.bits = 4, .group_size = 2}, 1, 3);
  EXPECT_EQ(q.groups(), 2);
  q.codes = {8, 9, 15};
  q.scales(0, 0) = 0.5F;
  q.scales(1, 0) = 2.0F;
  q.zeros = {8, 8};
  const Mat w = q.decode();
  EXPECT_EQ(w(0, 0), 0.0F);
  EXPECT_EQ(w(0, 1), 0.5F);
  EXPECT_EQ(w(0, 2), 14.0F);
}

TEST(GridSpec, CountsStoredBits) {
  EXPECT_DOUBLE_EQ((GridSpec{.bits = 3, .group_size = 64}.bits_per_weight(128)), 3 + 19.0 / 64);
  EXPECT_DOUBLE_EQ((GridSpec{.bits = 4, .group_size = -1}.bits_per_weight(100)), 4 + 20.0 / 100);
}

}  // namespace
}  // namespace lpcd::format
