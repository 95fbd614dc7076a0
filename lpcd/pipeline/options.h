#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lpcd/base/options.h"

namespace lpcd {

enum class Method { kRtn, kGptq };
enum class Preset { kDefault, kOnecomp };
enum class HessianFrom { kQuantized, kOriginal };
enum class Solver { kCg, kGd };
enum class MatmulPrecision { kHigh, kHighest };

template <>
struct EnumNames<Method> {
  static constexpr std::array<std::string_view, 2> values = {"rtn", "gptq"};
};
template <>
struct EnumNames<Preset> {
  static constexpr std::array<std::string_view, 2> values = {"default", "onecomp"};
};
template <>
struct EnumNames<HessianFrom> {
  static constexpr std::array<std::string_view, 2> values = {"quantized", "original"};
};
template <>
struct EnumNames<MatmulPrecision> {
  static constexpr std::array<std::string_view, 2> values = {"high", "highest"};
};
template <>
struct EnumNames<Solver> {
  static constexpr std::array<std::string_view, 2> values = {"cg", "gd"};
};

/// Everything that `quantize` can be told. Defaults are those of the command.
struct QuantizeOptions {
  std::string model;                 ///< Hugging Face directory or GGUF file
  std::string out;                   ///< directory to write
  std::vector<std::string> formats;  ///< empty: gptq at the chosen bits and group size

  /// Set it by apply_preset, which changes the defaults below as well: this field alone leaves
  /// them.
  Preset preset = Preset::kDefault;
  Method method = Method::kGptq;
  bool qep = true;
  std::vector<std::string> lpcd = {"all"};

  std::string grid = "int";  ///< "int", or a mix of ggml types
  int bits = 3;
  int64_t group_size = 128;
  bool symmetric = true;
  std::vector<std::string> bits_for;
  int mlp_bits = 0;
  int64_t mlp_group_size = 0;
  std::vector<std::string> tensor_types;

  bool act_order = false;
  int64_t block_size = 128;
  std::vector<std::string> percdamp = {"0.01", "0.05", "0.2", "0.5", "1", "2"};
  double percdamp_power = 0.5;
  bool scale_search = true;
  int refine = 2;
  bool own_metric = true;
  bool output_feedback = true;
  bool token_weights = true;
  double massive_weight = 0.1;
  bool mse = false;
  int mse_candidates = 100;
  double mse_norm = 2.4;
  double mse_max_shrink = 0.8;
  HessianFrom hessian_from = HessianFrom::kQuantized;

  std::string qep_strength = "auto";
  std::vector<std::string> qep_exclude = {"none"};
  std::string lpcd_strength = "auto";
  int alt_steps = 1;
  double holdout = 0.125;
  Solver solver = Solver::kCg;
  int cg_iterations = 2;
  double cg_sample = 0.25;
  int gd_steps = 20;
  int gd_batch_size = 16;
  double gd_base_lr = 1e-4;

  std::string calib = "self";
  int64_t samples = 128;
  int64_t seq_len = 512;
  uint64_t seed = 0;
  std::string text_key = "text";
  double self_temperature = 1.0;

  MatmulPrecision matmul_precision = MatmulPrecision::kHigh;
  int threads = 0;
  std::string consumer;  ///< program that is to load the result; "": any
  std::string max_memory;
  std::string shard_size = "5G";
  bool resume = false;
  bool dry_run = false;

  /// Names of the options that the caller set himself ("bits"), so that a contradiction (--bits 4
  /// --format gptq:3,g64) can be told from a default: what is not named here gives way to the
  /// format. Not an option.
  std::vector<std::string> given;
  [[nodiscard]] bool was_given(std::string_view name) const {
    return std::find(given.begin(), given.end(), name) != given.end();
  }

