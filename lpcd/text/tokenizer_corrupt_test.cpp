#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "lpcd/base/json.h"
#include "lpcd/text/tokenizer.h"
#include "tests/support/errors.h"
#include "tests/support/mutate.h"

namespace lpcd::text {
namespace {

using testing::expect_error;

constexpr std::string_view kModel =
    R"({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3}, "merges": ["a b"]})";

// A tokenizer.json with the given parts beside a sound model.
std::string with(std::string_view parts) {
  return fmt::format(R"({{{}, "model": {}}})", parts, kModel);
}

std::string model(std::string_view vocab, std::string_view merges, std::string_view rest = "") {
  return fmt::format(R"({{"model": {{"type": "BPE", "vocab": {}, "merges": {}{}}}}})", vocab,
                     merges, rest);
}

struct Refused {
  std::string json;
  ErrorCode code;
  std::string_view message;
};

void expect_refused(const std::vector<Refused>& cases) {
  for (const Refused& c : cases) {
    SCOPED_TRACE(c.json.substr(0, 200));
    expect_error([&] { (void)Tokenizer::from_json(c.json, "t.json"); }, c.code, c.message);
    expect_error([&] { (void)Tokenizer::from_json(c.json, "t.json"); }, c.code, "t.json: ");
  }
}

constexpr ErrorCode kBad = ErrorCode::kBadFile;
constexpr ErrorCode kUnsupported = ErrorCode::kUnsupportedModel;

TEST(CorruptTokenizer, TheFileAsAWhole) {
  std::string deep = "1";
  for (int i = 0; i < 100; ++i) deep = "[" + deep + "]";
  expect_refused({
      {"", kBad, "not valid JSON"},
      {"[]", kBad, "must be a JSON object, found array"},
      {"{}", kBad, "missing \"model\"; is this a tokenizer.json?"},
      {R"({"model": null})", kBad, "missing \"model\""},
      {R"({"model": [1]})", kBad, "model: must be a JSON object"},
      {with(R"("version": "2.0")"), kUnsupported, "version \"2.0\" is not supported"},
      {with(R"("version": 1)"), kBad, "version must be a string"},
      {with("\"normalizer\": " + deep), kBad, "nested deeper than"},
      {with(R"("a": 1, "a": 2)"), kBad, "appears twice in one object"},
      {with(R"("a": "\ud800")"), kBad, "not valid JSON"},         // lone surrogate
      {with("\"a\": \"\xED\xA0\x80\""), kBad, "not valid JSON"},  // the same as UTF-8
      {with("\"a\": \"\xFF\""), kBad, "not valid JSON"},
  });
}

TEST(CorruptTokenizer, Models) {
  expect_refused({
      {R"({"model": {"type": "Unigram", "vocab": []}})", kUnsupported,
       "model: type \"Unigram\" is not supported; supported are BPE"},
      {R"({"model": {"vocab": {"a": 0}}})", kUnsupported, "type \"without merges\""},
      {R"({"model": {"type": "BPE", "merges": []}})", kBad, "missing \"vocab\""},
      {R"({"model": {"type": "BPE", "vocab": {"a": 0}}})", kBad, "missing \"merges\""},
      {model("{}", "[]"), kBad, "vocab is empty"},
      {model("[\"a\"]", "[]"), kBad, "vocab must be an object"},
      {model(R"({"a": -1})", "[]"), kBad, R"(vocab["a"] must be an integer from 0 to 9999999)"},
      {model(R"({"a": 10000000})", "[]"), kBad, "found \"10000000\""},
      {model(R"({"a": 18446744073709551615})", "[]"), kBad, "vocab[\"a\"] must be an integer"},
      {model(R"({"a": 1e400})", "[]"), kBad, "not valid JSON"},
      {model(R"({"a": 1.5})", "[]"), kBad, "found \"1.5\""},
      {model(R"({"a": "0"})", "[]"), kBad, R"(found ""0"")"},
      {model(R"({"a": null})", "[]"), kBad, "found \"null\""},
      {model(R"({"a": 0, "b": 0})", "[]"), kBad, "vocab gives id 0 to \"a\" and to \"b\""},
      {model(R"({"a": 0})", "{}"), kBad, "merges must be an array"},
      {model(R"({"a": 0})", "[\"a b\"]"), kBad,
       R"(merges[0] joins "a" and "b", but "b" is not in the vocabulary)"},
      {model(R"({"a": 0})", "[\"a a\"]"), kBad, "but \"aa\" is not in the vocabulary"},
      {model(R"({"a": 0})", "[\"" + std::string(2000, 'a') + " a\"]"), kBad,
       "is not in the vocabulary"},
      {model(R"({"a": 0})", "[\"aa\"]"), kBad, "merges[0] must be \"left right\""},
      {model(R"({"a": 0, "aa": 1})", "[\"a a\", \"a a a\"]"), kBad, "merges[1] must be"},
      {model(R"({"a": 0, "aa": 1})", R"([["a", "a"], "a a"])"), kBad, "merges[1] must be"},
      {model(R"({"a": 0, "aa": 1})", R"(["a a", ["a", "a"]])"), kBad, "merges[1] must be"},
      {model(R"({"a": 0, "aa": 1})", R"([["a", "a", "a"]])"), kBad, "merges[0] must be"},
      {model(R"({"a": 0, "aa": 1})", R"([["a", 1]])"), kBad, "merges[0] must be"},
      {model(R"({"a": 0})", "[7]"), kBad, "merges[0] must be"},
      {model(R"({"a": 0})", "[]", R"(, "dropout": 0.1)"), kUnsupported,
       "dropout 0.1 makes ids random"},
      {model(R"({"a": 0})", "[]", R"(, "dropout": "x")"), kBad, "dropout must be a finite number"},
      {model(R"({"a": 0})", "[]", R"(, "continuing_subword_prefix": "##")"), kUnsupported,
       "continuing_subword_prefix and end_of_word_suffix are not supported"},
      {model(R"({"a": 0})", "[]", R"(, "end_of_word_suffix": "</w>")"), kUnsupported,
       "end_of_word_suffix are not supported"},
      {model(R"({"a": 0})", "[]", R"(, "byte_fallback": 1)"), kBad,
       "byte_fallback must be true or false"},
      {model(R"({"a": 0})", "[]", R"(, "unk_token": 0)"), kBad, "unk_token must be a string"},
  });
}

TEST(CorruptTokenizer, AddedTokens) {
  const auto added = [](std::string_view list) {
    return with(fmt::format(R"("added_tokens": {})", list));
  };
  expect_refused({
      {added("{}"), kBad, "added_tokens: must be an array, found object"},
      {added("[1]"), kBad, "added_tokens[0]: must be a JSON object"},
      {added(R"([{"id": 4}])"), kBad, "added_tokens[0]: missing \"content\""},
      {added(R"([{"content": "x"}])"), kBad, "missing \"id\""},
      {added(R"([{"id": -1, "content": "x"}])"), kBad, "id must be an integer from 0 to 9999999"},
      {added(R"([{"id": 99999999999, "content": "x"}])"), kBad, "id must be an integer"},
      {added(R"([{"id": 4, "content": ""}])"), kBad, "content must have 1 to 1024 bytes, found 0"},
      {added(fmt::format(R"([{{"id": 4, "content": "{}"}}])", std::string(2000, 'x'))), kBad,
       "content must have 1 to 1024 bytes, found 2000"},
      {added(R"([{"id": 4, "content": "x"}, {"id": 5, "content": "x"}])"), kBad,
       "added_tokens[1]: \"x\" appears twice"},
      {added(R"([{"id": 9, "content": "x"}])"), kBad,
       "\"x\" has id 9, but by its place in the file and the vocabulary it is 4"},
      {added(R"([{"id": 4, "content": "<s>"}])"), kBad, "it is 3"},
      {added(R"([{"id": 4, "content": "x", "special": "yes"}])"), kBad,
       "special must be true or false"},
      {R"({"added_tokens": [{"id": 1, "content": "x"}],
           "model": {"type": "BPE", "vocab": {"a": 1}, "merges": []}})",
       kBad, "id 1 of \"x\" is that of \"a\", too"},
      {with(R"("normalizer": {"type": "Lowercase"}, "added_tokens": [
          {"id": 4, "content": "x", "normalized": true}, {"id": 5, "content": "X"}])"),
       kBad, "\"X\" normalizes to \"x\", which is empty or another token"},
      {with(R"("normalizer": {"type": "Strip", "strip_left": true, "strip_right": true},
          "added_tokens": [{"id": 4, "content": " ", "normalized": true}])"),
       kBad, "\" \" normalizes to \"\""},
  });
}

