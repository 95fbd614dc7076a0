#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "lpcd/linalg/blas.h"
#include "lpcd/nn/ops.h"
#include "lpcd/submodules/coupled.h"
#include "lpcd/submodules/relax.h"
#include "lpcd/submodules/submodule.h"
#include "lpcd/submodules/sums.h"

namespace lpcd::submodules {
namespace {

using arch::BlockForward;
using arch::BlockWeights;
using arch::ModelConfig;
using arch::Role;

RunContext with_threads(int threads) {
  RunContext ctx;
  ctx.threads = threads;
  return ctx;
}

Mat random_mat(int64_t rows, int64_t cols, uint64_t seed, float spread = 1.0F) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0.0F, spread);
  Mat m(rows, cols);
  std::generate_n(m.data(), m.size(), [&] { return normal(rng); });
  return m;
}

ModelConfig small_config(bool qk_norm) {
  ModelConfig c;
  c.architecture = qk_norm ? "qwen3" : "llama";
  c.vocab_size = 64;
  c.hidden = 24;
  c.ffn = 40;
  c.blocks = 1;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 8;
  c.max_positions = 128;
  c.qk_norm = qk_norm;
  return c;
}

BlockWeights random_block(const ModelConfig& c, uint64_t seed) {
  BlockWeights w;
  for (const Role role : arch::kLinearRoles) {
    const auto shape = c.shape(role);
    w[role] =
        random_mat(shape[0], shape[1], seed++, 1.0F / std::sqrt(static_cast<float>(shape[1])));
  }
  for (const Role role : {Role::kAttentionNorm, Role::kFfnNorm, Role::kQNorm, Role::kKNorm}) {
    if (!c.has(role)) continue;
    w[role] = random_mat(1, c.shape(role)[0], seed++, 0.2F);
    for (int64_t i = 0; i < w[role].size(); ++i) w[role].data()[i] += 1.0F;
  }
  return w;
}

BlockWeights clone(const BlockWeights& w) {
  BlockWeights copy;
  for (size_t i = 0; i < w.tensors.size(); ++i) copy.tensors[i] = w.tensors[i].clone();
  return copy;
}

// Streams of `sequences` sequences; the last `held_out` of them enter no solve.
class FixedSource final : public SequenceSource {
 public:
  FixedSource(int64_t length, int64_t sequences, int64_t held_out, int64_t hidden, uint64_t seed,
              int64_t chunk)
      : length_(length),
        solve_(length * (sequences - held_out)),
        all_(length * sequences),
        chunk_(chunk),
        x_f(random_mat(all_, hidden, seed)),
        x_q(x_f.clone()),
        y_f(random_mat(all_, hidden, seed + 1)) {
    const Mat noise = random_mat(all_, hidden, seed + 2, 0.1F);
    for (int64_t i = 0; i < x_q.size(); ++i) x_q.data()[i] += noise.data()[i];
  }

  int64_t seq_len() const override { return length_; }
  int64_t tokens(Part part) const override {
    return part == Part::kHeldOut ? all_ - solve_ : solve_;
  }
  void for_chunks(Part part, const std::function<void(const SequenceChunk&)>& body) const override {
    const int64_t begin = part == Part::kHeldOut ? solve_ : 0;
    const int64_t end = part == Part::kHeldOut ? all_ : solve_;
    for (int64_t r0 = begin; r0 < end; r0 += chunk_) {
      const int64_t n = std::min(chunk_, end - r0);
      body({.x_f = ConstView(x_f).rows_range(r0, n),
            .x_q = ConstView(x_q).rows_range(r0, n),
            .y_f = ConstView(y_f).rows_range(r0, n),
            .weights = std::span<const float>(weights).subspan(
                weights.empty() ? 0 : static_cast<size_t>(r0),
                weights.empty() ? 0 : static_cast<size_t>(n)),
            .first_row = r0});
    }
  }

 private:
  int64_t length_;
  int64_t solve_;
  int64_t all_;
  int64_t chunk_;

 public:
  Mat x_f, x_q, y_f;
  std::vector<float> weights;  // of the tokens
};

constexpr int64_t kLength = 16;

