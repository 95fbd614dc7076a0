#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "lpcd/text/added_tokens.h"
#include "lpcd/text/bpe.h"
#include "lpcd/text/decoder.h"
#include "lpcd/text/normalizer.h"
#include "lpcd/text/post_processor.h"
#include "lpcd/text/pre_tokenizer.h"
#include "lpcd/text/tokenizer.h"

namespace lpcd::text {

/// The parts of a tokenizer.json, in the order in which a text passes them.
struct Tokenizer::Impl {
  std::string json;
  std::string file;  // for messages
  Normalizer normalizer;
  BpeModel model;
  AddedTokens added;
  PreTokenizer pre_tokenizer;
  PostProcessor post_processor;
  Decoder decoder;
  std::unordered_map<int32_t, size_t> added_by_id;  // index in added.all()
  std::unordered_set<int32_t> unused;               // ids that only fill a vocabulary up
  int64_t vocab_size = 0;
  std::vector<int32_t> end_ids;

  static std::unique_ptr<Impl> read(std::string_view json, std::string_view where);

  [[nodiscard]] std::optional<int32_t> id_of(std::string_view token) const;
  /// Adds an id to end_ids, if it is one and not there yet.
  void add_end_id(std::optional<int32_t> id);

 private:
  Impl(const Json& root, const std::string& where);
  void number_added_tokens(const std::string& where);
};

}  // namespace lpcd::text
