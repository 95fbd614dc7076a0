#include "lpcd/text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "lpcd/base/checked.h"
#include "lpcd/text/unicode_tables.h"

namespace lpcd::text {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Length of the well-formed character at `at`, or 0; then `bad` is the length of the ill-formed
// part: the longest prefix of some character, at least one byte.
size_t char_at(std::string_view text, size_t at, size_t& bad) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(at);
  bad = 1;
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (at + i >= text.size() || byte(at + i) < low || byte(at + i) > high) return 0;
    bad = i + 1;
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

// First position at or behind `at` whose byte is not ASCII.
size_t skip_ascii(std::string_view text, size_t at) {
  for (; at + 8 <= text.size(); at += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    if ((word & 0x8080808080808080U) != 0) break;
  }
  while (at < text.size() && static_cast<unsigned char>(text[at]) < 0x80) ++at;
  return at;
}

template <typename Range>
const Range* find_range(std::span<const Range> table, char32_t c) {
  const auto it = std::upper_bound(table.begin(), table.end(), c,
                                   [](char32_t x, const Range& r) { return x < r.first; });
  if (it == table.begin() || c > std::prev(it)->last) return nullptr;
  return &*std::prev(it);
}

bool is_normalization_barrier(char32_t c) {
  return find_range(normalized_after_unicode_9(), c) != nullptr;
}

// Small form of a letter, the capitals of Unicode 15 to 17 included.
char32_t small_letter(char32_t c) {
  const auto among = [&](char32_t first, char32_t last) { return c >= first && c <= last; };
  switch (c) {
    case 0x1C89:
    case 0xA7CC:
    case 0xA7CE:
    case 0xA7D2:
    case 0xA7D4:
    case 0xA7DA:
      return c + 1;
    case 0xA7CB:
      return 0x264;
    case 0xA7DC:
      return 0x19B;
    default:
      if (among(0x10D50, 0x10D65)) return c + 0x20;
      if (among(0x16EA0, 0x16EB8)) return c + 0x1B;
      return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
  }
}

int combining_class(char32_t c) {
  return c < 0x300 ? 0 : utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class;
}

// Normalizes stretches of text. A stretch that begins at a starter which composes with nothing in
// front of it can be done alone, and ASCII characters are such starters.
class Normalizing {
 public:
  explicit Normalizing(NormalForm form)
      : compose_(form == NormalForm::kNfc || form == NormalForm::kNfkc),
        compatible_(form == NormalForm::kNfkc || form == NormalForm::kNfkd) {}

  void append(std::string_view stretch, std::string& out) {
    for (size_t at = 0; at < stretch.size();) {
      const char32_t c = next_char(stretch, at);
      if (is_normalization_barrier(c)) {
        flush(out);
        append_char(out, c);
      } else {
        decompose(c);
      }
    }
    flush(out);
  }

 private:
  void decompose(char32_t c) {
    std::array<utf8proc_int32_t, 32> parts;  // the longest decomposition of Unicode has 18
    const int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatible_ ? UTF8PROC_COMPAT : 0);
    int boundary = 0;
    const auto count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts.data(), parts.size(),
                                static_cast<utf8proc_option_t>(options), &boundary);
    LPCD_CHECK(count >= 0 && count <= static_cast<utf8proc_ssize_t>(parts.size()));
    chars_.insert(chars_.end(), parts.begin(), parts.begin() + count);
  }

  // utf8proc sorts marks by exchanging neighbours, which takes forever on hostile text.
  void sort_marks() {
    const auto by_class = [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return combining_class(static_cast<char32_t>(a)) < combining_class(static_cast<char32_t>(b));
    };
    const auto is_mark = [](utf8proc_int32_t c) {
      return combining_class(static_cast<char32_t>(c)) != 0;
    };
    for (auto it = chars_.begin(); it != chars_.end();) {
      it = std::find_if(it, chars_.end(), is_mark);
      const auto end = std::find_if_not(it, chars_.end(), is_mark);
      std::stable_sort(it, end, by_class);
      it = end;
    }
  }

  void flush(std::string& out) {
    if (chars_.empty()) return;
    sort_marks();
    auto count = static_cast<utf8proc_ssize_t>(chars_.size());
    if (compose_) {
      count = utf8proc_normalize_utf32(
          chars_.data(), count, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
      LPCD_CHECK(count >= 0);
    }
    for (utf8proc_ssize_t i = 0; i < count; ++i) {
      append_char(out, static_cast<char32_t>(chars_[static_cast<size_t>(i)]));
    }
    chars_.clear();
  }

  bool compose_;
  bool compatible_;
  std::vector<utf8proc_int32_t> chars_;
};

}  // namespace

