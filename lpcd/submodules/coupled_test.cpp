#include "lpcd/submodules/coupled.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>

#include "lpcd/linalg/blas.h"
#include "lpcd/submodules/test_cases.h"

namespace lpcd::submodules {
namespace {

// With A the derivative of the submodule's output: descent = A^T r and curvature = A^T A d.
//   <d1, A^T A d2> = <A^T A d1, d2>            (the adjoint is the adjoint)
//   <d, A^T A d> = |A d|^2
//   f(W + D) = f(W) - 2 <A^T r, D> + |A D|^2   (exactly, where S is linear)
void expect_operator_and_adjoint(const Case& test, int64_t length, int64_t sequences) {
  const RunContext ctx = with_threads(2);
  const ModelConfig c = small_config(test.family);
  const BlockForward forward(c, length);
  const BlockWeights original = random_block(c, 100);
  BlockWeights w = random_block(c, 200);
  FixedSource source(length, sequences, 0, c.hidden, 300, 2 * length);
  // Some tokens of very different size, as in real streams.
  for (int64_t i = 0; i < 3 * c.hidden; ++i) source.y_f.data()[i] *= 10.0F;
  if (test.weighted) source.weights = token_weights(ctx, source.y_f, source.x_q);
  const auto coupled = test.make(forward, original);
  SCOPED_TRACE(test.name() + ", sequences of " + std::to_string(length));
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

// Sequences of one tile of queries, and of three of which the last is not full.
TEST(Coupled, OperatorsAndAdjointsBelongTogether) {
  static_assert(kLength < nn::kQueryTile && kTiledLength > 2 * nn::kQueryTile);
  for (const Case& test : all_cases()) {
    expect_operator_and_adjoint(test, kLength, 6);
    expect_operator_and_adjoint(test, kTiledLength, 3);
  }
}

Factors factors_of(const RunContext& ctx, const Coupled& coupled, const SequenceSource& source,
                   const BlockWeights& w, Role role) {
  Factors factors = coupled.start_factors(role);
  Mat gradient(w[role].rows(), w[role].cols());
  source.for_chunks(Part::kSolve, [&](const SequenceChunk& chunk) {
    (void)coupled.descent(ctx, chunk, w, role, gradient, &factors);
  });
  coupled.finish_factors(ctx, w, role, source.tokens(Part::kSolve), factors);
  return factors;
}

// |A D|^2 for D = v c^T falls apart into what the inputs and what the outputs add, on average over
// c where inputs are independent of what they meet: T c^T input c / 2 * v^T output v.
void expect_factors_of_logits(const char* family, int64_t length, int64_t sequences,
                              double tolerance) {
  const RunContext ctx = with_threads(2);
  const ModelConfig c = small_config(family);
  const BlockForward forward(c, length);
  BlockWeights original = random_block(c, 100);
  for (const Role role : {Role::kQ, Role::kK}) {  // which a norm of the heads takes back
    if (c.qk_norm) original[role] = moved(original[role], 2.0, original[role]);
  }
  const FixedSource source(length, sequences, 0, c.hidden, 300, 4 * length);
  const auto coupled = make_query_key(forward, original);
  for (const Role role : {Role::kQ, Role::kK}) {
    const Factors factors = factors_of(ctx, *coupled, source, original, role);
    const int64_t tokens = source.tokens(Part::kSolve);
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
                     std::to_string(channel) + ", sequences of " + std::to_string(length));
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
        EXPECT_NEAR(energy / expected, 1.0, tolerance);
      }
    }
  }
}

// Long sequences: several tiles of queries, of which one token in two is summed.
TEST(Factors, OfAttentionLogitsAreThoseOfTheOperator) {
  expect_factors_of_logits("llama", kLength, 48, 0.15);
  expect_factors_of_logits("llama", kTiledLength, 16, 0.15);
  expect_factors_of_logits("qwen3", kLength, 48, 0.3);  // as if a norm took nothing along the head
}

// A key that much of attention rests on, as on the first token of real models, beside a sum over
// one position in four. Two kinds of queries: one goes to that key and has its size in channel 3,
// which hardly turns with position, the other goes to all keys and has it in channel 1.
TEST(Factors, OfKeysCountTheFirstPositionOnce) {
  constexpr int64_t kLong = 256;
  constexpr int64_t kQueries[] = {0, 1};  // channels of the input that tell the kind of a token
  constexpr int64_t kFirst = 2;
  constexpr int64_t kProbe = 5;  // as large in all tokens, with either sign
  const RunContext ctx = with_threads(2);
  const ModelConfig c = small_config();
  const BlockForward forward(c, kLong);
  BlockWeights original = random_block(c, 100);
  for (const Role role : {Role::kQ, Role::kK}) {
    for (int64_t i = 0; i < original[role].size(); ++i) original[role].data()[i] *= 0.3F;
  }
  const float size = 0.86F;
  for (int64_t head = 0; head < c.heads / c.kv_heads; ++head) {
    original[Role::kQ](head * c.head_dim + 3, kQueries[0]) = size;
    original[Role::kQ](head * c.head_dim + 1, kQueries[1]) = size;
  }
  original[Role::kK](3, kFirst) = size;
  FixedSource source(kLong, 2, 0, c.hidden, 300, kLong);
  for (int64_t row = 0; row < source.x_f.rows(); ++row) {
    const int64_t position = row % kLong;
    for (int64_t i = 0; i < c.hidden; ++i) source.x_f(row, i) *= 0.3F;
    for (const int64_t i : {kQueries[0], kQueries[1], kFirst}) source.x_f(row, i) = 0;
    source.x_f(row, position == 0 ? kFirst : kQueries[position % 2]) = 3;
    source.x_f(row, kProbe) = source.y_f(row, 0) > 0 ? 1.0F : -1.0F;
  }
  copy(source.x_f, source.x_q);
  const auto coupled = make_query_key(forward, original);
  const Factors factors = factors_of(ctx, *coupled, source, original, Role::kK);
  const int64_t tokens = source.tokens(Part::kSolve);
  for (const int64_t channel : {1, 3}) {
    Mat d(original[Role::kK].rows(), c.hidden);
    d(channel, kProbe) = 1;
    double energy = 0;
    source.for_chunks(Part::kSolve, [&](const SequenceChunk& chunk) {
      Mat product(d.rows(), d.cols());
      energy += coupled->curvature(ctx, chunk, original, Role::kK, d, product);
    });
    const double expected = static_cast<double>(tokens) * 0.5 *
                            static_cast<double>(factors.input(kProbe, kProbe)) *
                            static_cast<double>(factors.output(channel, channel));
    EXPECT_NEAR(energy / expected, 1.0, 0.15) << channel;
  }
}

