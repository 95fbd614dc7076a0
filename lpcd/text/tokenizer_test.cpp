#include "lpcd/text/tokenizer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "lpcd/base/json.h"
#include "lpcd/io/file.h"
#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace lpcd::text {
namespace {

using testing::shared_dir;
using testing::TemporaryDirectory;
using Ids = std::vector<int32_t>;

Ids encode(const Tokenizer& tokenizer, std::string_view text) {
  return tokenizer.encode(text, SpecialTokens::kNone);
}

constexpr int kFirstAdded = 103;  // id of the first added token beside the characters of Parts

// A tokenizer whose tokens are single characters, so that ids show what the other parts do to a
// text. Added tokens show as <0>, <1> and so on.
class Parts {
 public:
  explicit Parts(std::string_view parts) {
    Json root = parse_json(parts, "parts");
    Json vocab = Json::object();
    int32_t id = 0;
    for (char c = ' '; c <= '~'; ++c) vocab[std::string(1, c)] = id++;
    for (const char* extra : {"é", "▁", "Ġ", "Ċ", "Ã", "©", "\n", "ß"}) vocab[extra] = id++;
    root["model"] = {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}};
    tokenizer_.emplace(Tokenizer::from_json(dump_json(root), "parts"));
    for (const auto& [token, token_id] : vocab.items()) names_[token_id.get<int32_t>()] = token;
  }

  // The characters that reach the model.
  [[nodiscard]] std::string characters(std::string_view text) const {
    std::string out;
    for (const int32_t id : encode(*tokenizer_, text)) {
      const auto it = names_.find(id);
      out += it == names_.end() ? fmt::format("<{}>", id - kFirstAdded) : it->second;
    }
    return out;
  }

 private:
  std::optional<Tokenizer> tokenizer_;
  std::map<int32_t, std::string> names_;
};

TEST(Tokenizer, GapsBetweenIdsAreNoOrdinaryTokens) {
  const Tokenizer tokenizer = Tokenizer::from_json(
      R"({"added_tokens": [{"id": 2, "content": "<s>", "special": true}],
          "model": {"type": "BPE", "vocab": {"a": 0, "b": 3, "<s>": 2}, "merges": []}})",
      "t.json");
  EXPECT_EQ(tokenizer.vocab_size(), 4);
  EXPECT_TRUE(tokenizer.is_ordinary(0));
  EXPECT_FALSE(tokenizer.is_ordinary(1));
  EXPECT_FALSE(tokenizer.is_ordinary(2));
  EXPECT_TRUE(tokenizer.is_ordinary(3));
}

TEST(Tokenizer, Normalizers) {
  const auto run = [](std::string_view normalizer, std::string_view text) {
    return Parts(fmt::format(R"({{"normalizer": {}}})", normalizer)).characters(text);
  };
  EXPECT_EQ(run("null", "a b"), "a b");
  EXPECT_EQ(run(R"({"type": "NFC"})", "e\u0301"), "é");
  EXPECT_EQ(run(R"({"type": "NFKC"})", "ﬁ"), "fi");
  EXPECT_EQ(run(R"({"type": "Lowercase"})", "ABÉ"), "abé");
  EXPECT_EQ(run(R"({"type": "Prepend", "prepend": "▁"})", "a"), "▁a");
  EXPECT_EQ(run(R"({"type": "Prepend", "prepend": "▁"})", ""), "");
  EXPECT_EQ(run(R"({"type": "Replace", "pattern": {"String": "ab"}, "content": "x"})", "abaab"),
            "xax");
  EXPECT_EQ(run(R"({"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""})", "baaac"),
            "bc");
  EXPECT_EQ(run(R"({"type": "Strip", "strip_left": true, "strip_right": true})", " \u3000a b\n "),
            "a b");
  EXPECT_EQ(run(R"({"type": "Strip", "strip_left": false, "strip_right": true})", " a "), " a");
  EXPECT_EQ(run(R"({"type": "Sequence", "normalizers": [{"type": "Lowercase"},
      {"type": "Prepend", "prepend": "X"}]})",
                "Y"),
            "Xy");
  EXPECT_EQ(run(R"({"type": "Sequence", "normalizers": []})", "Y"), "Y");
}

