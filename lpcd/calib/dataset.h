#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lpcd/base/context.h"
#include "lpcd/text/tokenizer.h"

namespace lpcd::calib {

/// B sequences of L token ids, and where they came from.
struct Dataset {
  std::vector<int32_t> ids;  ///< [B, L]
  int64_t seq_len = 0;
  /// Tokens taken from each source, in order: {"c4.txt", 32768}.
  struct Source {
    std::string name;
    int64_t tokens = 0;
    int64_t available = 0;  ///< tokens that the source had to offer
  };
  std::vector<Source> sources;

  [[nodiscard]] int64_t sequences() const {
    return seq_len == 0 ? 0 : static_cast<int64_t>(ids.size()) / seq_len;
  }
  /// 128-bit hash of the ids and their shape, in hex.
  [[nodiscard]] std::string hash() const;
};

struct DatasetOptions {
  int64_t samples = 128;
  int64_t seq_len = 512;
  uint64_t seed = 0;
  std::string text_key = "text";  ///< field of a JSONL line that holds the text
};

/// From a file, by its name: .jsonl (one JSON object per line), .safetensors (`input_ids`, I32 or
/// I64, [B, L]: taken as they are, `samples` at most), anything else is plain text.
///
/// Text is tokenized as one document (JSONL: one per line, joined), cut into windows of seq_len,
/// and `samples` windows are drawn without replacement, in an order fixed by `seed`.
/// Errors    kBadText when there are fewer windows than samples (the message says how many tokens
///           there are); kBadFile for malformed JSONL, naming the line; kFileNotFound.
[[nodiscard]] Dataset load_dataset(const std::string& path, const text::Tokenizer* tokenizer,
                                   const DatasetOptions& options);

/// All tokens of a text or JSONL file, in order.
/// Errors    as load_dataset.
[[nodiscard]] std::vector<int32_t> tokenize_file(const std::string& path,
                                                 const text::Tokenizer* tokenizer,
                                                 const std::string& text_key);

/// The sampling rule of load_dataset for text that is already tokenized.
[[nodiscard]] Dataset sample_windows(const std::vector<int32_t>& tokens, const std::string& source,
                                     const DatasetOptions& options);

/// kBadModel if an id is negative or beyond the model's vocabulary.
void check_ids(const std::vector<int32_t>& ids, int64_t vocab_size, const std::string& source);

}  // namespace lpcd::calib
