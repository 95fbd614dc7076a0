#include "lpcd/eval/evaluate.h"

#include <algorithm>
#include <cmath>

#include "lpcd/api/boundary.h"
#include "lpcd/api/machine.h"
#include "lpcd/base/clock.h"
#include "lpcd/base/control_group.h"
#include "lpcd/base/raise.h"
#include "lpcd/bundle/open_model.h"
#include "lpcd/calib/dataset.h"
#include "lpcd/calib/self_sample.h"
#include "lpcd/eval/tasks.h"
#include "lpcd/lpcd.h"

namespace lpcd {
namespace {

// Some is for the program and for what the system keeps.
uint64_t usable_memory() { return available_memory() / 10 * 9; }

eval::Windows load_windows(const EvaluateOptions& o, const RunContext& ctx,
                           const arch::Model& model, const arch::Model* reference,
                           const std::optional<text::Tokenizer>& tokenizer) {
  const auto mode = o.ppl_mode == PplMode::kLlamaCpp ? eval::PerplexityMode::kLlamaCpp
                                                     : eval::PerplexityMode::kWindows;
  const auto leading = tokenizer ? tokenizer->leading_id() : std::nullopt;
  calib::DatasetOptions d{
      .samples = o.samples, .seq_len = o.seq_len, .seed = o.seed, .text_key = o.text_key};
  if (o.ppl == "self") {
    const arch::Model& writer = reference != nullptr ? *reference : model;
    const uint64_t needed = calib::sampling_cost(writer.config(), o.samples, o.seq_len).bytes;
    const uint64_t usable = usable_memory();
    if (needed > usable) {
      raise(ErrorCode::kMemoryBudget,
            "--ppl self: writing the text takes {} of the machine's {}; lower --seq-len, or give a "
            "text with --ppl FILE",
            format_bytes(needed), format_bytes(available_memory()));
    }
    const calib::Dataset data =
        calib::sample_from_model(ctx, writer, tokenizer ? &*tokenizer : nullptr, d, 1.0,
                                 std::min(usable - needed, available_memory() / 2));
    return eval::make_windows(data.ids, o.seq_len, o.max_tokens, mode, leading, "self");
  }
  if (o.ppl.ends_with(".safetensors")) {
    d.samples = int64_t{1} << 40;
    const calib::Dataset data = calib::load_dataset(o.ppl, nullptr, d);
    return eval::make_windows(data.ids, data.seq_len, o.max_tokens, mode, leading, o.ppl);
  }
  return eval::make_windows(
      calib::tokenize_file(o.ppl, tokenizer ? &*tokenizer : nullptr, o.text_key), o.seq_len,
      o.max_tokens, mode, leading, o.ppl);
}

Json to_json(const EvaluateOptions& o, const EvaluateResult& r) {
  Json json = {
      {"model", o.model}, {"seconds", r.seconds}, {"peak_memory_bytes", api::peak_memory()}};
  if (r.windows > 0) {
    json["text"] = o.ppl;
    json["ppl_mode"] = EnumNames<PplMode>::values[static_cast<size_t>(o.ppl_mode)];
    json["seq_len"] = o.seq_len;
    json["windows"] = r.windows;
    json["tokens"] = r.tokens;
    json["perplexity"] = r.perplexity;
    json["perplexity_error"] = r.perplexity_error;
  }
  if (r.reference) {
    json["reference"] = {{"model", o.reference},
                         {"perplexity", r.reference->perplexity},
                         {"perplexity_error", r.reference->perplexity_error},
                         {"kl_mean", r.reference->kl_mean},
                         {"kl_error", r.reference->kl_error},
                         {"kl_median", r.reference->kl_median},
                         {"kl_p99", r.reference->kl_p99},
                         {"top1_agreement", r.reference->top1_agreement}};
    if (!r.reference->block_errors.empty()) {
      json["reference"]["block_errors"] = r.reference->block_errors;
      json["reference"]["block_token_errors"] = r.reference->block_token_errors;
    }
  }
  for (const EvaluateResult::TaskResult& task : r.tasks) {
    Json entry = {{"name", task.name}, {"n", task.items}};
    for (const EvaluateResult::TaskMetric& metric : task.metrics) {
      entry[metric.name] = metric.value;
      entry[metric.name + "_stderr"] = metric.error;
    }
    json["tasks"].push_back(std::move(entry));
  }
  return json;
}

std::string task_table(const std::vector<EvaluateResult::TaskResult>& tasks) {
  size_t width = 4;
  for (const auto& task : tasks) width = std::max(width, task.name.size());
  std::string text = fmt::format("{:<{}}  {:>6}  {:<10}  {:>9}  {:>8}\n", "task", width, "items",
                                 "metric", "value", "+-");
  for (const auto& task : tasks) {
    bool first = true;
    for (const auto& metric : task.metrics) {
      text += fmt::format("{:<{}}  {:>6}  {:<10}  {:>9.4f}  {:>8.4f}\n", first ? task.name : "",
                          width, first ? fmt::to_string(task.items) : "", metric.name, metric.value,
                          metric.error);
      first = false;
    }
  }
  return text;
}

std::string summarize(const EvaluateOptions& o, const EvaluateResult& r) {
  std::string text;
  if (r.windows > 0) {
    text = fmt::format("text            {}, {} windows of {} tokens, {} scored\n", o.ppl, r.windows,
                       o.seq_len, r.tokens);
    text += fmt::format("perplexity      {:.4f} +- {:.4f}\n", r.perplexity, r.perplexity_error);
  }
  if (r.reference) {
    const auto& ref = *r.reference;
    text += fmt::format("reference       {:.4f} +- {:.4f}\n", ref.perplexity, ref.perplexity_error);
    text += fmt::format("KL divergence   {:.5f} +- {:.5f} nats (median {:.5f}, 99 % {:.5f})\n",
                        ref.kl_mean, ref.kl_error, ref.kl_median, ref.kl_p99);
    text += fmt::format("top-1 agreement {:.2f} %\n", 100 * ref.top1_agreement);
    if (!ref.block_errors.empty()) {
      text += fmt::format("last block      error {:.5f}, per token {:.5f}\n",
                          ref.block_errors.back(), ref.block_token_errors.back());
    }
  }
  if (!r.tasks.empty()) text += task_table(r.tasks) + "\n";
  text += fmt::format("time            {}, peak memory {}\n", format_duration(r.seconds),
                      format_bytes(api::peak_memory()));
  return text;
}

void check_length(int64_t seq_len, const arch::Model& model) {
  if (seq_len <= model.config().max_positions) return;
  raise(ErrorCode::kBadOption, "--seq-len {} is beyond the model's {} positions", seq_len,
        model.config().max_positions);
}

// The hidden states of all tokens are kept, of both models.
void check_memory(int64_t tokens, int64_t seq_len, const arch::Model& model,
                  const arch::Model* reference) {
  const uint64_t needed = eval::comparison_bytes(
      model.config(), reference != nullptr ? &reference->config() : nullptr, tokens, seq_len);
  if (needed <= usable_memory()) return;
  raise(ErrorCode::kMemoryBudget,
        "evaluating {} tokens takes {} of the machine's {}; lower --max-tokens", tokens,
        format_bytes(needed), format_bytes(available_memory()));
}

void measure_perplexity(const RunContext& ctx, const arch::Model& model,
                        const arch::Model* reference, const eval::Windows& windows,
                        EvaluateResult& result) {
  check_length(windows.seq_len, model);
  check_memory(windows.count() * windows.seq_len, windows.seq_len, model, reference);
  const eval::Comparison c = eval::compare(ctx, model, reference, windows);
  result.windows = windows.count();
  result.tokens = c.model.tokens;
  result.perplexity = c.model.perplexity();
  result.perplexity_error = c.model.perplexity() * c.model.nll_error;
  if (c.divergence) {
    result.reference = EvaluateResult::Reference{
        .perplexity = c.reference->perplexity(),
        .perplexity_error = c.reference->perplexity() * c.reference->nll_error,
        .kl_mean = c.divergence->kl_mean,
        .kl_error = c.divergence->kl_error,
        .kl_median = c.divergence->kl_median,
        .kl_p99 = c.divergence->kl_p99,
        .top1_agreement = c.divergence->top1_agreement};
    for (const eval::BlockError& error : c.block_errors) {
      result.reference->block_errors.push_back(error.relative);
      result.reference->block_token_errors.push_back(error.per_token);
    }
  }
}

std::vector<eval::Task> read_tasks(const EvaluateOptions& o, const arch::Model& model,
                                   const std::optional<text::Tokenizer>& tokenizer) {
  std::vector<eval::Task> tasks;
  tasks.reserve(o.tasks.size());
  for (const std::string& path : o.tasks) tasks.push_back(eval::read_task(path, o.task_limit));
  if (!tasks.empty() && !tokenizer) {
    raise(ErrorCode::kBadModel, "{}: no tokenizer, which --tasks needs; put tokenizer.json there",
          model.path());
  }
  return tasks;
}

EvaluateResult::TaskResult measure_task(const RunContext& ctx, const arch::Model& model,
                                        const text::Tokenizer& tokenizer, const eval::Task& task) {
  EvaluateResult::TaskResult result{.name = task.name, .items = std::ssize(task.items)};
  const auto advanced = [&](double share) {
    ctx.report({.stage = "tasks", .item = task.name, .done = share, .total = 1});
  };
  for (const eval::Metric& m : eval::score_task(ctx, model, tokenizer, task, advanced)) {
    result.metrics.push_back({m.name, m.value, m.error});
  }
  return result;
}

EvaluateResult evaluate_unguarded(const EvaluateOptions& options, const RunContext& outer) {
  const auto start = Clock::now();
  const RunContext ctx = api::prepared(outer, options.threads);
  const arch::Model model = bundle::open_model(options.model);
  std::optional<arch::Model> reference;
  if (!options.reference.empty()) reference = bundle::open_model(options.reference);
  // Token ids need none, unless windows are to begin with the model's leading token.
  std::optional<text::Tokenizer> tokenizer;
  if (!options.ppl.ends_with(".safetensors") || !options.tasks.empty() ||
      options.ppl_mode == PplMode::kLlamaCpp) {
    tokenizer = bundle::open_tokenizer(model);
    if (!tokenizer && reference) tokenizer = bundle::open_tokenizer(*reference);
  }

  EvaluateOptions resolved = options;
  EvaluateResult result;
  // Before anything is computed, so that a bad line is not found an hour later.
  const std::vector<eval::Task> tasks = read_tasks(options, model, tokenizer);
  if (resolved.ppl.empty() && (tasks.empty() || reference)) resolved.ppl = "self";
  if (!resolved.ppl.empty()) {
    const arch::Model* original = reference ? &*reference : nullptr;
    // Before the text is written or read; token ids in a file have a length of their own.
    if (!resolved.ppl.ends_with(".safetensors")) check_length(resolved.seq_len, model);
    if (resolved.ppl == "self") {
      int64_t tokens = resolved.samples * resolved.seq_len;
      if (resolved.max_tokens > 0) tokens = std::min(tokens, resolved.max_tokens);
      check_memory(tokens, resolved.seq_len, model, original);
    }
    const eval::Windows windows = load_windows(resolved, ctx, model, original, tokenizer);
    resolved.seq_len = windows.seq_len;
    measure_perplexity(ctx, model, original, windows, result);
  }
  for (const eval::Task& task : tasks) {
    result.tasks.push_back(measure_task(ctx, model, *tokenizer, task));
  }
  result.seconds = seconds_since(start);
  result.json = dump_json(to_json(resolved, result), 1);
  result.summary = summarize(resolved, result);
  return result;
}

}  // namespace

EvaluateResult evaluate(const EvaluateOptions& options, const RunContext& outer) {
  return api::with_typed_errors([&] {
    check_ranges(options);
    return evaluate_unguarded(options, outer);
  });
}

}  // namespace lpcd
