#include "lpcd/text/regex_syntax.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "lpcd/base/raise.h"
#include "lpcd/io/names.h"
#include "lpcd/text/unicode.h"
#include "lpcd/text/unicode_tables.h"

namespace lpcd::text {
namespace {

constexpr int kMaxDepth = 64;       // of groups; real patterns have 3
constexpr int kMaxRepeat = 1000;    // of an interval; real patterns have 3
constexpr size_t kMaxBytes = 4000;  // real patterns have at most 1000

// The insides of character classes, in PCRE2 syntax.
constexpr std::string_view kSpaces =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNoSpaces =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff})"
    R"(\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";
constexpr std::string_view kHexDigits = "0-9A-Fa-f";
// Word characters that are in no category of words: Latin-1 numbers, circled and squared letters.
constexpr std::string_view kOddWords =
    R"(\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169})"
    R"(\x{1f170}-\x{1f189})";
// CJK ideographs that Unicode 15 and 15.1 added.
constexpr std::string_view kNewHan = R"(\x{2b739}\x{2ebf0}-\x{2ee5d}\x{31350}-\x{323af})";

constexpr std::array<std::string_view, 36> kCategories = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd",
    "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm",
    "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Co", "Cs"};

std::string char_escape(char32_t c) { return fmt::format("\\x{{{:x}}}", static_cast<uint32_t>(c)); }

std::string range_item(char32_t first, char32_t last) {
  return first == last ? char_escape(first)
                       : fmt::format("{}-{}", char_escape(first), char_escape(last));
}

// Inside of a class with all characters of a general category.
std::string category_items(std::string_view category) {
  std::string items = fmt::format("\\p{{{}}}", category);
  for (const CategoryRange& r : added_after_unicode_14()) {
    if (!std::string_view(r.category).starts_with(category)) continue;
    items += range_item(r.first, r.last);
  }
  return items;
}

std::string word_items() {
  std::string items(kOddWords);
  for (const std::string_view category : {"L", "M", "Nd", "Nl", "Pc"}) {
    items += category_items(category);
  }
  return items;
}

class Translator {
 public:
  Translator(std::string_view pattern, std::string_view where) : pattern_(pattern), where_(where) {}

  std::string run() {
    if (pattern_.size() > kMaxBytes) {
      raise(ErrorCode::kBadFile, "{}: the pattern has {} bytes; at most {} are supported", where_,
            pattern_.size(), kMaxBytes);
    }
    std::string out = alternatives(0, false);
    if (!done()) malformed("unmatched )");
    return out;
  }

 private:
  // What one escape or class item stands for: a character, or the inside of a class.
  struct Item {
    std::optional<char32_t> character;
    std::string inside;
  };
  struct Atom {
    std::string text;
    std::optional<char32_t> literal;
    bool repeatable = true;
  };

  [[noreturn]] void malformed(std::string_view cause) const {
    raise(ErrorCode::kBadFile, "{}: malformed pattern, {} at byte {} of {}", where_, cause, at_,
          io::in_quotes(pattern_));
  }
  [[noreturn]] void unsupported(std::string_view what) const {
    raise(ErrorCode::kUnsupportedModel,
          "{}: {} at byte {} of the pattern {} is not supported; supported are literals, classes, "
          "general categories, groups, lookaround, (?i), quantifiers and anchors",
          where_, what, at_, io::in_quotes(pattern_));
  }

  [[nodiscard]] bool done() const { return at_ >= pattern_.size(); }
  [[nodiscard]] char peek() const { return done() ? '\0' : pattern_[at_]; }
  [[nodiscard]] bool looking_at(std::string_view text) const {
    return pattern_.substr(at_).starts_with(text);
  }
  bool take(std::string_view text) {
    if (!looking_at(text)) return false;
    at_ += text.size();
    return true;
  }

