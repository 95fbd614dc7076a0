#include "lpcd/base/json.h"
#include "lpcd/base/raise.h"
#include "lpcd/io/file.h"
#include "lpcd/io/gguf.h"
#include "lpcd/io/model_file.h"
#include "lpcd/text/gguf_vocabulary.h"
#include "lpcd/text/tokenizer_impl.h"

namespace lpcd::text {
namespace {

constexpr uint64_t kMaxTokenizerBytes = 256 << 20;  // the largest known has 33 MB
constexpr uint64_t kMaxConfigBytes = 16 << 20;      // configurations have some kB

// Array of a GGUF key, empty if absent; integers of either signedness.
template <typename T>
std::vector<T> array_of(const io::GgufFile& file, const std::string& key) {
  const io::GgufValue* value = file.find_key(key);
  if (value == nullptr) return {};
  if (const auto* exact = std::get_if<std::vector<T>>(value)) return *exact;
  if constexpr (std::is_same_v<T, int64_t>) {
    if (const auto* other = std::get_if<std::vector<uint64_t>>(value)) {
      return {other->begin(), other->end()};
    }
  }
  raise(ErrorCode::kBadModel, "{}: {} must be an array of {}", file.path(), key,
        std::is_same_v<T, std::string> ? "strings" : "numbers");
}

std::optional<int64_t> id_of(const io::GgufFile& file, const std::string& key) {
  const int64_t id = file.int_or(key, -1);
  // All bits set is how some writers say that there is none.
  return id == -1 || id == 0xFFFFFFFF ? std::nullopt : std::optional(id);
}

std::optional<bool> bool_of(const io::GgufFile& file, const std::string& key) {
  return file.find_key(key) == nullptr ? std::nullopt : std::optional(file.bool_or(key, false));
}

GgufVocabulary vocabulary_of(const io::GgufFile& file) {
  const std::string prefix = "tokenizer.ggml.";
  GgufVocabulary vocabulary;
  vocabulary.model = file.string_at(prefix + "model");
  vocabulary.pre = file.string_or(prefix + "pre", "");
  vocabulary.tokens = array_of<std::string>(file, prefix + "tokens");
  vocabulary.token_types = array_of<int64_t>(file, prefix + "token_type");
  vocabulary.merges = array_of<std::string>(file, prefix + "merges");
  vocabulary.scores = array_of<double>(file, prefix + "scores");
  vocabulary.bos_id = id_of(file, prefix + "bos_token_id");
  vocabulary.eos_id = id_of(file, prefix + "eos_token_id");
  vocabulary.unknown_id = id_of(file, prefix + "unknown_token_id");
  for (const char* key : {"eot_token_id", "eom_token_id"}) {
    if (const auto id = id_of(file, prefix + key)) vocabulary.end_ids.push_back(*id);
  }
  vocabulary.add_bos = bool_of(file, prefix + "add_bos_token");
  vocabulary.add_eos = bool_of(file, prefix + "add_eos_token");
  vocabulary.add_space_prefix = bool_of(file, prefix + "add_space_prefix");
  return vocabulary;
}

std::optional<Json> read_config(const std::string& directory, const std::string& name) {
  if (!io::has_model_file(directory, name)) return std::nullopt;
  const std::string path = directory + "/" + name;
  return parse_json(io::read_text_file(path, kMaxConfigBytes), path);
}

// "bos_token": "<s>" or {"content": "<s>"} of a tokenizer_config.json.
template <typename Impl>
std::optional<int32_t> special_token(const Json& config, const char* key, const Impl& impl) {
  const Json token = config.is_object() ? config.value(key, Json()) : Json();
  const Json name = token.is_object() ? token.value("content", Json()) : token;
  return name.is_string() ? impl.id_of(name.get<std::string>()) : std::nullopt;
}

bool adds(const Json& config, const char* key) {
  return config.is_object() && config.value(key, Json()) == Json(true);
}

}  // namespace

Tokenizer Tokenizer::from_gguf(const io::GgufFile& file) {
  return from_vocabulary(vocabulary_of(file), file.path());
}

std::optional<Tokenizer> Tokenizer::from_directory(const std::string& directory) {
  if (!io::has_model_file(directory, "tokenizer.json")) return std::nullopt;
  const std::string path = directory + "/tokenizer.json";
  auto impl = Impl::read(io::read_text_file(path, kMaxTokenizerBytes), path);
  // What ends a text stands beside tokenizer.json: by name, or by id. So does, in some models alone
  // (DeepSeek's distilled ones), what each text begins with: llama.cpp's converter and transformers
  // 4 add it, transformers 5 does not. What tokenizer.json itself adds stays.
  if (const auto config = read_config(directory, "tokenizer_config.json")) {
    const auto bos = special_token(*config, "bos_token", *impl);
    const auto eos = special_token(*config, "eos_token", *impl);
    impl->add_end_id(eos);
    PostProcessor& post = impl->post_processor;
    if (bos && post.front().empty() && adds(*config, "add_bos_token")) post.set_front({*bos});
    if (eos && post.back().empty() && adds(*config, "add_eos_token")) post.set_back({*eos});
  }
  if (const auto config = read_config(directory, "generation_config.json")) {
    const Json& eos = config->is_object() ? config->value("eos_token_id", Json()) : Json();
    for (const Json& id : eos.is_array() ? eos : Json::array({eos})) {
      const bool valid = id.is_number_integer() && id >= 0 && id <= kMaxTokenId;
      if (valid) impl->add_end_id(id.get<int32_t>());
    }
  }
  return Tokenizer(std::move(impl));
}

}  // namespace lpcd::text
