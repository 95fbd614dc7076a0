#include "lpcd/text/bpe.h"

#include <algorithm>
#include <bit>

#include "lpcd/base/raise.h"
#include "lpcd/io/names.h"
#include "lpcd/text/component.h"
#include "lpcd/text/unicode.h"

namespace lpcd::text {
namespace {

constexpr char32_t kLowChars = 0x250;     // Latin, and all characters that stand for bytes
constexpr size_t kShortWord = 32;         // beyond, a heap beats looking at all pairs each time
constexpr size_t kCachedBytes = 128;      // longer words hardly come twice
constexpr size_t kCachedWords = 1 << 16;  // ~10 MB
constexpr int kTouchBits = 20;            // 128 KiB; a vocabulary of 250k has some 10k pairs

uint64_t mix(uint64_t x) { return x * 0x9E3779B97F4A7C15U; }

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

size_t touch_bit(char32_t left, char32_t right) {
  return static_cast<size_t>(mix(uint64_t{left} << 32 | right) >> (64 - kTouchBits));
}

bool nothing(const JsonFields& fields, std::string_view key) {
  return !fields.has(key) || fields.string_at(key).empty();
}

}  // namespace

const std::vector<int32_t>* BpeModel::Cache::find(std::string_view word) const {
  const auto it = words_.find(word);
  return it == words_.end() ? nullptr : &it->second;
}

void BpeModel::Cache::insert(std::string_view word, std::vector<int32_t> ids) {
  if (words_.size() >= kCachedWords) words_.clear();
  words_.emplace(word, std::move(ids));
}

void BpeModel::MergeTable::reserve(size_t merges) {
  const size_t slots = std::bit_ceil(merges * 2 + 2);
  slots_.assign(slots, Slot{});
  shift_ = 64 - std::countr_zero(slots);
}

size_t BpeModel::MergeTable::home(uint64_t key) const {
  return static_cast<size_t>(mix(key ^ key >> 29) >> shift_);
}

void BpeModel::MergeTable::insert(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = pair_key(left, right);
  size_t at = home(key);
  while (slots_[at].key != ~uint64_t{0} && slots_[at].key != key) {
    at = (at + 1) & (slots_.size() - 1);
  }
  slots_[at] = {.key = key, .merge = merge};
}

const BpeModel::Merge* BpeModel::MergeTable::find(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  for (size_t at = home(key);; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].key == key) return &slots_[at].merge;
    if (slots_[at].key == ~uint64_t{0}) return nullptr;
  }
}

BpeModel::BpeModel(const Json& json, const std::string& where) : where_(where) {
  const JsonFields fields(json, where);
  // Old files do not name the type; only BPE has merges.
  const std::string type =
      fields.string_or("type", fields.has("merges") ? "BPE" : "without merges");
  if (type != "BPE") unsupported_component(where, type, "BPE");
  read_options(fields);
  read_vocabulary(fields);
  read_merges(fields);
  index_characters();
}

void BpeModel::read_options(const JsonFields& fields) {
  if (!nothing(fields, "continuing_subword_prefix") || !nothing(fields, "end_of_word_suffix")) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: continuing_subword_prefix and end_of_word_suffix are not supported; only BPE "
          "without them is",
          where_);
  }
  if (fields.number_or("dropout", 0) != 0) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: dropout {} makes ids random, which is not supported; set it to null", where_,
          fields.number_at("dropout"));
  }
  byte_fallback_ = fields.bool_or("byte_fallback", false);
  fuse_unknown_ = fields.bool_or("fuse_unk", false);
  ignore_merges_ = fields.bool_or("ignore_merges", false);
  has_unknown_ = fields.has("unk_token");
  if (has_unknown_) unknown_ = fields.string_at("unk_token");
}

void BpeModel::read_vocabulary(const JsonFields& fields) {
  const Json& vocab = fields.object_at("vocab");
  if (vocab.empty()) raise(ErrorCode::kBadFile, "{}: vocab is empty", where_);
  ids_.reserve(vocab.size());
  for (const auto& [token, id] : vocab.items()) {
    const bool valid =
        id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() <= kMaxTokenId;
    if (!valid) {
      raise(ErrorCode::kBadFile, "{}: vocab[{}] must be an integer from 0 to {}, found {}", where_,
            io::in_quotes(token), kMaxTokenId, io::in_quotes(dump_json(id)));
    }
    max_id_ = std::max(max_id_, id.get<int32_t>());
    ids_.emplace(token, id.get<int32_t>());
  }
  index_of_id_.assign(static_cast<size_t>(max_id_) + 1, -1);
  for (const auto& [token, id] : ids_) {
    int32_t& index = index_of_id_[static_cast<size_t>(id)];
    if (index >= 0) {
      const std::string& other = *tokens_[static_cast<size_t>(index)];
      raise(ErrorCode::kBadFile, "{}: vocab gives id {} to {} and to {}", where_, id,
            io::in_quotes(std::min(token, other)), io::in_quotes(std::max(token, other)));
    }
    index = static_cast<int32_t>(tokens_.size());
    tokens_.push_back(&token);
    max_token_bytes_ = std::max(max_token_bytes_, token.size());
  }
}

