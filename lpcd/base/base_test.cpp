#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "lpcd/base/checked.h"
#include "lpcd/base/context.h"
#include "lpcd/base/json.h"
#include "lpcd/base/options.h"
#include "lpcd/base/raise.h"

namespace lpcd {
namespace {

template <typename Fn>
Error caught(Fn&& fn) {
  try {
    fn();
  } catch (const Error& e) {
    return e;
  }
  return Error(ErrorCode::kInternal, "nothing was thrown");
}

TEST(Error, ContextGoesInFrontAndTheCodeStays) {
  const Error e = caught([] {
    with_context("block 3", [] {
      with_context("q_proj", [] { raise(ErrorCode::kNonFinite, "H[{}] is NaN; check it", 7); });
    });
  });
  EXPECT_EQ(e.code(), ErrorCode::kNonFinite);
  EXPECT_STREQ(e.what(), "block 3: q_proj: H[7] is NaN; check it");
}

TEST(Error, ExitCodesFollowTheRanges) {
  EXPECT_EQ(exit_code(ErrorCode::kBadOption), 2);
  EXPECT_EQ(exit_code(ErrorCode::kBadFile), 3);
  EXPECT_EQ(exit_code(ErrorCode::kWriteFailed), 4);
  EXPECT_EQ(exit_code(ErrorCode::kMemoryBudget), 5);
  EXPECT_EQ(exit_code(ErrorCode::kNotPositiveDefinite), 6);
  EXPECT_EQ(exit_code(ErrorCode::kInternal), 70);
  EXPECT_EQ(exit_code(ErrorCode::kCancelled), 130);
}

TEST(Options, RangesAreCheckedAndNamed) {
  const OptionInfo info{.name = "bits", .min = 2, .max = 8};
  EXPECT_NO_THROW(check_range(info, 8));
  EXPECT_STREQ(caught([&] { check_range(info, 9); }).what(), "--bits: 9 is not a number 2 to 8");
  EXPECT_EQ(caught([&] { check_range(info, std::nan("")); }).code(), ErrorCode::kBadOption);
  EXPECT_EQ(range_text({.min = 1}), ">= 1");
  EXPECT_EQ(range_text({}), "");
}

TEST(Options, WordsOfAShellAreQuotedWhereTheyHaveTo) {
  EXPECT_EQ(shell_word("out/model-3.gguf"), "out/model-3.gguf");
  EXPECT_EQ(shell_word("my model"), "'my model'");
  EXPECT_EQ(shell_word("it's3"), "'it'\\''s3'");
  EXPECT_EQ(shell_word("`date`"), "'`date`'");
  EXPECT_EQ(shell_word(""), "''");
}

TEST(Checked, OverflowIsABadFileThatNamesTheThing) {
  EXPECT_EQ(checked_mul<int64_t>(3, 5, "x"), 15);
  const Error mul =
      caught([] { (void)checked_mul<int64_t>(int64_t{1} << 40, int64_t{1} << 40, "shape of w"); });
  EXPECT_EQ(mul.code(), ErrorCode::kBadFile);
  EXPECT_NE(mul.message().find("shape of w"), std::string::npos);
  EXPECT_EQ(caught([] {
              (void)checked_add<int64_t>(std::numeric_limits<int64_t>::max(), 1, "n");
            }).code(),
            ErrorCode::kBadFile);
}

TEST(Checked, NarrowKeepsValuesAndRefusesOthers) {
  EXPECT_EQ(narrow<int>(int64_t{-5}, "n"), -5);
  EXPECT_EQ(caught([] { (void)narrow<int>(int64_t{1} << 40, "n"); }).code(), ErrorCode::kBadFile);
  EXPECT_EQ(caught([] { (void)narrow<int64_t>(~uint64_t{0}, "n"); }).code(), ErrorCode::kBadFile);
  EXPECT_EQ(caught([] { (void)narrow<uint32_t>(-1, "n"); }).code(), ErrorCode::kBadFile);
}

TEST(RunContext, CancelThrowsAtASafePointOnly) {
  std::atomic<bool> stop{false};
  RunContext ctx;
  ctx.cancel = &stop;
  EXPECT_NO_THROW(ctx.throw_if_cancelled());
  stop = true;
  EXPECT_EQ(caught([&] { ctx.throw_if_cancelled(); }).code(), ErrorCode::kCancelled);
}

TEST(Json, RefusesWhatReadersDisagreeAbout) {
  EXPECT_EQ(parse_json(R"({"a": [1, {"a": 2}]})", "f")["a"][1]["a"], 2);
  const Error twice = caught([] { (void)parse_json(R"({"a": 1, "b": {}, "a": 2})", "f.json"); });
  EXPECT_EQ(twice.code(), ErrorCode::kBadFile);
  EXPECT_NE(twice.message().find("f.json: key \"a\" appears twice"), std::string::npos);
  EXPECT_EQ(caught([] { (void)parse_json(std::string(100000, '['), "f"); }).code(),
            ErrorCode::kBadFile);
  EXPECT_EQ(caught([] { (void)parse_json("{\"a\": \"\xff\"}", "f"); }).code(), ErrorCode::kBadFile);
  EXPECT_EQ(caught([] { (void)parse_json("", "f"); }).code(), ErrorCode::kBadFile);
  EXPECT_EQ(caught([] { (void)parse_json("{} x", "f"); }).code(), ErrorCode::kBadFile);
  const Error nul = caught([] { (void)parse_json(std::string_view("{}\0{}", 5), "f"); });
  EXPECT_EQ(nul.code(), ErrorCode::kBadFile);
  EXPECT_NE(nul.message().find("NUL byte at offset 2"), std::string::npos);
}

TEST(Json, ValuesAreThoseOfTheLibrarysOwnParser) {
  const std::string text =
      R"([{"b": [], "a": [[1, -2, {"c": null}, "\u00e9\n"], {}], "": {"x": {"y": true}, "z": 1}},
          0.5, -0.0, 18446744073709551615, -9223372036854775808, 1e300, false, "", [[[]]]])";
  const Json json = parse_json(text, "f");
  EXPECT_EQ(json, Json::parse(text));
  EXPECT_TRUE(json[3].is_number_unsigned());
  EXPECT_TRUE(json[4].is_number_integer());
  EXPECT_TRUE(json[1].is_number_float());
  for (const char* scalar : {"null", "7", "\"s\""}) {
    EXPECT_EQ(parse_json(scalar, "f"), Json::parse(scalar));
  }
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_NO_THROW((void)parse_json(nested(5), "f", 5));
  EXPECT_EQ(caught([&] { (void)parse_json(nested(6), "f", 5); }).message(),
            "f: JSON nested deeper than 5 levels; refusing to read it");
  EXPECT_NE(caught([] { (void)parse_json("{\"a\": 1e400}", "f"); })
                .message()
                .find("f: not valid JSON (number overflow parsing '1e400'"),
            std::string::npos);
  EXPECT_NE(caught([] { (void)parse_json("[1, 2", "f"); })
                .message()
                .find("f: not valid JSON (parse error at line 1, "),
            std::string::npos);
}