TEST(CorruptTokenizer, Components) {
  const auto pre = [](std::string_view json) {
    return with(fmt::format(R"("pre_tokenizer": {})", json));
  };
  std::string nested = R"({"type": "Digits", "individual_digits": true})";
  for (int i = 0; i < 12; ++i) {
    nested = fmt::format(R"({{"type": "Sequence", "pretokenizers": [{}]}})", nested);
  }
  expect_refused({
      {with(R"("normalizer": {"type": "BertNormalizer"})"), kUnsupported,
       "normalizer: type \"BertNormalizer\" is not supported; supported are Sequence, NFC"},
      {with(R"("normalizer": {})"), kBad, "normalizer: missing \"type\""},
      {with(R"("normalizer": 3)"), kBad, "normalizer: must be a JSON object"},
      {with(R"("normalizer": {"type": "Sequence", "normalizers": [{"type": "Nmt"}]})"),
       kUnsupported, "normalizer.normalizers[0]: type \"Nmt\""},
      {with(R"("normalizer": {"type": "Replace", "pattern": "x", "content": ""})"), kBad,
       "pattern must be an object"},
      {with(R"("normalizer": {"type": "Replace", "pattern": {}, "content": ""})"), kBad,
       "must be {\"String\": ..} or {\"Regex\": ..}"},
      {with(R"("normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": ""})"), kBad,
       "String must not be empty"},
      {with(R"("normalizer": {"type": "Replace", "pattern": {"String": "x"}})"), kBad,
       "missing \"content\""},
      {pre(R"({"type": "UnicodeScripts"})"), kUnsupported, "type \"UnicodeScripts\""},
      {pre(R"({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"})"), kBad,
       "pre_tokenizer.pattern: malformed pattern, unmatched ("},
      {pre(R"({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Drop"})"), kBad,
       "behavior must be Removed, Isolated"},
      {pre(R"({"type": "Split", "pattern": {"Regex": "a"}})"), kBad, "missing \"behavior\""},
      {pre(R"({"type": "ByteLevel"})"), kBad, "missing \"add_prefix_space\""},
      {pre(R"({"type": "Metaspace", "replacement": "__"})"), kBad,
       "replacement must be one character, found \"__\""},
      {pre(R"({"type": "Metaspace", "replacement": ""})"), kBad, "must be one character"},
      {pre(R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "last"})"), kBad,
       "prepend_scheme must be always, first or never"},
      {pre(nested), kBad, "sequences nested too deep"},
      {with(R"("decoder": {"type": "WordPiece"})"), kUnsupported, "decoder: type \"WordPiece\""},
      {with(R"("decoder": {"type": "Strip", "content": " ", "start": -1, "stop": 0})"), kBad,
       "start must be an integer from 0"},
      {with(R"("decoder": {"type": "Sequence", "decoders": {}})"), kBad,
       "decoders must be an array"},
  });
}

