#include "lpcd/text/normalizer.h"

#include <algorithm>
#include <map>

#include "lpcd/base/raise.h"

namespace lpcd::text {
namespace {

// Real files have up to a few dozen, each replacing a character or two.
constexpr size_t kMaxNormalizerSteps = 256;

}  // namespace

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
  check_step_count(steps_.size(), kMaxNormalizerSteps, where);
}

std::string Normalizer::apply(std::string_view text, bool& at_start, GrowthLimit& limit) const {
  std::string out(text);
  Run state{.at_start = at_start, .limit = limit};
  for (const Step& step : steps_) {
    out = std::visit([&](const auto& s) { return run(s, std::move(out), state); }, step);
  }
  return out;
}

bool Normalizer::prepends() const {
  return std::ranges::any_of(steps_, [](const Step& step) {
    const auto* prepend = std::get_if<Prepend>(&step);
    return prepend != nullptr && !prepend->prefix.empty();
  });
}

std::string Normalizer::run(const Form& step, std::string text, Run& state) {
  std::string out = normalize(text, step.form);
  state.limit.grow(text.size(), out.size());
  return out;
}

std::string Normalizer::run(const Lowercase& /*step*/, std::string text, Run& state) {
  std::string out = lowercase(text);
  state.limit.grow(text.size(), out.size());
  return out;
}

std::string Normalizer::run(const Prepend& step, std::string text, Run& state) {
  if (text.empty()) return text;
  state.limit.grow(0, step.prefix.size());
  text.insert(0, step.prefix);
  return text;
}

std::string Normalizer::run(const Replace& step, std::string text, Run& state) {
  std::string out;
  out.reserve(text.size());
  step.pattern.for_each_segment(text, [&](size_t begin, size_t end, bool is_match) {
    if (!is_match) {
      out.append(text, begin, end - begin);
      return;
    }
    // The replacement counts as standing where the last character of the match stood.
    if (begin == 0 && (step.content.empty() || end > char_bytes(text[0]))) state.at_start = false;
    state.limit.grow(end - begin, step.content.size());
    out += step.content;
  });
  return out;
}

std::string Normalizer::run(const Strip& step, std::string text, Run& state) {
  size_t begin = 0;
  size_t end = text.size();
  if (step.left) {
    for (size_t at = 0; at < end && is_space(next_char(text, at));) begin = at;
  }
  if (step.right) {
    for (size_t at = end; at > begin && is_space(previous_char(text, at));) end = at;
  }
  if (begin > 0) state.at_start = false;
  return text.substr(begin, end - begin);
}

}  // namespace lpcd::text
