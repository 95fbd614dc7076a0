#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

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

ModelConfig small_config(const std::string& family = "llama") {
  ModelConfig c;
  c.architecture = family == "llama3" ? "llama" : family;
  c.vocab_size = 64;
  c.hidden = 24;
  c.ffn = 40;
  c.blocks = 1;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 8;
  c.max_positions = 256;
  c.qk_norm = family == "qwen3";
  c.qkv_bias = family == "qwen2";
  if (family == "llama3") {
    c.rope_scaling = {.kind = nn::RopeScaling::Kind::kLlama3,
                      .factor = 8,
                      .low_freq_factor = 1,
                      .high_freq_factor = 4,
                      .original_context = 64};
  }
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
  for (const Role role : {Role::kQBias, Role::kKBias, Role::kVBias}) {
    if (c.has(role)) w[role] = random_mat(1, c.shape(role)[0], seed++, 0.5F);
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
    if (part == Part::kSample && half_sampled) return (solve_ / length_ + 1) / 2 * length_;
    return part == Part::kHeldOut ? all_ - solve_ : solve_;
  }
  void for_chunks(Part part, const std::function<void(const SequenceChunk&)>& body) const override {
    const int64_t begin = part == Part::kHeldOut ? solve_ : 0;
    const int64_t end = begin + tokens(part);
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
  bool half_sampled = false;   // curvature is measured on half of the sequences
};

constexpr int64_t kLength = 16;
constexpr int64_t kTiledLength = 150;

struct Case {
  const CoupledInfo* info;
  Role role;
  std::string family;
  bool weighted;
  bool reference = false;  // as the reference package has it

  [[nodiscard]] std::unique_ptr<Coupled> make(const BlockForward& forward,
                                              const BlockWeights& original) const {
    return (reference ? info->make_reference : info->make)(forward, original);
  }
  [[nodiscard]] std::string name() const {
    return std::string(info->name) + " " + std::string(arch::role_name(role)) + " of " + family +
           (weighted ? ", weighted tokens" : "") + (reference ? ", as the reference" : "");
  }
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const CoupledInfo& info : coupled_submodules()) {
    for (const Role role : info.relaxed) {
      for (const char* family : {"llama", "llama3", "qwen2", "qwen3"}) {
        for (const bool weighted : {false, true}) cases.push_back({&info, role, family, weighted});
        if (info.make_reference == nullptr || info.make_reference == info.make) continue;
        cases.push_back({&info, role, family, false, true});
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

double squared_distance_of(const Mat& a, const Mat& b) {
  const Mat difference = moved(a, -1.0, b);
  return nn::inner_product(difference, difference);
}

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