// The words of a text in brackets, by a tokenizer that has short ones whole (ignore_merges).
std::string words(std::string_view pre_tokenizer, std::string_view text) {
  Json vocab = Json::object();
  const std::vector<std::string> letters = {"a", "b", "1", " ", "▁", "Ġ", "-"};
  std::vector<std::string> tokens = letters;
  for (size_t i = 0; tokens[i].size() < 9 && i < 400; ++i) {
    for (const std::string& letter : letters) tokens.push_back(tokens[i] + letter);
  }
  for (const std::string& token : tokens) {
    if (!vocab.contains(token)) vocab[token] = vocab.size();
  }
  const Json root = {
      {"model",
       {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}, {"ignore_merges", true}}},
      {"pre_tokenizer", parse_json(pre_tokenizer, "pre")}};
  const Tokenizer tokenizer = Tokenizer::from_json(dump_json(root), "words");
  std::string out;
  for (const int32_t id : encode(tokenizer, text)) {
    out += fmt::format("[{}]", tokenizer.decode(Ids{id}));
  }
  return out;
}

TEST(Tokenizer, SplitBehaviors) {
  const auto run = [](std::string_view behavior, std::string_view invert) {
    return words(fmt::format(R"({{"type": "Split", "pattern": {{"String": "-"}},
        "behavior": "{}", "invert": {}}})",
                             behavior, invert),
                 "-a--b-");
  };
  EXPECT_EQ(run("Removed", "false"), "[a][b]");
  EXPECT_EQ(run("Isolated", "false"), "[-][a][-][-][b][-]");
  EXPECT_EQ(run("MergedWithPrevious", "false"), "[-][a-][-][b-]");
  EXPECT_EQ(run("MergedWithNext", "false"), "[-a][-][-b][-]");
  EXPECT_EQ(run("Contiguous", "false"), "[-][a][--][b][-]");
  EXPECT_EQ(run("Removed", "true"), "[-][-][-][-]");
  EXPECT_EQ(run("MergedWithPrevious", "true"), "[-a][-][-b][-]");
  EXPECT_EQ(run("MergedWithNext", "true"), "[-][a-][-][b-]");
}

TEST(Tokenizer, PreTokenizers) {
  EXPECT_EQ(words("null", "a b"), "[a b]");
  EXPECT_EQ(words(R"({"type": "WhitespaceSplit"})", " a  b "), "[a][b]");
  EXPECT_EQ(words(R"({"type": "Digits", "individual_digits": true})", "a11b"), "[a][1][1][b]");
  EXPECT_EQ(words(R"({"type": "Digits", "individual_digits": false})", "a11b"), "[a][11][b]");
  EXPECT_EQ(words(R"({"type": "Punctuation"})", "a--b"), "[a][-][-][b]");
  EXPECT_EQ(words(R"({"type": "Punctuation", "behavior": "Contiguous"})", "a--b"), "[a][--][b]");
  EXPECT_EQ(words(R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})", "a 1b"),
            "[a][Ġ1][b]");
  EXPECT_EQ(words(R"({"type": "ByteLevel", "add_prefix_space": true, "use_regex": false})", "a b"),
            "[Ġ][a][Ġ][b]");  // one word, too long to be a token here
  constexpr std::string_view kMetaspace =
      R"({{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "{}", "split": {}}})";
  EXPECT_EQ(words(fmt::format(kMetaspace, "always", true), "a b  "), "[▁a][▁b][▁][▁]");
  EXPECT_EQ(words(fmt::format(kMetaspace, "always", true), " a"), "[▁a]");
  EXPECT_EQ(words(fmt::format(kMetaspace, "never", true), "a b"), "[a][▁b]");
  EXPECT_EQ(words(fmt::format(kMetaspace, "first", false), "a"), "[▁a]");
  EXPECT_EQ(words(R"({"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "1"}, "behavior": "Isolated", "invert": false},
      {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}]})",
                  "a1b"),
            "[▁a][1][b]");
}

constexpr std::string_view kAddedTokens = R"({{"added_tokens": [{}], "normalizer": {}}})";
std::string added(int place, std::string_view content, std::string_view flags) {
  return fmt::format(R"({{"id": {}, "content": "{}", {}}})", kFirstAdded + place, content, flags);
}

