#include "lpcd/text/bpe.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <random>

#include "lpcd/text/unicode.h"
#include "tests/support/errors.h"

namespace lpcd::text {
namespace {

using testing::expect_error;

std::vector<int32_t> encode(const BpeModel& model, std::string_view word) {
  BpeModel::Cache cache;
  std::vector<int32_t> ids;
  model.encode(word, cache, ids);
  std::vector<int32_t> again;  // from the cache
  model.encode(word, cache, again);
  EXPECT_EQ(ids, again);
  return ids;
}

BpeModel parse(std::string_view json) { return {parse_json(json, "model"), "model"}; }

using Ids = std::vector<int32_t>;

TEST(Bpe, MergesAsStringsAndAsPairs) {
  constexpr std::string_view kVocab =
      R"({"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "aa": 5, "abc": 6, " ": 7, "a ": 8})";
  const BpeModel strings = parse(fmt::format(
      R"({{"type": "BPE", "vocab": {}, "merges": ["#version: 0.2", "b c", "a b", "a a", "a bc"]}})",
      kVocab));
  EXPECT_EQ(encode(strings, "abc"), (Ids{6}));
  EXPECT_EQ(encode(strings, "aab"), (Ids{0, 3}));
  EXPECT_EQ(encode(strings, "aaa"), (Ids{5, 0}));
  EXPECT_EQ(encode(strings, "aabc"), (Ids{5, 4}));
  const BpeModel pairs =
      parse(fmt::format(R"({{"vocab": {}, "merges": [["a", " "], ["a", "a"]]}})", kVocab));
  EXPECT_EQ(encode(pairs, "aa a"), (Ids{0, 8, 0}));
  EXPECT_EQ(pairs.size(), 9);
  EXPECT_EQ(*pairs.token_of(8), "a ");
  EXPECT_EQ(pairs.token_of(9), nullptr);
  EXPECT_EQ(pairs.token_of(-1), nullptr);
}

TEST(Bpe, OfEqualMergesTheLastCounts) {
  const BpeModel model = parse(R"({"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3,
      "bc": 4}, "merges": ["a b", "b c", "a b"]})");
  EXPECT_EQ(encode(model, "abc"), (Ids{0, 4}));
}

TEST(Bpe, WholeWordsComeFirstWhenMergesAreIgnored) {
  constexpr std::string_view kModel = R"({{"type": "BPE", "ignore_merges": {}, "merges": [],
      "vocab": {{"a": 0, "b": 1, "aab": 2}}}})";
  EXPECT_EQ(encode(parse(fmt::format(kModel, true)), "aab"), (Ids{2}));
  EXPECT_EQ(encode(parse(fmt::format(kModel, false)), "aab"), (Ids{0, 0, 1}));
}

TEST(Bpe, UnknownCharacters) {
  const auto model = [](std::string_view options) {
    return parse(fmt::format(R"({{"type": "BPE", "merges": ["a a"], {}
        "vocab": {{"?": 0, "a": 1, "aa": 2, "<0xC3>": 3, "<0xA9>": 4, "<0xA8>": 5}}}})",
                             options));
  };
  EXPECT_EQ(encode(model(""), "aéa"), (Ids{2}));  // dropped before anything merges
  EXPECT_EQ(encode(model(R"("unk_token": "?",)"), "axya"), (Ids{1, 0, 0, 1}));
  EXPECT_EQ(encode(model(R"("unk_token": "?", "fuse_unk": true,)"), "axya"), (Ids{1, 0, 1}));
  EXPECT_EQ(encode(model(R"("unk_token": "?", "byte_fallback": true,)"), "aéê"), (Ids{1, 3, 4, 0}));
  // An unknown character waits, and the bytes of the next ones overtake it.
  EXPECT_EQ(encode(model(R"("unk_token": "?", "byte_fallback": true,)"), "xéa"), (Ids{3, 4, 0, 1}));
  EXPECT_EQ(encode(model(R"("byte_fallback": true,)"), "xèa"), (Ids{3, 5, 1}));
  const BpeModel absent = model(R"("unk_token": "!",)");
  EXPECT_EQ(encode(absent, "aa"), (Ids{2}));
  expect_error([&] { encode(absent, "ax"); }, ErrorCode::kBadFile,
               "unk_token \"!\" is not in the vocabulary either");
}

// Encodes as the definition says, in quadratic time.
Ids by_definition(std::string_view word, const std::map<std::string, int>& vocab,
                  const std::vector<std::pair<std::string, std::string>>& merges) {
  std::vector<std::string> symbols;
  for (size_t at = 0; at < word.size();) {
    const size_t begin = at;
    (void)next_char(word, at);
    symbols.emplace_back(word.substr(begin, at - begin));
  }
  while (true) {
    size_t best_rank = merges.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank] == std::pair(symbols[i], symbols[i + 1])) {
          best_rank = rank;
          best = i;
        }
      }
    }
    if (best_rank == merges.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  Ids ids;
  for (const std::string& symbol : symbols) ids.push_back(vocab.at(symbol));
  return ids;
}

TEST(Bpe, EncodesAsTheDefinitionSays) {
  std::mt19937 random(20240607);
  SCOPED_TRACE("seed 20240607");
  const std::vector<std::string> letters = {"a", "b", "é", "▁", "😀"};
  for (int round = 0; round < 60; ++round) {
    std::map<std::string, int> vocab;
    std::vector<std::pair<std::string, std::string>> merges;
    std::vector<std::string> tokens = letters;
    for (const std::string& letter : letters) vocab.emplace(letter, vocab.size());
    for (int i = 0; i < 12; ++i) {
      const std::string& left = tokens[random() % tokens.size()];
      const std::string& right = tokens[random() % tokens.size()];
      if (!vocab.emplace(left + right, vocab.size()).second) continue;
      merges.emplace_back(left, right);
      tokens.push_back(left + right);
    }
    std::shuffle(merges.begin(), merges.end(), random);
    const BpeModel model(
        Json{{"type", "BPE"}, {"vocab", vocab}, {"merges", Json(merges)}, {"unk_token", nullptr}},
        "model");
    for (const int length : {0, 1, 2, 5, 31, 32, 33, 34, 120}) {
      std::string word;
      for (int i = 0; i < length; ++i) word += letters[random() % letters.size()];
      EXPECT_EQ(encode(model, word), by_definition(word, vocab, merges)) << word;
    }
  }
}

TEST(Bpe, AMillionRepeatsOfOneCharacter) {
  const BpeModel model = parse(R"({"type": "BPE", "vocab": {"a": 0, "aa": 1, "aaaa": 2,
      "aaa": 3, "b": 4}, "merges": ["a a", "aa aa", "aa a"]})");
  const auto begin = std::chrono::steady_clock::now();
  const Ids ids = encode(model, std::string(1000003, 'a') + "b");
  EXPECT_EQ(ids.size(), 250002U);
  EXPECT_EQ(ids[249999], 2);
  EXPECT_EQ(ids[250000], 3);
  EXPECT_EQ(ids[250001], 4);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
}

}  // namespace
}  // namespace lpcd::text
