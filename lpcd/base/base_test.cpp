#include <gtest/gtest.h>

#include <atomic>
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
