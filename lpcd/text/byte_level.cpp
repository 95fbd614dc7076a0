#include "lpcd/text/byte_level.h"

#include <array>

namespace lpcd::text {
namespace {

struct Tables {
  std::array<uint16_t, 256> chars{};
  std::array<int16_t, 0x144> bytes{};
};

constexpr Tables make_tables() {
  Tables tables;
  tables.bytes.fill(-1);
  uint16_t next = 0x100;
  for (unsigned b = 0; b < 256; ++b) {
    const bool itself = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    const auto c = static_cast<uint16_t>(itself ? b : next++);
    tables.chars[b] = c;
    tables.bytes[c] = static_cast<int16_t>(b);
  }
  return tables;
}

constexpr Tables kTables = make_tables();

}  // namespace

char32_t char_of_byte(uint8_t byte) { return kTables.chars[byte]; }

int byte_of_char(char32_t c) { return c < kTables.bytes.size() ? kTables.bytes[c] : -1; }

void append_byte_chars(std::string& out, std::string_view bytes) {
  for (const char byte : bytes) {
    const unsigned c = kTables.chars[static_cast<uint8_t>(byte)];
    if (c < 0x80) {
      out.push_back(static_cast<char>(c));
    } else {
      out.push_back(static_cast<char>(0xC0 | c >> 6));
      out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
    }
  }
}

}  // namespace lpcd::text