struct Case {
  const CoupledInfo* info;
  Role role;
  bool qk_norm;
  bool weighted;
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const CoupledInfo& info : coupled_submodules()) {
    for (const Role role : info.relaxed) {
      for (const bool qk_norm : {false, true}) {
        for (const bool weighted : {false, true}) {
          cases.push_back({&info, role, qk_norm, weighted});
        }
      }
    }
  }
  return cases;
}

double objective_of(const RunContext& ctx, const Coupled& coupled, const FixedSource& source,
                    const BlockWeights& w) {
  double sum = 0;
  source.for_chunks(Part::kSolve, [&](const SequenceChunk& chunk) {
    sum += coupled.objective(ctx, chunk, w).weighted;
  });
  return sum;
}

Mat moved(const Mat& from, double step, const Mat& direction) {
  Mat to = from.clone();
  for (int64_t i = 0; i < to.size(); ++i) {
    to.data()[i] += static_cast<float>(step) * direction.data()[i];
  }
  return to;
}

// With A the derivative of the submodule's output: descent = A^T r and curvature = A^T A d.
//   <d1, A^T A d2> = <A^T A d1, d2>            (the adjoint is the adjoint)
//   <d, A^T A d> = |A d|^2
//   f(W + D) = f(W) - 2 <A^T r, D> + |A D|^2   (exactly, where S is linear)
TEST(Coupled, OperatorsAndAdjointsBelongTogether) {
  const RunContext ctx = with_threads(2);
  for (const Case& test : all_cases()) {
    const ModelConfig c = small_config(test.qk_norm);
    const BlockForward forward(c, kLength);
    const BlockWeights original = random_block(c, 100);
    BlockWeights w = random_block(c, 200);
    FixedSource source(kLength, 6, 0, c.hidden, 300, 2 * kLength);
    // Some tokens of very different size, as in real streams.
    for (int64_t i = 0; i < 3 * c.hidden; ++i) source.y_f.data()[i] *= 10.0F;
    if (test.weighted) source.weights = token_weights(ctx, source.y_f, source.x_q);
    const auto coupled = test.info->make(forward, original);
    SCOPED_TRACE(std::string(test.info->name) + " " + std::string(arch::role_name(test.role)) +
                 (test.qk_norm ? " with q/k norm" : ""));
    const int64_t n = w[test.role].rows();
    const int64_t k = w[test.role].cols();
    const Mat d1 = random_mat(n, k, 1, 0.3F);
    const Mat d2 = random_mat(n, k, 2, 0.3F);
    Mat gradient(n, k);
    Mat p1(n, k);
    Mat p2(n, k);
    double before = 0;
    double energy1 = 0;
    source.for_chunks(Part::kSolve, [&](const SequenceChunk& chunk) {
      before += coupled->descent(ctx, chunk, w, test.role, gradient, nullptr);
      energy1 += coupled->curvature(ctx, chunk, w, test.role, d1, p1);
      (void)coupled->curvature(ctx, chunk, w, test.role, d2, p2);
    });
    EXPECT_NEAR(before, objective_of(ctx, *coupled, source, w), 1e-5 * before);
    EXPECT_NEAR(nn::inner_product(d1, p1), energy1, 1e-4 * energy1);
    const double scale = std::sqrt(nn::inner_product(d1, p1) * nn::inner_product(d2, p2));
    EXPECT_NEAR(nn::inner_product(d1, p2), nn::inner_product(d2, p1), 1e-4 * scale);

    const Mat start = w[test.role].clone();
    const double slope = nn::inner_product(gradient, d1);
    if (coupled->linear(test.role)) {
      w[test.role] = moved(start, 1.0, d1);
      const double after = objective_of(ctx, *coupled, source, w);
      EXPECT_NEAR(after, before - 2 * slope + energy1, 2e-4 * (before + energy1));
    } else {
      const double h = 1e-2;
      w[test.role] = moved(start, h, d1);
      const double plus = objective_of(ctx, *coupled, source, w);
      w[test.role] = moved(start, -h, d1);
      const double minus = objective_of(ctx, *coupled, source, w);
      EXPECT_NEAR((plus - minus) / (2 * h), -2 * slope, 5e-3 * std::abs(slope) + 1e-3 * before);
    }
  }
}

