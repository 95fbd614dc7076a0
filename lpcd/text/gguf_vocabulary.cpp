#include "lpcd/text/gguf_vocabulary.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <unordered_map>

#include "lpcd/base/json.h"
#include "lpcd/base/raise.h"
#include "lpcd/io/names.h"
#include "lpcd/text/bpe.h"
#include "lpcd/text/tokenizer_impl.h"
#include "lpcd/text/unicode.h"

namespace lpcd::text {
namespace {

// Bounds the time to recover merges; the longest of the known llama vocabularies has 48.
constexpr size_t kMaxScoredBytes = 1024;

constexpr std::string_view kContractions = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|)";
constexpr std::string_view kTail = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekkenWords =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
    R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// kSmaug: the words of Llama 3, of which none is taken as a whole, and no leading token.
enum class Words { kDefault, kGpt2, kDigits, kLlama3, kSmaug, kQwen2, kTekken };

// What a name in tokenizer.ggml.pre stands for.
struct PreKind {
  std::string_view name;
  Words words;
};
constexpr std::array<PreKind, 27> kPreKinds = {{
    {"", Words::kDefault},       {"default", Words::kDefault},
    {"gpt-2", Words::kGpt2},     {"phi-2", Words::kGpt2},
    {"smollm", Words::kDigits},  {"starcoder", Words::kDigits},
    {"refact", Words::kDigits},  {"llama-bpe", Words::kLlama3},
    {"llama3", Words::kLlama3},  {"llama-v3", Words::kLlama3},
    {"falcon3", Words::kLlama3}, {"falcon-h1", Words::kLlama3},
    {"pixtral", Words::kLlama3}, {"midm-2.0", Words::kLlama3},
    {"lfm2", Words::kLlama3},    {"jina-v5-nano", Words::kLlama3},
    {"dbrx", Words::kSmaug},     {"smaug-bpe", Words::kSmaug},
    {"qwen2", Words::kQwen2},    {"deepseek-r1-qwen", Words::kQwen2},
    {"kormo", Words::kQwen2},    {"f2llmv2", Words::kQwen2},
    {"megrez", Words::kQwen2},   {"stablelm2", Words::kQwen2},
    {"hunyuan", Words::kQwen2},  {"solar-open", Words::kQwen2},
    {"tekken", Words::kTekken},
}};

Words words_of(const std::string& pre, const std::string& where) {
  const auto it = std::find_if(kPreKinds.begin(), kPreKinds.end(),
                               [&](const PreKind& kind) { return kind.name == pre; });
  if (it == kPreKinds.end()) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: tokenizer.ggml.pre {} is not supported; supported are gpt-2, smollm, llama-bpe, "
          "qwen2, tekken and names for the same; give the tokenizer.json of the original model",
          where, io::in_quotes(pre));
  }
  return it->words;
}

// A vocabulary whose lists fit together.
class Checked {
 public:
  Checked(const GgufVocabulary& vocabulary, const std::string& where)
      : vocabulary_(vocabulary), where_(where), tokens_(vocabulary.tokens) {
    const size_t n = tokens_.size();
    if (n == 0 || n > static_cast<size_t>(kMaxTokenId) + 1) {
      raise(ErrorCode::kBadFile, "{}: tokenizer.ggml.tokens must have 1 to {} entries, found {}",
            where_, kMaxTokenId + 1, n);
    }
    check_length("token_type", vocabulary.token_types.size());
    check_length("scores", vocabulary.scores.size());
    for (size_t i = 0; i < n; ++i) {
      if (tokens_[i].empty()) tokens_[i] = fmt::format("[EMPTY_{}]", i);  // as llama.cpp calls it
      if (!is_utf8(tokens_[i])) {
        raise(ErrorCode::kBadFile, "{}: tokenizer.ggml.tokens[{}]: {} is not UTF-8", where_, i,
              io::in_quotes(tokens_[i]));
      }
      const auto [it, added] = ids_.emplace(tokens_[i], i);
      if (!added) {
        raise(ErrorCode::kBadFile, "{}: tokenizer.ggml.tokens[{}] and [{}] are both {}", where_,
              it->second, i, io::in_quotes(tokens_[i]));
      }
    }
  }