TEST(CorruptTokenizer, PostProcessors) {
  const auto post = [](std::string_view single, std::string_view special) {
    return with(fmt::format(
        R"("post_processor": {{"type": "TemplateProcessing", "single": {}, "special_tokens": {}}})",
        single, special));
  };
  constexpr std::string_view kText = R"({"Sequence": {"id": "A", "type_id": 0}})";
  const std::string front = fmt::format(R"([{{"SpecialToken": {{"id": "<s>"}}}}, {}])", kText);
  expect_refused({
      {with(R"("post_processor": {"type": "RobertaProcessing"})"), kUnsupported,
       "post_processor: type \"RobertaProcessing\""},
      {post(front, "{}"), kBad, "special_tokens does not define \"<s>\", which single names"},
      {post(front, R"({"<s>": {"ids": [99], "tokens": ["<s>"]}})"), kBad,
       "\"<s>\" has id 99 here, but 3 in the vocabulary"},
      {post(front, R"({"<s>": {"ids": [4], "tokens": ["<bos>"]}})"), kBad,
       "\"<bos>\" has id 4 here, but none in the vocabulary"},
      {post(front, R"({"<s>": {"ids": [3, 3], "tokens": ["<s>"]}})"), kBad, "2 ids for 1 tokens"},
      {post(front, R"({"<s>": {"ids": [-3], "tokens": ["<s>"]}})"), kBad, "ids must be integers"},
      {post(front, R"({"<s>": {"ids": ["3"], "tokens": ["<s>"]}})"), kBad, "ids must be integers"},
      {post(front, R"({"<s>": 3})"), kBad, "must be a JSON object"},
      {post("[]", "{}"), kUnsupported, "single has the text 0 times"},
      {post(fmt::format("[{}, {}]", kText, kText), "{}"), kUnsupported,
       "single has the text 2 times"},
      {post(R"([{"Sequence": {"id": "B"}}])", "{}"), kBad, "Sequence must be A"},
      {post(R"([{"Token": {}}])", "{}"), kBad, "missing \"SpecialToken\""},
      {post("{}", "{}"), kBad, "single must be an array"},
  });
}

