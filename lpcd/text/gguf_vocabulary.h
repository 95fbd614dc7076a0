#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lpcd/text/tokenizer.h"

namespace lpcd::text {

/// Values of tokenizer.ggml.token_type.
namespace token_type {
constexpr int64_t kNormal = 1;
constexpr int64_t kUnknown = 2;
constexpr int64_t kControl = 3;
constexpr int64_t kUserDefined = 4;
constexpr int64_t kUnused = 5;
constexpr int64_t kByte = 6;
}  // namespace token_type

/// The tokenizer.ggml.* keys of a GGUF file.
struct GgufVocabulary {
  std::string model;                 ///< "gpt2" or "llama"
  std::string pre;                   ///< how gpt2 splits text into words; "" is "default"
  std::vector<std::string> tokens;   ///< index = id
  std::vector<int64_t> token_types;  ///< one per token, or none: all are normal
  std::vector<std::string> merges;   ///< "left right" by rank
  std::vector<double> scores;        ///< of llama, one per token: the higher merges first
  std::optional<int64_t> bos_id;
  std::optional<int64_t> eos_id;
  std::optional<int64_t> unknown_id;
  std::vector<int64_t> end_ids;  ///< further ids that end a text or a turn
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::optional<bool> add_space_prefix;
};

/// The tokenizer.json that the vocabulary amounts to; `where` names the file in messages.
///
/// Control and user-defined tokens become added tokens. A llama vocabulary has scores in place of
/// merges: these are recovered as every way to cut a token into two others, the best token first,
/// as the converters of the `transformers` package do.
/// Errors    kBadFile for lists of different length, equal or ill-formed tokens, ids out of range;
///           kUnsupportedModel for a model or a `pre` outside the list.
[[nodiscard]] std::string tokenizer_json(const GgufVocabulary& vocabulary,
                                         const std::string& where);

/// The tokenizer of tokenizer_json().
[[nodiscard]] Tokenizer from_vocabulary(const GgufVocabulary& vocabulary, const std::string& where);

}  // namespace lpcd::text
