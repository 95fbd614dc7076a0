#include "lpcd/io/names.h"

#include <algorithm>
#include <cstdint>

#include "lpcd/base/raise.h"

namespace lpcd::io {
namespace {

/// Bytes of the printable character at the start of `text`, 0 if there is none.
size_t character_bytes(std::string_view text) {
  const auto lead = static_cast<uint8_t>(text[0]);
  if (lead < 0x80) return lead >= 0x20 && lead != 0x7F ? 1 : 0;
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return 0;
  uint32_t code = lead & (0x7FU >> length);
  for (size_t i = 1; i < length; ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    if ((byte & 0xC0U) != 0x80U) return 0;
    code = code << 6 | (byte & 0x3FU);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};  // shorter forms are not allowed
  const bool surrogate = code >= 0xD800 && code < 0xE000;
  const bool control = code < 0xA0;
  return code < kSmallest[length] || code > 0x10FFFF || surrogate || control ? 0 : length;
}

}  // namespace

bool is_printable_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = character_bytes(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

void check_name(std::string_view name, std::string_view kind, size_t max_bytes,
                std::string_view where) {
  if (name.size() > max_bytes) {
    raise(ErrorCode::kBadFile, "{}: {} of {} bytes, at most {} are allowed; the file is damaged",
          where, kind, name.size(), max_bytes);
  }
  if (!is_printable_utf8(name)) {
    raise(ErrorCode::kBadFile, "{}: {} {} is not printable UTF-8 text; the file is damaged", where,
          kind, in_quotes(name));
  }
}

std::string in_quotes(std::string_view text) {
  constexpr size_t kMaxShown = 100;
  std::string shown = "\"";
  while (!text.empty()) {
    if (shown.size() > kMaxShown) return shown + "\"...";
    const size_t length = character_bytes(text);
    if (length == 0) {
      shown += fmt::format("\\x{:02x}", static_cast<uint8_t>(text[0]));
    } else {
      shown += text.substr(0, length);
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return shown + "\"";
}

std::string listed(const std::vector<std::string>& items) {
  constexpr size_t kMaxShown = 8;  // a screen line or two
  std::string text;
  for (size_t i = 0; i < std::min(items.size(), kMaxShown); ++i) {
    if (i > 0) text += i + 1 == items.size() ? " and " : ", ";
    text += items[i];
  }
  if (items.size() > kMaxShown) text += fmt::format(" and {} more", items.size() - kMaxShown);
  return text;
}

}  // namespace lpcd::io