  /// Lists every option once: command line, help, record and fingerprint are made from this.
  template <class Self, class Visitor>
  static void visit(Self& o, Visitor&& v) {
    const char* what = "What to do";
    v(o.formats,
      {.name = "format",
       .value = "F[,F...]",
       .section = what,
       .help = "Output formats: gptq:BITS,gGROUP[,asym][,v2], "
               "ct:BITS,gGROUP[,asym] (compressed-tensors), gguf:TYPE (q2_k, q3_k_m, q4_k_m, "
               "q5_k_m, q6_k, q4_0, ... as llama-quantize; exact: the integer grid in blocks that "
               "hold it without loss; f16, bf16, f32) or dense:fp16|bf16|fp32. "
               "Several are written into one directory each below --out. Default: gptq at "
               "--bits and --group-size.",
       .effect = Effect::kResource});
    v(o.consumer,
      {.name = "for",
       .value = "PROGRAM",
       .section = what,
       .help = "Check before any work that this program loads the result: vllm, transformers, "
               "llama.cpp or gptqmodel.",
       .effect = Effect::kResource});
    v(o.preset,
      {.name = "preset",
       .value = "NAME",
       .section = what,
       .help = "Set of defaults. onecomp reproduces what the Python package onecomp 1.4.0 "
               "computes, peculiarities included."});
    v(o.method,
      {.name = "method",
       .value = "NAME",
       .section = what,
       .help = "Projection on the grid: rtn (nearest code) or gptq (error feedback in the "
               "metric of the inputs)."});
    v(o.qep, {.name = "qep",
              .value = "on|off",
              .section = what,
              .help = "Quantization error propagation: each layer also corrects the error that "
                      "quantized layers before it put into its input."});
    v(o.lpcd,
      {.name = "lpcd",
       .value = "S[,S...]",
       .section = what,
       .help =
           "Submodules for layer-projected coordinate descent: all, none, or some of qk (attention "
           "logits), vo (value-output), gate, ud (up-down), residual (o_proj and down_proj)."});

    const char* grid = "Grid";
    v(o.grid,
      {.name = "grid",
       .value = "GRID",
       .section = grid,
       .help = "int: --bits, --group-size and --sym. Or a mix of ggml block types as --format "
               "gguf:TYPE names it (and sets it): q4_k_m, or q4_k,pure for one type in all "
               "tensors."});
    v(o.bits,
      {.name = "bits", .value = "N", .section = grid, .help = "Code width.", .min = 2, .max = 8});
    v(o.group_size, {.name = "group-size",
                     .value = "G",
                     .section = grid,
                     .help = "Inputs that share a scale; -1: one scale per output row.",
                     .min = -1,
                     .max = 1 << 24});
    v(o.symmetric, {.name = "sym",
                    .value = "on|off",
                    .section = grid,
                    .help = "Symmetric grid: the zero point is the middle code."});
    v(o.bits_for,
      {.name = "bits-for",
       .value = "PATTERN=BITS",
       .section = grid,
       .help = "Other code width for the tensors whose name matches the pattern (* and ?), "
               "for example '*down_proj*=4'. The last match counts. Repeatable."});
    v(o.tensor_types,
      {.name = "tensor-type",
       .value = "PATTERN=TYPE",
       .section = grid,
       .help = "Another ggml type for the tensors whose name (blk.0.ffn_down.weight, or as in the "
               "checkpoint) matches the pattern, for example '*ffn_down*=q5_k' or "
               "'token_embd.weight=f16'. The last match counts. Repeatable."});
    v(o.mlp_bits, {.name = "mlp-bits",
                   .value = "N",
                   .section = grid,
                   .help = "Code width of gate, up and down projections; 0: as --bits.",
                   .min = 0,
                   .max = 8});
    v(o.mlp_group_size, {.name = "mlp-group-size",
                         .value = "G",
                         .section = grid,
                         .help = "Group size of gate, up and down projections; 0: as --group-size.",
                         .min = -1,
                         .max = 1 << 24});

    const char* gptq = "Projection";
    v(o.act_order,
      {.name = "act-order",
       .value = "on|off",
       .section = gptq,
       .help = "Visit columns by decreasing input energy, with groups fixed first, so that "
               "the file needs no reordering when it is run."});
    v(o.block_size, {.name = "block-size",
                     .value = "N",
                     .section = gptq,
                     .help = "Columns per lazy update of GPTQ.",
                     .min = 1,
                     .max = 1 << 20});
    v(o.percdamp,
      {.name = "percdamp",
       .value = "FRACTION[,...]",
       .section = gptq,
       .help = "Added to the diagonal of the second moment, as a fraction of its mean. Of several "
               "values the one that is best on held-out sequences is taken, layer by layer."});
    v(o.percdamp_power,
      {.name = "percdamp-power",
       .value = "P",
       .section = gptq,
       .help = "How what is added depends on the input: in proportion to the P-th power of its own "
               "diagonal element. 0: the same for all, as in GPTQ; 1: in proportion to each.",
       .min = 0,
       .max = 1});
    v(o.scale_search,
      {.name = "scale-search",
       .value = "on|off",
       .section = gptq,
       .help =
           "Choose each group's scale by trying candidates on the error-compensated weights, in "
           "the metric of the inputs."});
    v(o.refine,
      {.name = "refine",
       .value = "N",
       .section = gptq,
       .help = "Sweeps over scales and codes after GPTQ, each lowering the layer's error; one that "
               "changes nothing is the last.",
       .min = 0,
       .max = 1000});
    v(o.own_metric,
      {.name = "own-metric",
       .value = "on|off",
       .section = gptq,
       .help = "Also project the layers of a submodule in the metric in which the submodule sees "
               "their inputs, and keep the better one."});
    v(o.output_feedback,
      {.name = "output-feedback",
       .value = "on|off",
       .section = gptq,
       .help =
           "With --own-metric, for q, k and v: pass errors on from output to output of a head as "
           "well, in the metric in which the submodule sees the outputs."});
    v(o.token_weights,
      {.name = "token-weights",
       .value = "on|off",
       .section = gptq,
       .help = "Count errors on the residual stream relative to the stream, token by token, as the "
               "next norm sees them. Off: a few tokens with massive activations outweigh the "
               "others."});
    v(o.massive_weight,
      {.name = "massive-weight",
       .value = "W",
       .section = gptq,
       .help = "Weight of ||X_q - X_f||^2 / ||X_f||^2, which is the error of the few tokens with "
               "massive activations, beside errors relative to each token's size.",
       .min = 0,
       .max = 100});
    v(o.mse,
      {.name = "mse",
       .value = "on|off",
       .section = gptq,
       .help = "Search each group's scale for the smallest weight error instead of spanning the "
               "largest weight. Takes the place of --scale-search."});
    v(o.mse_candidates, {.name = "mse-candidates",
                         .value = "N",
                         .section = gptq,
                         .help = "Steps of the scale search (q_grid).",
                         .min = 1,
                         .max = 100000});
    v(o.mse_norm, {.name = "mse-norm",
                   .value = "P",
                   .section = gptq,
                   .help = "Power of the error in the scale search (q_norm).",
                   .min = 0.1,
                   .max = 20});
    v(o.mse_max_shrink, {.name = "mse-max-shrink",
                         .value = "FRACTION",
                         .section = gptq,
                         .help = "How far the search shrinks the range.",
                         .min = 0,
                         .max = 1});
    v(o.hessian_from,
      {.name = "hessian-from",
       .value = "STREAM",
       .section = gptq,
       .help = "Take layer inputs from the quantized or the original model. original is "
               "for plain GPTQ only (no --qep, no --lpcd)."});

    const char* correction = "Correction";
    v(o.qep_strength,
      {.name = "qep-strength",
       .value = "auto|FRACTION",
       .section = correction,
       .help = "Share of QEP's correction that is applied (perccorr); auto: the best on held-out "
               "sequences."});
    v(o.qep_exclude,
      {.name = "qep-exclude",
       .value = "L[,L...]",
       .section = correction,
       .help = "Layers that QEP leaves alone: q_proj, k_proj, v_proj, o_proj, gate_proj, "
               "up_proj, down_proj, or none."});
    v(o.lpcd_strength,
      {.name = "lpcd-strength",
       .value = "auto|FRACTION",
       .section = correction,
       .help =
           "Share of the relaxed solution that is applied (gate, and q and k with a norm: half, "
           "a quarter or nothing of it where the whole makes the objective worse); auto: the "
           "best on held-out sequences."});
    v(o.holdout,
      {.name = "holdout",
       .value = "FRACTION",
       .section = correction,
       .help = "Share of the calibration sequences that enter no solve: strengths and dampings are "
               "chosen on them, and a submodule that does not lower its error there is undone. 0: "
               "submodules are judged on what they were solved on, residual paths not at all, and "
               "of the default dampings the middle one is taken.",
       .min = 0,
       .max = 0.9});
    v(o.solver, {.name = "solver",
                 .value = "NAME",
                 .section = correction,
                 .help = "How submodules without a closed form are relaxed: cg (preconditioned "
                         "conjugate gradients) or gd (Adam, as the reference package)."});
    v(o.cg_iterations, {.name = "cg-iterations",
                        .value = "N",
                        .section = correction,
                        .help = "Iterations of cg.",
                        .min = 1,
                        .max = 1000});
    v(o.cg_sample, {.name = "cg-sample",
                    .value = "F",
                    .section = correction,
                    .help = "Share of the calibration sequences that cg measures curvature on (but "
                            "at least four tokens per input of the block); its gradient is made of "
                            "all.",
                    .min = 0.001,
                    .max = 1});
    v(o.gd_steps, {.name = "gd-steps",
                   .value = "N",
                   .section = correction,
                   .help = "Passes over the calibration sequences of gd.",
                   .min = 1,
                   .max = 100000});
    v(o.gd_batch_size, {.name = "gd-batch-size",
                        .value = "N",
                        .section = correction,
                        .help = "Sequences per step of gd.",
                        .min = 1,
                        .max = 1 << 20});
    v(o.gd_base_lr, {.name = "gd-base-lr",
                     .value = "RATE",
                     .section = correction,
                     .help = "Largest learning rate of gd (10 % warm-up, then cosine).",
                     .min = 0,
                     .max = 1});
    v(o.alt_steps,
      {.name = "alt-steps",
       .value = "N",
       .section = correction,
       .help = "Cycles over the layers of each submodule: q and k take turns; v, and gate "
               "and up, are relaxed again beside the o and down that were solved "
               "after them, which then are solved again. A cycle that is no better on "
               "held-out sequences is undone, and is the last.",
       .min = 1,
       .max = 100});

    const char* calib = "Calibration";
    v(o.calib,
      {.name = "calib",
       .value = "SOURCE",
       .section = calib,
       .help = "self (text sampled from the model), FILE.txt, FILE.jsonl, or FILE.safetensors "
               "with input_ids.",
       .effect = Effect::kResource});
    v(o.samples, {.name = "samples",
                  .value = "N",
                  .section = calib,
                  .help = "Calibration sequences.",
                  .min = 1,
                  .max = 1 << 24});
    v(o.seq_len, {.name = "seq-len",
                  .value = "N",
                  .section = calib,
                  .help = "Tokens per sequence.",
                  .min = 2,
                  .max = 1 << 20});
    v(o.seed, {.name = "seed",
               .value = "N",
               .section = calib,
               .help = "Seed of everything that is drawn at random.",
               .min = 0,
               .max = 0x1p53});
    v(o.text_key, {.name = "text-key",
                   .value = "NAME",
                   .section = calib,
                   .help = "Field of a JSONL line that holds the text."});
    v(o.self_temperature,
      {.name = "self-temperature",
       .value = "T",
       .section = calib,
       .help = "Temperature at which the model writes its own calibration text.",
       .min = 0,
       .max = 10});

    const char* run = "Run";
    v(o.threads, {.name = "threads",
                  .value = "N",
                  .section = run,
                  .help = "Worker threads; 0: all processors. Does not change the result.",
                  .effect = Effect::kResource,
                  .min = 0,
                  .max = 4096});
    v(o.matmul_precision,
      {.name = "matmul-precision",
       .value = "high|highest",
       .section = run,
       .help = "high: products over tokens may split f32 in two bf16 on CPUs with AMX, which is "
               "faster and errs by 2^-16 of a term; highest: f32 on all CPUs."});
    v(o.max_memory,
      {.name = "max-memory",
       .value = "SIZE",
       .section = run,
       .help = "Upper limit of the memory used, for example 12G. Activations go to disk "
               "when it is short. Default: 80 % of the machine's.",
       .effect = Effect::kResource});
    v(o.shard_size, {.name = "shard-size",
                     .value = "SIZE",
                     .section = run,
                     .help = "Largest output file.",
                     .effect = Effect::kResource});
    v(o.resume, {.name = "resume",
                 .value = "on|off",
                 .section = run,
                 .help = "Go on with the unfinished run in --out, to the same bytes.",
                 .effect = Effect::kResource});
    v(o.dry_run, {.name = "dry-run",
                  .value = "on|off",
                  .section = run,
                  .help = "Print plan, arithmetic, memory, disk and time; do nothing.",
                  .effect = Effect::kResource});
  }
};

/// Sets the fields that a preset changes; called before the options that the user gave.
void apply_preset(Preset preset, QuantizeOptions& options);

/// All numeric options as JSON text with sorted keys: what must not change between a run and its
/// resumption.
[[nodiscard]] std::string numeric_options_json(const QuantizeOptions& options);

}  // namespace lpcd