// |A D|^2 for D = v c^T falls apart into what the inputs and what the outputs add, on average over
// c where inputs are independent of what they meet: T c^T input c / 2 * v^T output v.
TEST(Factors, OfAttentionLogitsAreThoseOfTheOperator) {
  const RunContext ctx = with_threads(2);
  const ModelConfig c = small_config(false);
  const BlockForward forward(c, kLength);
  const BlockWeights original = random_block(c, 100);
  const FixedSource source(kLength, 48, 0, c.hidden, 300, 8 * kLength);
  const auto coupled = make_query_key(forward, original);
  for (const Role role : {Role::kQ, Role::kK}) {
    Factors factors = coupled->start_factors(role);
    Mat gradient(original[role].rows(), original[role].cols());
    source.for_chunks(Part::kSolve, [&](const SequenceChunk& chunk) {
      (void)coupled->descent(ctx, chunk, original, role, gradient, &factors);
    });
    const int64_t tokens = source.tokens(Part::kSolve);
    coupled->finish_factors(ctx, original, role, tokens, factors);
    ASSERT_EQ(factors.output.cols(), c.head_dim);
    const auto form = [](ConstView m, const float* x) {
      double sum = 0;
      for (int64_t i = 0; i < m.rows(); ++i) {
        for (int64_t j = 0; j < m.cols(); ++j) {
          sum +=
              static_cast<double>(x[i]) * static_cast<double>(m(i, j)) * static_cast<double>(x[j]);
        }
      }
      return sum;
    };
    for (int64_t head = 0; head < factors.output.rows() / c.head_dim; ++head) {
      for (int64_t channel = 0; channel < c.head_dim; ++channel) {
        SCOPED_TRACE(std::string(arch::role_name(role)) + " " + std::to_string(head) + " " +
                     std::to_string(channel));
        // A pair of channels, which rotation mixes.
        Mat v(1, c.head_dim);
        v(0, channel) = 1.0F;
        v(0, (channel + c.head_dim / 2) % c.head_dim) = 0.7F;
        const double outputs =
            form(factors.output.view().rows_range(head * c.head_dim, c.head_dim), v.data());
        double expected = 0;
        double energy = 0;
        for (uint64_t draw = 0; draw < 12; ++draw) {
          const Mat inputs = random_mat(1, c.hidden, 40 + draw);
          Mat d(original[role].rows(), c.hidden);
          for (int64_t i = 0; i < c.head_dim; ++i) {
            for (int64_t k = 0; k < c.hidden; ++k) {
              d(head * c.head_dim + i, k) = v(0, i) * inputs(0, k);
            }
          }
          expected +=
              static_cast<double>(tokens) * 0.5 * form(factors.input, inputs.data()) * outputs;
          source.for_chunks(Part::kSolve, [&](const SequenceChunk& chunk) {
            Mat product(d.rows(), d.cols());
            energy += coupled->curvature(ctx, chunk, original, role, d, product);
          });
        }
        EXPECT_NEAR(energy / expected, 1.0, 0.15);
      }
    }
  }
}

// At least 98 % of a known change of one layer are found again from the outputs it gave.
TEST(Relax, RecoversKnownWeightsFromExactData) {
  const RunContext ctx = with_threads(1);
  for (const Case& test : all_cases()) {
    const ModelConfig c = small_config(test.qk_norm);
    const BlockForward forward(c, kLength);
    const BlockWeights original = random_block(c, 100);
    SCOPED_TRACE(std::string(test.info->name) + " " + std::string(arch::role_name(test.role)) +
                 (test.qk_norm ? " with q/k norm" : ""));
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
    const auto coupled = test.info->make(forward, original);
    BlockWeights w = clone(original);
    const Mat change = random_mat(w[test.role].rows(), w[test.role].cols(), 7, 0.02F);
    w[test.role] = moved(w[test.role], 1.0, change);
    const Energies energies(ctx, *coupled, source);
    const double first = relative_error(ctx, *coupled, source, Part::kSolve, energies, w);
    EXPECT_GT(first, 1e-6);
    const Relaxed relaxed =
        relax(ctx, *coupled, test.role, source, w, energies, {.iterations = 40, .ridge = 1e-6});
    EXPECT_GT(relaxed.strength, 0.9);
    EXPECT_LT(relaxed.objective_relaxed, 0.02 * relaxed.objective_before);
    w[test.role] = moved(w[test.role], relaxed.strength, relaxed.step);
    EXPECT_LT(relative_error(ctx, *coupled, source, Part::kSolve, energies, w), 0.02 * first);
  }
}