void BpeModel::read_merges(const JsonFields& fields) {
  const Json& merges = fields.array_at("merges");
  merges_.reserve(merges.size());
  int32_t rank = 0;
  const bool pairs = !merges.empty() && merges[0].is_array();
  for (const Json& merge : merges) {
    if (pairs && merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
        merge[1].is_string()) {
      add_merge(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>(),
                rank++);
      continue;
    }
    const std::string_view text = !pairs && merge.is_string()
                                      ? std::string_view(merge.get_ref<const std::string&>())
                                      : std::string_view();
    if (text.starts_with("#version")) continue;  // a line of the older merges.txt
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
      raise(ErrorCode::kBadFile, "{}: merges[{}] must be \"left right\" or [left, right], found {}",
            where_, rank, io::in_quotes(dump_json(merge)));
    }
    add_merge(text.substr(0, space), text.substr(space + 1), rank++);
  }
}

void BpeModel::add_merge(std::string_view left, std::string_view right, int32_t rank) {
  const auto required = [&](std::string_view token) {
    const std::optional<int32_t> id = id_of(token);
    if (!id) {
      raise(ErrorCode::kBadFile, "{}: merges[{}] joins {} and {}, but {} is not in the vocabulary",
            where_, rank, io::in_quotes(left), io::in_quotes(right), io::in_quotes(token));
    }
    return *id;
  };
  const int32_t left_id = required(left);
  const int32_t right_id = required(right);
  std::string joined;
  joined.reserve(left.size() + right.size());
  joined.append(left).append(right);
  merges_.insert(left_id, right_id, {.rank = rank, .id = required(joined)});
  if (left.empty() || right.empty()) return;
  if (touching_.empty()) touching_.resize((size_t{1} << kTouchBits) / 64);
  size_t last = left.size();
  size_t first = 0;
  const char32_t left_char = previous_char(left, last);
  const size_t bit = touch_bit(left_char, next_char(right, first));
  touching_[bit / 64] |= uint64_t{1} << bit % 64;
}

void BpeModel::index_characters() {
  if (touching_.empty()) touching_.resize((size_t{1} << kTouchBits) / 64);
  low_chars_.assign(kLowChars, -1);
  for (const auto& [token, id] : ids_) {
    size_t at = 0;
    if (token.empty() || char_bytes(token[0]) != token.size()) continue;
    const char32_t c = next_char(token, at);
    if (c < kLowChars) {
      low_chars_[c] = id;
    } else {
      high_chars_.emplace(c, id);
    }
  }
  if (!byte_fallback_) return;
  for (int byte = 0; byte < 256; ++byte) {
    byte_ids_.push_back(id_of(fmt::format("<0x{:02X}>", byte)).value_or(-1));
  }
}

std::optional<int32_t> BpeModel::id_of(std::string_view token) const {
  const auto it = ids_.find(token);
  return it == ids_.end() ? std::nullopt : std::optional(it->second);
}

const std::string* BpeModel::token_of(int32_t id) const {
  if (id < 0 || id > max_id_) return nullptr;
  const int32_t index = index_of_id_[static_cast<size_t>(id)];
  return index < 0 ? nullptr : tokens_[static_cast<size_t>(index)];
}

int32_t BpeModel::id_of_char(char32_t c) const {
  if (c < kLowChars) return low_chars_[c];
  const auto it = high_chars_.find(c);
  return it == high_chars_.end() ? -1 : it->second;
}

// Whether some merge joins a token that ends in `left` and one that begins with `right`. Where none
// does, a word falls into parts that are encoded each on its own. (May be true without reason.)
bool BpeModel::may_touch(char32_t left, char32_t right) const {
  const size_t bit = touch_bit(left, right);
  return (touching_[bit / 64] >> bit % 64 & 1) != 0;
}

void BpeModel::encode(std::string_view word, Cache& cache, std::vector<int32_t>& ids) const {
  if (ignore_merges_ && word.size() <= max_token_bytes_) {
    if (const std::optional<int32_t> id = id_of(word)) {
      ids.push_back(*id);
      return;
    }
  }
  // Characters that are no tokens stay with their neighbours: unknown ones may fuse with them.
  size_t begin = 0;
  char32_t previous = 0;
  bool previous_known = false;
  for (size_t at = 0; at < word.size();) {
    const size_t here = at;
    const char32_t c = next_char(word, at);
    const bool known = id_of_char(c) >= 0;
    if (known && previous_known && !may_touch(previous, c)) {
      encode_part(word.substr(begin, here - begin), cache, ids);
      begin = here;
    }
    previous = c;
    previous_known = known;
  }
  encode_part(word.substr(begin), cache, ids);
}