// `count` times the step, as a sequence of the kind whose list has that name.
std::string sequence_of(int count, std::string_view list, std::string_view step) {
  std::string steps;
  for (int i = 0; i < count; ++i) steps += fmt::format("{}{}", i == 0 ? "" : ", ", step);
  return fmt::format(R"({{"type": "Sequence", "{}": [{}]}})", list, steps);
}

constexpr std::string_view kDouble =
    R"({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"})";
constexpr std::string_view kToBytes =
    R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false})";

// A piece of text goes through the steps of a pre-tokenizer by recursion.
TEST(CorruptTokenizer, MoreStepsThanAnyTokenizerHas) {
  constexpr std::string_view kDigits = R"({"type": "Digits", "individual_digits": true})";
  constexpr std::string_view kSame =
      R"({"type": "Replace", "pattern": {"String": "a"}, "content": "a"})";
  const auto pre = [&](int count) {
    return with("\"pre_tokenizer\": " + sequence_of(count, "pretokenizers", kDigits));
  };
  const auto normalizer = [&](int count) {
    return with("\"normalizer\": " + sequence_of(count, "normalizers", kSame));
  };
  const auto decoder = [&](int count) {
    return with("\"decoder\": " + sequence_of(count, "decoders", kSame));
  };
  const auto post = [&](int count) {
    return with(
        "\"post_processor\": " +
        sequence_of(count, "processors",
                    R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}},
                        {"Sequence": {"id": "A"}}],
                        "special_tokens": {"<s>": {"ids": [3], "tokens": ["<s>"]}}})"));
  };
  for (const std::string& json : {pre(64), normalizer(256), decoder(256), post(1024)}) {
    const Tokenizer tokenizer = Tokenizer::from_json(json, "t.json");
    EXPECT_EQ(tokenizer.encode("ab", SpecialTokens::kNone), (std::vector<int32_t>{2}));
  }
  expect_refused({
      {pre(50'000), kBad, "pre_tokenizer.pretokenizers[64]: more than 64 steps"},
      {normalizer(257), kBad, "normalizer.normalizers[256]: more than 256 steps"},
      {decoder(257), kBad, "decoder.decoders[256]: more than 256 steps"},
      {post(1025), kBad, "adds more than 1024 tokens to each text"},
  });
}

TEST(CorruptTokenizer, StepsThatGrowATextWithoutBoundAreAnErrorWhenTheyAreUsed) {
  // Each mark is a piece of its own that gets the other mark.
  constexpr std::string_view kMarks =
      R"({"type": "Metaspace", "replacement": "_", "split": false}, {"type": "Punctuation"},
         {"type": "Metaspace", "replacement": "-", "split": false}, {"type": "Punctuation"})";
  const std::string long_prefix =
      fmt::format(R"({{"type": "Prepend", "prepend": "{}"}})", std::string(1 << 16, 'a'));
  for (const std::string& parts :
       {"\"normalizer\": " + sequence_of(40, "normalizers", kDouble),
        "\"normalizer\": " + sequence_of(40, "normalizers", long_prefix),
        "\"pre_tokenizer\": " + sequence_of(40, "pretokenizers", kToBytes),
        "\"pre_tokenizer\": " + sequence_of(16, "pretokenizers", kMarks)}) {
    const Tokenizer tokenizer = Tokenizer::from_json(with(parts), "t.json");
    EXPECT_TRUE(tokenizer.encode("", SpecialTokens::kNone).empty());
    expect_error([&] { (void)tokenizer.encode("a\u00e9a", SpecialTokens::kNone); }, kBad,
                 "t.json: the steps of the tokenizer add more than 1048704 bytes to a text of 4");
  }
  const Tokenizer decoding =
      Tokenizer::from_json(with("\"decoder\": " + sequence_of(40, "decoders", kDouble)), "t.json");
  expect_error([&] { (void)decoding.decode(std::vector<int32_t>{0, 0}); }, kBad,
               "t.json: the steps of the tokenizer add");
  expect_refused({{with("\"normalizer\": " + sequence_of(40, "normalizers", kDouble) +
                        R"(, "added_tokens": [{"id": 4, "content": "aa", "normalized": true}])"),
                   kBad, "added_tokens: the steps of the tokenizer add"}});
}