bool is_utf8(std::string_view text) {
  size_t bad = 0;
  for (size_t at = skip_ascii(text, 0); at < text.size(); at = skip_ascii(text, at)) {
    const size_t length = char_at(text, at, bad);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

std::string repair_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  size_t copied = 0;
  for (size_t at = skip_ascii(text, 0); at < text.size(); at = skip_ascii(text, at)) {
    size_t bad = 0;
    const size_t length = char_at(text, at, bad);
    if (length == 0) {
      out.append(text, copied, at - copied).append(kReplacement);
      copied = at + bad;
    }
    at += length == 0 ? bad : length;
  }
  out.append(text, copied);
  return out;
}

char32_t next_char(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const char32_t lead = byte(0);
  char32_t c = lead;
  if (lead < 0x80) {
    at += 1;
  } else if (lead < 0xE0) {
    c = (lead & 0x1FU) << 6 | (byte(1) & 0x3FU);
    at += 2;
  } else if (lead < 0xF0) {
    c = (lead & 0x0FU) << 12 | (byte(1) & 0x3FU) << 6 | (byte(2) & 0x3FU);
    at += 3;
  } else {
    c = (lead & 0x07U) << 18 | (byte(1) & 0x3FU) << 12 | (byte(2) & 0x3FU) << 6 | (byte(3) & 0x3FU);
    at += 4;
  }
  return c;
}

char32_t previous_char(std::string_view text, size_t& at) {
  do {
    --at;
  } while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  size_t start = at;
  return next_char(text, start);
}

void append_char(std::string& text, char32_t c) {
  const auto put = [&](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

std::string_view general_category(char32_t c) {
  if (const CategoryRange* added = find_range(added_after_unicode_14(), c)) return added->category;
  return utf8proc_category_string(static_cast<utf8proc_int32_t>(c));
}

bool is_space(char32_t c) {
  if (c < 0x1680) return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0;
  return c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool is_numeric(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  // Two scripts of Unicode 17, which the reference counts here and nowhere else.
  if ((c >= 0x11DE0 && c <= 0x11DE9) || (c >= 0x16FF4 && c <= 0x16FF6)) return true;
  return general_category(c)[0] == 'N';
}

bool is_word(char32_t c) {
  if (c < 0x80) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || c == '_' || (c >= 'a' && c <= 'z');
  }
  // Alphabetic symbols that are not letters: circled and squared ones.
  if ((c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
      (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189)) {
    return true;
  }
  if (c == 0x200C || c == 0x200D) return true;
  const std::string_view category = general_category(c);
  return category[0] == 'L' || category[0] == 'M' || category == "Nd" || category == "Nl" ||
         category == "Pc";
}

bool is_punctuation(char32_t c) {
  if (c < 0x80) {
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
           (c >= '{' && c <= '~');
  }
  if (c == 0x166D || c == 0x111C9) return true;  // of another category since
  return general_category(c)[0] == 'P' && find_range(punctuation_after_unicode_8(), c) == nullptr;
}

std::string normalize(std::string_view text, NormalForm form) {
  Normalizing normalizing(form);
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t ascii_end = skip_ascii(text, at);
    if (ascii_end == text.size()) {
      out.append(text, at);
      break;
    }
    // The last ASCII character may compose with what follows.
    const size_t begin = ascii_end > at ? ascii_end - 1 : at;
    out.append(text, at, begin - at);
    at = ascii_end;
    while (at < text.size() && static_cast<unsigned char>(text[at]) >= 0x80) ++at;
    normalizing.append(text.substr(begin, at - begin), out);
  }
  return out;
}

std::string lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_char(text, at);
    if (c < 0x80) {
      out.push_back(static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c));
    } else if (c == 0x130) {
      out.append("i\xCC\x87");  // the one capital whose small form is two characters
    } else {
      append_char(out, small_letter(c));
    }
  }
  return out;
}

}  // namespace lpcd::text
