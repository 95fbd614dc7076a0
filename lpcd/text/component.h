#pragma once

#include <string>
#include <string_view>
#include <variant>

#include "lpcd/base/json.h"
#include "lpcd/text/regex.h"

namespace lpcd::text {

/// Of sequences of components in sequences; real files have 2.
constexpr int kMaxNesting = 8;

/// kBadFile, naming the step after the last allowed one: `where` has more steps than `max`.
void check_step_count(size_t steps, size_t max, const std::string& where);

/// Bounds what the steps of a file add to a text: forty that double it make terabytes of a word.
class GrowthLimit {
 public:
  /// For a text of so many bytes, or several texts together; `where` names the file.
  GrowthLimit(size_t text_bytes, std::string_view where);

  /// Some of the text has grown, or has not.
  /// Errors    kBadFile if all of it has grown too much.
  void grow(size_t from, size_t to) {
    if (to <= from) return;
    if (to - from > left_) fail();
    left_ -= to - from;
  }

 private:
  [[noreturn]] void fail() const;

  size_t text_bytes_;
  size_t left_;
  std::string_view where_;
};

/// "type" of one component of a tokenizer.json; kBadFile without one.
[[nodiscard]] std::string component_type(const Json& component, const std::string& where);

/// kUnsupportedModel: `where` has a component of this type, and these are supported.
[[noreturn]] void unsupported_component(const std::string& where, std::string_view type,
                                        std::string_view supported);

/// Required boolean of a component.
[[nodiscard]] bool bool_at(const JsonFields& fields, std::string_view key);

/// Required string of exactly one character.
[[nodiscard]] char32_t char_at(const JsonFields& fields, std::string_view key);

/// What Split and Replace look for: {"String": ".."} or {"Regex": ".."}.
class Pattern {
 public:
  Pattern(const Json& pattern, const std::string& where);
  explicit Pattern(std::string literal) : what_(std::move(literal)) {}
  explicit Pattern(Regex regex) : what_(std::move(regex)) {}

  /// Calls `segment(begin, end, is_match)` for stretches that cover the text from left to right,
  /// matches and what is between them.
  template <typename Segment>
  void for_each_segment(std::string_view text, Segment&& segment) const {
    if (text.empty()) return;  // not even an empty match
    size_t done = 0;
    const auto found = [&](size_t begin, size_t end) {
      if (begin > done) segment(done, begin, false);
      segment(begin, end, true);
      done = end;
    };
    if (const auto* literal = std::get_if<std::string>(&what_)) {
      for (size_t at = text.find(*literal); at != std::string_view::npos;
           at = text.find(*literal, at + literal->size())) {
        found(at, at + literal->size());
      }
    } else {
      Regex::Matches matches(std::get<Regex>(what_), text);
      for (Regex::Match match{}; matches.next(match);) found(match.begin, match.end);
    }
    if (done < text.size()) segment(done, text.size(), false);
  }

  /// All matches replaced.
  [[nodiscard]] std::string replace(std::string_view text, std::string_view content,
                                    GrowthLimit& limit) const;

 private:
  std::variant<std::string, Regex> what_;
};

}  // namespace lpcd::text
