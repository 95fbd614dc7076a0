#include "lpcd/submodules/relax.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "lpcd/submodules/test_cases.h"

namespace lpcd::submodules {
namespace {

// Outputs of a layer that was changed tell its weights.
TEST(Relax, RecoversKnownWeightsFromExactData) {
  const RunContext ctx = with_threads(1);
  for (const Case& test : all_cases()) {
    const ModelConfig c = small_config(test.family);
    const BlockForward forward(c, kLength);
    const BlockWeights original = random_block(c, 100);
    SCOPED_TRACE(test.name());
    FixedSource source(kLength, 14, 2, c.hidden, 300, 4 * kLength);
    copy(source.x_f, source.x_q);
    copy(source.x_f, source.y_f);
    if (test.info->half == Half::kAttention) {
      Mat a = Mat::uninitialized(source.x_f.rows(), c.hidden);
      Mat z = Mat::uninitialized(source.x_f.rows(), c.heads * c.head_dim);
      forward.attention_norm(ctx, original, source.x_f, a);
      forward.attention(ctx, original, a, z);
      forward.add_projection(ctx, z, original[Role::kO], source.y_f);
    } else {
      Mat m = Mat::uninitialized(source.x_f.rows(), c.hidden);
      Mat u = Mat::uninitialized(source.x_f.rows(), c.ffn);
      forward.ffn_norm(ctx, original, source.x_f, m);
      forward.ffn_activation(ctx, original, m, u);
      forward.add_projection(ctx, u, original[Role::kDown], source.y_f);
    }
    const auto coupled = test.make(forward, original);
    BlockWeights w = clone(original);
    const Mat change = random_mat(w[test.role].rows(), w[test.role].cols(), 7, 0.02F);
    const Energies energies(ctx, *coupled, source);
    EXPECT_LT(relative_error(ctx, *coupled, source, Part::kSolve, energies, w), 1e-9);
    w[test.role] = moved(w[test.role], 1.0, change);
    const double first = relative_error(ctx, *coupled, source, Part::kSolve, energies, w);
    EXPECT_GT(first, 1e-6);
    const Relaxed relaxed =
        relax(ctx, *coupled, test.role, source, w, energies, {.iterations = 40, .ridge = 1e-6});
    EXPECT_GT(relaxed.strength, 0.9);
    // One step of Gauss-Newton is not the whole way where all pairs of positions count.
    const double left = test.reference && !coupled->linear(test.role) ? 0.2 : 0.02;
    EXPECT_LT(relaxed.objective_relaxed, left * relaxed.objective_before);
    w[test.role] = moved(w[test.role], relaxed.strength, relaxed.step);
    EXPECT_LT(relative_error(ctx, *coupled, source, Part::kSolve, energies, w), left * first);
    // A shift of the logits that all keys share changes nothing, so that q and k are not unique.
    if (test.info->name == "qk") continue;
    EXPECT_LT(squared_distance_of(w[test.role], original[test.role]),
              0.05 * nn::inner_product(change, change));
  }
}

TEST(Relax, LowersItsOwnObjectiveAndDependsNeitherOnThreadsNorOnChunks) {
  for (const Case& test : all_cases()) {
    const ModelConfig c = small_config(test.family);
    const BlockForward forward(c, kLength);
    const BlockWeights original = random_block(c, 100);
    SCOPED_TRACE(test.name());
    Mat first;
    const int64_t slab = forward.tiling().slab_rows;
    for (const auto& [threads, slabs] : {std::pair{1, 1}, {3, 1}, {2, 2}}) {
      const RunContext ctx = with_threads(threads);
      FixedSource source(kLength, 3 * slab / kLength + 20, 20, c.hidden, 300, slabs * slab);
      source.half_sampled = true;
      const auto coupled = test.make(forward, original);
      BlockWeights w = random_block(c, 200);
      const Energies energies(ctx, *coupled, source);
      const Relaxed relaxed = relax(ctx, *coupled, test.role, source, w, energies, {});
      // On what it solves the step leads down, all the way where the submodule is linear.
      const double solved = relative_error(ctx, *coupled, source, Part::kSolve, energies, w);
      const Mat start = w[test.role].clone();
      w[test.role] = moved(start, coupled->linear(test.role) ? 1.0 : 0.1, relaxed.step);
      EXPECT_LT(relative_error(ctx, *coupled, source, Part::kSolve, energies, w), solved);
      w[test.role] = start.clone();
      const Mat& input = relaxed.factors.input;
      for (int64_t i = 0; i < input.rows(); ++i) EXPECT_GT(input(i, i), 0.0F);
      EXPECT_LE(relaxed.objective_relaxed, relaxed.objective_before);
      const double before = relative_error(ctx, *coupled, source, Part::kHeldOut, energies, w);
      w[test.role] = moved(w[test.role], relaxed.strength, relaxed.step);
      EXPECT_LE(relative_error(ctx, *coupled, source, Part::kHeldOut, energies, w),
                before * (1 + 1e-5));
      if (first.empty()) {
        first = relaxed.step.clone();
      } else {
        for (int64_t i = 0; i < first.size(); ++i) {
          ASSERT_EQ(relaxed.step.data()[i], first.data()[i]) << threads << " " << slabs;
        }
      }
    }
  }
}

// A strength that was given is what is taken, and what the objective is reported of.
TEST(Relax, TakesAGivenStrength) {
  const RunContext ctx = with_threads(2);
  for (const Case& test : all_cases()) {
    const ModelConfig c = small_config(test.family);
    const BlockForward forward(c, kLength);
    const BlockWeights original = random_block(c, 100);
    SCOPED_TRACE(test.name());
    const FixedSource source(kLength, 40, 8, c.hidden, 300, 8 * kLength);
    const auto coupled = test.make(forward, original);
    BlockWeights w = random_block(c, 200);
    const Energies energies(ctx, *coupled, source);
    const Relaxed relaxed =
        relax(ctx, *coupled, test.role, source, w, energies, {.strength = 0.25});
    if (coupled->linear(test.role)) {
      EXPECT_EQ(relaxed.strength, 0.25);
    } else {  // unless the true objective says no
      EXPECT_LE(relaxed.strength, 0.25);
    }
    w[test.role] = moved(w[test.role], relaxed.strength, relaxed.step);
    EXPECT_NEAR(relative_error(ctx, *coupled, source, Part::kHeldOut, energies, w),
                relaxed.objective_relaxed, 1e-4 * relaxed.objective_before);
  }
}

// The reference package's schedule, written down once more: 48 sequences make 3 terms of an epoch
// for steps of 2, so that the third waits for the next epoch; 4 sequences reach the cosine.
TEST(Adam, FollowsTheScheduleOfTheReference) {
  const RunContext ctx = with_threads(2);
  const ModelConfig c = small_config();
  const BlockForward forward(c, kLength);
  const BlockWeights original = random_block(c, 100);
  const auto coupled = make_value_output(forward, original);
  struct Setting {
    int64_t sequences, batch;
  };
  for (const auto& [sequences, batch] : {Setting{4, 16}, Setting{32, 16}, Setting{48, 32}}) {
    SCOPED_TRACE(std::to_string(sequences) + " sequences, steps of " + std::to_string(batch));
    const FixedSource source(kLength, sequences, 0, c.hidden, 300, kAdamChunk * kLength);
    BlockWeights w = random_block(c, 200);
    const Mat start = w[Role::kV].clone();
    const AdamOptions options{.epochs = 20, .batch = batch, .base_rate = 0.01};
    const Mat reached = descend_with_adam(ctx, *coupled, Role::kV, source, w, options);
    EXPECT_EQ(squared_distance_of(w[Role::kV], start), 0);

    const auto size = static_cast<size_t>(start.size());
    const int64_t terms = batch / kAdamChunk;
    const auto total = static_cast<double>(20 * sequences / terms);
    const double warm = std::floor(0.1 * total);
    std::vector<double> m(size);
    std::vector<double> v(size);
    Mat gradient(start.rows(), start.cols());
    int64_t summed = 0;
    int step = 0;
    for (int epoch = 0; epoch < 20; ++epoch) {
      int64_t term = 0;
      source.for_chunks(Part::kSolve, [&](const SequenceChunk& chunk) {
        Mat descent(start.rows(), start.cols());
        (void)coupled->descent(ctx, chunk, w, Role::kV, descent, nullptr);
        // The loss is a mean over all numbers of the chunk's outputs.
        const auto numbers = static_cast<double>(chunk.x_q.rows() * c.hidden);
        gradient = moved(gradient, -2.0 / numbers / static_cast<double>(terms), descent);
        ++summed;
        if (++term % terms != 0) return;
        const double rate =
            0.01 * (step < warm ? step / warm
                                : 0.5 + 0.5 * std::cos(M_PI * (step - warm) / (total - warm)));
        ++step;
        for (size_t i = 0; i < size; ++i) {
          const auto g = static_cast<double>(gradient.data()[i]);
          m[i] = 0.9 * m[i] + 0.1 * g;
          v[i] = 0.999 * v[i] + 0.001 * g * g;
          const double mean = m[i] / (1 - std::pow(0.9, step));
          const double root = std::sqrt(v[i] / (1 - std::pow(0.999, step)));
          w[Role::kV].data()[i] -= static_cast<float>(rate * mean / (root + 1e-8));
        }
        gradient.set_zero();
      });
    }
    EXPECT_EQ(summed, 20 * std::max<int64_t>(1, sequences / kAdamChunk));
    const double way = squared_distance_of(w[Role::kV], start);
    EXPECT_GT(way, 0);
    EXPECT_LT(squared_distance_of(reached, w[Role::kV]), 1e-6 * way);
    BlockWeights at_start = clone(w);
    at_start[Role::kV] = start.clone();
    EXPECT_LT(objective_of(ctx, *coupled, source, w),
              objective_of(ctx, *coupled, source, at_start));
  }
}

}  // namespace
}  // namespace lpcd::submodules
