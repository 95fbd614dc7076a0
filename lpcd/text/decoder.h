#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "lpcd/base/json.h"
#include "lpcd/text/component.h"

namespace lpcd::text {

/// The "decoder" of a tokenizer.json: a sequence of steps from tokens to text.
class Decoder {
 public:
  Decoder() = default;
  /// From its JSON; null joins the tokens with spaces.
  Decoder(const Json& json, const std::string& where);

  /// Errors    kBadFile beyond the limit.
  [[nodiscard]] std::string run(std::vector<std::string> tokens, GrowthLimit& limit) const;

 private:
  using Tokens = std::vector<std::string>;
  struct ByteLevel {};     // characters to the bytes they stand for
  struct ByteFallback {};  // "<0xE2>" to the byte
  struct Fuse {};          // all tokens to one
  struct Replace {
    Pattern pattern;
    std::string content;
  };
  struct Strip {  // up to so many of a character off both ends of each token
    char32_t content;
    int64_t start;
    int64_t stop;
  };
  struct Metaspace {
    char32_t replacement;
    bool drop_first;  // in the first token the replacement stands for nothing
  };
  using Step = std::variant<ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace>;

  void add(const Json& json, const std::string& where, int depth);
  static Tokens run(const ByteLevel& step, Tokens tokens, GrowthLimit& limit);
  static Tokens run(const ByteFallback& step, Tokens tokens, GrowthLimit& limit);
  static Tokens run(const Fuse& step, Tokens tokens, GrowthLimit& limit);
  static Tokens run(const Replace& step, Tokens tokens, GrowthLimit& limit);
  static Tokens run(const Strip& step, Tokens tokens, GrowthLimit& limit);
  static Tokens run(const Metaspace& step, Tokens tokens, GrowthLimit& limit);

  bool joins_with_spaces_ = true;
  std::vector<Step> steps_;
};

}  // namespace lpcd::text