// U+FDFA becomes 33 bytes by NFKC, and each of them two by ByteLevel.
TEST(CorruptTokenizer, WhatRealStepsAddToATextIsWithinTheBounds) {
  const Tokenizer tokenizer =
      Tokenizer::from_json(fmt::format(R"({{"normalizer": {{"type": "NFKC"}}, "pre_tokenizer": {},
                      "model": {{"type": "BPE", "vocab": {{"<unk>": 0}}, "merges": [],
                                 "unk_token": "<unk>"}}}})",
                                       kToBytes),
                           "t.json");
  std::string text;
  for (int i = 0; i < 100'000; ++i) text += "\uFDFA";
  EXPECT_EQ(tokenizer.encode(text, SpecialTokens::kNone).size(), 3'300'000U);
}

TEST(CorruptTokenizer, APatternThatHangsOthersIsAnErrorWhenItIsUsed) {
  const Tokenizer tokenizer = Tokenizer::from_json(
      with(R"("pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|ab|b)*c"},
                                 "behavior": "Isolated", "invert": false})"),
      "t.json");
  EXPECT_EQ(tokenizer.encode("abc", SpecialTokens::kNone), (std::vector<int32_t>{2}));
  std::string text;
  for (int i = 0; i < 60; ++i) text += "ab";
  expect_error([&] { (void)tokenizer.encode(text + "\nc", SpecialTokens::kNone); }, kBad,
               "t.json: pre_tokenizer.pattern: the pattern \"(a|ab|b)*c\" takes too many steps");
}

TEST(CorruptTokenizer, ErrorsAreOnePrintableLine) {
  try {
    (void)Tokenizer::from_json(
        R"({"model": {"type": "B\u0007\n\u0085", "vocab": {}, "merges": []}})", "t.json");
    FAIL();
  } catch (const Error& error) {
    for (const char c : error.message()) EXPECT_TRUE(c >= 0x20 || c < 0) << error.message();
  }
}

