#include "lpcd/calib/dataset.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "lpcd/base/json.h"
#include "lpcd/base/raise.h"
#include "lpcd/io/file.h"
#include "lpcd/io/safetensors.h"

namespace lpcd::calib {
namespace {

// A calibration text is read whole; 4 GiB is far beyond any use.
constexpr uint64_t kMaxTextBytes = uint64_t{4} << 30;

std::string base_name(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

bool has_suffix(const std::string& path, std::string_view suffix) {
  return path.size() >= suffix.size() && path.ends_with(suffix);
}

// Uniform in [0, bound), the same on every platform (std::uniform_int_distribution is not).
uint64_t uniform_below(std::mt19937_64& rng, uint64_t bound) {
  const uint64_t limit = ~uint64_t{0} - ~uint64_t{0} % bound;
  uint64_t value = rng();
  while (value >= limit) value = rng();
  return value % bound;
}

std::vector<int32_t> tokenize_jsonl(const std::string& path, const std::string& content,
                                    const text::Tokenizer& tokenizer, const std::string& key) {
  std::vector<int32_t> ids;
  size_t begin = 0;
  for (int64_t line = 1; begin < content.size(); ++line) {
    size_t end = content.find('\n', begin);
    if (end == std::string::npos) end = content.size();
    const std::string_view text(content.data() + begin, end - begin);
    begin = end + 1;
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{} line {}", path, line);
    const Json object = parse_json(text, where);
    const JsonFields fields(object, where);
    if (!fields.has(key)) {
      raise(ErrorCode::kBadText, "{}: no field \"{}\"; name the one with the text with --text-key",
            where, key);
    }
    const std::vector<int32_t> document =
        tokenizer.encode(fields.string_at(key), text::SpecialTokens::kAdd);
    ids.insert(ids.end(), document.begin(), document.end());
  }
  return ids;
}

Dataset load_ids(const std::string& path, const DatasetOptions& options) {
  const auto source = io::open_safetensors(path);
  const TensorInfo& info = source->at("input_ids");
  if (info.shape.size() != 2 || (info.dtype != DType::kI32 && info.dtype != DType::kI64)) {
    raise(ErrorCode::kBadText,
          "{}: input_ids must be I32 or I64 of shape [samples, tokens], found {} {}", path,
          dtype_info(info.dtype).name, info.shape_text());
  }
  const int64_t count = std::min(options.samples, info.shape[0]);
  Dataset data;
  data.seq_len = info.shape[1];
  data.ids.resize(static_cast<size_t>(count * data.seq_len));
  const std::byte* bytes = source->raw("input_ids").data();
  for (size_t i = 0; i < data.ids.size(); ++i) {
    if (info.dtype == DType::kI32) {
      std::memcpy(&data.ids[i], bytes + 4 * i, 4);
    } else {
      int64_t id = 0;
      std::memcpy(&id, bytes + 8 * i, 8);
      data.ids[i] = narrow<int32_t>(id, path + ": input_ids");
    }
  }
  if (data.ids.empty()) raise(ErrorCode::kBadText, "{}: input_ids is empty", path);
  data.sources = {{base_name(path), count * data.seq_len, info.shape[0] * data.seq_len}};
  return data;
}

}  // namespace

std::string Dataset::hash() const {
  const uint64_t seed = XXH3_64bits(&seq_len, sizeof(seq_len));
  const XXH128_hash_t h = XXH3_128bits_withSeed(ids.data(), ids.size() * sizeof(int32_t), seed);
  return fmt::format("{:016x}{:016x}", h.high64, h.low64);
}

Dataset sample_windows(const std::vector<int32_t>& tokens, const std::string& source,
                       const DatasetOptions& options) {
  const int64_t windows = static_cast<int64_t>(tokens.size()) / options.seq_len;
  if (windows < options.samples) {
    const std::string fewer = windows > 0 ? fmt::format("--samples to {} or ", windows) : "";
    raise(ErrorCode::kBadText,
          "{}: {} samples of {} tokens need {} tokens, the text has {}; give more text, or lower "
          "{}--seq-len",
          source, options.samples, options.seq_len, options.samples * options.seq_len,
          tokens.size(), fewer);
  }
  // Partial Fisher-Yates shuffle: the first `samples` places of a random order.
  std::vector<int64_t> order(static_cast<size_t>(windows));
  std::iota(order.begin(), order.end(), 0);
  std::mt19937_64 rng(options.seed);
  Dataset data;
  data.seq_len = options.seq_len;
  data.ids.reserve(static_cast<size_t>(options.samples * options.seq_len));
  for (int64_t i = 0; i < options.samples; ++i) {
    const auto at = static_cast<size_t>(i);
    std::swap(order[at], order[at + uniform_below(rng, order.size() - at)]);
    const auto begin = tokens.begin() + order[at] * options.seq_len;
    data.ids.insert(data.ids.end(), begin, begin + options.seq_len);
  }
  data.sources = {{source, options.samples * options.seq_len, static_cast<int64_t>(tokens.size())}};
  return data;
}

namespace {

// By its name; C4's files are called .json and have an object in every line all the same.
bool is_jsonl(const std::string& path, const std::string& content) {
  if (has_suffix(path, ".jsonl") || has_suffix(path, ".ndjson")) return true;
  if (!has_suffix(path, ".json")) return false;
  const size_t first = content.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && content[first] == '{') return true;
  raise(ErrorCode::kBadText, "{}: JSON text must have an object in every line (.jsonl)", path);
}

// Bytes that are no text would be read as thousands of replacement characters.
void refuse_binary(const std::string& path, std::string_view content) {
  constexpr size_t kLooked = 1 << 16;
  const std::string_view start = content.substr(0, kLooked);
  if (start.find('\0') == std::string_view::npos && !start.starts_with("PAR1") &&
      !start.starts_with("\x1f\x8b")) {
    return;
  }
  raise(ErrorCode::kBadText, "{}: is not text; unpack or convert it to .txt in UTF-8, or to .jsonl",
        path);
}

}  // namespace

std::vector<int32_t> tokenize_file(const std::string& path, const text::Tokenizer* tokenizer,
                                   const std::string& text_key) {
  const std::string content = io::read_text_file(path, kMaxTextBytes);
  if (content.empty())
    raise(ErrorCode::kBadText, "{}: the file is empty; give one with text", path);
  if (tokenizer == nullptr) {
    raise(ErrorCode::kBadModel,
          "{}: the model has no tokenizer to read text with; give token ids (.safetensors with "
          "input_ids) instead",
          path);
  }
  refuse_binary(path, content);
  return is_jsonl(path, content) ? tokenize_jsonl(path, content, *tokenizer, text_key)
                                 : tokenizer->encode(content, text::SpecialTokens::kAdd);
}

Dataset load_dataset(const std::string& path, const text::Tokenizer* tokenizer,
                     const DatasetOptions& options) {
  if (has_suffix(path, ".safetensors")) return load_ids(path, options);
  return sample_windows(tokenize_file(path, tokenizer, options.text_key), base_name(path), options);
}

void check_ids(const std::vector<int32_t>& ids, int64_t vocab_size, const std::string& source) {
  const auto bad =
      std::ranges::find_if(ids, [&](int32_t id) { return id < 0 || id >= vocab_size; });
  if (bad != ids.end()) {
    raise(ErrorCode::kBadModel,
          "{}: token id {} is outside the model's vocabulary of {}; tokenizer and weights do not "
          "belong together",
          source, *bad, vocab_size);
  }
}

}  // namespace lpcd::calib
