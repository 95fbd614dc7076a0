#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lpcd::text {

/// The characters that stand for bytes in byte-level vocabularies: printable ASCII and Latin-1
/// stand for themselves, the other 68 bytes for U+0100 and up ("Ġ" is the space).
[[nodiscard]] char32_t char_of_byte(uint8_t byte);

/// Byte that a character stands for, or -1.
[[nodiscard]] int byte_of_char(char32_t c);

/// Appends the characters that stand for the bytes.
void append_byte_chars(std::string& out, std::string_view bytes);

}  // namespace lpcd::text
