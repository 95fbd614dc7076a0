#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lpcd/base/json.h"
#include "lpcd/text/normalizer.h"

namespace lpcd::text {

/// One entry of "added_tokens" of a tokenizer.json.
struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;      ///< left out by decode()
  bool single_word = false;  ///< not where a word character touches it
  bool lstrip = false;       ///< takes white space in front with it
  bool rstrip = false;       ///< takes white space behind with it
  bool normalized = false;   ///< looked for in the normalized text, in its normalized form
};

/// Reads the list.
/// Errors    kBadFile for a field of another type, an empty or repeated content, an id out of range
[[nodiscard]] std::vector<AddedToken> read_added_tokens(const Json& json, const std::string& where);

/// Finds any of a set of strings in a text: the leftmost, of those the longest.
///
/// Numerics  O(length of the text times length of the longest string).
class StringFinder {
 public:
  /// `index` is what find() gives back. False if the string is there already.
  bool add(std::string_view string, int32_t index);
  [[nodiscard]] bool empty() const { return nodes_.size() == 1; }

  struct Found {
    size_t begin;
    size_t end;
    int32_t index;
  };
  [[nodiscard]] std::optional<Found> find(std::string_view text, size_t from) const;

 private:
  struct Node {
    int32_t child = -1;    // first one
    int32_t sibling = -1;  // next child of the same parent
    int32_t index = -1;
    char byte = 0;
  };
  [[nodiscard]] int32_t child_of(int32_t node, char byte) const;

  std::vector<Node> nodes_ = std::vector<Node>(1);              // the root
  std::vector<int32_t> first_ = std::vector<int32_t>(256, -1);  // children of the root
};

/// The added tokens of a tokenizer: cuts them out of a text before everything else.
class AddedTokens {
 public:
  AddedTokens() = default;
  /// Errors    kBadFile if two tokens become the same, or one nothing, by normalization, or if it
  ///           makes too much of them.
  AddedTokens(std::vector<AddedToken> tokens, const Normalizer& normalizer,
              const std::string& where);

  [[nodiscard]] const std::vector<AddedToken>& all() const { return tokens_; }
  /// What decode() starts from: the content, normalized if the token is.
  [[nodiscard]] const std::string& decoded(size_t index) const { return decoded_[index]; }

  /// Calls `token(id)` and `text(part, at_start)` for what the normalized text consists of.
  template <typename Token, typename Text>
  void split(std::string_view whole, const Normalizer& normalizer, GrowthLimit& limit,
             Token&& token, Text&& text) const {
    split_by(verbatim_, whole, true, token, [&](std::string_view part, bool at_start) {
      const std::string normal =
          normalizer.empty() ? std::string() : normalizer.apply(part, at_start, limit);
      split_by(normalized_, normalizer.empty() ? part : normal, at_start, token, text);
    });
  }

 private:
  // Where a match really begins and ends, or nothing if it does not count.
  [[nodiscard]] std::optional<StringFinder::Found> adjusted(StringFinder::Found found,
                                                            std::string_view text,
                                                            size_t done) const;

  template <typename TokenSink, typename TextSink>
  void split_by(const StringFinder& finder, std::string_view text, bool at_start, TokenSink&& token,
                TextSink&& rest) const {
    size_t done = 0;
    size_t from = 0;
    while (const std::optional<StringFinder::Found> found = finder.find(text, from)) {
      from = found->end;
      const std::optional<StringFinder::Found> match = adjusted(*found, text, done);
      if (!match) continue;
      if (done < match->begin) rest(text.substr(done, match->begin - done), at_start && done == 0);
      // Nothing is left of a token in white space that others took.
      if (match->begin < match->end) token(tokens_[static_cast<size_t>(match->index)].id);
      done = match->end;
    }
    if (done < text.size()) rest(text.substr(done), at_start && done == 0);
  }

  std::vector<AddedToken> tokens_;
  std::vector<std::string> decoded_;
  StringFinder verbatim_;
  StringFinder normalized_;
};

}  // namespace lpcd::text