TEST(Tokenizer, AddedTokensAreCutOutFirstTheLongestOfTheLeftmost) {
  const Parts parts(fmt::format(kAddedTokens,
                                added(0, "<x>", R"("special": true)") + "," +
                                    added(1, "<x><y>", R"("special": true)") + "," +
                                    added(2, "x><y>!!", R"("special": true)"),
                                "null"));
  EXPECT_EQ(parts.characters("a<x><y>b"), "a<1>b");
  EXPECT_EQ(parts.characters("<x><y>!!"), "<1>!!");
  EXPECT_EQ(parts.characters("<x<x>"), "<x<0>");
  EXPECT_EQ(parts.characters("-x><y>!!"), "-<2>");
}

TEST(Tokenizer, AddedTokensTakeWhiteSpaceAndMindWords) {
  const Parts parts(fmt::format(kAddedTokens,
                                added(0, "LL", R"("special": true, "lstrip": true)") + "," +
                                    added(1, "RR", R"("special": true, "rstrip": true)") + "," +
                                    added(2, "WW", R"("special": true, "single_word": true)"),
                                "null"));
  EXPECT_EQ(parts.characters("a  LL  b"), "a<0>  b");
  EXPECT_EQ(parts.characters("a  RR  b"), "a  <1>b");
  EXPECT_EQ(parts.characters("aRR  LLb"), "a<1><0>b");
  EXPECT_EQ(parts.characters("WW aWW WWa -WW- éWWé"), "<2> aWW WWa -<2>- éWWé");
}

TEST(Tokenizer, NormalizedAddedTokensAreFoundInTheNormalizedText) {
  const Parts parts(fmt::format(kAddedTokens,
                                added(0, "Ab", R"("special": false, "normalized": true)") + "," +
                                    added(1, "Cd", R"("special": false, "normalized": false)"),
                                R"({"type": "Lowercase"})"));
  EXPECT_EQ(parts.characters("AB ab CD Cd X"), "<0> <0> cd <1> x");
}

TEST(Tokenizer, MetaspacePrependsAtTheBeginningOfTheTextOnly) {
  const Parts parts(R"({"added_tokens": [{"id": 103, "content": "<s>", "special": true}],
      "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first",
                        "split": false}})");
  EXPECT_EQ(parts.characters("a<s>b"), "▁a<0>b");
  EXPECT_EQ(parts.characters("<s>b c"), "<0>b▁c");
}

constexpr std::string_view kLlama = R"({
  "added_tokens": [
    {"id": 0, "content": "<unk>", "special": true, "normalized": false},
    {"id": 1, "content": "<s>", "special": true, "normalized": false},
    {"id": 2, "content": "</s>", "special": true, "normalized": false}],
  "normalizer": {"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
               {"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
  "decoder": {"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
  "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
    "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<0xC3>": 3, "<0xA9>": 4, "▁": 5, "h": 6, "i": 7,
              "hi": 8, "▁hi": 9, "▁▁": 10},
    "merges": ["h i", "▁ hi", "▁ ▁"]}})";

TEST(Tokenizer, SentencePieceStyle) {
  const Tokenizer tokenizer = Tokenizer::from_json(kLlama, "t");
  EXPECT_EQ(encode(tokenizer, "hi hi"), (Ids{9, 9}));
  EXPECT_EQ(encode(tokenizer, "  hi"), (Ids{10, 9}));
  EXPECT_EQ(encode(tokenizer, "hé</s>hi"), (Ids{5, 6, 3, 4, 2, 9}));
  EXPECT_EQ(encode(tokenizer, "\xFFz"), (Ids{5, 0}));
  EXPECT_EQ(encode(tokenizer, ""), Ids{});
  EXPECT_EQ(tokenizer.encode("hi", SpecialTokens::kAdd), (Ids{1, 9}));
  EXPECT_EQ(tokenizer.encode("", SpecialTokens::kAdd), (Ids{1}));
  EXPECT_EQ(tokenizer.decode(Ids{1, 9, 3, 4, 9, 2}), "hié hi");
  EXPECT_EQ(tokenizer.decode(Ids{3, 9}), "\uFFFD hi");
  EXPECT_EQ(tokenizer.decode(Ids{9, 3, 3}), "hi\uFFFD\uFFFD");
  EXPECT_EQ(tokenizer.decode(Ids{-1, 11, 1 << 30}), "");
  EXPECT_EQ(tokenizer.vocab_size(), 11);
  EXPECT_EQ(tokenizer.leading_id(), 1);
  EXPECT_EQ(tokenizer.end_ids(), (Ids{2}));
  EXPECT_EQ(tokenizer.to_json(), kLlama);
}

