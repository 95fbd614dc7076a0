#include "lpcd/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <limits>

#include "lpcd/base/raise.h"
#include "lpcd/io/names.h"
#include "lpcd/text/tokenizer_impl.h"
#include "lpcd/text/unicode.h"

namespace lpcd::text {
namespace {

// Tokens that end a text or a turn, in the tokenizers of the Llama, Mistral, Qwen, SmolLM, DeepSeek
// and Gemma families. tokenizer.json does not say which token does.
constexpr std::array<std::string_view, 11> kEndTokens = {"</s>",
                                                         "<|endoftext|>",
                                                         "<|im_end|>",
                                                         "<|end_of_text|>",
                                                         "<|eot_id|>",
                                                         "<|eom_id|>",
                                                         "<|eot|>",
                                                         "<|end|>",
                                                         "<eos>",
                                                         "<end_of_turn>",
                                                         "<｜end▁of▁sentence｜>"};

const Json& part(const Json& root, std::string_view key) {
  static const Json kNull;
  const auto it = root.find(key);
  return it == root.end() ? kNull : *it;
}

const Json& required_part(const Json& root, std::string_view key, const std::string& where) {
  const Json& value = part(root, key);
  if (value.is_null()) {
    raise(ErrorCode::kBadFile, "{}: missing \"{}\"; is this a tokenizer.json?", where, key);
  }
  return value;
}

std::vector<AddedToken> added_tokens_of(const Json& root, const std::string& where) {
  const Json& list = part(root, "added_tokens");
  return list.is_null() ? std::vector<AddedToken>()
                        : read_added_tokens(list, where + ": added_tokens");
}

}  // namespace

// "truncation" and "padding" are left out of account: they are settings of a caller that was
// saved along, not part of the model.
Tokenizer::Impl::Impl(const Json& root, const std::string& where)
    : normalizer(part(root, "normalizer"), where + ": normalizer"),
      model(required_part(root, "model", where), where + ": model"),
      added(added_tokens_of(root, where), normalizer, where + ": added_tokens"),
      pre_tokenizer(part(root, "pre_tokenizer"), where + ": pre_tokenizer"),
      decoder(part(root, "decoder"), where + ": decoder") {
  number_added_tokens(where);
  post_processor = PostProcessor(part(root, "post_processor"), where + ": post_processor",
                                 [&](std::string_view token) { return id_of(token); });
  for (const std::string_view name : kEndTokens) add_end_id(id_of(name));
}

// The `tokenizers` package does not look at the ids in the list: a token keeps the id it has in the
// model, others are numbered on from the number of tokens. A file where this makes a difference
// would be read in two ways.
void Tokenizer::Impl::number_added_tokens(const std::string& where) {
  int64_t next_id = model.size();
  vocab_size = int64_t{model.max_id()} + 1;
  for (size_t i = 0; i < added.all().size(); ++i) {
    const AddedToken& token = added.all()[i];
    const std::optional<int32_t> known = model.id_of(token.content);
    const int64_t expected = known ? *known : next_id++;
    if (token.id != expected) {
      raise(ErrorCode::kBadFile,
            "{}: added_tokens[{}]: {} has id {}, but by its place in the file and the "
            "vocabulary it is {}",
            where, i, io::in_quotes(token.content), token.id, expected);
    }
    if (!known && model.token_of(token.id) != nullptr) {
      raise(ErrorCode::kBadFile, "{}: added_tokens[{}]: id {} of {} is that of {}, too", where, i,
            token.id, io::in_quotes(token.content), io::in_quotes(*model.token_of(token.id)));
    }
    added_by_id.emplace(token.id, i);
    vocab_size = std::max(vocab_size, int64_t{token.id} + 1);
  }
}

std::unique_ptr<Tokenizer::Impl> Tokenizer::Impl::read(std::string_view json,
                                                       std::string_view where) {
  const Json root = parse_json(json, where);
  const std::string name(where);
  const JsonFields fields(root, name);
  if (const std::string version = fields.string_or("version", "1.0"); version != "1.0") {
    raise(ErrorCode::kUnsupportedModel, "{}: version {} is not supported; only 1.0 is", where,
          io::in_quotes(version));
  }
  std::unique_ptr<Impl> impl(new Impl(root, name));
  impl->json = json;
  impl->file = name;
  return impl;
}

std::optional<int32_t> Tokenizer::Impl::id_of(std::string_view token) const {
  for (const AddedToken& candidate : added.all()) {
    if (candidate.content == token) return candidate.id;
  }
  return model.id_of(token);
}

void Tokenizer::Impl::add_end_id(std::optional<int32_t> id) {
  if (!id || *id < 0 || *id >= vocab_size) return;
  if (std::find(end_ids.begin(), end_ids.end(), *id) == end_ids.end()) end_ids.push_back(*id);
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::from_json(std::string_view json, std::string_view where) {
  return Tokenizer(Impl::read(json, where));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, SpecialTokens special) const {
  if (text.size() > std::numeric_limits<int32_t>::max()) {
    raise(ErrorCode::kBadText, "text of {} bytes; split it into parts below 2 GiB", text.size());
  }
  std::string repaired;
  if (!is_utf8(text)) {
    repaired = repair_utf8(text);
    text = repaired;
  }
  const Impl& impl = *impl_;
  std::vector<int32_t> ids;
  if (special == SpecialTokens::kAdd) ids = impl.post_processor.front();
  BpeModel::Cache cache;
  const PreTokenizer::Sink encode_word = [&](std::string_view word) {
    impl.model.encode(word, cache, ids);
  };
  GrowthLimit limit(text.size(), impl.file);
  impl.added.split(
      text, impl.normalizer, limit, [&](int32_t id) { ids.push_back(id); },
      [&](std::string_view piece, bool at_start) {
        impl.pre_tokenizer.run(piece, at_start, limit, encode_word);
      });
  if (special == SpecialTokens::kAdd) {
    const std::vector<int32_t>& back = impl.post_processor.back();
    ids.insert(ids.end(), back.begin(), back.end());
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  const Impl& impl = *impl_;
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const int32_t id : ids) {
    if (const auto it = impl.added_by_id.find(id); it != impl.added_by_id.end()) {
      if (!impl.added.all()[it->second].special) tokens.push_back(impl.added.decoded(it->second));
    } else if (const std::string* token = impl.model.token_of(id)) {
      tokens.push_back(*token);
    }
  }
  size_t bytes = 0;
  for (const std::string& token : tokens) bytes += token.size();
  GrowthLimit limit(bytes, impl.file);
  return impl.decoder.run(std::move(tokens), limit);
}

bool Tokenizer::is_ordinary(int32_t id) const {
  return impl_->model.token_of(id) != nullptr && !impl_->added_by_id.contains(id) &&
         !impl_->unused.contains(id);
}

int64_t Tokenizer::vocab_size() const { return impl_->vocab_size; }

std::optional<int32_t> Tokenizer::leading_id() const {
  const std::vector<int32_t>& front = impl_->post_processor.front();
  return front.empty() ? std::nullopt : std::optional(front.front());
}

std::optional<int32_t> Tokenizer::trailing_id() const {
  const std::vector<int32_t>& back = impl_->post_processor.back();
  return back.empty() ? std::nullopt : std::optional(back.back());
}

const std::vector<int32_t>& Tokenizer::end_ids() const { return impl_->end_ids; }

std::string Tokenizer::to_json() const { return impl_->json; }

}  // namespace lpcd::text