  // Up to the end of the group or the pattern.
  std::string alternatives(int depth, bool ignore_case) {
    if (depth > kMaxDepth) malformed("groups nested too deep");
    std::string out;
    char32_t previous = 0;  // literal in front, for (?i)
    while (!done() && peek() != ')') {
      if (take("|")) {
        out += "|";
        previous = 0;
        continue;
      }
      if (take("(?#")) {
        const size_t end = pattern_.find(')', at_);
        if (end == std::string_view::npos) malformed("unmatched (");
        at_ = end + 1;
        continue;
      }
      // In the middle of a group: holds for the rest of it, alternatives included.
      if (take("(?i)")) return out + "(?i:" + alternatives(depth + 1, true) + ")";
      if (take("(?-i)")) return out + "(?-i:" + alternatives(depth + 1, false) + ")";
      Atom atom = next_atom(depth, ignore_case);
      const char32_t literal = atom.literal.value_or(0);
      if (ignore_case && literal != 0) check_fold(previous, literal);
      previous = literal;
      out += quantified(std::move(atom));
    }
    return out;
  }

  // Oniguruma lets "ss" match the sharp s, and the like.
  void check_fold(char32_t previous, char32_t c) const {
    if (c >= 0x80) unsupported("(?i) with text other than ASCII");
    const auto lower = [](char32_t x) { return x >= 'A' && x <= 'Z' ? x + 32 : x; };
    const char32_t a = lower(previous);
    const char32_t b = lower(c);
    if ((a == 's' && (b == 's' || b == 't')) || (a == 'f' && (b == 'f' || b == 'i' || b == 'l'))) {
      unsupported("(?i) with letters that have a ligature");
    }
  }

  Atom next_atom(int depth, bool ignore_case) {
    const char c = peek();
    switch (c) {
      case '(':
        return group(depth, ignore_case);
      case '[':
        return {.text = character_class(depth, ignore_case), .literal = {}};
      case '.':
        ++at_;
        return {.text = "[^\\n]", .literal = {}};
      case '^':
      case '$':
        ++at_;
        return {.text = std::string(1, c), .literal = {}, .repeatable = false};
      case '*':
      case '+':
      case '?':
        malformed("nothing to repeat");
      case '\\':
        if (std::optional<Atom> anchor = anchor_escape()) return *std::move(anchor);
        return as_atom(escape(ignore_case));
      default:
        return as_atom({.character = next_char(pattern_, at_), .inside = {}});
    }
  }

  static Atom as_atom(Item item) {
    if (item.character) return {.text = char_escape(*item.character), .literal = item.character};
    return {.text = "[" + item.inside + "]", .literal = {}};
  }

  Atom group(int depth, bool ignore_case) {
    static constexpr std::array<std::string_view, 6> kOpeners = {"(?:",  "(?=",  "(?!",
                                                                 "(?<=", "(?<!", "(?>"};
    std::string opener = "(?:";
    const auto known = std::find_if(kOpeners.begin(), kOpeners.end(),
                                    [&](std::string_view o) { return looking_at(o); });
    if (known != kOpeners.end()) {
      opener = *known;
      at_ += known->size();
    } else if (take("(?i:")) {
      opener = "(?i:";
      ignore_case = true;
    } else if (take("(?-i:")) {
      opener = "(?-i:";
      ignore_case = false;
    } else if (looking_at("(?") || looking_at("(*")) {
      unsupported("this kind of group");
    } else {
      ++at_;
    }
    std::string inside = alternatives(depth + 1, ignore_case);
    if (!take(")")) malformed("unmatched (");
    const bool looks_around = opener.find_first_of("=!") != std::string::npos;
    return {.text = opener + inside + ")", .literal = {}, .repeatable = !looks_around};
  }

  std::string quantified(Atom atom) {
    std::string text = std::move(atom.text);
    for (bool first = true;; first = false) {
      std::string quantifier = next_quantifier();
      if (quantifier.empty()) return text;
      if (!atom.repeatable) malformed("nothing to repeat");
      if (!first) text = "(?:" + text + ")";
      text += quantifier;
    }
  }

