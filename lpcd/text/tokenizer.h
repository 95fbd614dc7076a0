#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lpcd::io {
class GgufFile;
}

namespace lpcd::text {

struct GgufVocabulary;

enum class SpecialTokens {
  kNone,  ///< the text alone
  kAdd,   ///< what the model's post-processor adds, as a rule one token at the beginning
};

/// Text to token ids and back, with the ids of the Hugging Face `tokenizers` package.
///
/// Covers byte-level BPE (GPT-2, Llama 3, Qwen 2/3, SmolLM) and SentencePiece-style BPE with byte
/// fallback (Llama 2, Mistral), from tokenizer.json or from the vocabulary of a GGUF file.
/// Numerics  Invalid UTF-8 in the input is first replaced by U+FFFD, one per maximal ill-formed
///           part, as Python's errors="replace" does. Ids do not depend on the machine: where the
///           Unicode tables of its libraries are older than those of the package (Unicode 16; 9
///           for normal forms), they are brought up to date.
/// Threads   const methods may be called from several threads at once.
/// Errors    kBadFile / kUnsupportedModel from the constructors, naming the part of the file.
class Tokenizer {
 public:
  /// From the text of a tokenizer.json; `where` names it in messages. Its "truncation" and
  /// "padding" have no effect.
  static Tokenizer from_json(std::string_view json, std::string_view where);
  /// From tokenizer.ggml.* keys: models "gpt2" and "llama" (see gguf_vocabulary.h).
  /// Errors    kBadModel for a key that is absent or of another type, kBadFile and
  ///           kUnsupportedModel for what the keys hold.
  static Tokenizer from_gguf(const io::GgufFile& file);
  /// From DIR/tokenizer.json, or nothing if there is none. What ends a text is also looked for in
  /// tokenizer_config.json and generation_config.json.
  static std::optional<Tokenizer> from_directory(const std::string& directory);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// O(n log n) in the length of the text, whatever the text.
  ///
  /// Memory    Up to 32 bytes per byte of text when the model sees all of it as one word.
  /// Errors    kBadText from 2 GiB on; kBadFile if a pattern of the file backtracks without bound
  ///           on this text, if its steps add more than 32 times the text and 1 MiB to it, or if
  ///           the text needs an unknown token that the file does not have.
  [[nodiscard]] std::vector<int32_t> encode(std::string_view text, SpecialTokens special) const;

  /// Text of the ids, special tokens left out. Unknown ids give nothing. Bytes of a character that
  /// is cut in two come out as U+FFFD.
  /// Errors    kBadFile if the steps of the file add more than 32 times the text and 1 MiB to it.
  [[nodiscard]] std::string decode(std::span<const int32_t> ids) const;

  /// One more than the largest id.
  [[nodiscard]] int64_t vocab_size() const;
  /// Of a token that text is made of: not an added one ("<|im_end|>", "<pad>"), nor one that a GGUF
  /// file calls unused, nor no token at all, as the rows have with which an embedding is filled up.
  [[nodiscard]] bool is_ordinary(int32_t id) const;
  /// The id that kAdd puts in front of a text, if it does.
  [[nodiscard]] std::optional<int32_t> leading_id() const;
  /// The id that kAdd puts behind a text, if it does.
  [[nodiscard]] std::optional<int32_t> trailing_id() const;
  /// Ids that end a text ("</s>", "<|endoftext|>", "<|im_end|>"), as far as the file tells.
  [[nodiscard]] const std::vector<int32_t>& end_ids() const;

  /// A tokenizer.json with the same ids, for consumers of a model that came from a GGUF file. For a
  /// tokenizer that came from tokenizer.json this is that text, unchanged.
  [[nodiscard]] std::string to_json() const;

 private:
  struct Impl;
  friend Tokenizer from_vocabulary(const GgufVocabulary& vocabulary, const std::string& where);
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

}  // namespace lpcd::text
