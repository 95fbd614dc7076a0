#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lpcd/base/context.h"
#include "lpcd/base/error.h"
#include "lpcd/pipeline/options.h"

/// lpcd: post-training quantization of decoder-only language models on CPUs.
///
/// Everything the command does is one call here. All functions throw lpcd::Error; all take a
/// RunContext for progress, log and cancellation; none prints or exits.
///
/// Threads   quantize and evaluate take their number from the options; export_model and generate
///           from the context, where 0 stands for all processors.
namespace lpcd {

/// "0.1.0"
[[nodiscard]] std::string version();

/// What `quantize` made.
struct QuantizeResult {
  std::string plan;                  ///< the plan as text (all there is after a dry run)
  std::string plan_json;             ///< the same as one JSON object: bytes, FLOPs, seconds
  std::vector<std::string> outputs;  ///< finished models: directories, and GGUF files
  std::string record_json;           ///< contents of record.json; empty after a dry run
  std::string summary;               ///< a few lines for a person
};

/// Quantizes options.model into options.out.
///
/// Memory    at most options.max_memory; see Plan.
/// Errors    Every code. After kCancelled, or a crash, calling again with options.resume goes on
///           behind the last finished block and ends with the same bytes.
QuantizeResult quantize(const QuantizeOptions& options, const RunContext& ctx);

enum class PplMode { kWindows, kLlamaCpp };
template <>
struct EnumNames<PplMode> {
  static constexpr std::array<std::string_view, 2> values = {"windows", "llama.cpp"};
};

struct EvaluateOptions {
  std::string model;
  std::string reference;
  std::string ppl;  ///< empty: "self", or nothing if only tasks are asked for
  PplMode ppl_mode = PplMode::kWindows;
  int64_t seq_len = 512;
  int64_t max_tokens = 0;
  int64_t samples = 32;
  uint64_t seed = 1;
  std::string text_key = "text";
  std::vector<std::string> tasks;
  int64_t task_limit = 0;
  int threads = 0;

