#include "lpcd/format/recipe.h"

#include <gtest/gtest.h>

#include <random>

#include "lpcd/base/error.h"
#include "lpcd/format/output_format.h"
#include "lpcd/tensor/ggml_blocks.h"
#include "lpcd/tensor/half.h"

namespace lpcd::format {
namespace {

using Kind = TensorPlace::Kind;

DType type_of(std::string_view recipe, Kind kind, int64_t block = 5, int64_t blocks = 32,
              int64_t cols = 4096, int64_t queries = 4) {
  return Recipe::parse(recipe)->type({.kind = kind,
                                      .block = block,
                                      .blocks = blocks,
                                      .queries_per_key = queries,
                                      .seventy_b = blocks == 80,
                                      .cols = cols});
}

TEST(Recipe, NamesAreLlamaQuantizes) {
  EXPECT_EQ(Recipe::parse("q4_k")->text(), "q4_k_m");
  EXPECT_EQ(Recipe::parse("q4_k_s,pure")->text(), "q4_k,pure");
  EXPECT_EQ(Recipe::parse("q4_k,pure")->text(), "q4_k,pure");
  EXPECT_EQ(Recipe::parse("q2_k")->text(), "q2_k");
  EXPECT_EQ(Recipe::parse("q8_0,pure")->text(), "q8_0,pure");
  EXPECT_FALSE(Recipe::parse("q9_k"));
  EXPECT_EQ(Recipe::parse("q3_k_s")->file_type(), 11);
}

TEST(Recipe, MixesGiveMoreBitsWhereLlamaQuantizeDoes) {
  EXPECT_EQ(type_of("q2_k", Kind::kQuery), DType::kQ2_K);
  EXPECT_EQ(type_of("q2_k", Kind::kValue), DType::kQ4_K);
  EXPECT_EQ(type_of("q2_k", Kind::kValue, 5, 32, 4096, 2), DType::kQ3_K);
  EXPECT_EQ(type_of("q2_k", Kind::kDown), DType::kQ3_K);
  EXPECT_EQ(type_of("q2_k", Kind::kAttentionOutput), DType::kQ3_K);
  EXPECT_EQ(type_of("q3_k_m", Kind::kValue, 1), DType::kQ5_K);
  EXPECT_EQ(type_of("q3_k_m", Kind::kDown, 1), DType::kQ5_K);
  EXPECT_EQ(type_of("q3_k_m", Kind::kDown, 2), DType::kQ4_K);
  EXPECT_EQ(type_of("q4_k_m", Kind::kDown, 0), DType::kQ6_K);
  EXPECT_EQ(type_of("q4_k_m", Kind::kDown, 5), DType::kQ4_K);
  EXPECT_EQ(type_of("q4_k_m", Kind::kDown, 6), DType::kQ6_K);
  EXPECT_EQ(type_of("q4_k_m", Kind::kDown, 31), DType::kQ6_K);
  EXPECT_EQ(type_of("q4_k_s", Kind::kDown, 3), DType::kQ5_K);
  EXPECT_EQ(type_of("q5_k_s", Kind::kDown, 0), DType::kQ5_K);
  EXPECT_EQ(type_of("q5_k_m", Kind::kDown, 0), DType::kQ6_K);
  EXPECT_EQ(type_of("q4_k_m", Kind::kValue, 40, 80), DType::kQ5_K);  // of a 70B model
  EXPECT_EQ(type_of("q4_k_m", Kind::kHead), DType::kQ6_K);
  EXPECT_EQ(type_of("q4_k_m", Kind::kEmbedding), DType::kQ4_K);
  EXPECT_EQ(type_of("q8_0", Kind::kHead), DType::kQ8_0);
  EXPECT_EQ(type_of("q4_k,pure", Kind::kHead), DType::kQ4_K);
  EXPECT_EQ(type_of("q4_k,pure", Kind::kDown, 0), DType::kQ4_K);
}

TEST(Recipe, RowsThatBlocksDoNotDivideFallBack) {
  EXPECT_EQ(type_of("q2_k", Kind::kQuery, 5, 32, 576), DType::kQ4_0);
  EXPECT_EQ(type_of("q3_k_m", Kind::kQuery, 5, 32, 576), DType::kQ4_0);
  EXPECT_EQ(type_of("q4_k_m", Kind::kQuery, 5, 32, 576), DType::kQ5_0);
  EXPECT_EQ(type_of("q5_k_m", Kind::kQuery, 5, 32, 576), DType::kQ5_1);
  EXPECT_EQ(type_of("q6_k", Kind::kQuery, 5, 32, 576), DType::kQ8_0);
  EXPECT_EQ(type_of("q4_k_m", Kind::kHead, 0, 32, 576), DType::kQ8_0);
  EXPECT_EQ(type_of("q4_0", Kind::kQuery, 0, 32, 100), DType::kF16);
  EXPECT_EQ(type_of("q2_0", Kind::kQuery, 0, 32, 576), DType::kQ2_0);
  EXPECT_EQ(type_of("q2_0", Kind::kQuery, 0, 32, 96), DType::kQ4_0);
  EXPECT_EQ(type_of("q2_0", Kind::kEmbedding, 0, 32, 512), DType::kQ4_K);
  EXPECT_EQ(type_of("q2_k", Kind::kQuery, 0, 32, 100), DType::kF16);
}

// Integer grids in GGUF: the same weights, to the last bit.
TEST(GgufFormat, CodesMoveIntoBlocksWithoutLoss) {
  std::mt19937 rng(4);
  constexpr int64_t kCols = 192;
  for (const int bits : {2, 3, 4, 5, 6, 7, 8}) {
    for (const bool symmetric : {true, false}) {
      for (const int64_t group : {-1, 32, 64}) {
        const GridSpec spec{.bits = bits, .group_size = group, .symmetric = symmetric};
        const auto type = exact_ggml_type(spec, kCols);
        if (bits == 8 && !symmetric) {
          EXPECT_FALSE(type);
          continue;
        }
        QuantizedMatrix q(spec, 5, kCols);
        for (uint8_t& c : q.codes) c = static_cast<uint8_t>(rng() % (1U << bits));
        for (uint8_t& z : q.zeros) {
          z = static_cast<uint8_t>(symmetric ? 1U << (bits - 1) : rng() % (1U << bits));
        }
        for (int64_t i = 0; i < q.scales.size(); ++i) {
          q.scales.data()[i] = round_to_f16(0.001F * static_cast<float>(1 + rng() % 1000));
        }
        q.scales.data()[0] *= -1;
        const auto tensors = parse_output_format("gguf:exact")->encode("w", q);
        ASSERT_EQ(tensors[0].info.dtype, *type);
        std::vector<float> out(5 * kCols);
        decode_ggml_blocks(*type, tensors[0].data, out);
        const Mat expected = q.decode();
        for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], expected.data()[i]) << bits;
      }
    }
  }
  EXPECT_EQ(exact_ggml_type({.bits = 2, .group_size = 64}, 128), DType::kQ2_0);
  EXPECT_EQ(exact_ggml_type({.bits = 2, .group_size = 32}, 128), DType::kQ4_0);
  EXPECT_EQ(exact_ggml_type({.bits = 2, .group_size = -1}, 96), DType::kQ4_0);
  EXPECT_EQ(exact_ggml_type({.bits = 3, .group_size = 64}, 128), DType::kQ4_0);
  EXPECT_EQ(exact_ggml_type({.bits = 5, .group_size = 64}, 128), DType::kQ5_0);
  EXPECT_FALSE(exact_ggml_type({.bits = 4, .group_size = 48}, 96));
}