TEST(Tokenizer, ByteLevelStyleDropsBytesThatHaveNoToken) {
  const Tokenizer tokenizer = Tokenizer::from_json(R"({
      "added_tokens": [{"id": 5, "content": "<|endoftext|>", "special": true},
                       {"id": 6, "content": "<tool>", "special": false}],
      "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
      "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false},
      "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
      "model": {"type": "BPE", "unk_token": null, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "dropout": null,
        "vocab": {"Ġ": 0, "a": 1, "Ġa": 2, "Ã": 3, "©": 4}, "merges": ["Ġ a"]}})",
                                                   "t");
  EXPECT_EQ(encode(tokenizer, " a aé\x01<tool>"), (Ids{2, 2, 3, 4, 6}));
  EXPECT_EQ(tokenizer.decode(Ids{2, 3, 4, 5, 6, 3, 1}), " aé<tool>\uFFFDa");
  EXPECT_EQ(tokenizer.leading_id(), std::nullopt);
  EXPECT_EQ(tokenizer.end_ids(), (Ids{5}));
  EXPECT_EQ(tokenizer.vocab_size(), 7);
}

TEST(Tokenizer, PostProcessorsNest) {
  const auto tokenizer = [](std::string_view post) {
    return Tokenizer::from_json(
        fmt::format(R"({{"post_processor": {}, "model": {{"type": "BPE", "merges": [],
            "vocab": {{"a": 0, "B": 1, "E": 2}}}}}})",
                    post),
        "t");
  };
  constexpr std::string_view kBoth = R"({"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A"}},
                 {"SpecialToken": {"id": "E", "type_id": 0}}],
      "special_tokens": {"x": {"id": "x", "ids": [1, 2], "tokens": ["B", "E"]},
                         "E": {"id": "E", "ids": [2], "tokens": ["E"]}}})";
  EXPECT_EQ(tokenizer(kBoth).encode("a", SpecialTokens::kAdd), (Ids{1, 2, 0, 2}));
  EXPECT_EQ(
      tokenizer(fmt::format(R"({{"type": "Sequence", "processors": [{}, {}]}})", kBoth, kBoth))
          .encode("a", SpecialTokens::kAdd),
      (Ids{1, 2, 1, 2, 0, 2, 2}));
}

TEST(Tokenizer, Decoders) {
  const auto run = [](std::string_view decoder, const Ids& ids) {
    return Tokenizer::from_json(
               fmt::format(R"({{"decoder": {}, "model": {{"type": "BPE", "merges": [],
            "vocab": {{"▁a": 0, "▁▁": 1, "<0x41>": 2, "<0x+F>": 3, "<0xE2>": 4, "Ġé": 5, "中": 6}}}}}})",
                           decoder),
               "t")
        .decode(ids);
  };
  EXPECT_EQ(run("null", {0, 1, 2}), "▁a ▁▁ <0x41>");
  EXPECT_EQ(run(R"({"type": "Fuse"})", {0, 1, 2}), "▁a▁▁<0x41>");
  EXPECT_EQ(run(R"({"type": "ByteFallback"})", {2, 0, 3, 4, 4, 2}), "A▁a\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(run(R"({"type": "ByteFallback"})", {3, 0}), "\x0F▁a");
  EXPECT_EQ(run(R"({"type": "ByteLevel"})", {5, 6}), " \uFFFD中");
  EXPECT_EQ(run(R"({"type": "Metaspace", "replacement": "▁"})", {0, 0, 1}), "a a  ");
  EXPECT_EQ(run(R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"})", {0, 0}),
            " a a");
  EXPECT_EQ(run(R"({"type": "Strip", "content": "▁", "start": 1, "stop": 1})", {0, 1}), "a");
  EXPECT_EQ(run(R"({"type": "Strip", "content": "▁", "start": 0, "stop": 5})", {0, 1}), "▁a");
  EXPECT_EQ(run(R"({"type": "Replace", "pattern": {"Regex": "▁+"}, "content": "."})", {0, 1}),
            ".a.");
}

