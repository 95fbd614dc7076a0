#include "lpcd/text/regex.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "lpcd/text/component.h"
#include "tests/support/errors.h"

namespace lpcd::text {
namespace {

using testing::expect_error;

// The text in pieces, matches and what is between them, in brackets and without.
std::string pieces(std::string_view pattern, std::string_view text) {
  const Pattern regex{Regex(pattern, "test")};
  std::string out;
  regex.for_each_segment(text, [&](size_t begin, size_t end, bool is_match) {
    const std::string_view part = text.substr(begin, end - begin);
    out += is_match ? fmt::format("[{}]", part) : std::string(part);
  });
  return out;
}

constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

TEST(Regex, PatternsOfTokenizers) {
  EXPECT_EQ(pieces(kLlama3, "I'LL pay $12345,  ok\n\n x"),
            "[I]['LL][ pay][ $][123][45][,][ ][ ok][\n\n][ x]");
  EXPECT_EQ(pieces(kLlama3, "it'ſ"), "[it]['ſ]");
  EXPECT_EQ(pieces(kLlama3, "a   \n  b"), "[a][   \n][ ][ b]");
}

// What Oniguruma does in the `tokenizers` package and PCRE2 would not, or not so.
TEST(Regex, MeansWhatOnigurumaMeans) {
  EXPECT_EQ(pieces(R"(\s)", "a\u0085b\u180Ec\u2003d"), "a[\u0085]b\u180Ec[\u2003]d");
  EXPECT_EQ(pieces(R"([^\S\n]+)", "a \n b"), "a[ ]\n[ ]b");
  EXPECT_EQ(pieces(R"(\w+)", "a\u0301²_-½"), "[a\u0301²_]-[½]");
  EXPECT_EQ(pieces(R"(\h+)", "xyzabc09"), "xyz[abc09]");
  EXPECT_EQ(pieces(R"(\p{L}+)", "\U00031350\U0002EBF0a1"), "[\U00031350\U0002EBF0a]1");
  EXPECT_EQ(pieces(R"(\p{Han}+)", "中、文\U00031350"), "[中]、[文\U00031350]");
  EXPECT_EQ(pieces(R"(a{1,2}+)", "aaaaa"), "[aaaaa]");
  EXPECT_EQ(pieces(R"(a{1,3}+a)", "aaa"), "[aaa]");
  EXPECT_EQ(pieces(R"(a++a)", "aaa"), "aaa");
  EXPECT_EQ(pieces(R"(a{2}?)", "aaaa"), "[aa][aa]");
  EXPECT_EQ(pieces(R"(a{,2}b)", "aaab"), "a[aab]");
  EXPECT_EQ(pieces(R"(a{x})", "a{x}"), "[a{x}]");
  EXPECT_EQ(pieces(R"(^a|b$)", "a\naa\nb\n"), "[a]\n[a]a\n[b]\n");
  EXPECT_EQ(pieces(R"(.+)", "a\r\nb\u2028c"), "[a\r]\n[b\u2028c]");
  EXPECT_EQ(pieces(R"(a\Z)", "a\n"), "[a]\n");
  EXPECT_EQ(pieces(R"(a\z)", "a\n"), "a\n");
  EXPECT_EQ(pieces(R"((?i)b)", "aBA"), "a[B]A");
  EXPECT_EQ(pieces(R"(x(?i)b|y)", "xBxYy"), "[xB][xY]y");
  EXPECT_EQ(pieces(R"([a[bc]]]+)", "ab]cd"), "a[b]]cd");
  EXPECT_EQ(pieces(R"([]a-]+)", "b]a-"), "b[]a-]");
  EXPECT_EQ(pieces(R"(\x{e9}|\u00e0)", "éà"), "[é][à]");
  EXPECT_EQ(pieces(R"(\bcd|\B)", "ab cd"), "a[]b [cd]");
  EXPECT_EQ(pieces(R"((?<=a|bc)d(?#comment))", "adbcd d"), "a[d]bc[d] d");
}

TEST(Regex, EmptyMatchesAreSkippedWhereTheLastMatchEnded) {
  EXPECT_EQ(pieces("x*", "axxb"), "[]a[xx]b[]");
  EXPECT_EQ(pieces("(?=b)", "abab"), "a[]ba[]b");
  EXPECT_EQ(pieces("", "aé"), "[]a[]é[]");
  EXPECT_EQ(pieces("x*", ""), "");
}

TEST(Regex, MatchesDoNotDependOnTheWindowTheyAreSeenThrough) {
  for (const size_t n : {1, 60, 63, 64, 127, 128, 129, 511, 512, 513, 5000}) {
    const std::string run(n, 'a');
    const std::string spaces(n, ' ');
    EXPECT_EQ(pieces("a+", "b" + run + "b"), "b[" + run + "]b");
    EXPECT_EQ(pieces("b", run + "b" + run), run + "[b]" + run);
    EXPECT_EQ(pieces(R"(\s+(?!\S)|\s+)", spaces + " x"), "[" + spaces + "][ ]x");
    EXPECT_EQ(pieces(R"(\s*\n|\s)", spaces + "\n"), "[" + spaces + "\n]");
    EXPECT_EQ(pieces("a+$", run), "[" + run + "]");
    EXPECT_EQ(pieces("(?:a|é)+?b|$", run + "éb"), "[" + run + "éb]");
    EXPECT_EQ(pieces("(?<=a)é*", run + "ééx"), [&] {
      std::string expected;
      for (size_t i = 1; i < n; ++i) expected += "a[]";
      return expected + "a[éé]x";
    }());
  }
}

TEST(Regex, PatternsThatBacktrackWithoutBoundStopWithAnError) {
  const std::string run = std::string(200000, 'a') + " " + std::string(29, 'a') + "\ncxb";
  for (const std::string_view pattern :
       {"(a|a)*b", "(.*)*x", "a*b|a", "a*+b|a", "(?:a*+b|a)*c|a", "(?=(a+))a*b|a",
        "(?:a?){30}a{30}", "(?<!x)a(?=a*b)|a", "(?:aaaa|a)+b|a"}) {
    SCOPED_TRACE(pattern);
    expect_error([&] { (void)pieces(pattern, run); }, ErrorCode::kBadFile,
                 "takes too many steps on this text");
  }
  // The same on a text where they are harmless.
  EXPECT_EQ(pieces("(.*)*x", "aaxa"), "[aax]a");
}

TEST(Regex, MalformedAndUnsupportedPatterns) {
  struct Case {
    std::string_view pattern;
    ErrorCode code;
    std::string_view message;
  };
  const std::string nested = std::string(100, '(') + std::string(100, ')');
  const std::string huge(5000, 'a');
  for (const Case& c : std::vector<Case>{
           {"a)", ErrorCode::kBadFile, "unmatched ) at byte 1"},
           {"(a", ErrorCode::kBadFile, "unmatched ( at byte 2"},
           {"[a", ErrorCode::kBadFile, "unmatched ["},
           {"[z-a]", ErrorCode::kBadFile, "a range that is none"},
           {"[\\d-z]", ErrorCode::kBadFile, "a range that is none"},
           {"*a", ErrorCode::kBadFile, "nothing to repeat"},
           {"(?=a)*", ErrorCode::kBadFile, "nothing to repeat"},
           {"^*", ErrorCode::kBadFile, "nothing to repeat"},
           {"a{3,2}", ErrorCode::kBadFile, "bounds reversed"},
           {"a\\", ErrorCode::kBadFile, "a backslash at the end"},
           {"\\pL", ErrorCode::kBadFile, "a property without braces"},
           {"\\x{110000}", ErrorCode::kBadFile, "a code point that is none"},
           {"\\x{d800}", ErrorCode::kBadFile, "a code point that is none"},
           {"\\u12", ErrorCode::kBadFile, "a code point that is none"},
           {"(?<=a*)b", ErrorCode::kBadFile, "cannot be used"},
           {nested, ErrorCode::kBadFile, "groups nested too deep"},
           {huge, ErrorCode::kBadFile, "the pattern has 5000 bytes; at most 4000"},
           {"(?:(?:(?:a{1000}){1000}){1000}){1000}", ErrorCode::kBadFile, "cannot be used"},
           {"a{100000}", ErrorCode::kUnsupportedModel, "an interval beyond 1000"},
           {"(a)\\1", ErrorCode::kUnsupportedModel, "\\1 at byte 4"},
           {"\\K", ErrorCode::kUnsupportedModel, "\\K"},
           {"\\R", ErrorCode::kUnsupportedModel, "\\R"},
           {"\\xC3", ErrorCode::kUnsupportedModel, "a byte of a character"},
           {"(?<name>a)", ErrorCode::kUnsupportedModel, "this kind of group"},
           {"(*LIMIT_MATCH=1)a", ErrorCode::kUnsupportedModel, "this kind of group"},
           {"(?~a)", ErrorCode::kUnsupportedModel, "this kind of group"},
           {"[a&&b]", ErrorCode::kUnsupportedModel, "an intersection of classes"},
           {"[[:alpha:]]", ErrorCode::kUnsupportedModel, "a POSIX class"},
           {"[a[^b]]", ErrorCode::kUnsupportedModel, "a negated class in a class"},
           {"\\p{Greek}", ErrorCode::kUnsupportedModel, "the property \"Greek\""},
           {"(?i:stop)", ErrorCode::kUnsupportedModel, "letters that have a ligature"},
           {"(?i:é)", ErrorCode::kUnsupportedModel, "(?i) with text other than ASCII"},
           {"(?i:\\p{Lu})", ErrorCode::kUnsupportedModel, "(?i) with this property"}}) {
    SCOPED_TRACE(std::string(c.pattern.substr(0, 80)));
    expect_error([&] { Regex(c.pattern, "here"); }, c.code, c.message);
    expect_error([&] { Regex(c.pattern, "here"); }, c.code, "here: ");
  }
}

}  // namespace
}  // namespace lpcd::text
