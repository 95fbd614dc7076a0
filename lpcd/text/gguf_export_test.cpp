#include "lpcd/text/gguf_export.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "lpcd/base/json.h"
#include "lpcd/io/file.h"
#include "lpcd/text/tokenizer.h"
#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace lpcd::text {
namespace {

using lpcd::testing::TemporaryDirectory;

constexpr const char* kByteLevel =
    R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true})";

std::string sequence(const std::string& first, const std::string& second) {
  return R"({"type":"Sequence","pretokenizers":[)" + first + "," + second + "]}";
}

std::string split(const std::string& regex) {
  return dump_json({{"type", "Split"},
                    {"pattern", {{"Regex", regex}}},
                    {"behavior", "Isolated"},
                    {"invert", false}});
}

constexpr const char* kQwenWords =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3Words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

TEST(PreName, RecognisesTheKnownTokenizers) {
  const std::string bytes =
      R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":false})";
  EXPECT_EQ(pre_name(kByteLevel), "gpt-2");
  EXPECT_EQ(pre_name(sequence(R"({"type":"Digits","individual_digits":true})", kByteLevel)),
            "smollm");
  EXPECT_EQ(pre_name(sequence(split(kQwenWords), bytes)), "qwen2");
  EXPECT_FALSE(pre_name(sequence(split("[a-z]+"), bytes)));
  EXPECT_FALSE(pre_name("null"));
  // Llama 3's words, of which one that is a token as a whole is taken as it is, or not.
  EXPECT_EQ(pre_name(sequence(split(kLlama3Words), bytes), true), "llama-bpe");
  EXPECT_EQ(pre_name(sequence(split(kLlama3Words), bytes), false), "smaug-bpe");
  EXPECT_FALSE(pre_name(sequence(split(kQwenWords), bytes), true));
}

TEST(ExportVocabulary, ByteLevelBpe) {
  const TemporaryDirectory dir;
  const Json json = {{"version", "1.0"},
                     {"added_tokens",
                      {{{"id", 3}, {"content", "<|end|>"}, {"special", true}},
                       {{"id", 4}, {"content", "<tool>"}, {"special", false}}}},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", parse_json(kByteLevel, "x")},
                     {"post_processor", nullptr},
                     {"decoder", nullptr},
                     {"model",
                      {{"type", "BPE"},
                       {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}}},
                       {"merges", Json::array({Json::array({"a", "b"})})}}}};
  io::write_file(dir / "tokenizer.json", dump_json(json));
  io::write_file(dir / "tokenizer_config.json",
                 R"({"eos_token":{"content":"<|end|>"},"pad_token":"<|end|>",
                     "chat_template":"{{ messages }}"})");
  const auto exported = export_vocabulary(dir.path(), 7);
  ASSERT_TRUE(exported);
  const GgufVocabulary& v = exported->vocabulary;
  EXPECT_EQ(v.model, "gpt2");
  EXPECT_EQ(v.pre, "gpt-2");
  EXPECT_EQ(v.tokens,
            (std::vector<std::string>{"a", "b", "ab", "<|end|>", "<tool>", "[PAD5]", "[PAD6]"}));
  EXPECT_EQ(v.token_types, (std::vector<int64_t>{1, 1, 1, 3, 4, 5, 5}));
  EXPECT_EQ(v.merges, std::vector<std::string>{"a b"});
  EXPECT_EQ(v.eos_id, 3);
  EXPECT_EQ(exported->padding_id, 3);
  EXPECT_EQ(v.add_bos, false);
  EXPECT_EQ(exported->chat_template, "{{ messages }}");
  io::write_file(dir / "chat_template.json", R"({"chat_template": "{{ tools }}"})");
  EXPECT_EQ(export_vocabulary(dir.path(), 7)->chat_template, "{{ messages }}");
  io::write_file(dir / "tokenizer_config.json", R"({"eos_token":"<|end|>"})");
  EXPECT_EQ(export_vocabulary(dir.path(), 7)->chat_template, "{{ tools }}");
  EXPECT_TRUE(exported->pre_is_known);
  EXPECT_FALSE(export_vocabulary(dir / "nowhere", 7));
  lpcd::testing::expect_error([&] { (void)export_vocabulary(dir.path(), 2); }, ErrorCode::kBadFile,
                              "outside the model's 2 embeddings");
}

// What llama.cpp's converter makes of added tokens.
TEST(ExportVocabulary, AddedTokensAreTypedByTheirLooks) {
  const TemporaryDirectory dir;
  Json added = Json::array();
  for (const char* token : {"<|fim_prefix|>", "<\uFF5CUser\uFF5C>", "<unused7>", "<pad>", "<tool>",
                            "\u2581two\u2581words", "[no row]"}) {
    added.push_back({{"id", 3 + added.size()}, {"content", token}, {"special", false}});
  }
  Json json = {
      {"version", "1.0"},
      {"added_tokens", added},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"decoder", nullptr},
      {"model",
       {{"type", "BPE"}, {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}}}, {"merges", {"a b"}}}}};
  const auto write = [&] { io::write_file(dir / "tokenizer.json", dump_json(json)); };
  write();
  const GgufVocabulary v = export_vocabulary(dir.path(), 9)->vocabulary;
  EXPECT_EQ(v.token_types, (std::vector<int64_t>{1, 1, 1, 3, 3, 3, 3, 4, 4}));
  EXPECT_EQ(v.tokens[8], " two words");
  EXPECT_EQ(v.tokens[3], "<|fim_prefix|>");

  // The nearest name for words with other merges, and that it is not the same.
  json["model"]["ignore_merges"] = true;
  write();
  const auto whole = export_vocabulary(dir.path(), 9);
  EXPECT_EQ(whole->vocabulary.pre, "gpt-2");
  EXPECT_FALSE(whole->pre_is_known);

  json["model"]["byte_fallback"] = true;
  json["model"]["merges"] = {"ab"};
  write();
  lpcd::testing::expect_error([&] { (void)export_vocabulary(dir.path(), 9); }, ErrorCode::kBadFile,
                              "no space");
}

