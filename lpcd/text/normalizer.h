#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "lpcd/base/json.h"
#include "lpcd/text/component.h"
#include "lpcd/text/unicode.h"

namespace lpcd::text {

/// The "normalizer" of a tokenizer.json: a sequence of steps from text to text.
class Normalizer {
 public:
  Normalizer() = default;
  /// From its JSON, which may be null.
  Normalizer(const Json& json, const std::string& where);

  [[nodiscard]] bool empty() const { return steps_.empty(); }

  /// `at_start` tells whether the text begins where the whole text does; it becomes false when a
  /// step takes the first character away, since Metaspace asks for the place in the original.
  /// Errors    kBadFile beyond the limit.
  [[nodiscard]] std::string apply(std::string_view text, bool& at_start, GrowthLimit& limit) const;

  /// True if a step puts something in front of each text.
  [[nodiscard]] bool prepends() const;

 private:
  struct Form {
    NormalForm form;
  };
  struct Lowercase {};
  struct Prepend {
    std::string prefix;
  };
  struct Replace {
    Pattern pattern;
    std::string content;
  };
  struct Strip {
    bool left;
    bool right;
  };
  using Step = std::variant<Form, Lowercase, Prepend, Replace, Strip>;

  void add(const Json& json, const std::string& where, int depth);
  // What apply() is called with besides the text.
  struct Run {
    bool& at_start;
    GrowthLimit& limit;
  };
  static std::string run(const Form& step, std::string text, Run& state);
  static std::string run(const Lowercase& step, std::string text, Run& state);
  static std::string run(const Prepend& step, std::string text, Run& state);
  static std::string run(const Replace& step, std::string text, Run& state);
  static std::string run(const Strip& step, std::string text, Run& state);

  std::vector<Step> steps_;
};

}  // namespace lpcd::text
