#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "lpcd/text/gguf_vocabulary.h"

namespace lpcd::text {

/// A vocabulary for a GGUF file, and what stands beside it in a Hugging Face directory.
struct ExportedVocabulary {
  GgufVocabulary vocabulary;  ///< exactly `size` tokens; gaps are "[PAD7]", of type 5 (unused)
  std::optional<int64_t> padding_id;
  std::string chat_template;
  /// False if the way in which the tokenizer cuts text has no name in GGUF: `pre` is then the
  /// nearest, or "default", and llama.cpp cuts some texts differently.
  bool pre_is_known = true;
};

/// From tokenizer.json, tokenizer_config.json and chat_template.jinja of a directory; nothing if
/// there is no tokenizer.json. `size`: rows of the embedding.
///
/// Scores of a SentencePiece-like vocabulary are minus the rank of the merge that makes a token,
/// which orders merges as tokenizer.json does.
/// Errors    kUnsupportedModel for a model other than BPE, kBadFile for a damaged file.
[[nodiscard]] std::optional<ExportedVocabulary> export_vocabulary(const std::string& directory,
                                                                  int64_t size);

/// Name for tokenizer.ggml.pre of a "pre_tokenizer" of tokenizer.json, or nothing. Names differ in
/// `ignore_merges` of the model as well: whether a word that is a token as a whole is taken as it
/// is.
[[nodiscard]] std::optional<std::string> pre_name(std::string_view pre_tokenizer_json,
                                                  bool ignore_merges = false);

}  // namespace lpcd::text
