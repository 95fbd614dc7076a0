#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace lpcd::text {

/// A compiled Oniguruma pattern (see regex_syntax.h), matched by PCRE2.
///
/// Numerics  A search stops with an error when it looks at more than a fixed multiple of the text:
///           a pattern of the known tokenizers is far below, one that backtracks without bound does
///           not hang.
/// Threads   May be used from several threads at once.
/// Errors    kBadFile, kUnsupportedModel from the constructor; kBadFile from Matches::next.
class Regex {
 public:
  Regex(std::string_view pattern, std::string_view where);
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

  struct Match {
    size_t begin;
    size_t end;
  };

  /// The matches in a text from left to right, none overlapping: each begins the search where the
  /// last one ended, and an empty one is skipped there.
  ///
  /// Lifetime  Refers to the Regex and to the text, which is well-formed UTF-8.
  class Matches {
   public:
    Matches(const Regex& regex, std::string_view text);
    Matches(const Matches&) = delete;
    Matches& operator=(const Matches&) = delete;
    ~Matches();
    /// False when there are no more.
    bool next(Match& match);

   private:
    struct State;
    bool search(size_t from, Match& match);
    std::unique_ptr<State> state_;
  };

 private:
  struct Compiled;
  std::unique_ptr<const Compiled> compiled_;
};

}  // namespace lpcd::text