TEST(GgufFormat, TextsAndRefusals) {
  EXPECT_EQ(parse_output_format("gguf:q4_k")->text(), "gguf:q4_k_m");
  EXPECT_EQ(parse_output_format("gguf:q2_k,pure")->recipe(), "q2_k,pure");
  EXPECT_EQ(parse_output_format("gguf:exact")->recipe(), "");
  EXPECT_EQ(parse_output_format("gguf:bf16")->dense_type(), DType::kBF16);
  EXPECT_THROW((void)parse_output_format("gguf:q7_k"), Error);
  EXPECT_THROW(parse_output_format("gguf:exact")->check("w", 64, 96, {.bits = 4, .group_size = 48}),
               Error);
  EXPECT_NO_THROW(
      parse_output_format("gguf:f16")->check("w", 64, 96, {.bits = 4, .group_size = 48}));
  const GridSpec blocks = GridSpec::of_block(DType::kQ4_K);
  EXPECT_THROW(parse_output_format("gptq:4,g128")->check("w", 64, 256, blocks), Error);
  EXPECT_THROW(parse_output_format("ct:4,g128")->check("w", 64, 256, blocks), Error);
  EXPECT_NO_THROW(parse_output_format("gguf:q4_k_m")->check("w", 64, 256, blocks));
}

}  // namespace
}  // namespace lpcd::format
