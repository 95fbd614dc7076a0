#include "lpcd/eval/tasks.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "lpcd/base/json.h"
#include "lpcd/base/raise.h"
#include "lpcd/io/file.h"
#include "lpcd/text/unicode.h"

namespace lpcd::eval {
namespace {

constexpr uint64_t kMaxFileBytes = uint64_t{1} << 30;  // the largest known task has 5 MB

double count_characters(std::string_view text) {
  double count = 0;
  for (size_t at = 0; at < text.size(); count += 1) (void)text::next_char(text, at);
  return count;
}

// Length of the text without the white space at its end.
size_t stripped_size(std::string_view text) {
  size_t size = text.size();
  while (size > 0) {
    size_t at = size;
    if (!text::is_space(text::previous_char(text, at))) break;
    size = at;
  }
  return size;
}

std::string filled_string(const Json& value, const std::string& where, const std::string& key) {
  if (!value.is_string() || value.get_ref<const std::string&>().empty()) {
    raise(ErrorCode::kBadText, "{}: {} must be a text that is not empty, found {}", where, key,
          dump_json(value));
  }
  return value.get<std::string>();
}

std::vector<std::string> alternatives(const JsonFields& fields, std::string_view key) {
  std::vector<std::string> texts;
  for (const Json& value : fields.array_at(key)) {
    texts.push_back(filled_string(value, fields.where(), fmt::format("{}[{}]", key, texts.size())));
  }
  if (texts.size() < 2) {
    raise(ErrorCode::kBadText, "{}: {} has {} entries; a question needs at least 2", fields.where(),
          key, texts.size());
  }
  return texts;
}

std::string text_at(const JsonFields& fields, const std::string& key) {
  return filled_string(fields.string_at(key), fields.where(), key);
}

TaskKind kind_of(const JsonFields& fields) {
  if (fields.has("choices")) return TaskKind::kChoices;
  if (fields.has("context_options")) return TaskKind::kContexts;
  if (fields.has("continuation")) return TaskKind::kLastWord;
  raise(ErrorCode::kBadText,
        "{}: not a question; give the fields query, choices, gold, or context_options, "
        "continuation, gold, or context, continuation",
        fields.where());
}

TaskItem parse_item(const JsonFields& fields, TaskKind kind) {
  TaskItem item{.where = fields.where()};
  if (kind == TaskKind::kChoices) {
    const std::string context = context_of_query(text_at(fields, "query"));
    for (const std::string& choice : alternatives(fields, "choices")) {
      item.options.push_back({context, " " + choice, count_characters(choice)});
    }
  } else {
    const std::string continuation = text_at(fields, "continuation");
    const double characters = count_characters(continuation);
    const auto contexts = kind == TaskKind::kContexts
                              ? alternatives(fields, "context_options")
                              : std::vector<std::string>{text_at(fields, "context")};
    for (const std::string& context : contexts) {
      item.options.push_back({context, " " + continuation, characters});
    }
  }
  if (kind != TaskKind::kLastWord) {
    item.gold = fields.int_at("gold", 0, std::ssize(item.options) - 1);
  }
  return item;
}

Metric mean_of(std::string name, const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0;
  for (const double v : values) squares += (v - mean) * (v - mean);
  return {std::move(name), mean, n > 1 ? std::sqrt(squares / (n - 1) / n) : 0.0};
}

}  // namespace

std::string context_of_query(std::string_view query) {
  const std::string_view stripped = query.substr(0, stripped_size(query));
  if (!query.starts_with("Question:") || stripped.ends_with("Answer:")) return std::string(query);
  return std::string(query) + (query.ends_with('\n') ? "Answer:" : "\nAnswer:");
}

Task read_task(const std::string& path, int64_t limit) {
  Task task{.name = std::filesystem::path(path).stem().string()};
  const std::string content = io::read_text_file(path, kMaxFileBytes);
  size_t begin = 0;
  for (int64_t line = 1; begin < content.size(); ++line) {
    if (limit > 0 && std::ssize(task.items) == limit) break;
    const size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view text(content.data() + begin, end - begin);
    begin = end + 1;
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{} line {}", path, line);
    const Json object = parse_json(text, where);
    const JsonFields fields(object, where);
    const TaskKind kind = kind_of(fields);
    if (task.items.empty()) {
      task.kind = kind;
    } else if (kind != task.kind) {
      raise(ErrorCode::kBadText,
            "{}: another kind of question than {}; put each kind in a file of its own", where,
            task.items[0].where);
    }
    task.items.push_back(parse_item(fields, kind));
  }
  if (task.items.empty()) {
    raise(ErrorCode::kBadText, "{}: no questions; give one JSON object per line", path);
  }
  return task;
}

ScoredText split_tokens(const text::Tokenizer& tokenizer, std::string_view context,
                        std::string_view continuation) {
  const auto encode = [&](std::string_view text) {
    std::vector<int32_t> ids = tokenizer.encode(text, text::SpecialTokens::kNone);
    if (const auto leading = tokenizer.leading_id()) ids.insert(ids.begin(), *leading);
    return ids;
  };
  const std::string whole = std::string(context) + std::string(continuation);
  const size_t context_tokens = encode(context.substr(0, stripped_size(context))).size();
  if (context_tokens == 0) {
    raise(ErrorCode::kBadText, "the context \"{}\" has no tokens; give some text", context);
  }
  ScoredText text{.ids = encode(whole)};
  text.scored = std::ssize(text.ids) - static_cast<int64_t>(context_tokens);
  if (text.scored < 1) {
    raise(ErrorCode::kBadText, "the continuation \"{}\" has no tokens of its own; give more text",
          continuation);
  }
  return text;
}

std::vector<Metric> task_metrics(const Task& task,
                                 std::span<const std::vector<Likelihood>> results) {
  LPCD_CHECK(results.size() == task.items.size() && !task.items.empty());
  std::vector<double> right;
  std::vector<double> right_per_character;
  std::vector<double> log_likelihood;
  for (size_t i = 0; i < results.size(); ++i) {
    const TaskItem& item = task.items[i];
    const std::vector<Likelihood>& options = results[i];
    LPCD_CHECK(options.size() == item.options.size());
    if (task.kind == TaskKind::kLastWord) {
      right.push_back(options[0].greedy ? 1 : 0);
      log_likelihood.push_back(options[0].log_likelihood);
      continue;
    }
    std::vector<double> plain;
    std::vector<double> per_character;
    for (size_t k = 0; k < options.size(); ++k) {
      plain.push_back(options[k].log_likelihood);
      per_character.push_back(options[k].log_likelihood / item.options[k].characters);
    }
    const auto is_right = [&](const std::vector<double>& values) {
      return std::ranges::max_element(values) - values.begin() == item.gold ? 1.0 : 0.0;
    };
    right.push_back(is_right(plain));
    right_per_character.push_back(is_right(per_character));
  }
  std::vector<Metric> metrics = {mean_of("acc", right)};
  if (task.kind == TaskKind::kChoices) {
    metrics.push_back(mean_of("acc_norm", right_per_character));
  } else if (task.kind == TaskKind::kLastWord) {
    const Metric mean = mean_of("", log_likelihood);
    const double perplexity = std::exp(-mean.value);
    metrics.push_back({"perplexity", perplexity, perplexity * mean.error});
  }
  return metrics;
}

std::vector<Metric> score_task(const RunContext& ctx, const arch::Model& model,
                               const text::Tokenizer& tokenizer, const Task& task,
                               const std::function<void(double)>& advanced) {
  std::vector<std::vector<ScoredText>> groups;
  groups.reserve(task.items.size());
  for (const TaskItem& item : task.items) {
    std::vector<ScoredText>& texts = groups.emplace_back();
    with_context(item.where, [&] {
      for (const TaskItem::Option& option : item.options) {
        texts.push_back(split_tokens(tokenizer, option.context, option.continuation));
        if (texts.back().scored > model.config().max_positions) {
          raise(ErrorCode::kBadText,
                "{} tokens to predict are more than the model's {} positions; shorten the text",
                texts.back().scored, model.config().max_positions);
        }
      }
    });
  }
  return task_metrics(task, likelihoods(ctx, model, groups, advanced));
}

}  // namespace lpcd::eval