  std::string next_quantifier() {
    std::string quantifier;
    const char c = peek();
    if (c == '*' || c == '+' || c == '?') {
      ++at_;
      quantifier = c;
      if (take("?")) return quantifier + "?";
      if (take("+")) return quantifier + "+";
      return quantifier;
    }
    if (c != '{') return {};
    // {n} {n,} {n,m} {,m}; anything else is text. A + behind it repeats the repetition.
    size_t at = at_ + 1;
    const std::optional<int> low = number(at);
    std::optional<int> high = low;
    bool comma = false;
    if (at < pattern_.size() && pattern_[at] == ',') {
      comma = true;
      ++at;
      high = number(at);
    }
    if (at >= pattern_.size() || pattern_[at] != '}' || (!low && !high)) return {};
    at_ = at + 1;
    if (low && high && *low > *high) malformed("an interval with its bounds reversed");
    if (low.value_or(0) > kMaxRepeat || high.value_or(0) > kMaxRepeat) {
      unsupported("an interval beyond 1000");
    }
    quantifier = !comma ? fmt::format("{{{}}}", *low)
                 : high ? fmt::format("{{{},{}}}", low.value_or(0), *high)
                        : fmt::format("{{{},}}", *low);
    if (take("?")) quantifier += "?";
    return quantifier;
  }

  std::optional<int> number(size_t& at) const {
    const size_t begin = at;
    int value = 0;
    while (at < pattern_.size() && pattern_[at] >= '0' && pattern_[at] <= '9') {
      value = std::min(value * 10 + (pattern_[at] - '0'), kMaxRepeat + 1);
      ++at;
    }
    return at > begin ? std::optional(value) : std::nullopt;
  }

  std::optional<Atom> anchor_escape() {
    const auto anchor = [&](std::string text) {
      at_ += 2;
      return Atom{.text = std::move(text), .literal = {}, .repeatable = false};
    };
    switch (at_ + 1 < pattern_.size() ? pattern_[at_ + 1] : '\0') {
      case 'A':
        return anchor("\\A");
      case 'z':
        return anchor("\\z");
      case 'Z':
        return anchor("\\Z");
      case 'b':
        return anchor(fmt::format("(?:(?<=[{0}])(?![{0}])|(?<![{0}])(?=[{0}]))", word_items()));
      case 'B':
        return anchor(fmt::format("(?:(?<=[{0}])(?=[{0}])|(?<![{0}])(?![{0}]))", word_items()));
      default:
        return std::nullopt;
    }
  }

  // At a backslash.
  Item escape(bool ignore_case) {
    ++at_;
    if (done()) malformed("a backslash at the end");
    const char c = peek();
    switch (c) {
      case 't':
        return control('\t');
      case 'n':
        return control('\n');
      case 'v':
        return control('\v');
      case 'f':
        return control('\f');
      case 'r':
        return control('\r');
      case 'a':
        return control('\a');
      case 'e':
        return control('\x1b');
      case 's':
        return class_of(kSpaces);
      case 'S':
        return class_of(kNoSpaces);
      case 'd':
        return class_of(category_items("Nd"));
      case 'D':
        return class_of("\\P{Nd}");
      case 'w':
        return class_of(word_items());
      case 'h':
        return class_of(kHexDigits);
      case 'p':
      case 'P':
        return property(ignore_case);
      case 'x':
      case 'u':
        return code_point();
      default:
        break;
    }
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (letter) unsupported(fmt::format("\\{}", c));
    return {.character = next_char(pattern_, at_), .inside = {}};
  }

  Item control(char c) {
    ++at_;
    return {.character = static_cast<char32_t>(c), .inside = {}};
  }

  Item class_of(std::string_view inside) {
    ++at_;
    return {.character = {}, .inside = std::string(inside)};
  }

