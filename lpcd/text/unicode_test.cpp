#include "lpcd/text/unicode.h"

#include <gtest/gtest.h>

#include <chrono>

#include "lpcd/text/byte_level.h"

namespace lpcd::text {
namespace {

TEST(Utf8, EveryMaximalIllFormedPartBecomesOneReplacement) {
  const std::string r = "\xEF\xBF\xBD";
  struct Case {
    std::string_view bytes;
    std::string text;
  };
  // As Python's bytes.decode(errors="replace").
  for (const Case& c : std::vector<Case>{{"", ""},
                                         {"plain", "plain"},
                                         {"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "é€😀"},
                                         {"a\x80z", "a" + r + "z"},
                                         {"\xC3", r},
                                         {"\xC3(", r + "("},
                                         {"\xE2\x82", r},
                                         {"\xE2\x82x", r + "x"},
                                         {"\xF0\x9F\x98", r},
                                         {"\xF0\x9F\x98\xF0\x9F\x98\x80", r + "😀"},
                                         {"\xC0\xAF", r + r},                  // overlong
                                         {"\xE0\x80\xAF", r + r + r},          // overlong
                                         {"\xED\xA0\x80", r + r + r},          // surrogate
                                         {"\xF4\x90\x80\x80", r + r + r + r},  // beyond U+10FFFF
                                         {"\xF8\x88\x80\x80\x80", r + r + r + r + r},
                                         {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
                                          "A",
                                          r + r + r + r + "A"}}) {
    EXPECT_EQ(repair_utf8(c.bytes), c.text) << c.text;
    EXPECT_EQ(is_utf8(c.bytes), c.bytes == c.text);
    EXPECT_TRUE(is_utf8(c.text));
  }
}

TEST(Utf8, CharactersGoForthAndBack) {
  std::string text;
  const std::u32string chars = U"\0aÿĀ߿ࠀ￿\U00010000\U0010FFFF";
  for (const char32_t c : chars) append_char(text, c);
  size_t at = 0;
  for (const char32_t c : chars) {
    EXPECT_EQ(char_bytes(text[at]), [&] {
      std::string one;
      append_char(one, c);
      return one.size();
    }());
    EXPECT_EQ(next_char(text, at), c);
  }
  EXPECT_EQ(at, text.size());
  for (auto it = chars.rbegin(); it != chars.rend(); ++it) EXPECT_EQ(previous_char(text, at), *it);
  EXPECT_EQ(at, 0U);
}

TEST(Unicode, ClassesOfCharacters) {
  EXPECT_EQ(general_category(U'A'), "Lu");
  EXPECT_EQ(general_category(U'٣'), "Nd");
  EXPECT_EQ(general_category(0x31350), "Lo");  // Unicode 15
  EXPECT_EQ(general_category(0x10D50), "Lu");  // Unicode 16
  EXPECT_EQ(general_category(0x1CD00), "So");  // Unicode 16
  EXPECT_EQ(general_category(0x10FFFF), "Cn");
  for (const char32_t c : {0x9, 0xD, 0x20, 0x85, 0xA0, 0x1680, 0x200A, 0x2028, 0x3000}) {
    EXPECT_TRUE(is_space(c)) << uint32_t{c};
  }
  for (const char32_t c : {0x8, 0x1C, 0x180E, 0x200B, 0x2060, 0xFEFF})
    EXPECT_FALSE(is_space(c)) << uint32_t{c};
  for (const char32_t c : std::u32string(U"0٣½Ⅷ①〇")) EXPECT_TRUE(is_numeric(c)) << uint32_t{c};
  for (const char32_t c : std::u32string(U"a一 ")) EXPECT_FALSE(is_numeric(c)) << uint32_t{c};
  for (const char32_t c : std::u32string(U"a_9éَ中ⓐ\u200D")) EXPECT_TRUE(is_word(c)) << uint32_t{c};
  for (const char32_t c : std::u32string(U" -½€😀")) EXPECT_FALSE(is_word(c)) << uint32_t{c};
  for (const char32_t c : std::u32string(U"!$^`~“。"))
    EXPECT_TRUE(is_punctuation(c)) << uint32_t{c};
  for (const char32_t c : std::u32string(U"a1 €\u2E52"))
    EXPECT_FALSE(is_punctuation(c)) << uint32_t{c};
}

TEST(Normalize, CanonicalAndCompatibleForms) {
  EXPECT_EQ(normalize("cafe\u0301 A\u030A", NormalForm::kNfc), "café Å");
  EXPECT_EQ(normalize("café", NormalForm::kNfd), "cafe\u0301");
  EXPECT_EQ(normalize("o\u0302\u0323", NormalForm::kNfc), "ộ");
  EXPECT_EQ(normalize("\u1112\u1161\u11AB", NormalForm::kNfc), "한");
  EXPECT_EQ(normalize("ﬁ Ａ①", NormalForm::kNfkc), "fi A1");
  EXPECT_EQ(normalize("ﬁ é", NormalForm::kNfkd), "fi e\u0301");
  EXPECT_EQ(normalize("Å \u0958", NormalForm::kNfc),
            "Å \u0915\u093C");  // excluded from composition
  EXPECT_EQ(normalize("", NormalForm::kNfc), "");
  EXPECT_EQ(normalize("plain ascii", NormalForm::kNfc), "plain ascii");
}

TEST(Normalize, CharactersAfterUnicode9StayWhereTheyAre) {
  // U+0C3C has class 7 since Unicode 14, so newer tables sort it in front of the acute.
  EXPECT_EQ(normalize("a\u0301\u0C3C", NormalForm::kNfd), "a\u0301\u0C3C");
  EXPECT_EQ(normalize("\U00011935\U00011930", NormalForm::kNfc), "\U00011935\U00011930");
  EXPECT_EQ(normalize("\u32FF", NormalForm::kNfkc), "\u32FF");
}

TEST(Normalize, LongRunsOfMarksAreNotQuadratic) {
  std::string marks = "a";
  for (int i = 0; i < 300000; ++i) marks += i % 2 == 0 ? "\u0301" : "\u0323";
  const auto begin = std::chrono::steady_clock::now();
  const std::string normal = normalize(marks, NormalForm::kNfc);
  EXPECT_EQ(normal.substr(0, 7), "\u1EA1\u0323\u0323");  // one below joins the a, others follow
  EXPECT_EQ(normal.substr(normal.size() - 2), "\u0301");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

TEST(Lowercase, CharacterByCharacter) {
  EXPECT_EQ(lowercase("ÀΣ ΑΣ Ǆ ẞ"), "àσ ασ ǆ ß");
  EXPECT_EQ(lowercase("İ"), "i\u0307");
  EXPECT_EQ(lowercase("\u1C89\uA7DC\U00010D50"), "\u1C8A\u019B\U00010D70");
}

TEST(ByteLevel, TheCharactersOfAllBytesAreDistinctAndKnown) {
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(byte_of_char(char_of_byte(static_cast<uint8_t>(byte))), byte);
  }
  EXPECT_EQ(char_of_byte(' '), U'Ġ');
  EXPECT_EQ(char_of_byte('\n'), U'Ċ');
  EXPECT_EQ(char_of_byte('!'), U'!');
  EXPECT_EQ(char_of_byte(0xAD), U'Ń');
  EXPECT_EQ(byte_of_char(U' '), -1);
  EXPECT_EQ(byte_of_char(0x144), -1);
  std::string chars;
  append_byte_chars(chars, " é");
  EXPECT_EQ(chars, "ĠÃ©");
}

}  // namespace
}  // namespace lpcd::text