TEST(Relax, LowersItsOwnObjectiveAndDependsNeitherOnThreadsNorOnChunks) {
  for (const Case& test : all_cases()) {
    const ModelConfig c = small_config(test.qk_norm);
    const BlockForward forward(c, kLength);
    const BlockWeights original = random_block(c, 100);
    SCOPED_TRACE(std::string(test.info->name) + " " + std::string(arch::role_name(test.role)));
    Mat first;
    const int64_t slab = forward.tiling().slab_rows;
    for (const auto& [threads, slabs] : {std::pair{1, 1}, {3, 1}, {2, 2}}) {
      const RunContext ctx = with_threads(threads);
      const FixedSource source(kLength, 3 * slab / kLength + 20, 20, c.hidden, 300, slabs * slab);
      const auto coupled = test.info->make(forward, original);
      BlockWeights w = random_block(c, 200);
      const Energies energies(ctx, *coupled, source);
      const Relaxed relaxed = relax(ctx, *coupled, test.role, source, w, energies, {});
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

// On heads whose norm is 1 the norm of Qwen3 is the identity, and both families place alike.
TEST(QueryKey, WhereTheNormIsTheIdentityBothFamiliesAgree) {
  const RunContext ctx = with_threads(1);
  ModelConfig plain = small_config(false);
  ModelConfig normed = small_config(true);
  normed.rms_eps = 1e-12F;
  const BlockForward plain_forward(plain, kLength);
  const BlockForward normed_forward(normed, kLength);
  BlockWeights w = random_block(plain, 200);
  for (const Role role : {Role::kQNorm, Role::kKNorm}) {
    w[role] = Mat(1, normed.head_dim);
    for (int64_t i = 0; i < normed.head_dim; ++i) w[role](0, i) = 1.0F;
  }
  const FixedSource source(kLength, 2, 0, plain.hidden, 300, 2 * kLength);
  source.for_chunks(Part::kSolve, [&](const SequenceChunk& chunk) {
    Mat a = Mat::uninitialized(chunk.x_q.rows(), plain.hidden);
    plain_forward.attention_norm(ctx, w, chunk.x_q, a);
    for (const Role role : {Role::kQ, Role::kK}) {
      Mat x = Mat::uninitialized(a.rows(), w[role].rows());
      plain_forward.project(ctx, w, role, a, x);
      for (int64_t i = 0; i < x.size(); ++i) x.data()[i] = std::copysign(1.0F, x.data()[i]);
      Mat y = x.clone();
      plain_forward.place(ctx, w, role, x);
      normed_forward.place(ctx, w, role, y);
      for (int64_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x.data()[i], y.data()[i], 1e-5);
    }
  });
}

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
  for (const auto order : {solve::ColumnOrder::kNatural, solve::ColumnOrder::kActivation}) {
    const solve::Metric metric = solve::make_metric(ctx, h.clone(), {.fraction = 1e-7}, order);
    const Target full = correct(ctx, problem, metric, 1.0);
    const Target chosen = correct(ctx, problem, metric, {});  // the parabola's minimum is at 1
    const Target none = correct(ctx, problem, metric, 0.0);
    EXPECT_NEAR(chosen.strength, 1.0, 1e-3);
    for (int64_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(full.weight.data()[i], expected.data()[i], 1e-3);
      EXPECT_NEAR(chosen.weight.data()[i], expected.data()[i], 2e-3);
      EXPECT_EQ(none.weight.data()[i], w.data()[i]);
    }
  }
  const Mat missing = missing_output(ctx, problem, problem.held_out);
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
        strength);
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
