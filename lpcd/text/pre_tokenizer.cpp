#include "lpcd/text/pre_tokenizer.h"

#include <algorithm>
#include <map>
#include <optional>

#include "lpcd/base/raise.h"
#include "lpcd/io/names.h"
#include "lpcd/text/byte_level.h"
#include "lpcd/text/unicode.h"

namespace lpcd::text {
namespace {

// A piece of text goes through the steps by recursion. Real files have up to 8.
constexpr size_t kMaxPreTokenizerSteps = 64;

// The words of GPT-2, what ByteLevel splits by.
constexpr std::string_view kByteLevelWords =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

SplitBehavior behavior_of(const std::string& name, const std::string& where) {
  static const std::map<std::string, SplitBehavior> kBehaviors = {
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  const auto it = kBehaviors.find(name);
  if (it == kBehaviors.end()) {
    raise(ErrorCode::kBadFile,
          "{}: behavior must be Removed, Isolated, MergedWithPrevious, MergedWithNext or "
          "Contiguous, found {}",
          where, io::in_quotes(name));
  }
  return it->second;
}

// Turns segments (matches and what is between them, from left to right) into pieces.
template <typename Emit>
class Joiner {
 public:
  Joiner(SplitBehavior behavior, Emit emit) : behavior_(behavior), emit_(std::move(emit)) {}

  void add(size_t begin, size_t end, bool is_match) {
    if (held_ && joins(is_match)) {
      end_ = end;
    } else {
      flush();
      begin_ = begin;
      end_ = end;
      held_ = !(is_match && behavior_ == SplitBehavior::kRemoved);
    }
    previous_match_ = is_match;
  }

  void flush() {
    if (held_) emit_(begin_, end_);
    held_ = false;
  }

 private:
  [[nodiscard]] bool joins(bool is_match) const {
    switch (behavior_) {
      case SplitBehavior::kMergedWithPrevious:
        return is_match && !previous_match_;
      case SplitBehavior::kMergedWithNext:
        return !is_match && previous_match_;
      case SplitBehavior::kContiguous:
        return is_match == previous_match_;
      default:
        return false;
    }
  }

  SplitBehavior behavior_;
  Emit emit_;
  size_t begin_ = 0;
  size_t end_ = 0;
  bool held_ = false;
  bool previous_match_ = false;
};

}  // namespace

PreTokenizer::PreTokenizer(const Json& json, const std::string& where) {
  if (!json.is_null()) add(json, where, 0);
}

void PreTokenizer::add(const Json& json, const std::string& where, int depth) {
  const std::string type = component_type(json, where);
  const JsonFields fields(json, where);
  if (depth > kMaxNesting) raise(ErrorCode::kBadFile, "{}: sequences nested too deep", where);
  if (type == "Sequence") {
    const Json& parts = fields.array_at("pretokenizers");
    for (size_t i = 0; i < parts.size(); ++i) {
      add(parts[i], fmt::format("{}.pretokenizers[{}]", where, i), depth + 1);
    }
  } else if (type == "Split") {
    steps_.emplace_back(Split{.pattern = Pattern(fields.object_at("pattern"), where + ".pattern"),
                              .behavior = behavior_of(fields.string_at("behavior"), where),
                              .invert = fields.bool_or("invert", false)});
  } else if (type == "ByteLevel") {
    steps_.emplace_back(ByteLevel{.add_prefix_space = bool_at(fields, "add_prefix_space"),
                                  .use_regex = fields.bool_or("use_regex", true),
                                  .words = Pattern(Regex(kByteLevelWords, where))});
  } else if (type == "Digits") {
    const bool individual = bool_at(fields, "individual_digits");
    steps_.emplace_back(
        CharClass{.is_match = is_numeric,
                  .behavior = individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous});
  } else if (type == "WhitespaceSplit") {
    steps_.emplace_back(CharClass{.is_match = is_space, .behavior = SplitBehavior::kRemoved});
  } else if (type == "Punctuation") {
    steps_.emplace_back(
        CharClass{.is_match = is_punctuation,
                  .behavior = behavior_of(fields.string_or("behavior", "Isolated"), where)});
  } else if (type == "Metaspace") {
    static const std::map<std::string, Prepend> kSchemes = {
        {"always", Prepend::kAlways}, {"first", Prepend::kFirst}, {"never", Prepend::kNever}};
    const std::string scheme = fields.string_or("prepend_scheme", "always");
    const auto it = kSchemes.find(scheme);
    const bool prefix = fields.bool_or("add_prefix_space", true);
    if (it == kSchemes.end() || (!prefix && fields.has("prepend_scheme") && scheme != "never")) {
      raise(ErrorCode::kBadFile,
            "{}: prepend_scheme must be always, first or never and agree with add_prefix_space, "
            "found {}",
            where, io::in_quotes(scheme));
    }
    std::string replacement;
    append_char(replacement, char_at(fields, "replacement"));
    steps_.emplace_back(Metaspace{.replacement = replacement,
                                  .prepend = prefix ? it->second : Prepend::kNever,
                                  .split = fields.bool_or("split", true)});
  } else {
    unsupported_component(where, type,
                          "Sequence, Split, ByteLevel, Digits, Metaspace, WhitespaceSplit and "
                          "Punctuation");
  }
  check_step_count(steps_.size(), kMaxPreTokenizerSteps, where);
}

void PreTokenizer::run(std::string_view text, bool at_start, GrowthLimit& limit,
                       const Sink& sink) const {
  run_step(0, {.text = text, .at_start = at_start}, {.limit = limit, .sink = sink});
}

bool PreTokenizer::marks_beginning() const {
  return std::ranges::any_of(steps_, [](const Step& step) {
    const auto* metaspace = std::get_if<Metaspace>(&step);
    return metaspace != nullptr && metaspace->prepend != Prepend::kNever;
  });
}

void PreTokenizer::run_step(size_t index, Piece piece, const Run& state) const {
  if (piece.text.empty()) return;
  if (index == steps_.size()) {
    state.sink(piece.text);
    return;
  }
  std::visit([&](const auto& step) { apply(step, index, piece, state); }, steps_[index]);
}

void PreTokenizer::apply(const Split& step, size_t index, Piece piece, const Run& state) const {
  Joiner joiner(step.behavior, [&](size_t begin, size_t end) {
    run_step(
        index + 1,
        {.text = piece.text.substr(begin, end - begin), .at_start = piece.at_start && begin == 0},
        state);
  });
  step.pattern.for_each_segment(piece.text, [&](size_t begin, size_t end, bool is_match) {
    joiner.add(begin, end, is_match != step.invert);
  });
  joiner.flush();
}

void PreTokenizer::apply(const CharClass& step, size_t index, Piece piece, const Run& state) const {
  Joiner joiner(step.behavior, [&](size_t begin, size_t end) {
    run_step(
        index + 1,
        {.text = piece.text.substr(begin, end - begin), .at_start = piece.at_start && begin == 0},
        state);
  });
  size_t done = 0;
  for (size_t at = 0; at < piece.text.size();) {
    const size_t begin = at;
    if (!step.is_match(next_char(piece.text, at))) continue;
    if (begin > done) joiner.add(done, begin, false);
    joiner.add(begin, at, true);
    done = at;
  }
  if (done < piece.text.size()) joiner.add(done, piece.text.size(), false);
  joiner.flush();
}

void PreTokenizer::apply(const ByteLevel& step, size_t index, Piece piece, const Run& state) const {
  std::string prefixed;
  if (step.add_prefix_space && piece.text.front() != ' ') {
    prefixed.reserve(piece.text.size() + 1);
    prefixed.append(" ").append(piece.text);
    state.limit.grow(piece.text.size(), prefixed.size());
    piece.text = prefixed;
  }
  std::string chars;
  const auto emit = [&](size_t begin, size_t end) {
    chars.clear();
    append_byte_chars(chars, piece.text.substr(begin, end - begin));
    state.limit.grow(end - begin, chars.size());
    run_step(index + 1, {.text = chars, .at_start = piece.at_start && begin == 0}, state);
  };
  if (step.use_regex) {
    step.words.for_each_segment(piece.text,
                                [&](size_t begin, size_t end, bool) { emit(begin, end); });
  } else {
    emit(0, piece.text.size());
  }
}

void PreTokenizer::apply(const Metaspace& step, size_t index, Piece piece, const Run& state) const {
  std::string text;
  text.reserve(piece.text.size() + step.replacement.size());
  for (const char c : piece.text) {
    if (c == ' ') {
      text += step.replacement;
    } else {
      text.push_back(c);
    }
  }
  const bool prepend =
      step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && piece.at_start);
  if (prepend && !text.starts_with(step.replacement)) text.insert(0, step.replacement);
  state.limit.grow(piece.text.size(), text.size());
  if (!step.split) {
    run_step(index + 1, {.text = text, .at_start = piece.at_start}, state);
    return;
  }
  const std::string_view view = text;
  for (size_t begin = 0; begin < view.size();) {
    const size_t end = std::min(view.find(step.replacement, begin + 1), view.size());
    run_step(index + 1,
             {.text = view.substr(begin, end - begin), .at_start = piece.at_start && begin == 0},
             state);
    begin = end;
  }
}

}  // namespace lpcd::text
