#include "lpcd/eval/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "lpcd/arch/block_forward.h"
#include "tests/support/tiny_model.h"

namespace lpcd::eval {
namespace {

using testing::TinyModel;

constexpr int64_t kLength = 24;

Windows some_windows() {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 5 * kLength; ++i) tokens.push_back(i * 37 % 251);
  return make_windows(tokens, kLength, 0, PerplexityMode::kWindows, std::nullopt, "test");
}

// Outputs of every block, kept whole.
std::vector<Mat> outputs_of_blocks(const RunContext& ctx, const arch::Model& model,
                                   const Windows& windows) {
  const Mat table = model.read(arch::Role::kEmbedding);
  Mat x(std::ssize(windows.ids), table.cols());
  for (int64_t t = 0; t < x.rows(); ++t) {
    std::memcpy(x.row(t), table.row(windows.ids[static_cast<size_t>(t)]),
                static_cast<size_t>(x.cols()) * sizeof(float));
  }
  const arch::BlockForward forward(model.config(), windows.seq_len);
  std::vector<Mat> outputs;
  for (int64_t b = 0; b < model.config().blocks; ++b) {
    forward.run(ctx, model.read_block(b), x);
    outputs.push_back(x.clone());
  }
  return outputs;
}

TEST(Compare, MeasuresTheErrorOfEveryBlock) {
  RunContext ctx;
  ctx.threads = 2;
  const Windows windows = some_windows();
  for (const arch::Architecture* family : arch::architectures()) {
    const arch::Model a =
        TinyModel{.architecture = std::string(family->name()), .blocks = 3, .seed = 1}.open();
    const arch::Model b =
        TinyModel{.architecture = std::string(family->name()), .blocks = 3, .seed = 2}.open();
    const std::vector<BlockError> errors = compare(ctx, a, &b, windows).block_errors;
    ASSERT_EQ(errors.size(), 3U);
    const std::vector<Mat> x = outputs_of_blocks(ctx, a, windows);
    const std::vector<Mat> x_f = outputs_of_blocks(ctx, b, windows);
    for (size_t block = 0; block < 3; ++block) {
      double difference = 0;
      double energy = 0;
      double angles = 0;
      for (int64_t t = 0; t < x[block].rows(); ++t) {
        double norm = 0;
        double norm_f = 0;
        double product = 0;
        for (int64_t c = 0; c < x[block].cols(); ++c) {
          const double value = x[block](t, c);
          const double value_f = x_f[block](t, c);
          difference += (value - value_f) * (value - value_f);
          norm += value * value;
          norm_f += value_f * value_f;
          product += value * value_f;
        }
        energy += norm_f;
        angles += 2 - 2 * product / std::sqrt(norm * norm_f);
      }
      const auto tokens = static_cast<double>(x[block].rows());
      EXPECT_NEAR(errors[block].relative, difference / energy, 1e-6 * difference / energy);
      EXPECT_NEAR(errors[block].per_token, angles / tokens, 1e-5 * angles / tokens);
      EXPECT_GT(errors[block].relative, 0.01);
    }
    for (const BlockError& error : compare(ctx, a, &a, windows).block_errors) {
      EXPECT_EQ(error.relative, 0);
      EXPECT_NEAR(error.per_token, 0, 1e-6);
    }
  }
}

TEST(Compare, OfModelsOfOtherShapesHasNoErrorsOfBlocks) {
  const RunContext ctx;
  const arch::Model three = TinyModel{.blocks = 3}.open();
  const arch::Model two = TinyModel{.blocks = 2}.open();
  for (const auto& [model, reference] : {std::pair{&three, &two}, {&two, &three}}) {
    const Comparison result = compare(ctx, *model, reference, some_windows());
    EXPECT_TRUE(result.block_errors.empty());
    EXPECT_TRUE(result.divergence.has_value());
  }
  EXPECT_TRUE(compare(ctx, three, nullptr, some_windows()).block_errors.empty());
}

// Of a small model with a large vocabulary the heads are most of it, of others a block.
TEST(Compare, SaysWhatItTakes) {
  const uint64_t tokens = 4096;
  arch::ModelConfig c = TinyModel{}.open().config();
  const uint64_t states = 4 * tokens * 64;
  c.vocab_size = 150'000;
  const uint64_t head = 4 * (150'000 * (64 + 256) + 64 * 256);
  EXPECT_EQ(comparison_bytes(c, nullptr, tokens, 32), states + head);
  EXPECT_EQ(comparison_bytes(c, &c, tokens, 32), 2 * (states + head));
  c.vocab_size = 256;
  c.ffn = 100'000;  // gate, up and down, one of them twice, and gate and up of a chunk
  const uint64_t least = 4 * 100'000 * (4 * 64 + 2 * tokens);
  EXPECT_GT(comparison_bytes(c, nullptr, tokens, 32), states + least);
  EXPECT_LT(comparison_bytes(c, nullptr, tokens, 32), states + least + least / 100);
  // The other model takes its turn.
  EXPECT_EQ(comparison_bytes(c, &c, tokens, 32), states + comparison_bytes(c, nullptr, tokens, 32));
}

}  // namespace
}  // namespace lpcd::eval