  [[nodiscard]] const std::string& where() const { return where_; }
  [[nodiscard]] const std::vector<std::string>& tokens() const { return tokens_; }
  [[nodiscard]] const std::unordered_map<std::string_view, size_t>& ids() const { return ids_; }

  [[nodiscard]] Json vocab() const {
    Json vocab = Json::object();
    for (size_t i = 0; i < tokens_.size(); ++i) vocab[tokens_[i]] = i;
    return vocab;
  }

  [[nodiscard]] Json added_tokens() const {
    Json added = Json::array();
    for (size_t i = 0; i < vocabulary_.token_types.size(); ++i) {
      const int64_t type = vocabulary_.token_types[i];
      if (type != token_type::kUnknown && type != token_type::kControl &&
          type != token_type::kUserDefined)
        continue;
      added.push_back({{"id", i},
                       {"content", tokens_[i]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", type != token_type::kUserDefined}});
    }
    return added;
  }

  [[nodiscard]] const std::string& token(int64_t id, std::string_view key) const {
    if (id < 0 || id >= static_cast<int64_t>(tokens_.size())) {
      raise(ErrorCode::kBadFile, "{}: tokenizer.ggml.{} is {}, but there are {} tokens", where_,
            key, id, tokens_.size());
    }
    return tokens_[static_cast<size_t>(id)];
  }

 private:
  void check_length(std::string_view key, size_t length) const {
    if (length != 0 && length != tokens_.size()) {
      raise(ErrorCode::kBadFile, "{}: tokenizer.ggml.{} has {} entries for {} tokens", where_, key,
            length, tokens_.size());
    }
  }

  const GgufVocabulary& vocabulary_;
  const std::string& where_;
  std::vector<std::string> tokens_;
  std::unordered_map<std::string_view, size_t> ids_;
};

Json split_step(std::string_view pattern) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", pattern}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

Json byte_level_step(bool add_prefix_space, bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

Json pre_tokenizer_json(Words words, bool add_prefix_space) {
  Json steps = Json::array();
  switch (words) {
    case Words::kDefault:  // one after the other, as llama.cpp splits where it knows no better
      for (const std::string_view pattern :
           {R"([\p{P}\$\+<=>\^~\|]+)",
            R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))",
            R"(\p{N}+)", "[0-9][0-9][0-9]"}) {
        steps.push_back(split_step(pattern));
      }
      break;
    case Words::kGpt2:
      return byte_level_step(add_prefix_space, true);
    case Words::kDigits:
      steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
      steps.push_back(byte_level_step(add_prefix_space, true));
      return {{"type", "Sequence"}, {"pretokenizers", steps}};
    case Words::kLlama3:
    case Words::kSmaug:
      steps.push_back(split_step(
          fmt::format("{}{}{}", kContractions, R"([^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})", kTail)));
      break;
    case Words::kQwen2:
      steps.push_back(split_step(
          fmt::format("{}{}{}", kContractions, R"([^\r\n\p{L}\p{N}]?\p{L}+|\p{N})", kTail)));
      break;
    case Words::kTekken:
      steps.push_back(split_step(kTekkenWords));
      break;
  }
  steps.push_back(byte_level_step(add_prefix_space, false));
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

Json post_processor_json(const GgufVocabulary& vocabulary, const Checked& checked, bool add_bos,
                         bool add_eos) {
  if (!add_bos && !add_eos) return nullptr;
  Json single = Json::array();
  Json pair = Json::array();
  Json special = Json::object();
  const auto text = [](std::string_view id) {
    return Json{{"Sequence", {{"id", id}, {"type_id", 0}}}};
  };
  const auto token = [&](std::optional<int64_t> id, std::string_view key) {
    if (!id) {
      raise(ErrorCode::kBadFile,
            "{}: a token is to be added to each text, but there is no "
            "tokenizer.ggml.{}",
            checked.where(), key);
    }
    const std::string& name = checked.token(*id, key);
    special[name] = {{"id", name}, {"ids", Json::array({*id})}, {"tokens", Json::array({name})}};
    return Json{{"SpecialToken", {{"id", name}, {"type_id", 0}}}};
  };
  for (const std::string_view id : {"A", "B"}) {
    Json part = Json::array();
    if (add_bos) part.push_back(token(vocabulary.bos_id, "bos_token_id"));
    part.push_back(text(id));
    if (add_eos) part.push_back(token(vocabulary.eos_id, "eos_token_id"));
    if (id == "A") single = part;
    pair.insert(pair.end(), part.begin(), part.end());
  }
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", special}};
}

Json bpe_json(Json vocab, Json merges) {
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", false},
          {"vocab", std::move(vocab)},
          {"merges", std::move(merges)}};
}

Json assemble(const Checked& checked) {
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", checked.added_tokens()},
          {"normalizer", nullptr}};
}

Json gpt2_json(const GgufVocabulary& vocabulary, const Checked& checked) {
  if (vocabulary.merges.empty()) {
    raise(ErrorCode::kBadFile, "{}: tokenizer.ggml.merges is missing, which model gpt2 needs",
          checked.where());
  }
  for (size_t i = 0; i < vocabulary.merges.size(); ++i) {
    if (!is_utf8(vocabulary.merges[i])) {
      raise(ErrorCode::kBadFile, "{}: tokenizer.ggml.merges[{}]: {} is not UTF-8", checked.where(),
            i, io::in_quotes(vocabulary.merges[i]));
    }
  }
  const Words words = words_of(vocabulary.pre, checked.where());
  const bool whole_words = words == Words::kLlama3 || words == Words::kTekken;
  Json json = assemble(checked);
  if (words == Words::kQwen2) json["normalizer"] = {{"type", "NFC"}};
  json["pre_tokenizer"] = pre_tokenizer_json(words, vocabulary.add_space_prefix.value_or(false));
  json["post_processor"] =
      post_processor_json(vocabulary, checked, vocabulary.add_bos.value_or(whole_words),
                          vocabulary.add_eos.value_or(false));
  json["decoder"] = byte_level_step(false, true);
  json["model"] = bpe_json(checked.vocab(), vocabulary.merges);
  json["model"]["ignore_merges"] = whole_words;
  return json;
}

struct ScoredMerge {
  double score;
  size_t left_chars;
  size_t right_chars;
  size_t left;
  size_t right;
};

// All ways to cut a token into two, in the order of the ids of the parts.
void cut(const Checked& checked, std::string_view token, double score,
         std::vector<ScoredMerge>& merges) {
  if (token.size() > kMaxScoredBytes) {
    raise(ErrorCode::kBadFile, "{}: a token of {} bytes ({}); at most {} are supported",
          checked.where(), token.size(), io::in_quotes(token), kMaxScoredBytes);
  }
  const auto begin = static_cast<std::ptrdiff_t>(merges.size());
  size_t chars = 0;
  for (size_t at = 0; at < token.size(); at += char_bytes(token[at])) ++chars;
  size_t done = 0;
  for (size_t at = char_bytes(token[0]); at < token.size(); at += char_bytes(token[at])) {
    ++done;
    const auto left = checked.ids().find(token.substr(0, at));
    if (left == checked.ids().end()) continue;
    const auto right = checked.ids().find(token.substr(at));
    if (right == checked.ids().end()) continue;
    merges.push_back({.score = score,
                      .left_chars = done,
                      .right_chars = chars - done,
                      .left = left->second,
                      .right = right->second});
  }
  std::sort(merges.begin() + begin, merges.end(), [](const ScoredMerge& a, const ScoredMerge& b) {
    return std::pair(a.left, a.right) < std::pair(b.left, b.right);
  });
}

Json recovered_merges(const GgufVocabulary& vocabulary, const Checked& checked) {
  if (vocabulary.scores.empty()) {
    raise(ErrorCode::kBadFile, "{}: tokenizer.ggml.scores is missing, which model llama needs",
          checked.where());
  }
  std::vector<ScoredMerge> merges;
  for (size_t i = 0; i < checked.tokens().size(); ++i) {
    if (!std::isfinite(vocabulary.scores[i])) {
      raise(ErrorCode::kBadFile, "{}: tokenizer.ggml.scores[{}] is not finite", checked.where(), i);
    }
    cut(checked, checked.tokens()[i], vocabulary.scores[i], merges);
  }
  std::stable_sort(merges.begin(), merges.end(), [](const ScoredMerge& a, const ScoredMerge& b) {
    return std::tuple(a.score, a.left_chars, a.right_chars) >
           std::tuple(b.score, b.left_chars, b.right_chars);
  });
  Json list = Json::array();
  for (const ScoredMerge& merge : merges) {
    list.push_back({checked.tokens()[merge.left], checked.tokens()[merge.right]});
  }
  return list;
}

Json llama_json(const GgufVocabulary& vocabulary, const Checked& checked) {
  const bool prefix = vocabulary.add_space_prefix.value_or(true);
  const std::string& unknown = checked.token(vocabulary.unknown_id.value_or(0), "unknown_token_id");
  const Json to_line = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}};
  Json decoders = {{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
                   {{"type", "ByteFallback"}},
                   {{"type", "Fuse"}}};
  Json json = assemble(checked);
  if (prefix) {
    const Json prepend = {{"type", "Prepend"}, {"prepend", "▁"}};
    json["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array({prepend, to_line})}};
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  } else {
    json["normalizer"] = to_line;
  }
  json["pre_tokenizer"] = nullptr;
  json["post_processor"] = post_processor_json(
      vocabulary, checked, vocabulary.add_bos.value_or(true), vocabulary.add_eos.value_or(false));
  json["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
  json["model"] = bpe_json(checked.vocab(), recovered_merges(vocabulary, checked));
  json["model"]["unk_token"] = unknown;
  json["model"]["fuse_unk"] = true;
  json["model"]["byte_fallback"] = true;
  return json;
}

}  // namespace

std::string tokenizer_json(const GgufVocabulary& vocabulary, const std::string& where) {
  const Checked checked(vocabulary, where);
  if (vocabulary.model == "gpt2") return dump_json(gpt2_json(vocabulary, checked));
  if (vocabulary.model == "llama") return dump_json(llama_json(vocabulary, checked));
  raise(ErrorCode::kUnsupportedModel,
        "{}: tokenizer.ggml.model {} is not supported; supported are gpt2 and llama", where,
        io::in_quotes(vocabulary.model));
}

Tokenizer from_vocabulary(const GgufVocabulary& vocabulary, const std::string& where) {
  auto impl = Tokenizer::Impl::read(tokenizer_json(vocabulary, where), where);
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const bool unused =
        !vocabulary.token_types.empty() && vocabulary.token_types[i] == token_type::kUnused;
    if (unused || vocabulary.tokens[i].empty()) impl->unused.insert(static_cast<int32_t>(i));
  }
  const auto add = [&](std::optional<int64_t> id) {
    if (id && *id >= 0 && *id <= kMaxTokenId) impl->add_end_id(static_cast<int32_t>(*id));
  };
  add(vocabulary.eos_id);
  for (const int64_t id : vocabulary.end_ids) add(id);
  return Tokenizer(std::move(impl));
}

}  // namespace lpcd::text
