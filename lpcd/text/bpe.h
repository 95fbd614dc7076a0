#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lpcd/base/json.h"

namespace lpcd::text {

/// Ids are indices of embedding rows; the largest known vocabulary has 262144.
inline constexpr int64_t kMaxTokenId = 10'000'000 - 1;

/// Byte pair encoding: "model" of a tokenizer.json.
///
/// A word begins as one token per character. As long as two neighbours have a merge, the pair with
/// the lowest rank, of those the leftmost, becomes one token. A character that is no token becomes
/// the tokens of its bytes ("<0xE2>", byte_fallback), else the unknown token, else nothing.
/// Numerics  O(n log n) in the length of the word.
/// Threads   const methods may be called from several threads at once, each with its own Cache.
class BpeModel {
 public:
  /// Errors    kBadFile for wrong types, ids out of range or given twice, merges of absent tokens;
  ///           kUnsupportedModel for another model, dropout, subword prefixes and suffixes.
  BpeModel(const Json& json, const std::string& where);
  BpeModel(BpeModel&&) = default;
  BpeModel(const BpeModel&) = delete;  // tokens_ points into ids_
  BpeModel& operator=(const BpeModel&) = delete;

  struct StringHash {
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
  };

  /// Words that were seen before; bounded.
  class Cache {
   public:
    [[nodiscard]] const std::vector<int32_t>* find(std::string_view word) const;
    void insert(std::string_view word, std::vector<int32_t> ids);

   private:
    std::unordered_map<std::string, std::vector<int32_t>, StringHash, std::equal_to<>> words_;
  };

  /// Appends the ids of a word.
  /// Errors    kBadFile if the unknown token is needed and not in the vocabulary.
  void encode(std::string_view word, Cache& cache, std::vector<int32_t>& ids) const;

  [[nodiscard]] std::optional<int32_t> id_of(std::string_view token) const;
  /// Null for an id that is not in the vocabulary.
  [[nodiscard]] const std::string* token_of(int32_t id) const;
  /// Number of tokens.
  [[nodiscard]] int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  [[nodiscard]] int32_t max_id() const { return max_id_; }

 private:
  struct Merge {
    int32_t rank;
    int32_t id;
  };
  /// Hash table from pairs of ids; most lookups are of pairs that have no merge.
  class MergeTable {
   public:
    void reserve(size_t merges);
    void insert(int32_t left, int32_t right, Merge merge);  // the last one of equal pairs wins
    [[nodiscard]] const Merge* find(int32_t left, int32_t right) const;

   private:
    struct Slot {
      uint64_t key = ~uint64_t{0};
      Merge merge{};
    };
    [[nodiscard]] size_t home(uint64_t key) const;
    std::vector<Slot> slots_;
    int shift_ = 63;
  };
  void read_options(const JsonFields& fields);
  void read_vocabulary(const JsonFields& fields);
  void read_merges(const JsonFields& fields);
  void add_merge(std::string_view left, std::string_view right, int32_t rank);
  void index_characters();

  [[nodiscard]] int32_t id_of_char(char32_t c) const;
  [[nodiscard]] bool may_touch(char32_t left, char32_t right) const;
  void encode_part(std::string_view part, Cache& cache, std::vector<int32_t>& ids) const;
  [[nodiscard]] std::vector<int32_t> characters(std::string_view part) const;
  [[nodiscard]] int32_t unknown_id() const;
  void merge_short(std::vector<int32_t>& symbols) const;
  void merge_long(std::vector<int32_t>& symbols) const;

  std::string where_;
  std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>> ids_;
  std::vector<const std::string*> tokens_;  // keys of ids_
  std::vector<int32_t> index_of_id_;        // into tokens_, or -1
  int32_t max_id_ = -1;
  size_t max_token_bytes_ = 0;
  MergeTable merges_;
  std::vector<int32_t> low_chars_;                    // id of each character below kLowChars, or -1
  std::unordered_map<char32_t, int32_t> high_chars_;  // of the others
  std::vector<uint64_t> touching_;                    // bit set of hashed pairs, see may_touch()
  std::vector<int32_t> byte_ids_;                     // of "<0x00>" to "<0xFF>", or -1
  bool byte_fallback_ = false;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;
  std::string unknown_;
  bool has_unknown_ = false;
};

}  // namespace lpcd::text
