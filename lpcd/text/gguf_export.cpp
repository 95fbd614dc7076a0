#include "lpcd/text/gguf_export.h"

#include <unordered_map>

#include "lpcd/base/json.h"
#include "lpcd/base/raise.h"
#include "lpcd/io/file.h"
#include "lpcd/io/model_file.h"
#include "lpcd/text/normalizer.h"
#include "lpcd/text/pre_tokenizer.h"
#include "lpcd/text/tokenizer.h"

namespace lpcd::text {
namespace {

constexpr uint64_t kMaxBytes = 1ULL << 30;

std::optional<Json> read_json(const std::string& directory, const std::string& name) {
  if (!io::has_model_file(directory, name)) return std::nullopt;
  const std::string path = directory + "/" + name;
  return parse_json(io::read_text_file(path, kMaxBytes), path);
}

// What decides how text is cut into words; options that do not matter to it left out.
Json essence(const Json& step) {
  if (!step.is_object()) return nullptr;
  const std::string type = step.value("type", "");
  if (type == "Sequence") {
    Json steps = Json::array();
    for (const Json& s : step.value("pretokenizers", Json::array())) steps.push_back(essence(s));
    return steps;
  }
  if (type == "Split") {
    return Json::array({type, step.value("pattern", Json()), step.value("behavior", ""),
                        step.value("invert", false)});
  }
  if (type == "ByteLevel") {
    return Json::array({type, step.value("add_prefix_space", true), step.value("use_regex", true)});
  }
  if (type == "Digits") return Json::array({type, step.value("individual_digits", false)});
  return step;
}

bool is_byte_token(const std::string& token) {
  return token.size() == 6 && token.starts_with("<0x") && token.back() == '>';
}

// Tokens with a part in a conversation or in pre-training that the checkpoint does not call
// special; llama.cpp's converter goes by the same looks. Text of a user must not be read as one of
// them.
bool looks_special(const std::string& token) {
  constexpr std::string_view kWideBar = "\uFF5C";
  const auto between = [&](std::string_view begin, std::string_view end) {
    return token.size() >= begin.size() + end.size() && token.starts_with(begin) &&
           token.ends_with(end);
  };
  const std::string wide(kWideBar);
  return between("<|", "|>") || between("<" + wide, wide + ">") || between("<unused", ">") ||
         token == "<pad>" || token == "<mask>" || token == "<2mass>" || token == "[@BOS@]";
}

// llama.cpp looks for such a token in the text as it is, where U+2581 is a space still.
std::string with_spaces(std::string token) {
  constexpr std::string_view kMark = "\u2581";
  for (size_t at = token.find(kMark); at != std::string::npos; at = token.find(kMark, at)) {
    token.replace(at, kMark.size(), " ");
  }
  return token;
}

// A token by name: "<s>", {"content": "<s>"}.
std::optional<int64_t> id_of(const Json& config, const char* key,
                             const std::unordered_map<std::string, int64_t>& ids) {
  if (!config.is_object() || !config.contains(key)) return std::nullopt;
  const Json& value = config[key];
  const Json& name = value.is_object() ? value.value("content", Json()) : value;
  if (!name.is_string()) return std::nullopt;
  const auto it = ids.find(name.get<std::string>());
  return it == ids.end() ? std::nullopt : std::optional(it->second);
}

std::string merge_text(const Json& merge, const std::string& where) {
  if (merge.is_string()) return merge.get<std::string>();
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  raise(ErrorCode::kBadFile, "{}: a merge is neither \"a b\" nor [\"a\", \"b\"]", where);
}

std::string chat_template_of(const std::string& directory, const Json& config) {
  if (io::has_model_file(directory, "chat_template.jinja")) {
    return io::read_text_file(directory + "/chat_template.jinja", kMaxBytes);
  }
  Json value = config.is_object() ? config.value("chat_template", Json()) : Json();
  if (value.is_null()) {
    const Json file = read_json(directory, "chat_template.json").value_or(Json::object());
    value = file.is_object() ? file.value("chat_template", Json()) : Json();
  }
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return "";
  for (const Json& entry : value) {  // several, by name
    if (entry.is_object() && entry.value("name", "") == "default")
      return entry.value("template", "");
  }
  return "";
}

}  // namespace

std::optional<std::string> pre_name(std::string_view pre_tokenizer_json, bool ignore_merges) {
  const Json wanted = essence(parse_json(pre_tokenizer_json, "pre_tokenizer"));
  // Each name stands for the steps that a GGUF file with it is read with.
  for (const char* name : {"gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "tekken"}) {
    GgufVocabulary tiny;
    tiny.model = "gpt2";
    tiny.pre = name;
    tiny.tokens = {"a", "b", "ab"};
    tiny.merges = {"a b"};
    tiny.add_bos = false;
    const Json known = parse_json(tokenizer_json(tiny, name), name);
    if (essence(known["pre_tokenizer"]) == wanted &&
        known["model"]["ignore_merges"] == Json(ignore_merges)) {
      return name;
    }
  }
  return std::nullopt;
}

std::optional<ExportedVocabulary> export_vocabulary(const std::string& directory, int64_t size) {
  const std::string path = directory + "/tokenizer.json";
  const auto json = read_json(directory, "tokenizer.json");
  if (!json) return std::nullopt;
  const JsonFields fields(*json, path);
  const JsonFields model(fields.object_at("model"), path + ": model");
  if (model.string_or("type", "BPE") != "BPE") {
    raise(ErrorCode::kUnsupportedModel, "{}: model {} cannot be written to GGUF; supported is: BPE",
          path, model.string_or("type", ""));
  }
  ExportedVocabulary result;
  GgufVocabulary& v = result.vocabulary;
  v.tokens.assign(static_cast<size_t>(size), "");
  v.token_types.assign(static_cast<size_t>(size), token_type::kUnused);
  std::unordered_map<std::string, int64_t> ids;
  const auto add = [&](const std::string& token, int64_t id, int64_t type) {
    if (id < 0 || id >= size) {
      raise(ErrorCode::kBadFile, "{}: token id {} is outside the model's {} embeddings", path, id,
            size);
    }
    v.tokens[static_cast<size_t>(id)] = token;
    v.token_types[static_cast<size_t>(id)] = type;
    ids[token] = id;
  };
  const bool sentencepiece = model.bool_or("byte_fallback", false);
  for (const auto& [token, id] : model.object_at("vocab").items()) {
    if (!id.is_number_integer()) raise(ErrorCode::kBadFile, "{}: vocab: id of a token", path);
    add(token, id.get<int64_t>(),
        sentencepiece && is_byte_token(token) ? token_type::kByte : token_type::kNormal);
  }
  if (fields.find("added_tokens") != nullptr) {
    for (const Json& entry : fields.array_at("added_tokens")) {
      const JsonFields token(entry, path + ": added_tokens");
      const std::string content = token.string_at("content");
      const int64_t id = token.int_at("id", 0);
      if (id >= size) continue;  // a "<pad>" that nobody gave a row of the embedding
      if (token.bool_or("special", false) || looks_special(content)) {
        add(content, id, token_type::kControl);
      } else {
        add(with_spaces(content), id, token_type::kUserDefined);
        ids[content] = id;
      }
    }
  }
  for (int64_t id = 0; id < size; ++id) {
    std::string& token = v.tokens[static_cast<size_t>(id)];
    if (v.token_types[static_cast<size_t>(id)] == token_type::kUnused)
      token = fmt::format("[PAD{}]", id);
  }
  const std::string unknown = model.string_or("unk_token", "");
  if (const auto it = ids.find(unknown); !unknown.empty() && it != ids.end()) {
    v.unknown_id = it->second;
    if (sentencepiece) v.token_types[static_cast<size_t>(it->second)] = token_type::kUnknown;
  }
  const Json& merges = model.array_at("merges");
  if (sentencepiece) {
    v.model = "llama";
    v.scores.assign(static_cast<size_t>(size), 0.0);
    double rank = 0;
    for (const Json& merge : merges) {
      std::string token = merge_text(merge, path);
      const size_t space = token.find(' ');  // those inside tokens are written as U+2581
      if (space == std::string::npos) {
        raise(ErrorCode::kBadFile, "{}: a merge has no space between its parts", path);
      }
      token.erase(space, 1);
      const auto it = ids.find(token);
      rank -= 1;
      if (it == ids.end()) continue;
      double& score = v.scores[static_cast<size_t>(it->second)];
      if (score == 0) score = rank;  // the first merge that makes it
    }
    const Normalizer normalizer(json->value("normalizer", Json()), path + ": normalizer");
    const PreTokenizer pre(json->value("pre_tokenizer", Json()), path + ": pre_tokenizer");
    v.add_space_prefix = normalizer.prepends() || pre.marks_beginning();
  } else {
    v.model = "gpt2";
    for (const Json& merge : merges) v.merges.push_back(merge_text(merge, path));
    const std::string steps = dump_json(json->value("pre_tokenizer", Json()));
    const bool ignore_merges = model.bool_or("ignore_merges", false);
    const auto name = pre_name(steps, ignore_merges);
    result.pre_is_known = name.has_value();
    // The same words with other merges are nearer than no name at all.
    v.pre = name ? *name : pre_name(steps, !ignore_merges).value_or("default");
  }
  const Json config = read_json(directory, "tokenizer_config.json").value_or(Json::object());
  v.bos_id = id_of(config, "bos_token", ids);
  v.eos_id = id_of(config, "eos_token", ids);
  result.padding_id = id_of(config, "pad_token", ids);
  result.chat_template = chat_template_of(directory, config);
  const auto tokenizer = Tokenizer::from_directory(directory);
  const auto leading = tokenizer->leading_id();
  // As the converter of llama.cpp has it: the configuration may take it away.
  v.add_bos = leading.has_value() && config.value("add_bos_token", Json()) != Json(false);
  if (leading) v.bos_id = *leading;
  if (const auto trailing = tokenizer->trailing_id(); trailing && trailing == v.eos_id) {
    v.add_eos = true;
  }
  return result;
}

}  // namespace lpcd::text
