#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lpcd/base/context.h"
#include "lpcd/eval/likelihood.h"
#include "lpcd/text/tokenizer.h"

namespace lpcd::eval {

// Zero-shot tasks, computed as EleutherAI's lm-evaluation-harness 0.4 does.

/// What the lines of a task file ask, told by their fields.
enum class TaskKind {
  kChoices,   ///< {query, choices, gold}: which continuation of one context
  kContexts,  ///< {context_options, continuation, gold}: after which context (partial scoring)
  kLastWord,  ///< {context, continuation}: is this the continuation
};

/// One question: texts to compare, of which one is right.
struct TaskItem {
  struct Option {
    std::string context;
    std::string continuation;  ///< with the space in front
    double characters = 0;     ///< of the answer, without it
  };
  std::vector<Option> options;
  int64_t gold = 0;
  std::string where;  ///< "FILE line 3"
};

struct Task {
  std::string name;  ///< of the file, without folder and extension
  TaskKind kind = TaskKind::kChoices;
  std::vector<TaskItem> items;
};

/// The context that a query stands for. A query "Question: ..." that does not end in "Answer:" gets
/// "\nAnswer:" (a line break it already ends in counts); any other is taken as it is.
[[nodiscard]] std::string context_of_query(std::string_view query);

/// Reads a JSONL file, as a rule of data as llm-foundry ships them; the first `limit` lines, or all
/// if it is 0.
/// Errors    kBadText and kBadFile, naming file and line and what to do.
[[nodiscard]] Task read_task(const std::string& path, int64_t limit);

/// Token ids of context and continuation, the latter's scored: white space at the end of the
/// context goes to the continuation, both are encoded together, and what exceeds the number of
/// tokens of the context alone is the continuation. The token that the model wants in front of a
/// text is put there.
/// Errors    kBadText if either part has no tokens.
[[nodiscard]] ScoredText split_tokens(const text::Tokenizer& tokenizer, std::string_view context,
                                      std::string_view continuation);

struct Metric {
  std::string name;  ///< "acc", "acc_norm", "perplexity"
  double value = 0;
  double error = 0;  ///< standard error
};

/// acc: the right option is the likeliest; for kLastWord: the continuation is what greedy decoding
/// gives. acc_norm (kChoices): the same with log-likelihoods per character. perplexity
/// (kLastWord): exp of the mean negative log-likelihood of a continuation, as the harness has it.
/// The first of equal options counts as the likeliest.
[[nodiscard]] std::vector<Metric> task_metrics(const Task& task,
                                               std::span<const std::vector<Likelihood>> results);

/// All of it for one task.
[[nodiscard]] std::vector<Metric> score_task(const RunContext& ctx, const arch::Model& model,
                                             const text::Tokenizer& tokenizer, const Task& task,
                                             const std::function<void(double share)>& advanced);

}  // namespace lpcd::eval