  template <class Self, class Visitor>
  static void visit(Self& o, Visitor&& v) {
    const char* what = "What to measure";
    v(o.ppl,
      {.name = "ppl",
       .value = "SOURCE",
       .section = what,
       .help = "Text to predict: FILE.txt, FILE.jsonl, FILE.safetensors with input_ids, or self "
               "(sampled from --reference, or from the model itself). [self, or nothing with "
               "--tasks alone]"});
    v(o.reference,
      {.name = "reference",
       .value = "MODEL",
       .section = what,
       .help = "Original model: adds its perplexity, the KL divergence from it, the share of "
               "tokens with the same most likely successor, and the error of every block's output "
               "(all blocks with --json)."});
    v(o.ppl_mode,
      {.name = "ppl-mode",
       .value = "MODE",
       .section = what,
       .help = "windows scores every token but a window's first; llama.cpp scores the second "
               "half of each window, as llama-perplexity does."});
    v(o.seq_len, {.name = "seq-len",
                  .value = "N",
                  .section = what,
                  .help = "Tokens per window.",
                  .min = 2,
                  .max = 1 << 20});
    v(o.max_tokens, {.name = "max-tokens",
                     .value = "N",
                     .section = what,
                     .help = "Use the first N tokens only; 0: all.",
                     .min = 0,
                     .max = 1e15});
    v(o.samples, {.name = "samples",
                  .value = "N",
                  .section = what,
                  .help = "Windows to sample with --ppl self.",
                  .min = 1,
                  .max = 1 << 24});
    v(o.seed, {.name = "seed",
               .value = "N",
               .section = what,
               .help = "Seed of --ppl self.",
               .min = 0,
               .max = 0x1p53});
    v(o.text_key, {.name = "text-key",
                   .value = "NAME",
                   .section = what,
                   .help = "Field of a JSONL line that holds the text."});
    v(o.tasks, {.name = "tasks",
                .value = "FILE[,FILE]",
                .section = what,
                .help = "Zero-shot accuracy on JSONL files of questions, as lm-evaluation-harness "
                        "computes it. A line holds query, choices, gold; or context_options, "
                        "continuation, gold; or context, continuation."});
    v(o.task_limit, {.name = "task-limit",
                     .value = "N",
                     .section = what,
                     .help = "Use the first N questions of each file only; 0: all.",
                     .min = 0,
                     .max = 1e15});
    v(o.threads, {.name = "threads",
                  .value = "N",
                  .section = "Run",
                  .help = "Worker threads; 0: all processors.",
                  .effect = Effect::kResource,
                  .min = 0,
                  .max = 4096});
  }
};

/// Figures of one evaluation. Likelihoods in nats per token.
struct EvaluateResult {
  int64_t windows = 0;  ///< 0: perplexity was not asked for
  int64_t tokens = 0;   ///< scored
  double perplexity = 0;
  double perplexity_error = 0;  ///< standard error
  struct Reference {
    double perplexity = 0;
    double perplexity_error = 0;
    double kl_mean = 0;  ///< KL(reference || model)
    double kl_error = 0;
    double kl_median = 0;
    double kl_p99 = 0;
    double top1_agreement = 0;
    /// Of each block's output X: |X - X_f|^2 / |X_f|^2 over all tokens, and the mean over tokens of
    /// | x / |x| - x_f / |x_f| |^2. Empty if the models differ in blocks or width.
    std::vector<double> block_errors;
    std::vector<double> block_token_errors;
  };
  std::optional<Reference> reference;
  struct TaskMetric {
    std::string name;  ///< "acc", "acc_norm", "perplexity" (of a continuation)
    double value = 0;
    double error = 0;  ///< standard error
  };
  struct TaskResult {
    std::string name;  ///< of the file, without folder and extension
    int64_t items = 0;
    std::vector<TaskMetric> metrics;
  };
  std::vector<TaskResult> tasks;
  double seconds = 0;
  std::string json;     ///< the same as one JSON object
  std::string summary;  ///< a few lines for a person
};

EvaluateResult evaluate(const EvaluateOptions& options, const RunContext& ctx);

struct ExportOptions {
  std::string source;  ///< finished run, or any model to convert
  std::string format;
  std::string out;
  std::string model;  ///< where a run's original is now; empty: where it was
  std::string shard_size = "5G";
};

/// Writes a finished run in another format that stores its grid, or converts a model, quantized
/// ones included, to `dense` or to a GGUF file of plain floats. Nothing is quantized again. Returns
/// the path of the directory or file that was written.
///
/// Errors    kBadOption when the format has another grid than the run (the message says which
///           command would make it); kOutputExists; kBadModel when the run's original is gone or
///           another one.
std::string export_model(const ExportOptions& options, const RunContext& ctx);

struct InspectResult {
  std::string summary;
  std::string json;
};

/// What a path holds: a model, a GGUF file, a finished or an unfinished run.
[[nodiscard]] InspectResult inspect(const std::string& path);

struct GenerateOptions {
  std::string model;
  std::string prompt;
  int64_t tokens = 64;
  double temperature = 0.0;
  uint64_t seed = 0;

  template <class Self, class Visitor>
  static void visit(Self& o, Visitor&& v) {
    const char* what = "What to say";
    v(o.prompt, {.name = "prompt", .value = "TEXT", .section = what, .help = "Text to continue."});
    v(o.tokens, {.name = "tokens",
                 .value = "N",
                 .section = what,
                 .help = "Tokens to make at most.",
                 .min = 1,
                 .max = 1 << 20});
    v(o.temperature, {.name = "temperature",
                      .value = "T",
                      .section = what,
                      .help = "0: always the most likely token; 1: the model's own distribution.",
                      .min = 0,
                      .max = 10});
    v(o.seed, {.name = "seed",
               .value = "N",
               .section = what,
               .help = "Seed of the draws.",
               .min = 0,
               .max = 0x1p53});
  }
};

/// Continues a prompt; `on_text` gets each piece of text as it is made. Returns prompt and
/// continuation. Stops at an end token.
std::string generate(const GenerateOptions& options, const RunContext& ctx,
                     const std::function<void(std::string_view)>& on_text);

/// Name of the OpenBLAS kernel set to set OPENBLAS_CORETYPE to before the program starts, or "" if
/// the linked BLAS chose well. (OpenBLAS 0.3.21 takes CPUs newer than itself for SSE3 machines.)
[[nodiscard]] std::string recommended_openblas_core();

}  // namespace lpcd
