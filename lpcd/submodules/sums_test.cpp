#include "lpcd/submodules/sums.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/matrices.h"

namespace lpcd::submodules {
namespace {

using testing::random_mat;
using testing::with_threads;

// A token that is massive in either stream counts no more than the others; one massive token does
// not move the target away from the rest.
TEST(TokenWeights, AreRelativeToTheLargerStream) {
  const RunContext ctx = with_threads(2);
  Mat y_f = random_mat(600, 32, 1);
  Mat x_q = random_mat(600, 32, 2);
  for (int64_t c = 0; c < 32; ++c) {
    y_f(7, c) *= 1e3F;
    x_q(9, c) *= 1e3F;
  }
  const std::vector<float> weights = token_weights(ctx, y_f, x_q);
  for (int64_t t = 0; t < 600; ++t) {
    double a = 0;
    double b = 0;
    for (int64_t c = 0; c < 32; ++c) {
      a += static_cast<double>(y_f(t, c)) * static_cast<double>(y_f(t, c));
      b += static_cast<double>(x_q(t, c)) * static_cast<double>(x_q(t, c));
    }
    const double larger = std::max(a, b);
    EXPECT_NEAR(weights[static_cast<size_t>(t)] * larger, 32, 1e-3) << t;
  }
  EXPECT_LT(weights[7], 1e-3F);
  EXPECT_LT(weights[9], 1e-3F);
  const std::vector<float> with_face_value = token_weights(ctx, y_f, x_q, 0.25);
  for (size_t t = 0; t < weights.size(); ++t) {
    EXPECT_FLOAT_EQ(with_face_value[t], weights[t] + 0.25F) << t;
  }
  // So does one that turns massive in the half block itself.
  std::vector<float> y_q_energies(600, 0.0F);
  y_q_energies[11] = 32e6F;
  const std::vector<float> turned = token_weights(ctx, y_f, x_q, 0, y_q_energies);
  for (size_t t = 0; t < weights.size(); ++t) {
    EXPECT_FLOAT_EQ(turned[t], t == 11 ? 1e-6F : weights[t]) << t;
  }
  double by_hand = 0;
  for (int64_t t = 0; t < 600; ++t) {
    for (int64_t c = 0; c < 32; ++c) {
      by_hand += static_cast<double>(weights[static_cast<size_t>(t)]) *
                 static_cast<double>(y_f(t, c)) * static_cast<double>(y_f(t, c));
    }
  }
  EXPECT_NEAR(weighted_squared_norm(ctx, weights, y_f), by_hand, 1e-4 * by_hand);
  Mat scaled = y_f.clone();
  scale_rows(ctx, weights, scaled);
  EXPECT_NEAR(squared_norm(ctx, scaled), by_hand, 1e-4 * by_hand);
  const SquaredSum sums = squared_sum_of_scaled(ctx, weights, scaled);
  EXPECT_EQ(sums.weighted, squared_norm(ctx, scaled));
  EXPECT_NEAR(sums.face_value, squared_norm(ctx, y_f), 1e-4 * sums.face_value);
  const SquaredSum without = squared_sum_of_scaled(ctx, {}, y_f);
  EXPECT_EQ(without.weighted, squared_norm(ctx, y_f));
  EXPECT_EQ(without.face_value, without.weighted);
}

TEST(Better, DoesNotTradeMassiveActivationsForTheRest) {
  const SquaredSum baseline{.weighted = 0.10, .face_value = 0.15};
  const auto better_than_baseline = [&](double weighted, double face_value) {
    return better({.weighted = weighted, .face_value = face_value}, baseline, baseline);
  };
  EXPECT_TRUE(better_than_baseline(0.09, 0.14));
  EXPECT_TRUE(better_than_baseline(0.09, 0.151));
  EXPECT_FALSE(better_than_baseline(0.09, 0.92));  // they are lost
  EXPECT_FALSE(better_than_baseline(0.11, 0.01));
  EXPECT_FALSE(better_than_baseline(0.10, 0.15));
  EXPECT_FALSE(better_than_baseline(std::nan(""), 0.01));
  EXPECT_FALSE(better_than_baseline(0.09, std::nan("")));
  // It may rise where it is no higher than the error of other tokens.
  const SquaredSum small{.weighted = 0.10, .face_value = 0.01};
  EXPECT_TRUE(better({.weighted = 0.09, .face_value = 0.05}, small, small));
  // Several steps of 1 % do not add up: the baseline is the measure.
  EXPECT_FALSE(better({.weighted = 0.08, .face_value = 0.153},
                      {.weighted = 0.09, .face_value = 0.152}, baseline));
}

TEST(SquaredAngles, SeeDirectionsOnly) {
  const RunContext ctx = with_threads(2);
  const Mat x = random_mat(300, 16, 1);
  Mat longer = x.clone();
  Mat opposite = x.clone();
  for (int64_t i = 0; i < x.size(); ++i) {
    longer.data()[i] *= 7.0F;
    opposite.data()[i] *= -0.1F;
  }
  EXPECT_NEAR(squared_angles(ctx, x, longer), 0, 1e-4);
  EXPECT_NEAR(squared_angles(ctx, x, opposite), 4 * 300, 1e-2);
}

}  // namespace
}  // namespace lpcd::submodules