// Both spellings of Metaspace, and words that only look like a step.
TEST(ExportVocabulary, ASpaceInFrontIsAddedWhereTheStepsDo) {
  const TemporaryDirectory dir;
  const auto prefix = [&](const Json& normalizer, const Json& pre_tokenizer) {
    const Json json = {{"version", "1.0"},
                       {"normalizer", normalizer},
                       {"pre_tokenizer", pre_tokenizer},
                       {"model",
                        {{"type", "BPE"},
                         {"byte_fallback", true},
                         {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}}},
                         {"merges", {"a b"}}}}};
    io::write_file(dir / "tokenizer.json", dump_json(json));
    return export_vocabulary(dir.path(), 3)->vocabulary.add_space_prefix;
  };
  const auto metaspace = [](const Json& fields) {
    Json step = {{"type", "Metaspace"}, {"replacement", "\u2581"}};
    step.update(fields);
    return step;
  };
  const Json always = metaspace({{"add_prefix_space", true}});
  const Json never = metaspace({{"add_prefix_space", false}});
  EXPECT_EQ(prefix(nullptr, always), true);
  EXPECT_EQ(prefix(nullptr, never), false);
  EXPECT_EQ(prefix(nullptr, metaspace({{"prepend_scheme", "first"}})), true);
  EXPECT_EQ(prefix(nullptr, metaspace({{"prepend_scheme", "never"}})), false);
  EXPECT_EQ(prefix(nullptr, {{"type", "Sequence"}, {"pretokenizers", {never, always}}}), true);
  EXPECT_EQ(
      prefix(nullptr, {{"type", "Sequence"},
                       {"pretokenizers", {metaspace({{"prepend_scheme", "never"}}), always}}}),
      true);
  EXPECT_EQ(prefix({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "Prepend"}},
                   nullptr),
            false);
  EXPECT_EQ(prefix({{"type", "Prepend"}, {"prepend", "\u2581"}}, never), true);
}

TEST(ExportVocabulary, SentencePieceGetsScoresThatOrderItsMerges) {
  const TemporaryDirectory dir;
  const Json json = {
      {"version", "1.0"},
      {"added_tokens", {{{"id", 0}, {"content", "<unk>"}, {"special", true}}}},
      {"normalizer",
       {{"type", "Sequence"},
        {"normalizers",
         {{{"type", "Prepend"}, {"prepend", "\u2581"}},
          {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}}}}}},
      {"pre_tokenizer", nullptr},
      {"post_processor", nullptr},
      {"decoder", nullptr},
      {"model",
       {{"type", "BPE"},
        {"unk_token", "<unk>"},
        {"byte_fallback", true},
        {"fuse_unk", true},
        {"vocab", {{"<unk>", 0}, {"<0x41>", 1}, {"a", 2}, {"b", 3}, {"ab", 4}, {"aba", 5}}},
        {"merges", {"a b", "ab a"}}}}};
  io::write_file(dir / "tokenizer.json", dump_json(json));
  const GgufVocabulary v = export_vocabulary(dir.path(), 6)->vocabulary;
  EXPECT_EQ(v.model, "llama");
  EXPECT_EQ(v.token_types, (std::vector<int64_t>{2, 6, 1, 1, 1, 1}));
  EXPECT_EQ(v.scores, (std::vector<double>{0, 0, 0, 0, -1, -2}));
  EXPECT_EQ(v.unknown_id, 0);
  EXPECT_EQ(v.add_space_prefix, true);
}

TEST(ExportVocabulary, FilesAreNotReadThroughLinksOutOfTheModel) {
  const TemporaryDirectory dir;
  io::make_directories(dir / "model");
  const auto refused = [&](std::string_view name, std::string_view text) {
    const std::string link = (dir / "model/") + std::string(name);
    io::write_file(dir / "outside", text);
    std::filesystem::create_symlink("../outside", link);
    lpcd::testing::expect_error([&] { (void)export_vocabulary(dir / "model", 3); },
                                ErrorCode::kBadFile, "is a link that leads out of the directory");
    if (!name.starts_with("chat")) {
      lpcd::testing::expect_error([&] { (void)Tokenizer::from_directory(dir / "model"); },
                                  ErrorCode::kBadFile, "is a link that leads out of the directory");
    }
    std::filesystem::remove(link);
  };
  const std::string json =
      R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})";
  refused("tokenizer.json", json);
  io::write_file(dir / "model/tokenizer.json", json);
  for (const char* name : {"tokenizer_config.json", "generation_config.json", "chat_template.jinja",
                           "chat_template.json"}) {
    refused(name, "{}");
  }
  EXPECT_TRUE(export_vocabulary(dir / "model", 3));
}

}  // namespace
}  // namespace lpcd::text