  // \p{..}, \P{..}, \p{^..}; characters that Unicode added lately count in \p only.
  Item property(bool ignore_case) {
    bool negated = peek() == 'P';
    const size_t begin = at_ + 1;
    const size_t end = pattern_.find('}', begin);
    if (begin >= pattern_.size() || pattern_[begin] != '{' || end == std::string_view::npos) {
      malformed("a property without braces");
    }
    std::string_view name = pattern_.substr(begin + 1, end - begin - 1);
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    const bool han = name == "Han";
    const bool known = std::find(kCategories.begin(), kCategories.end(), name) != kCategories.end();
    if (!known && !han) unsupported(fmt::format("the property {}", io::in_quotes(name)));
    if (ignore_case && name.size() > 1) unsupported("(?i) with this property");
    at_ = end + 1;
    if (negated)
      return {.character = {}, .inside = fmt::format("\\P{{{}}}", han ? "sc:Han" : name)};
    if (han) return {.character = {}, .inside = "\\p{sc:Han}" + std::string(kNewHan)};
    return {.character = {}, .inside = category_items(name)};
  }

  // \xHH, \x{H...}, \uHHHH
  Item code_point() {
    const bool braces = pattern_.substr(at_).starts_with("x{");
    const size_t wanted = braces ? 6 : peek() == 'x' ? 2 : 4;
    at_ += braces ? 2 : 1;
    char32_t value = 0;
    size_t digits = 0;
    for (; digits < wanted && !done(); ++digits, ++at_) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) break;
      value = value * 16 + static_cast<char32_t>(digit);
    }
    const bool closed = !braces || take("}");
    if (digits == 0 || (!braces && digits != wanted) || !closed || value > 0x10FFFF ||
        (value >= 0xD800 && value < 0xE000)) {
      malformed("a code point that is none");
    }
    if (wanted == 2 && value >= 0x80) unsupported("a byte of a character, \\x80 and up,");
    return {.character = value, .inside = {}};
  }

  // At a bracket.
  std::string character_class(int depth, bool ignore_case) {
    ++at_;
    const bool negated = take("^");
    std::string inside = class_items(depth + 1, ignore_case);
    return (negated ? "[^" : "[") + inside + "]";
  }

  // Up to the closing bracket, which is taken.
  std::string class_items(int depth, bool ignore_case) {
    if (depth > kMaxDepth) malformed("classes nested too deep");
    std::string inside;
    for (bool first = true;; first = false) {
      if (done()) malformed("unmatched [");
      if (!first && take("]")) return inside;
      if (looking_at("&&")) unsupported("an intersection of classes");
      if (looking_at("[:")) unsupported("a POSIX class");
      if (take("[")) {
        if (peek() == '^') unsupported("a negated class in a class");
        inside += class_items(depth + 1, ignore_case);
        continue;
      }
      Item item = class_item(ignore_case);
      // A minus between two characters makes a range; first or last it is itself.
      const bool range = peek() == '-' && at_ + 1 < pattern_.size() && pattern_[at_ + 1] != ']';
      if (!range) {
        inside += item.character ? char_escape(*item.character) : item.inside;
        continue;
      }
      ++at_;
      const Item last = class_item(ignore_case);
      if (!item.character || !last.character || *last.character < *item.character) {
        malformed("a range that is none");
      }
      inside += range_item(*item.character, *last.character);
    }
  }

  Item class_item(bool ignore_case) {
    if (done()) malformed("unmatched [");
    Item item = peek() == '\\' ? escape(ignore_case)
                               : Item{.character = next_char(pattern_, at_), .inside = {}};
    if (ignore_case && item.character && *item.character >= 0x80) {
      unsupported("(?i) with text other than ASCII");
    }
    return item;
  }

  std::string_view pattern_;
  std::string_view where_;
  size_t at_ = 0;
};

}  // namespace

std::string pcre2_pattern(std::string_view oniguruma, std::string_view where) {
  return Translator(oniguruma, where).run();
}

}  // namespace lpcd::text
