#include <gtest/gtest.h>

#include <optional>

#include "lpcd/linalg/blas.h"
#include "lpcd/submodules/submodule.h"
#include "tests/support/matrices.h"

namespace lpcd::submodules {
namespace {

using testing::random_mat;
using testing::with_threads;

// W C (H + lambda I)^-1 at full strength and no damping undoes a known linear error of the inputs.
TEST(Correct, FullStrengthRecoversTheWeightThatUndoesTheInputError) {
  const RunContext ctx = with_threads(1);
  constexpr int64_t kInputs = 24;
  const Mat x_q = random_mat(400, kInputs, 81);
  Mat undo = random_mat(kInputs, kInputs, 82, 0.1F);
  for (int64_t k = 0; k < kInputs; ++k) undo(k, k) += 1.0F;
  Mat x_f(400, kInputs);
  linalg::gemm_nt(1.0F, x_q, undo, 0.0F, x_f);  // x_f = undo x_q
  Mat h(kInputs, kInputs);
  Mat c(kInputs, kInputs);
  Mat delta(400, kInputs);
  for (int64_t i = 0; i < delta.size(); ++i) delta.data()[i] = x_f.data()[i] - x_q.data()[i];
  linalg::gemm_tn(2.0F / 400, x_q, x_q, 0.0F, h);
  linalg::gemm_tn(2.0F / 400, delta, x_q, 0.0F, c);
  const Mat w = random_mat(10, kInputs, 83);
  Mat expected(10, kInputs);
  linalg::gemm_nn(1.0F, w, undo, 0.0F, expected);
  const LayerProblem problem{
      .weight = w, .solve = {.h = h, .cross_input = c}, .held_out = {.h = h, .cross_input = c}};
  Mat product;
  const ConstView missing = missing_output(ctx, problem, problem.held_out, product);
  for (const auto order : {solve::ColumnOrder::kNatural, solve::ColumnOrder::kActivation}) {
    const solve::Metric metric = solve::make_metric(ctx, h.clone(), {.fraction = 1e-7}, order);
    const Target full = correct(ctx, problem, metric, 1.0, missing, missing);
    // The parabola's minimum is at 1.
    const Target chosen = correct(ctx, problem, metric, {}, missing, missing);
    const Target none = correct(ctx, problem, metric, 0.0, missing, missing);
    EXPECT_NEAR(chosen.strength, 1.0, 1e-3);
    for (int64_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(full.weight.data()[i], expected.data()[i], 1e-3);
      EXPECT_NEAR(chosen.weight.data()[i], expected.data()[i], 2e-3);
      EXPECT_EQ(none.weight.data()[i], w.data()[i]);
    }
  }
  EXPECT_LT(layer_error(ctx, problem, problem.held_out, missing, expected),
            layer_error(ctx, problem, problem.held_out, missing, w));
}

// A layer whose correction R is known on the solved part; what is missing on the held-out part may
// differ.
struct KnownCorrection {
  Mat h{12, 12};
  Mat w = random_mat(6, 12, 6);
  Mat r = random_mat(6, 12, 7);
  Mat held_out = r.clone();

  KnownCorrection() {
    const Mat x = random_mat(200, 12, 5);
    linalg::gemm_tn(2.0F / 200, x, x, 0.0F, h);
  }
  Target corrected(const RunContext& ctx, std::optional<double> strength) const {
    const LayerProblem problem{.weight = w,
                               .solve = {.h = h, .cross_output = r},
                               .held_out = {.h = h, .cross_output = held_out}};
    return correct(
        ctx, problem,
        solve::make_metric(ctx, h.clone(), {.fraction = 1e-6}, solve::ColumnOrder::kNatural),
        strength, r, held_out);
  }
};

// A correction that only fits the noise of the solved part is switched off on the held-out part.
TEST(Correct, StrengthIsZeroWhereTheHeldOutPartDisagrees) {
  const RunContext ctx = with_threads(1);
  KnownCorrection layer;
  for (int64_t i = 0; i < layer.r.size(); ++i) layer.held_out.data()[i] *= -1.0F;
  EXPECT_EQ(layer.corrected(ctx, {}).strength, 0.0);
}

// Outputs whose correction holds on the held-out part take it, one whose does not keeps its
// weights.
TEST(Correct, EveryOutputTakesAShareOfItsOwn) {
  const RunContext ctx = with_threads(1);
  KnownCorrection layer;
  for (int64_t k = 0; k < 12; ++k) layer.held_out(5, k) *= -1.0F;
  const Target full = layer.corrected(ctx, 1.0);
  const Target chosen = layer.corrected(ctx, {});
  EXPECT_GT(chosen.strength, 0.5);
  EXPECT_LT(chosen.strength, 1.0);
  for (int64_t k = 0; k < 12; ++k) {
    EXPECT_EQ(chosen.weight(5, k), layer.w(5, k));
    const float step = full.weight(0, k) - layer.w(0, k);
    EXPECT_GT((chosen.weight(0, k) - layer.w(0, k)) / step, 0.7F) << k;
  }
}

}  // namespace
}  // namespace lpcd::submodules