// Damaged files are read or refused, and what is read can be used.
void expect_read_or_refused(const std::string& json) {
  try {
    const Tokenizer tokenizer = Tokenizer::from_json(json, "t.json");
    const std::vector<int32_t> ids = tokenizer.encode("ab <s>é\xFF 12  </s>", SpecialTokens::kAdd);
    (void)tokenizer.decode(ids);
    (void)tokenizer.end_ids();
  } catch (const Error&) {
  }
}

TEST(CorruptTokenizer, DamagedFilesAreReadOrRefused) {
  const std::vector<std::string> seeds = {
      with(R"("version": "1.0", "added_tokens": [{"id": 3, "content": "<s>", "special": true,
        "lstrip": true, "normalized": false}, {"id": 4, "content": "</s>", "special": false}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"},
          {"type": "Prepend", "prepend": "▁"},
          {"type": "Replace", "pattern": {"Regex": " +"}, "content": "▁"}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"},
        "post_processor": {"type": "TemplateProcessing",
          "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
          "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"},
          {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})"),
      fmt::format(R"({{"pre_tokenizer": {{"type": "Sequence", "pretokenizers": [
        {{"type": "Digits", "individual_digits": true}},
        {{"type": "Split", "pattern": {{"Regex": "(?i:'s|'ll)|[^\\r\\n\\p{{L}}]?\\p{{L}}+|\\p{{N}}{{1,3}}|\\s+(?!\\S)|\\s+"}},
          "behavior": "MergedWithPrevious", "invert": true}},
        {{"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}}]}},
        "decoder": {{"type": "ByteLevel"}}, "model": {}}})",
                  kModel),
      model(R"({"<unk>": 0, "a": 1, "b": 2, "ab": 3, "<0xFF>": 4})", R"([["a", "b"]])",
            R"(, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
               "ignore_merges": true, "dropout": null)"),
  };
  std::mt19937 random(7);
  SCOPED_TRACE("seed 7");
  const auto begin = std::chrono::steady_clock::now();
  const size_t before = testing::peak_resident_bytes();
  for (int i = 0; i < 60000; ++i) {
    const std::string& seed = seeds[static_cast<size_t>(i) % seeds.size()];
    expect_read_or_refused(testing::mutate(seed, seed.size(), random));
  }
  testing::expect_modest_growth(before);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(200));
}

// Changes values in place, so that more of the damage gets past the JSON parser.
void damage(Json& value, std::mt19937& random) {
  static const std::vector<Json> kValues = {
      nullptr,       true,          -1, 0, 3, 1e9, 1ULL << 63, "", "<s>", "a b", "(a*)*",
      Json::array(), Json::object()};
  if ((value.is_object() || value.is_array()) && !value.empty() && random() % 8 != 0) {
    auto it = value.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(random() % value.size()));
    if (random() % 12 == 0) {
      value.erase(it);
    } else {
      damage(*it, random);
    }
  } else {
    value = kValues[random() % kValues.size()];
  }
}

TEST(CorruptTokenizer, WrongValuesAreReadOrRefused) {
  const Json seed = parse_json(
      with(R"("version": "1.0", "truncation": null, "added_tokens": [{"id": 3, "content": "<s>",
        "special": true, "rstrip": true, "single_word": true, "normalized": true}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"},
          {"type": "Strip", "strip_left": true, "strip_right": false},
          {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
          {"type": "Split", "pattern": {"Regex": "\\s*b|a"}, "behavior": "MergedWithNext",
           "invert": false}, {"type": "Punctuation", "behavior": "Contiguous"},
          {"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}]},
        "post_processor": {"type": "Sequence", "processors": [{"type": "TemplateProcessing",
          "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
          "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}}]},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"})"),
      "seed");
  std::mt19937 random(8);
  SCOPED_TRACE("seed 8");
  for (int i = 0; i < 20000; ++i) {
    Json damaged = seed;
    for (auto changes = 1 + random() % 3; changes > 0; --changes) damage(damaged, random);
    expect_read_or_refused(dump_json(damaged));
  }
}

}  // namespace
}  // namespace lpcd::text
