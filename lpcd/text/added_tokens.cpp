#include "lpcd/text/added_tokens.h"

#include <unordered_set>

#include "lpcd/base/raise.h"
#include "lpcd/io/names.h"
#include "lpcd/text/bpe.h"
#include "lpcd/text/unicode.h"

namespace lpcd::text {
namespace {

// Bounds the time of a search; the longest of the known tokenizers has 256 (a run of spaces).
constexpr size_t kMaxTokenBytes = 1024;

}  // namespace

std::vector<AddedToken> read_added_tokens(const Json& json, const std::string& where) {
  if (!json.is_array()) {
    raise(ErrorCode::kBadFile, "{}: must be an array, found {}", where, json.type_name());
  }
  std::vector<AddedToken> tokens;
  std::unordered_set<std::string> seen;
  for (size_t i = 0; i < json.size(); ++i) {
    const JsonFields fields(json[i], fmt::format("{}[{}]", where, i));
    AddedToken token;
    token.content = fields.string_at("content");
    token.id = static_cast<int32_t>(fields.int_at("id", 0, kMaxTokenId));
    token.special = fields.bool_or("special", false);
    token.single_word = fields.bool_or("single_word", false);
    token.lstrip = fields.bool_or("lstrip", false);
    token.rstrip = fields.bool_or("rstrip", false);
    token.normalized = fields.bool_or("normalized", !token.special);
    if (token.content.empty() || token.content.size() > kMaxTokenBytes) {
      raise(ErrorCode::kBadFile, "{}: content must have 1 to {} bytes, found {}", fields.where(),
            kMaxTokenBytes, token.content.size());
    }
    if (!seen.insert(token.content).second) {
      raise(ErrorCode::kBadFile, "{}: {} appears twice; remove one of them", fields.where(),
            io::in_quotes(token.content));
    }
    tokens.push_back(std::move(token));
  }
  return tokens;
}

int32_t StringFinder::child_of(int32_t node, char byte) const {
  if (node == 0) return first_[static_cast<uint8_t>(byte)];
  int32_t child = nodes_[static_cast<size_t>(node)].child;
  while (child >= 0 && nodes_[static_cast<size_t>(child)].byte != byte) {
    child = nodes_[static_cast<size_t>(child)].sibling;
  }
  return child;
}

bool StringFinder::add(std::string_view string, int32_t index) {
  int32_t node = 0;
  for (const char byte : string) {
    int32_t child = child_of(node, byte);
    if (child < 0) {
      child = static_cast<int32_t>(nodes_.size());
      Node& parent = nodes_[static_cast<size_t>(node)];
      const int32_t sibling = node == 0 ? -1 : parent.child;
      if (node == 0) first_[static_cast<uint8_t>(byte)] = child;
      parent.child = child;
      nodes_.push_back({.child = -1, .sibling = sibling, .index = -1, .byte = byte});
    }
    node = child;
  }
  int32_t& place = nodes_[static_cast<size_t>(node)].index;
  if (place >= 0) return false;
  place = index;
  return true;
}

std::optional<StringFinder::Found> StringFinder::find(std::string_view text, size_t from) const {
  if (empty()) return std::nullopt;
  for (size_t begin = from; begin < text.size(); ++begin) {
    int32_t node = first_[static_cast<uint8_t>(text[begin])];
    std::optional<Found> longest;
    for (size_t at = begin + 1; node >= 0; ++at) {
      const int32_t index = nodes_[static_cast<size_t>(node)].index;
      if (index >= 0) longest = Found{.begin = begin, .end = at, .index = index};
      if (at == text.size()) break;
      node = child_of(node, text[at]);
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const Normalizer& normalizer,
                         const std::string& where)
    : tokens_(std::move(tokens)) {
  size_t bytes = 0;
  for (const AddedToken& token : tokens_) bytes += token.content.size();
  GrowthLimit limit(bytes, where);
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const AddedToken& token = tokens_[i];
    bool at_start = true;
    decoded_.push_back(token.normalized ? normalizer.apply(token.content, at_start, limit)
                                        : token.content);
    StringFinder& finder = token.normalized ? normalized_ : verbatim_;
    if (decoded_[i].empty() || !finder.add(decoded_[i], static_cast<int32_t>(i))) {
      raise(ErrorCode::kBadFile,
            "{}[{}]: {} normalizes to {}, which is empty or another token; set its "
            "normalized to false",
            where, i, io::in_quotes(token.content), io::in_quotes(decoded_[i]));
    }
  }
}

std::optional<StringFinder::Found> AddedTokens::adjusted(StringFinder::Found found,
                                                         std::string_view text, size_t done) const {
  const AddedToken& token = tokens_[static_cast<size_t>(found.index)];
  size_t before = found.begin;
  size_t after = found.end;
  if (token.single_word) {
    if (found.begin > 0 && is_word(previous_char(text, before))) return std::nullopt;
    if (found.end < text.size() && is_word(next_char(text, after))) return std::nullopt;
  }
  if (token.lstrip) {  // but not what an earlier token has taken
    for (size_t at = found.begin; at > done && is_space(previous_char(text, at));) found.begin = at;
    found.begin = std::max(found.begin, done);
  }
  if (token.rstrip) {
    found.end = std::max(found.end, done);  // the space up to there is known
    for (size_t at = found.end; at < text.size() && is_space(next_char(text, at));) found.end = at;
  }
  return found;
}

}  // namespace lpcd::text
