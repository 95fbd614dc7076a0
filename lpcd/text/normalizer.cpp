#include "lpcd/text/normalizer.h"

#include <map>

#include "lpcd/base/raise.h"

namespace lpcd::text {
namespace {}  // namespace

Normalizer::Normalizer(const Json& json, const std::string& where) {
  if (!json.is_null()) add(json, where, 0);
}

void Normalizer::add(const Json& json, const std::string& where, int depth) {
  static const std::map<std::string, NormalForm> kForms = {{"NFC", NormalForm::kNfc},
                                                           {"NFD", NormalForm::kNfd},
                                                           {"NFKC", NormalForm::kNfkc},
                                                           {"NFKD", NormalForm::kNfkd}};
  const std::string type = component_type(json, where);
  const JsonFields fields(json, where);
  if (depth > kMaxNesting) raise(ErrorCode::kBadFile, "{}: sequences nested too deep", where);
  if (type == "Sequence") {
    const Json& parts = fields.array_at("normalizers");
    for (size_t i = 0; i < parts.size(); ++i) {
      add(parts[i], fmt::format("{}.normalizers[{}]", where, i), depth + 1);
    }
  } else if (const auto form = kForms.find(type); form != kForms.end()) {
    steps_.emplace_back(Form{form->second});
  } else if (type == "Lowercase") {
    steps_.emplace_back(Lowercase{});
  } else if (type == "Prepend") {
    steps_.emplace_back(Prepend{fields.string_at("prepend")});
  } else if (type == "Replace") {
    steps_.emplace_back(Replace{Pattern(fields.object_at("pattern"), where + ".pattern"),
                                fields.string_at("content")});
  } else if (type == "Strip") {
    steps_.emplace_back(
        Strip{.left = bool_at(fields, "strip_left"), .right = bool_at(fields, "strip_right")});
  } else {
    unsupported_component(where, type,
                          "Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace and Strip");
  }
}

std::string Normalizer::apply(std::string_view text, bool& at_start) const {
  std::string out(text);
  for (const Step& step : steps_) {
    out = std::visit([&](const auto& s) { return run(s, std::move(out), at_start); }, step);
  }
  return out;
}

std::string Normalizer::run(const Form& step, std::string text, bool& /*at_start*/) {
  return normalize(text, step.form);
}

std::string Normalizer::run(const Lowercase& /*step*/, std::string text, bool& /*at_start*/) {
  return lowercase(text);
}

std::string Normalizer::run(const Prepend& step, std::string text, bool& /*at_start*/) {
  if (!text.empty()) text.insert(0, step.prefix);
  return text;
}

std::string Normalizer::run(const Replace& step, std::string text, bool& at_start) {
  std::string out;
  out.reserve(text.size());
  step.pattern.for_each_segment(text, [&](size_t begin, size_t end, bool is_match) {
    if (!is_match) {
      out.append(text, begin, end - begin);
      return;
    }
    // The replacement counts as standing where the last character of the match stood.
    if (begin == 0 && (step.content.empty() || end > char_bytes(text[0]))) at_start = false;
    out += step.content;
  });
  return out;
}

std::string Normalizer::run(const Strip& step, std::string text, bool& at_start) {
  size_t begin = 0;
  size_t end = text.size();
  if (step.left) {
    for (size_t at = 0; at < end && is_space(next_char(text, at));) begin = at;
  }
  if (step.right) {
    for (size_t at = end; at > begin && is_space(previous_char(text, at));) end = at;
  }
  if (begin > 0) at_start = false;
  return text.substr(begin, end - begin);
}

}  // namespace lpcd::text
