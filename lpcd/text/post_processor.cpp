#include "lpcd/text/post_processor.h"

#include "lpcd/base/raise.h"
#include "lpcd/io/names.h"
#include "lpcd/text/bpe.h"
#include "lpcd/text/component.h"

namespace lpcd::text {
namespace {

constexpr size_t kMaxIds = 1024;  // real files add 1 or 2 to a text

// Ids of an entry of "special_tokens", checked against the vocabulary.
std::vector<int32_t> special_ids(const Json& special_tokens, const std::string& name,
                                 const std::string& where, const PostProcessor::IdOf& id_of) {
  const auto entry = special_tokens.find(name);
  if (entry == special_tokens.end()) {
    raise(ErrorCode::kBadFile, "{}: special_tokens does not define {}, which single names", where,
          io::in_quotes(name));
  }
  const JsonFields fields(*entry, fmt::format("{}.special_tokens[{}]", where, io::in_quotes(name)));
  const Json& ids = fields.array_at("ids");
  const Json& tokens = fields.array_at("tokens");
  if (ids.size() != tokens.size()) {
    raise(ErrorCode::kBadFile, "{}: {} ids for {} tokens", fields.where(), ids.size(),
          tokens.size());
  }
  std::vector<int32_t> result;
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool valid = ids[i].is_number_integer() && ids[i].get<int64_t>() >= 0 &&
                       ids[i].get<int64_t>() <= kMaxTokenId && tokens[i].is_string();
    if (!valid) {
      raise(ErrorCode::kBadFile, "{}: ids must be integers from 0 to {} and tokens strings",
            fields.where(), kMaxTokenId);
    }
    const auto& token = tokens[i].get_ref<const std::string&>();
    const std::optional<int32_t> id = id_of(token);
    if (!id || *id != ids[i].get<int32_t>()) {
      raise(ErrorCode::kBadFile, "{}: {} has id {} here, but {} in the vocabulary", fields.where(),
            io::in_quotes(token), ids[i].get<int32_t>(), id ? std::to_string(*id) : "none");
    }
    result.push_back(*id);
  }
  return result;
}

}  // namespace

PostProcessor::PostProcessor(const Json& json, const std::string& where, const IdOf& id_of) {
  if (!json.is_null()) add(json, where, id_of, 0);
}

void PostProcessor::add(const Json& json, const std::string& where, const IdOf& id_of, int depth) {
  const std::string type = component_type(json, where);
  if (depth > kMaxNesting) raise(ErrorCode::kBadFile, "{}: sequences nested too deep", where);
  if (type == "Sequence") {
    const Json& parts = JsonFields(json, where).array_at("processors");
    for (size_t i = 0; i < parts.size(); ++i) {
      add(parts[i], fmt::format("{}.processors[{}]", where, i), id_of, depth + 1);
    }
  } else if (type == "TemplateProcessing") {
    add_template(json, where, id_of);
  } else if (type != "ByteLevel") {  // which moves offsets only
    unsupported_component(where, type, "Sequence, TemplateProcessing and ByteLevel");
  }
}

void PostProcessor::add_template(const Json& json, const std::string& where, const IdOf& id_of) {
  const JsonFields fields(json, where);
  const Json& single = fields.array_at("single");
  const Json none = Json::object();
  const Json& special_tokens =
      fields.has("special_tokens") ? fields.object_at("special_tokens") : none;
  std::vector<int32_t> front;
  std::vector<int32_t> back;
  int texts = 0;
  for (size_t i = 0; i < single.size(); ++i) {
    const std::string part = fmt::format("{}.single[{}]", where, i);
    const JsonFields piece(single[i], part);
    if (piece.has("Sequence")) {
      const std::string id = JsonFields(piece.object_at("Sequence"), part).string_at("id");
      if (id != "A") raise(ErrorCode::kBadFile, "{}: Sequence must be A, the one text", part);
      ++texts;
      continue;
    }
    const std::string name = JsonFields(piece.object_at("SpecialToken"), part).string_at("id");
    const std::vector<int32_t> ids = special_ids(special_tokens, name, where, id_of);
    std::vector<int32_t>& side = texts == 0 ? front : back;
    side.insert(side.end(), ids.begin(), ids.end());
  }
  if (texts != 1) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: single has the text {} times; only templates with it once are supported", where,
          texts);
  }
  if (front_.size() + back_.size() + front.size() + back.size() > kMaxIds) {
    raise(ErrorCode::kBadFile, "{}: adds more than {} tokens to each text; the file is damaged",
          where, kMaxIds);
  }
  front_.insert(front_.begin(), front.begin(), front.end());
  back_.insert(back_.end(), back.begin(), back.end());
}

}  // namespace lpcd::text
