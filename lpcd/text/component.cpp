#include "lpcd/text/component.h"

#include "lpcd/base/raise.h"
#include "lpcd/io/names.h"
#include "lpcd/text/unicode.h"

namespace lpcd::text {
namespace {

std::variant<std::string, Regex> read_pattern(const Json& pattern, const std::string& where) {
  const JsonFields fields(pattern, where);
  if (fields.has("Regex")) return Regex(fields.string_at("Regex"), where);
  if (!fields.has("String")) {
    raise(ErrorCode::kBadFile, "{}: must be {{\"String\": ..}} or {{\"Regex\": ..}}", where);
  }
  std::string literal = fields.string_at("String");
  if (literal.empty()) raise(ErrorCode::kBadFile, "{}: String must not be empty", where);
  return literal;
}

// NFKC makes 33 bytes of the 3 of U+FDFA, and ByteLevel 2 of each byte after that; next to nothing
// of a text grows by as much.
constexpr size_t kMaxGrowth = 32;
constexpr size_t kMinGrowthBytes = 1 << 20;  // of short texts, which a step may put much around

}  // namespace

void check_step_count(size_t steps, size_t max, const std::string& where) {
  if (steps > max) {
    raise(ErrorCode::kBadFile, "{}: more than {} steps; the file is damaged", where, max);
  }
}

GrowthLimit::GrowthLimit(size_t text_bytes, std::string_view where)
    : text_bytes_(text_bytes), left_(kMaxGrowth * text_bytes + kMinGrowthBytes), where_(where) {}

void GrowthLimit::fail() const {
  raise(ErrorCode::kBadFile,
        "{}: the steps of the tokenizer add more than {} bytes to a text of {}; fetch the file of "
        "the original model",
        where_, kMaxGrowth * text_bytes_ + kMinGrowthBytes, text_bytes_);
}

std::string component_type(const Json& component, const std::string& where) {
  return JsonFields(component, where).string_at("type");
}

void unsupported_component(const std::string& where, std::string_view type,
                           std::string_view supported) {
  raise(ErrorCode::kUnsupportedModel, "{}: type {} is not supported; supported are {}", where,
        io::in_quotes(type), supported);
}

bool bool_at(const JsonFields& fields, std::string_view key) {
  if (!fields.has(key)) raise(ErrorCode::kBadFile, "{}: missing \"{}\"", fields.where(), key);
  return fields.bool_or(key, false);
}

char32_t char_at(const JsonFields& fields, std::string_view key) {
  const std::string text = fields.string_at(key);
  size_t at = 0;
  const char32_t c = text.empty() ? 0 : next_char(text, at);
  if (text.empty() || at != text.size()) {
    raise(ErrorCode::kBadFile, "{}: {} must be one character, found {}", fields.where(), key,
          io::in_quotes(text));
  }
  return c;
}

Pattern::Pattern(const Json& pattern, const std::string& where)
    : what_(read_pattern(pattern, where)) {}

std::string Pattern::replace(std::string_view text, std::string_view content,
                             GrowthLimit& limit) const {
  std::string out;
  out.reserve(text.size());
  for_each_segment(text, [&](size_t begin, size_t end, bool is_match) {
    if (is_match) limit.grow(end - begin, content.size());
    out += is_match ? content : text.substr(begin, end - begin);
  });
  return out;
}

}  // namespace lpcd::text