void BpeModel::encode_part(std::string_view part, Cache& cache, std::vector<int32_t>& ids) const {
  const bool cached = part.size() <= kCachedBytes;
  if (cached) {
    if (const std::vector<int32_t>* known = cache.find(part)) {
      ids.insert(ids.end(), known->begin(), known->end());
      return;
    }
  }
  std::vector<int32_t> symbols = characters(part);
  if (symbols.size() <= kShortWord) {
    merge_short(symbols);
  } else {
    merge_long(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
  if (cached) cache.insert(part, std::move(symbols));
}

int32_t BpeModel::unknown_id() const {
  const std::optional<int32_t> id = id_of(unknown_);
  if (!id) {
    raise(ErrorCode::kBadFile,
          "{}: the text has a character outside the vocabulary, and unk_token {} is not in the "
          "vocabulary either",
          where_, io::in_quotes(unknown_));
  }
  return *id;
}

std::vector<int32_t> BpeModel::characters(std::string_view part) const {
  std::vector<int32_t> symbols;
  symbols.reserve(part.size());
  // An unknown token waits for the next known character, so that it can fuse. Bytes overtake it,
  // as they do in the `tokenizers` package.
  bool waiting = false;
  for (size_t at = 0; at < part.size();) {
    const size_t begin = at;
    const int32_t id = id_of_char(next_char(part, at));
    if (id >= 0) {
      if (waiting) symbols.push_back(unknown_id());
      waiting = false;
      symbols.push_back(id);
      continue;
    }
    const std::string_view bytes = part.substr(begin, at - begin);
    const auto byte_id = [&](char byte) { return byte_ids_[static_cast<uint8_t>(byte)]; };
    if (byte_fallback_ &&
        std::all_of(bytes.begin(), bytes.end(), [&](char b) { return byte_id(b) >= 0; })) {
      for (const char byte : bytes) symbols.push_back(byte_id(byte));
      continue;
    }
    if (!has_unknown_) continue;
    if (waiting && !fuse_unknown_) symbols.push_back(unknown_id());
    waiting = true;
  }
  if (waiting) symbols.push_back(unknown_id());
  return symbols;
}

void BpeModel::merge_short(std::vector<int32_t>& symbols) const {
  // What each symbol would merge to with the next one.
  Merge merges[kShortWord];
  constexpr Merge kNone = {.rank = INT32_MAX, .id = -1};
  const auto look_up = [&](size_t i) {
    const Merge* found = merges_.find(symbols[i], symbols[i + 1]);
    merges[i] = found != nullptr ? *found : kNone;
  };
  size_t pairs = symbols.empty() ? 0 : symbols.size() - 1;
  for (size_t i = 0; i < pairs; ++i) look_up(i);
  while (pairs > 0) {
    size_t best = 0;
    for (size_t i = 1; i < pairs; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].id < 0) return;
    symbols[best] = merges[best].id;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    std::copy(merges + best + 1, merges + pairs, merges + best);
    --pairs;
    if (best < pairs) look_up(best);
    if (best > 0) look_up(best - 1);
  }
}

void BpeModel::merge_long(std::vector<int32_t>& symbols) const {
  const size_t n = symbols.size();
  constexpr int32_t kGone = -1;
  std::vector<int32_t> next(n);
  std::vector<int32_t> previous(n);
  for (size_t i = 0; i < n; ++i) {
    next[i] = static_cast<int32_t>(i) + 1;
    previous[i] = static_cast<int32_t>(i) - 1;
  }
  // Candidates as rank << 32 | position: the smallest is the lowest rank, leftmost.
  std::vector<uint64_t> heap;
  heap.reserve(n);
  const auto end = static_cast<int32_t>(n);
  const auto candidate = [&](int32_t at) -> std::optional<uint64_t> {
    const int32_t right = next[static_cast<size_t>(at)];
    if (right == end) return std::nullopt;
    const Merge* merge =
        merges_.find(symbols[static_cast<size_t>(at)], symbols[static_cast<size_t>(right)]);
    if (merge == nullptr) return std::nullopt;
    return pair_key(merge->rank, at);
  };
  const auto push = [&](int32_t at) {
    if (const std::optional<uint64_t> key = candidate(at)) {
      heap.push_back(*key);
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
  };
  for (int32_t i = 0; i < end; ++i) {
    if (const std::optional<uint64_t> key = candidate(i)) heap.push_back(*key);
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const uint64_t key = heap.back();
    heap.pop_back();
    const auto at = static_cast<int32_t>(key & 0xFFFFFFFFU);
    const auto i = static_cast<size_t>(at);
    // Outdated if one of the two has merged otherwise since.
    if (symbols[i] == kGone || candidate(at) != key) continue;
    const auto right = static_cast<size_t>(next[i]);
    symbols[i] = merges_.find(symbols[i], symbols[right])->id;
    symbols[right] = kGone;
    next[i] = next[right];
    if (next[i] != end) previous[static_cast<size_t>(next[i])] = at;
    if (previous[i] >= 0) push(previous[i]);
    push(at);
  }
  std::erase(symbols, kGone);
}

}  // namespace lpcd::text
