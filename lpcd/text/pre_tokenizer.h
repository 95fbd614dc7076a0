#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "lpcd/base/json.h"
#include "lpcd/text/component.h"

namespace lpcd::text {

/// What becomes of the matches when a text is split.
enum class SplitBehavior {
  kRemoved,             ///< dropped
  kIsolated,            ///< pieces of their own
  kMergedWithPrevious,  ///< at the end of the piece in front
  kMergedWithNext,      ///< at the beginning of the piece behind
  kContiguous,          ///< one piece per run of matches
};

/// The "pre_tokenizer" of a tokenizer.json: a sequence of steps that cut a text into words, which
/// the model sees one by one, and change them on the way.
///
/// Threads   run() may be called from several threads at once.
class PreTokenizer {
 public:
  /// Receives the words in order; the text is gone after the call.
  using Sink = std::function<void(std::string_view word)>;

  PreTokenizer() = default;
  /// From its JSON, which may be null.
  PreTokenizer(const Json& json, const std::string& where);

  /// `at_start` tells whether the text begins where the whole text does.
  /// Errors    kBadFile beyond the limit.
  void run(std::string_view text, bool at_start, GrowthLimit& limit, const Sink& sink) const;

  /// True if a Metaspace step marks the beginning of each text as that of a word.
  [[nodiscard]] bool marks_beginning() const;

 private:
  struct Piece {
    std::string_view text;
    bool at_start;
  };
  // What run() is called with besides the text.
  struct Run {
    GrowthLimit& limit;
    const Sink& sink;
  };
  struct Split {
    Pattern pattern;
    SplitBehavior behavior;
    bool invert;
  };
  struct ByteLevel {
    bool add_prefix_space;
    bool use_regex;
    Pattern words;
  };
  struct CharClass {  // Digits, WhitespaceSplit, Punctuation
    bool (*is_match)(char32_t);
    SplitBehavior behavior;
  };
  enum class Prepend { kAlways, kFirst, kNever };
  struct Metaspace {
    std::string replacement;
    Prepend prepend;
    bool split;
  };
  using Step = std::variant<Split, ByteLevel, CharClass, Metaspace>;

  void add(const Json& json, const std::string& where, int depth);
  void run_step(size_t index, Piece piece, const Run& state) const;
  void apply(const Split& step, size_t index, Piece piece, const Run& state) const;
  void apply(const ByteLevel& step, size_t index, Piece piece, const Run& state) const;
  void apply(const CharClass& step, size_t index, Piece piece, const Run& state) const;
  void apply(const Metaspace& step, size_t index, Piece piece, const Run& state) const;

  std::vector<Step> steps_;
};

}  // namespace lpcd::text
