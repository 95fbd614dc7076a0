#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lpcd::text {

/// True if the text is UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
[[nodiscard]] bool is_utf8(std::string_view text);

/// Well-formed UTF-8: every maximal ill-formed part becomes one U+FFFD, as in Python's
/// errors="replace" and Rust's from_utf8_lossy.
[[nodiscard]] std::string repair_utf8(std::string_view text);

/// Character at `at`, which moves behind it. `text` is well-formed and `at` at a character.
[[nodiscard]] char32_t next_char(std::string_view text, size_t& at);
/// Character in front of `at`, which moves to its start. `text` is well-formed and `at` > 0.
[[nodiscard]] char32_t previous_char(std::string_view text, size_t& at);
/// Bytes of the character that starts with `lead`, for well-formed text.
[[nodiscard]] inline size_t char_bytes(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}
void append_char(std::string& text, char32_t c);

/// General category of a character, with the letters of the Unicode standard ("Lu", "Nd").
///
/// The tables are the system's, brought up to Unicode 16 where they are older, so that the ids of a
/// text do not depend on the machine.
[[nodiscard]] std::string_view general_category(char32_t c);

[[nodiscard]] bool is_space(char32_t c);    ///< White_Space
[[nodiscard]] bool is_numeric(char32_t c);  ///< categories Nd, Nl, No
[[nodiscard]] bool is_word(char32_t c);     ///< Alphabetic, M, Nd, Pc, joiners: \w of Unicode
/// ASCII punctuation and symbols, and the categories P* as they were in Unicode 8.
[[nodiscard]] bool is_punctuation(char32_t c);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

/// Normal form of well-formed text, as of Unicode 9: characters that came later neither decompose
/// nor reorder. This is the version that the `tokenizers` package normalizes with.
/// Numerics  O(n log n), whatever the text.
[[nodiscard]] std::string normalize(std::string_view text, NormalForm form);

/// Lower case, character by character (no special final sigma).
[[nodiscard]] std::string lowercase(std::string_view text);

}  // namespace lpcd::text
