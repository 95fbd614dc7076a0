#include "lpcd/text/gguf_vocabulary.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>
#include <random>

#include "lpcd/base/json.h"
#include "lpcd/io/gguf.h"
#include "tests/support/errors.h"
#include "tests/support/mutate.h"

namespace lpcd::text {
namespace {

using testing::expect_error;
using Ids = std::vector<int32_t>;

GgufVocabulary gpt2() {
  GgufVocabulary v;
  v.model = "gpt2";
  v.pre = "smollm";
  v.tokens = {"<|im_start|>", "<|im_end|>", "1", "2", "12", "a", "Ġ", "Ġa", "", "<think>"};
  v.token_types = {3, 3, 1, 1, 1, 1, 1, 1, 5, 4};
  v.merges = {"1 2", "Ġ a"};
  v.bos_id = 0;
  v.eos_id = 1;
  v.add_bos = false;
  return v;
}

GgufVocabulary llama() {
  GgufVocabulary v;
  v.model = "llama";
  v.tokens = {"<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "ba", "▁a", "▁ab", "<tool>"};
  v.token_types = {2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 4};
  v.scores = {0, 0, 0, 0, -7, -8, -9, -2, -1, -3, -4, 0};
  v.bos_id = 1;
  v.eos_id = 2;
  return v;
}

TEST(GgufVocabulary, Gpt2SplitsAsItsPreSays) {
  GgufVocabulary v = gpt2();
  const Tokenizer smollm = from_vocabulary(v, "v");
  EXPECT_EQ(smollm.encode("a a12<|im_end|><think>", SpecialTokens::kAdd), (Ids{5, 7, 2, 3, 1, 9}));
  EXPECT_EQ(smollm.decode(Ids{7, 1, 9, 4}), " a<think>12");
  EXPECT_EQ(smollm.end_ids(), (Ids{1}));
  EXPECT_EQ(smollm.vocab_size(), 10);
  v.pre = "llama-bpe";
  EXPECT_EQ(from_vocabulary(v, "v").encode("a12", SpecialTokens::kAdd), (Ids{5, 4}));
  v.add_bos.reset();  // the default of llama-bpe
  EXPECT_EQ(from_vocabulary(v, "v").encode("a12", SpecialTokens::kAdd), (Ids{0, 5, 4}));
  v.tokens[8] = "aa";  // a word that no merge makes
  v.token_types[8] = 1;
  EXPECT_EQ(from_vocabulary(v, "v").encode("aa", SpecialTokens::kAdd), (Ids{0, 8}));
  v.pre = "smaug-bpe";  // the same words, but no leading token and no words as a whole
  EXPECT_EQ(from_vocabulary(v, "v").encode("aa", SpecialTokens::kAdd), (Ids{5, 5}));
  v.pre = "llama-bpe";
  v.add_eos = true;
  EXPECT_EQ(from_vocabulary(v, "v").encode("a12", SpecialTokens::kAdd), (Ids{0, 5, 4, 1}));
  for (const char* pre : {"", "default"}) {  // three digits at a time, as llama.cpp does it
    v.pre = pre;
    EXPECT_EQ(from_vocabulary(v, "v").encode("a12", SpecialTokens::kAdd), (Ids{5, 4, 1}));
    EXPECT_EQ(from_vocabulary(v, "v").encode("1212", SpecialTokens::kAdd), (Ids{4, 2, 3, 1}));
  }
  v.pre = "gpt-2";
  EXPECT_EQ(from_vocabulary(v, "v").encode("1212", SpecialTokens::kAdd), (Ids{4, 4, 1}));
  v.end_ids = {9, 77};
  EXPECT_EQ(from_vocabulary(v, "v").end_ids(), (Ids{1, 9}));
}

// Texts that a model writes begin with one of these.
TEST(GgufVocabulary, TokensThatFillItUpAreNotOrdinary) {
  GgufVocabulary v = gpt2();
  v.tokens.insert(v.tokens.end(), {"[PAD10]", ""});
  v.token_types.insert(v.token_types.end(), {token_type::kUnused, token_type::kNormal});
  const Tokenizer tokenizer = from_vocabulary(v, "v");
  Ids ordinary;
  for (int32_t id = -1; id < 14; ++id) {
    if (tokenizer.is_ordinary(id)) ordinary.push_back(id);
  }
  EXPECT_EQ(ordinary, (Ids{2, 3, 4, 5, 6, 7}));
}

TEST(GgufVocabulary, TheJsonHasTheSameIds) {
  for (const GgufVocabulary& v : {gpt2(), llama()}) {
    const Tokenizer tokenizer = from_vocabulary(v, "v");
    const Tokenizer reread = Tokenizer::from_json(tokenizer.to_json(), "json");
    for (const std::string_view text : {"a a12<|im_end|>", " ab ba\n<tool>aab", ""}) {
      const Ids ids = tokenizer.encode(text, SpecialTokens::kAdd);
      EXPECT_EQ(reread.encode(text, SpecialTokens::kAdd), ids);
      EXPECT_EQ(reread.decode(ids), tokenizer.decode(ids));
    }
  }
}

TEST(GgufVocabulary, LlamaMergesByScore) {
  const Tokenizer tokenizer = from_vocabulary(llama(), "v");
  // "ba" has the best score, so the a goes to it and not to "▁a" or "ab".
  EXPECT_EQ(tokenizer.encode("aba", SpecialTokens::kAdd), (Ids{1, 9, 8}));
  EXPECT_EQ(tokenizer.encode("ab\n", SpecialTokens::kNone), (Ids{10, 3}));
  EXPECT_EQ(tokenizer.encode("<tool>zy", SpecialTokens::kNone), (Ids{11, 4, 0}));
  EXPECT_EQ(tokenizer.decode(Ids{1, 10, 3, 9}), "ab\n a");
  GgufVocabulary v = llama();
  v.add_space_prefix = false;
  v.add_bos = false;
  EXPECT_EQ(from_vocabulary(v, "v").encode("ab ab", SpecialTokens::kAdd), (Ids{7, 10}));
}

TEST(GgufVocabulary, MergesComeFromEveryCutInTheOrderOfScoreThenLength) {
  GgufVocabulary v = llama();
  v.tokens = {"<unk>", "a", "b", "ab", "abb", "bb"};
  v.token_types.clear();
  v.scores = {0, -1, -1, -5, -2, -5};
  v.add_bos = false;
  const Json json = parse_json(tokenizer_json(v, "v"), "json");
  EXPECT_EQ(json["model"]["merges"],
            parse_json(R"([["ab", "b"], ["a", "bb"], ["a", "b"], ["b", "b"]])", "expected"));
  EXPECT_TRUE(json["added_tokens"].empty());
}

TEST(GgufVocabulary, Refusals) {
  struct Case {
    GgufVocabulary (*base)();
    void (*change)(GgufVocabulary&);
    ErrorCode code;
    std::string_view message;
  };
  using V = GgufVocabulary;
  for (const Case& c : std::vector<Case>{
           {gpt2, [](V& v) { v.model = "t5"; }, ErrorCode::kUnsupportedModel,
            "v: tokenizer.ggml.model \"t5\" is not supported; supported are gpt2 and llama"},
           {gpt2, [](V& v) { v.pre = "bloom"; }, ErrorCode::kUnsupportedModel,
            "tokenizer.ggml.pre \"bloom\" is not supported"},
           {gpt2, [](V& v) { v.tokens.clear(); }, ErrorCode::kBadFile,
            "tokens must have 1 to 10000000 entries, found 0"},
           {gpt2, [](V& v) { v.token_types.pop_back(); }, ErrorCode::kBadFile,
            "tokenizer.ggml.token_type has 9 entries for 10 tokens"},
           {gpt2, [](V& v) { v.merges.clear(); }, ErrorCode::kBadFile,
            "tokenizer.ggml.merges is missing"},
           {gpt2, [](V& v) { v.merges[1] = "a b c"; }, ErrorCode::kBadFile,
            "merges[1] must be \"left right\""},
           {gpt2, [](V& v) { v.merges[1] = "a x"; }, ErrorCode::kBadFile,
            "\"x\" is not in the vocabulary"},
           {gpt2, [](V& v) { v.merges[0] = "\xFF 1"; }, ErrorCode::kBadFile,
            "merges[0]: \"\\xff 1\" is not UTF-8"},
           {gpt2, [](V& v) { v.tokens[4].assign(1, '\xC3'); }, ErrorCode::kBadFile,
            "tokens[4]: \"\\xc3\" is not UTF-8"},
           {gpt2, [](V& v) { v.tokens[7].assign(1, 'a'); }, ErrorCode::kBadFile,
            "tokens[5] and [7] are both \"a\""},
           {gpt2, [](V& v) { v.add_bos = true, v.bos_id = 10; }, ErrorCode::kBadFile,
            "bos_token_id is 10, but there are 10 tokens"},
           {gpt2, [](V& v) { v.add_eos = true, v.eos_id.reset(); }, ErrorCode::kBadFile,
            "there is no tokenizer.ggml.eos_token_id"},
           {llama, [](V& v) { v.scores.clear(); }, ErrorCode::kBadFile,
            "tokenizer.ggml.scores is missing"},
           {llama, [](V& v) { v.scores.push_back(1); }, ErrorCode::kBadFile,
            "tokenizer.ggml.scores has 13 entries for 12 tokens"},
           {llama, [](V& v) { v.scores[3] = std::numeric_limits<double>::quiet_NaN(); },
            ErrorCode::kBadFile, "scores[3] is not finite"},
           {llama, [](V& v) { v.unknown_id = -1; }, ErrorCode::kBadFile,
            "unknown_token_id is -1, but there are 12 tokens"},
           {llama, [](V& v) { v.tokens[7] = std::string(5000, 'a'); }, ErrorCode::kBadFile,
            "a token of 5000 bytes"}}) {
    SCOPED_TRACE(c.message);
    V v = c.base();
    c.change(v);
    expect_error([&] { (void)from_vocabulary(v, "v"); }, c.code, c.message);
  }
}

TEST(GgufVocabulary, DamagedVocabulariesAreReadOrRefused) {
  std::mt19937 random(9);
  SCOPED_TRACE("seed 9");
  const auto pick = [&](auto& list) -> auto& { return list[random() % list.size()]; };
  const std::vector<int64_t> ids = {-1, 0, 3, 11, 12, 1 << 30, INT64_MIN, INT64_MAX};
  for (int i = 0; i < 5000; ++i) {
    GgufVocabulary v = i % 2 == 0 ? gpt2() : llama();
    for (auto changes = 1 + random() % 3; changes > 0; --changes) {
      std::string& token = pick(v.tokens);
      switch (random() % 9) {
        case 0:
          token = testing::mutate(token, token.size(), random);
          break;
        case 1:
          pick(v.token_types) = pick(ids);
          break;
        case 2:
          if (!v.merges.empty()) pick(v.merges) = pick(v.tokens) + " " + pick(v.tokens);
          break;
        case 3:
          if (!v.scores.empty()) pick(v.scores) = static_cast<double>(pick(ids));
          break;
        case 4:
          v.bos_id = pick(ids);
          break;
        case 5:
          v.add_bos = v.add_eos = random() % 2 == 0;
          break;
        case 6:
          v.unknown_id = pick(ids);
          break;
        case 7:
          v.end_ids = ids;
          break;
        default:
          v.pre = random() % 2 == 0 ? "tekken" : "qwen2";
      }
    }
    try {
      const Tokenizer tokenizer = from_vocabulary(v, "v");
      (void)tokenizer.decode(tokenizer.encode(" ab\n12 <s>é", SpecialTokens::kAdd));
    } catch (const Error& error) {
      EXPECT_FALSE(error.message().empty());
    }
  }
}

TEST(GgufVocabulary, RealFile) {
  const char* const path = std::getenv("LPCD_SMOLLM2_GGUF");
  if (path == nullptr) GTEST_SKIP() << "set LPCD_SMOLLM2_GGUF to a SmolLM2 GGUF file";
  const Tokenizer tokenizer = Tokenizer::from_gguf(io::GgufFile(path));
  EXPECT_EQ(tokenizer.vocab_size(), 49152);
  EXPECT_EQ(tokenizer.leading_id(), std::nullopt);
  const std::string text = "<|im_start|>user\nIt costs 1234 €.<|im_end|>\n";
  const Ids ids = tokenizer.encode(text, SpecialTokens::kAdd);
  EXPECT_EQ(ids.front(), 1);
  EXPECT_EQ(tokenizer.decode(ids), "user\nIt costs 1234 €.\n");
  EXPECT_EQ(tokenizer.end_ids(), (Ids{0, 2}));
}

}  // namespace
}  // namespace lpcd::text