TEST(Tokenizer, SeveralThreadsAtOnce) {
  const Tokenizer tokenizer = Tokenizer::from_json(
      R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
          "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE",
          "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4}, "merges": ["a b", "Ġ ab"]}})",
      "t");
  std::string text;
  for (int i = 0; i < 2000; ++i) text += i % 7 == 0 ? " b" : " ab";
  const Ids expected = encode(tokenizer, text);
  std::vector<std::thread> threads;
  std::vector<int> equal(4);
  for (int& result : equal) {
    threads.emplace_back([&] {
      result = encode(tokenizer, text) == expected && tokenizer.decode(expected) == text;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(equal, std::vector<int>(4, 1));
}

TEST(Tokenizer, FromADirectory) {
  const TemporaryDirectory directory;
  EXPECT_FALSE(Tokenizer::from_directory(directory.path()).has_value());
  io::write_file(directory / "tokenizer.json", kLlama);
  EXPECT_EQ(Tokenizer::from_directory(directory.path())->end_ids(), (Ids{2}));
  io::write_file(directory / "tokenizer_config.json", R"({"eos_token": {"content": "hi"}})");
  io::write_file(directory / "generation_config.json", R"({"eos_token_id": [2, 7, 999, "x"]})");
  EXPECT_EQ(Tokenizer::from_directory(directory.path())->end_ids(), (Ids{2, 8, 7}));
  io::write_file(directory / "tokenizer_config.json", R"({"eos_token": "▁▁"})");
  io::write_file(directory / "generation_config.json", R"({"eos_token_id": 9})");
  EXPECT_EQ(Tokenizer::from_directory(directory.path())->end_ids(), (Ids{2, 10, 9}));
}

// Some models say in tokenizer_config.json alone what each text begins with.
TEST(Tokenizer, TokenizerConfigDecidesWhatIsAdded) {
  const TemporaryDirectory directory;
  io::write_file(directory / "tokenizer.json", kLlama);
  const auto encode_with = [&](const std::string& config) {
    io::write_file(directory / "tokenizer_config.json", config);
    return Tokenizer::from_directory(directory.path())->encode("hi", SpecialTokens::kAdd);
  };
  const Ids as_template = encode_with("{}");
  ASSERT_EQ(as_template.front(), 1);
  const Ids text(as_template.begin() + 1, as_template.end());
  // transformers 5 takes a template of tokenizer.json as it is, whatever stands beside it.
  EXPECT_EQ(encode_with(R"({"add_bos_token": false})"), as_template);
  EXPECT_EQ(encode_with(R"({"add_bos_token": true, "bos_token": {"content": "hi"}})"), as_template);
  Ids with_end = as_template;
  with_end.push_back(8);
  EXPECT_EQ(encode_with(R"({"add_eos_token": true, "eos_token": "hi"})"), with_end);
  EXPECT_EQ(Tokenizer::from_directory(directory.path())->trailing_id(), 8);
  Json plain = parse_json(kLlama, "llama");
  plain["post_processor"] = nullptr;
  io::write_file(directory / "tokenizer.json", dump_json(plain));
  Ids with_start = text;
  with_start.insert(with_start.begin(), 8);
  EXPECT_EQ(encode_with(R"({"add_bos_token": true, "bos_token": {"content": "hi"}})"), with_start);
  EXPECT_EQ(encode_with(R"({"add_bos_token": true, "bos_token": "gone"})"), text);
  EXPECT_EQ(encode_with(R"({"add_bos_token": null, "bos_token": "hi"})"), text);
}

TEST(Tokenizer, SharedModels) {
  const auto shared = shared_dir();
  if (!shared) GTEST_SKIP() << "there is no shared test data";
  const auto tokenizer = Tokenizer::from_directory(*shared + "/models/story-llama");
  ASSERT_TRUE(tokenizer.has_value());
  EXPECT_EQ(tokenizer->vocab_size(), 2048);
  EXPECT_EQ(tokenizer->leading_id(), 1);
  const Ids ids = encode(*tokenizer, "Once upon a time, there was a fox.");
  EXPECT_EQ(tokenizer->decode(ids), "Once upon a time, there was a fox.");
  EXPECT_LT(ids.size(), 15U);
}

}  // namespace
}  // namespace lpcd::text