// Rows that are orthogonal and of length 1.
Mat random_rotation(int64_t n, uint64_t seed) {
  Mat m = random_mat(n, n, seed);
  for (int64_t i = 0; i < n; ++i) {
    const FloatView row = m.view().rows_range(i, 1);
    for (int64_t j = 0; j < i; ++j) {
      const ConstView other = ConstView(m).rows_range(j, 1);
      const auto share = static_cast<float>(nn::inner_product(row, other));
      for (int64_t k = 0; k < n; ++k) row(0, k) -= share * other(0, k);
    }
    const auto length = static_cast<float>(std::sqrt(nn::inner_product(row, row)));
    for (int64_t k = 0; k < n; ++k) row(0, k) /= length;
  }
  return m;
}

// One head as wide as the model: a rotation of normed inputs has norm 1, so that the norm of Qwen3
// is the identity, and its derivative along changes that turn the head but keep its length.
TEST(QueryKey, WhereTheNormIsTheIdentityBothFamiliesAgree) {
  const RunContext ctx = with_threads(1);
  const auto config_of = [](const char* family) {
    ModelConfig c = small_config(family);
    c.heads = c.kv_heads = 1;
    c.head_dim = c.hidden;
    c.rms_eps = 1e-12F;
    return c;
  };
  const ModelConfig plain = config_of("llama");
  const ModelConfig normed = config_of("qwen3");
  const BlockForward plain_forward(plain, kLength);
  const BlockForward normed_forward(normed, kLength);
  const auto block = [&](uint64_t seed) {
    BlockWeights w = random_block(plain, seed);
    for (const Role role : {Role::kAttentionNorm, Role::kQNorm, Role::kKNorm}) {
      w[role] = Mat(1, plain.hidden);
      std::fill_n(w[role].data(), plain.hidden, 1.0F);
    }
    for (const Role role : {Role::kQ, Role::kK}) w[role] = random_rotation(plain.hidden, seed++);
    return w;
  };
  const BlockWeights original = block(100);
  const BlockWeights w = block(200);
  const auto of_plain = make_query_key(plain_forward, original);
  const auto of_normed = make_query_key(normed_forward, original);
  const FixedSource source(kLength, 2, 0, plain.hidden, 300, 2 * kLength);
  Mat turn = random_mat(plain.hidden, plain.hidden, 5, 0.1F);
  for (int64_t i = 0; i < turn.rows(); ++i) {
    for (int64_t j = 0; j < i; ++j) turn(i, j) = -turn(j, i);
    turn(i, i) = 0;
  }
  source.for_chunks(Part::kSolve, [&](const SequenceChunk& chunk) {
    const double error = of_plain->objective(ctx, chunk, w).weighted;
    EXPECT_GT(error, 0);
    EXPECT_NEAR(of_normed->objective(ctx, chunk, w).weighted, error, 1e-4 * error);
    const double energy = of_plain->energy(ctx, chunk).weighted;
    EXPECT_NEAR(of_normed->energy(ctx, chunk).weighted, energy, 1e-4 * energy);
    for (const Role role : {Role::kQ, Role::kK}) {
      Mat d(plain.hidden, plain.hidden);
      linalg::gemm_nn(1.0F, w[role], turn, 0.0F, d);
      const auto slope_and_bend = [&](const Coupled& coupled) {
        Mat gradient(d.rows(), d.cols());
        Mat product(d.rows(), d.cols());
        (void)coupled.descent(ctx, chunk, w, role, gradient, nullptr);
        const double bend = coupled.curvature(ctx, chunk, w, role, d, product);
        return std::pair(nn::inner_product(gradient, d), bend);
      };
      const auto [slope, bend] = slope_and_bend(*of_plain);
      const auto [normed_slope, normed_bend] = slope_and_bend(*of_normed);
      EXPECT_NEAR(normed_slope, slope, 1e-3 * std::sqrt(error * bend));
      EXPECT_NEAR(normed_bend, bend, 1e-3 * bend);
    }
  });
}

}  // namespace
}  // namespace lpcd::submodules