// The header of a safetensors file may have as many entries as this. Looking through all of them
// at the end of each takes minutes.
TEST(Json, TakesTimeInProportionToTheEntriesOfAnObject) {
  std::string text = "{";
  for (int i = 0; i < 200'000; ++i) {
    text += fmt::format("{}\"t{}\": {{\"shape\": [1, 2]}}", i == 0 ? "" : ",", i);
  }
  text += "}";
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(parse_json(text, "f").size(), 200'000U);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(40));
}

TEST(Json, MessagesAreShortLinesOfAsciiWhateverTheFileHolds) {
  const std::string long_text(100000, 'a');
  for (const std::string& text : std::vector<std::string>{
           "{\"\x80\": 1}" + long_text, "{\"" + long_text + "\xff", "{\"\\n\": 1, \"\\n\": 2}",
           "{\"" + long_text + "\": 1, \"" + long_text + "\": 2}"}) {
    const Error error = caught([&] { (void)parse_json(text, "f"); });
    EXPECT_EQ(error.code(), ErrorCode::kBadFile);
    EXPECT_LT(error.message().size(), 400U);
    for (const char c : error.message()) EXPECT_TRUE(c >= 0x20 && c <= 0x7E) << error.message();
  }
}

TEST(Json, FieldsSayWhatWasExpectedAndFound) {
  const Json json = parse_json(
      R"({"n": 5, "x": 0.5, "s": "t", "b": true, "none": null, "neg": -1, "big": 18446744073709551615})",
      "f");
  const JsonFields fields(json, "config.json");
  EXPECT_EQ(fields.int_at("n", 1), 5);
  EXPECT_EQ(fields.int_or("none", 9, 1), 9);
  EXPECT_EQ(fields.number_at("x"), 0.5);
  EXPECT_EQ(fields.string_at("s"), "t");
  EXPECT_TRUE(fields.bool_or("b", false));
  EXPECT_EQ(caught([&] { (void)fields.int_at("s", 1); }).message(),
            "config.json: s must be an integer >= 1, found \"t\"");
  EXPECT_EQ(caught([&] { (void)fields.int_at("neg", 0, 7); }).message(),
            "config.json: neg must be an integer from 0 to 7, found -1");
  EXPECT_EQ(caught([&] { (void)fields.int_at("gone", 1); }).message(),
            "config.json: missing \"gone\"");
  EXPECT_EQ(caught([&] { (void)fields.int_at("big", 0); }).code(), ErrorCode::kBadFile);
}

}  // namespace
}  // namespace lpcd
